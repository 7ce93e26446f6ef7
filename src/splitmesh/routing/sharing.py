"""Several applications share an uplink and a cloud: whose hard samples cross, by what they are worth for what they take.

All applications face the same two prices, worth per byte and worth per millisecond of cloud time, and a sample crosses where
weight x worth exceeds what it takes at these prices. They are the prices at which what crosses just fits, so no other choice
gains more (``sharing_prices.py``). Before that, every application gets its minimum, the worthiest samples first; minima
that do not fit are scaled down together, among the applications that use what is scarce.

Exact for samples that come at the given rates and are worth the middle of their bin; whoever lets samples through keeps to
what was allotted with a bucket (``bucket.py``). Knows nothing of time: rates and limits are those of now, and so is the answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitmesh.errors import field_error
from splitmesh.routing.demand import Demand
from splitmesh.routing.sharing_prices import Items, best

Floats = NDArray[np.float64]
Prices = tuple[float, float]
"""Per byte and per millisecond."""

NONE_CROSSES = 2.0
"""A worth that no sample has."""
MAX_APPLICATIONS = 1000

_LEAST_LIMIT = 1e-9
"""Per second; less is nothing."""
_LEAST_SIZE = 1e-6
"""A sample that takes less, but takes something, takes this: a value per byte stays a number."""
_KEPT_FREE = 1e-12
"""Share of each limit that is not given away: sums in another order differ by less."""
_WHOLE = 1e-9
"""A bin's share that is so near to 0 or 1 is that."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be used per second; infinite: no limit, 0: nothing. MeshError FIELD_INVALID for a negative number or NaN."""

    bytes_per_s: float = math.inf
    cloud_ms_per_s: float = math.inf

    def __post_init__(self) -> None:
        for name in ("bytes_per_s", "cloud_ms_per_s"):
            if not getattr(self, name) >= 0:  # also refuses NaN
                raise field_error(name, f"is {getattr(self, name)}, expected a number of at least 0")


@dataclass(frozen=True, slots=True)
class Share:
    """What one application got."""

    application: str
    least_worth: float
    """Samples worth less stay; ``NONE_CROSSES`` when all do."""
    sure_worth: float
    """Samples worth at least this cross; ``NONE_CROSSES`` when there is no such worth."""
    share: float
    """Of the samples between the two that cross, 0..1."""
    samples_per_s: float
    bytes_per_s: float
    cloud_ms_per_s: float
    value_per_s: float
    """Expected: weight x worth of what crosses."""
    why: str
    """One sentence for a person: which limit binds, and what became of the minimum."""

    def crosses(self, worth: float, draw: float) -> bool:
        """Whether a hard sample crosses; NaN counts as a worth of 1. ``draw``: the caller's, even in 0..1, 1 excluded."""
        known = 1.0 if math.isnan(worth) else worth
        return known >= self.sure_worth or (known >= self.least_worth and draw < self.share)


@dataclass(frozen=True, slots=True)
class Allocation:
    """Everybody's share, in the order of the demands, and the prices they follow from."""

    price_per_byte: float
    """Worth that a byte costs; 0 while the uplink has room."""
    price_per_ms: float
    """Worth that a millisecond of cloud time costs; 0 while the cloud has room."""
    shares: tuple[Share, ...]

    def of(self, application: str) -> Share:
        """MeshError FIELD_INVALID for an application that made no demand."""
        found = next((share for share in self.shares if share.application == application), None)
        if found is None:
            raise field_error("application", f"{application!r} made no demand")
        return found


def allocate(demands: Sequence[Demand], limits: Limits) -> Allocation:
    """Shares of the largest value within the limits, minima first; never above a limit.

    Equal samples of different applications get equal shares, and the order of the demands does not matter.
    MeshError FIELD_INVALID for an application that demands twice, or more than ``MAX_APPLICATIONS`` of them.
    """
    if len(demands) > MAX_APPLICATIONS:
        raise field_error("demands", f"has {len(demands)} applications, expected at most {MAX_APPLICATIONS}")
    if len({demand.application for demand in demands}) < len(demands):
        raise field_error("demands", "names an application twice")
    if not demands:
        return Allocation(0.0, 0.0, ())
    table = _Table.of(demands, limits)
    least, kept = table.minima(demands)
    beyond = np.clip(np.cumsum(table.rates, axis=1) - least, 0.0, table.rates)
    found = best(table.items(beyond), *table.left(least))
    prices = (
        _price(found.price_per_byte, limits.bytes_per_s, table.bytes, demands),
        _price(found.price_per_ms, limits.cloud_ms_per_s, table.ms, demands),
    )
    crossing = found.shares.reshape(beyond.shape) * beyond
    samples = np.minimum(least + crossing.sum(axis=1, keepdims=True), table.rates.sum(axis=1, keepdims=True))
    return Allocation(*prices, _shares(demands, table, prices, samples, least, kept))


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """The demands as arrays, ``[applications, bins]`` from the worthiest bin down and ``[applications, 1]``."""

    limits: Limits
    rates: Floats
    values: Floats
    bytes: Floats
    ms: Floats
    shut: tuple[str, ...]
    """Why nothing of an application can cross; empty where something can."""

    @classmethod
    def of(cls, demands: Sequence[Demand], limits: Limits) -> _Table:
        most = max(len(demand.rates) for demand in demands)
        rates, values = np.zeros((len(demands), most)), np.zeros((len(demands), most))
        shut = tuple(_shut(demand, limits) for demand in demands)
        for row, demand in enumerate(demands):
            bins = len(demand.rates)
            values[row, :bins] = demand.weight * demand.worths[::-1]
            if not shut[row]:
                rates[row, :bins] = demand.rates[::-1]
        sizes = np.array([[demand.bytes, demand.cloud_ms] for demand in demands])
        sizes = np.where(sizes > 0, np.maximum(sizes, _LEAST_SIZE), 0.0)
        return cls(limits, rates, values, sizes[:, :1], sizes[:, 1:], shut)

    def items(self, rates: Floats) -> Items:
        """For other rates; bins that an application does not have are worth next to nothing and have no samples."""
        sizes = (np.broadcast_to(size, rates.shape).ravel() for size in (self.bytes, self.ms))
        return Items(rates.ravel(), self.values.ravel(), *sizes)

    def minima(self, demands: Sequence[Demand]) -> tuple[Floats, Floats]:
        """Samples a second that cross first, and which share of its minimum that is, each ``[applications, 1]``."""
        wanted = np.array([[demand.min_share] for demand in demands]) * self.rates.sum(axis=1, keepdims=True)
        kept = np.ones_like(wanted)
        for sizes, limit in self._uses():
            used = float((wanted * kept * sizes).sum())
            if used > limit:
                kept = np.where(sizes > 0, kept * (limit / used), kept)
        return wanted * kept, kept

    def left(self, least: Floats) -> tuple[float, float]:
        """Of bytes and milliseconds per second behind the minima."""
        by_bytes, by_ms = (max(0.0, limit - float((least * sizes).sum())) for sizes, limit in self._uses())
        return by_bytes, by_ms

    def _uses(self) -> tuple[tuple[Floats, float], tuple[Floats, float]]:
        free = 1 - _KEPT_FREE
        return (self.bytes, self.limits.bytes_per_s * free), (self.ms, self.limits.cloud_ms_per_s * free)


def _shut(demand: Demand, limits: Limits) -> str:
    if not demand.deadline_ok:
        return "nothing crosses: the tail's answers would come after the deadline"
    if demand.bytes > 0 and limits.bytes_per_s < _LEAST_LIMIT:
        return "nothing crosses: the uplink carries nothing"
    if demand.cloud_ms > 0 and limits.cloud_ms_per_s < _LEAST_LIMIT:
        return "nothing crosses: the cloud has no time"
    return ""


def _price(found: float, limit: float, sizes: Floats, demands: Sequence[Demand]) -> float:
    """What was found; of a limit that is nothing, more than anybody's sample is worth."""
    if limit >= _LEAST_LIMIT:
        return found
    return max([found, *(one.weight / float(size[0]) for one, size in zip(demands, sizes, strict=True) if size[0] > 0)])


def _shares(
    demands: Sequence[Demand], table: _Table, prices: Prices, samples: Floats, least: Floats, kept: Floats
) -> tuple[Share, ...]:
    parts = _parts(table.rates, samples)
    affordable = table.values > prices[0] * table.bytes + prices[1] * table.ms
    value = (parts * table.rates * table.values).sum(axis=1).tolist()
    last = np.where(parts > 0, np.arange(parts.shape[1]), -1).max(axis=1).tolist()
    rows = zip(demands, last, parts.tolist(), affordable.tolist(), strict=True)
    shares = []
    for row, (demand, deepest, part, pays) in enumerate(rows):
        crossing, first, whole = float(samples[row, 0]), float(least[row, 0]), float(kept[row, 0])
        why = table.shut[row]
        cut = (NONE_CROSSES, NONE_CROSSES, 0.0) if why else _cut(demand, deepest, part, pays)
        shares.append(
            Share(
                demand.application,
                *cut,
                samples_per_s=crossing,
                bytes_per_s=crossing * demand.bytes,
                cloud_ms_per_s=crossing * demand.cloud_ms,
                value_per_s=value[row],
                why=why or _why(demand, table.limits, prices, crossing, first, whole),
            )
        )
    return tuple(shares)


def _parts(rates: Floats, samples: Floats) -> Floats:
    """The share of each bin that crosses when so many samples of a row do, from the first bin on."""
    above = np.cumsum(rates, axis=1) - rates
    parts = np.divide(np.clip(samples - above, 0.0, rates), rates, out=np.zeros_like(rates), where=rates > 0)
    parts[parts < _WHOLE] = 0.0
    parts[parts > 1 - _WHOLE] = 1.0
    return parts


def _cut(demand: Demand, last: int, parts: list[float], affordable: list[bool]) -> tuple[float, float, float]:
    """Least worth, sure worth and the share between them, from shares of the bins, the worthiest first.

    ``last``: of the bins of which something crosses, -1: none. A bin in which no sample was seen crosses where it is above
    one that does, or its worth pays for it.
    """
    rates = demand.rates[::-1].tolist()
    share = parts[last] if last >= 0 else 1.0
    while share == 1 and last + 1 < len(rates) and rates[last + 1] == 0 and affordable[last + 1]:
        last += 1
    if last < 0:
        return NONE_CROSSES, NONE_CROSSES, 0.0
    edges = demand.edges[::-1].tolist()
    # the worthiest bin holds its upper edge, so no worth is surely above it
    return edges[last + 1], edges[last] if last > 0 else NONE_CROSSES, share


def _why(demand: Demand, limits: Limits, prices: Prices, samples: float, least: float, kept: float) -> str:
    total = float(demand.rates.sum())
    if total == 0:
        return "no hard samples now"
    if samples >= total * (1 - _WHOLE):
        return f"all of {total:.4g} hard samples a second cross"
    full = [
        text
        for price, text in (
            (prices[0] * demand.bytes, f"{limits.bytes_per_s:.6g} bytes/s of uplink"),
            (prices[1] * demand.cloud_ms, f"{limits.cloud_ms_per_s:.6g} ms/s of cloud time"),
        )
        if price > 0
    ]
    text = f"{samples:.4g} of {total:.4g} hard samples a second cross, for {' and '.join(full)} carry no more"
    only_minimum = least > 0 and samples <= least * (1 + _WHOLE)
    if only_minimum and kept < 1 - _WHOLE:
        return f"{text}; the minima together ask for more and are scaled down, this one to {kept:.1%} of {demand.min_share:.1%}"
    return f"{text}; only the minimum of {demand.min_share:.1%} crosses" if only_minimum else text
