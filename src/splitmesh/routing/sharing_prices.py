"""Which samples cross two limits together, and the prices that say so: the linear program, exactly.

Of each item a share is chosen so that the value is largest and neither bytes nor milliseconds exceed their limit: a
continuous knapsack with two constraints. With one of them the answer is to take the largest value per byte first (Dantzig,
1957). With two, the second gets a price: for each price per millisecond the first limit is a knapsack again, and the least of
these optima over all prices is the optimum of both (Lagrange duality). It is sought by cutting planes (Kelley, 1960): each
answer is a line below that convex function; two of them, one using too many milliseconds and one not too many, meet at the
next price to try. Where nothing is above the meeting point, it is the minimum, and the mix of the two answers that uses just
the limit is optimal.

The dearer the milliseconds, the cheaper the bytes. So between two answers, what pays for the dearest of both crosses, what does
not pay for the cheapest of both stays, and neither is looked at again.

Knows items and numbers; what they stand for is in ``sharing.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TIE = 1e-12
"""Values per byte that differ by less, as a share, are the same; each of them gets an equal share of what is left."""
MAX_STEPS = 90
"""Prices tried; each third halves the bracket, so rounding is reached before."""
EXACT = 1e-13
"""The optimum is found when it is known to this share."""
DECIDED = 1e-9
"""An item is decided where its value is away from what it takes by more than this share."""


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """What could cross, each ``[n]``. All numbers are finite and at least 0; values are above 0."""

    rates: Floats
    """Samples a second."""
    values: Floats
    """Of one sample, as are the sizes."""
    bytes: Floats
    ms: Floats

    def only(self, which: NDArray[np.bool_]) -> Items:
        """Some of them."""
        return Items(self.rates[which], self.values[which], self.bytes[which], self.ms[which])


@dataclass(frozen=True, slots=True, eq=False)
class Optimum:
    """A share of each item, and the prices: what is worth more crosses, what is worth less does not."""

    shares: Floats
    """``[n]``, 0..1; an item without samples may have any."""
    price_per_byte: float
    price_per_ms: float


def best(items: Items, byte_limit: float, ms_limit: float) -> Optimum:
    """The largest value within both limits (per second, at least 0, infinite: none), to within rounding."""
    by_bytes, price_per_byte = _one_limit(items.values, items.rates, items.bytes, byte_limit)
    if by_bytes @ (items.rates * items.ms) <= ms_limit:
        return Optimum(by_bytes, price_per_byte, 0.0)
    by_ms, price_per_ms = _one_limit(items.values, items.rates, items.ms, ms_limit)
    if by_ms @ (items.rates * items.bytes) <= byte_limit:
        return Optimum(by_ms, 0.0, price_per_ms)
    return _two_limits(items, byte_limit, ms_limit, price_per_ms)


@dataclass(frozen=True, slots=True, eq=False)
class _Answer:
    """To one price per millisecond: best within the bytes. ``value + price x spare_ms`` bounds the optimum's value there."""

    shares: Floats
    price_per_ms: float
    price_per_byte: float
    value: float
    spare_ms: float
    """Left of the limit; negative: too many."""

    def at(self, price_per_ms: float) -> float:
        return self.value + price_per_ms * self.spare_ms


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    """What is not decided yet, beside what is."""

    items: Items
    """Not decided."""
    where: NDArray[np.intp]
    """Their places among all."""
    decided: Floats
    """Shares of all: 1 where an item crosses at any price that is still looked at."""
    value: float
    """Of what is decided."""
    byte_limit: float
    """Left by what is decided."""
    ms_limit: float

    def answer(self, price_per_ms: float) -> _Answer:
        items = self.items
        gains = items.values - price_per_ms * items.ms
        gains[gains <= 2 * TIE * items.values] = 0.0
        shares, price_per_byte = _one_limit(gains, items.rates, items.bytes, self.byte_limit)
        everything = self.decided.copy()
        everything[self.where] = shares
        crossing = shares * items.rates
        return _Answer(
            shares=everything,
            price_per_ms=price_per_ms,
            price_per_byte=price_per_byte,
            value=self.value + float(crossing @ items.values),
            spare_ms=self.ms_limit - float(crossing @ items.ms),
        )

    def narrowed(self, low: _Answer, high: _Answer) -> _Question:
        """To prices between those of two answers."""
        items = self.items
        most = high.price_per_ms * items.ms + low.price_per_byte * items.bytes
        least = low.price_per_ms * items.ms + high.price_per_byte * items.bytes
        crosses = items.values * (1 - DECIDED) > most
        left = ~crosses & (items.values * (1 + DECIDED) >= least)
        decided = self.decided.copy()
        decided[self.where[crosses]] = 1.0
        sure = items.only(crosses)
        return _Question(
            items=items.only(left),
            where=self.where[left],
            decided=decided,
            value=self.value + float(sure.rates @ sure.values),
            byte_limit=max(0.0, self.byte_limit - float(sure.rates @ sure.bytes)),
            ms_limit=self.ms_limit - float(sure.rates @ sure.ms),
        )


def _two_limits(items: Items, byte_limit: float, ms_limit: float, highest: float) -> Optimum:
    """Where each limit binds; at ``highest``, the price if there were no limit of bytes, the milliseconds suffice."""
    n = len(items.values)
    question = _Question(items, np.arange(n), np.zeros(n), 0.0, byte_limit, ms_limit)
    low, high = question.answer(0.0), question.answer(highest)
    if low.spare_ms >= 0 or high.spare_ms < 0:  # by rounding, at a limit that is just met
        met = low if low.spare_ms >= 0 else high
        return Optimum(met.shares, met.price_per_byte, met.price_per_ms)
    found = high
    for step in range(MAX_STEPS):
        question = question.narrowed(low, high)
        halve = step % 3 == 2
        price = (low.price_per_ms + high.price_per_ms) / 2 if halve else _meet(low, high)
        found = question.answer(price)
        bound = low.at(price)
        if not halve and found.at(price) <= bound + EXACT * (bound + low.value / 100):
            break
        if found.spare_ms < 0:
            low = found
        else:
            high = found
    part = high.spare_ms / (high.spare_ms - low.spare_ms)
    return Optimum(part * low.shares + (1 - part) * high.shares, found.price_per_byte, found.price_per_ms)


def _meet(low: _Answer, high: _Answer) -> float:
    """The price at which two answers are worth the same."""
    return (low.value - high.value) / (high.spare_ms - low.spare_ms)


def _one_limit(gains: Floats, rates: Floats, sizes: Floats, limit: float) -> tuple[Floats, float]:
    """Shares ``[n]`` of the largest gain within one limit, and its price: the gain per unit at the margin.

    What gains nothing stays, what takes nothing and gains something crosses.
    """
    wanted = gains > 0
    loads = np.where(wanted, rates * sizes, 0.0)
    if loads.sum() <= limit:
        return wanted.astype(np.float64), 0.0
    ratios = np.where(wanted, np.inf, 0.0)
    np.divide(gains, sizes, out=ratios, where=wanted & (sizes > 0))
    competing = np.flatnonzero(loads)
    order = competing[np.argsort(-ratios[competing])]
    filled = np.cumsum(loads[order])
    marginal = min(int(np.searchsorted(filled, limit, side="right")), len(order) - 1)
    price = float(ratios[order[marginal]])
    above = ratios > price * (1 + TIE)
    tied = ~above & (ratios >= price * (1 - TIE)) & (loads > 0)
    part = (limit - loads[above].sum()) / loads[tied].sum()
    return above + np.clip(part, 0.0, 1.0) * tied, price
