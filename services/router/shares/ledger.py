"""Who may be using how much of a budget, and how it changes hands without ever being in two of them.

What was granted to a head stays in force there until the next grant has reached it, and nobody can say when exactly: a grant
counts until its successor was handed to the stream and a settling time has passed. So it goes in two phases: the losers are told
first, and the winners get only what has been given back. A head that left counts until it has noticed too.

Knows amounts and times on the caller's clock; not why somebody should get more (``share_division.py``).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from splitmesh.routing.sharing import Limits

Floats = NDArray[np.float64]
Key = TypeVar("Key")

KEPT_FREE = 1e-9
"""Share of each limit that is not given away: sums in another order differ by less."""


@dataclass(frozen=True, slots=True)
class Amount:
    """Per second."""

    bytes_per_s: float = 0.0
    cloud_ms_per_s: float = 0.0

    def near(self, other: Amount, tolerance: float) -> bool:
        """Whether both differ by at most such a share of this one, each."""
        return all(
            mine == theirs or (math.isfinite(mine) and abs(theirs - mine) <= tolerance * mine)
            for mine, theirs in ((self.bytes_per_s, other.bytes_per_s), (self.cloud_ms_per_s, other.cloud_ms_per_s))
        )


@dataclass(slots=True)
class _Said:
    amount: Amount
    sending: bool = False
    taken_s: float | None = None


class Lease:
    """What was granted to one head: what it was told last, and what may still be in force there.

    A grant is told, then picked up for sending, then taken by the stream, by one sender after the other.

    Args:
        settle_s: after a grant was taken by the stream, until it is surely in force.
    """

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self._said: deque[_Said] = deque()
        self.ended_s = math.inf
        """When nothing of it is in force any more."""

    @property
    def told(self) -> Amount | None:
        """The newest grant, taken or not; None before the first."""
        return self._said[-1].amount if self._said else None

    def tell(self, amount: Amount) -> None:
        """A new grant; one that was not picked up yet is replaced and was never in force."""
        self._withdraw()
        self._said.append(_Said(amount))

    def send(self) -> None:
        """The newest grant is on its way."""
        if self._said:
            self._said[-1].sending = True

    def taken(self, now_s: float) -> None:
        """The stream took what was on its way."""
        for one in self._said:
            if one.sending and one.taken_s is None:
                one.taken_s = now_s

    def end(self, until_s: float) -> None:
        """The head is gone; what may be in force there is, until then."""
        self.ended_s = until_s
        self._withdraw()

    def go_on(self) -> None:
        """The head is back, and what may be in force there still is."""
        self.ended_s = math.inf

    def held(self, now_s: float) -> Amount:
        """At most so much is in force, or on its way."""
        if now_s >= self.ended_s:
            return Amount()
        self._settle(now_s)
        return Amount(
            max((one.amount.bytes_per_s for one in self._said), default=0.0),
            max((one.amount.cloud_ms_per_s for one in self._said), default=0.0),
        )

    def settles_s(self) -> float:
        """When less may be in force than now, unless it is told something else: infinite when that is not known."""
        taken = [one.taken_s for one in list(self._said)[1:] if one.taken_s is not None]
        return min([self.ended_s, *(at + self._settle_s for at in taken)])

    def _withdraw(self) -> None:
        if self._said and not self._said[-1].sending:
            self._said.pop()

    def _settle(self, now_s: float) -> None:
        settled = [one.taken_s is not None and now_s >= one.taken_s + self._settle_s for one in self._said]
        for _ in range(max((index for index, done in enumerate(settled) if done), default=0)):
            self._said.popleft()


def next_amounts(
    wanted: Mapping[Key, Amount], leases: Mapping[Key, Lease], others: Sequence[Lease], limits: Limits, now_s: float
) -> dict[Key, Amount]:
    """What each may be told now: what it should have, or of a rise its part of what nobody may be using.

    Args:
        wanted: together within the limits.
        leases: of those that are wanted for.
        others: leases of heads that left.
        limits: what all together may use; a rise never takes the sum above it, also while it is above for another reason.
        now_s: on the leases' clock.
    """
    held = [lease.held(now_s) for lease in leases.values()]
    gone = [lease.held(now_s) for lease in others]
    found = [
        _rises(
            np.array([getattr(wanted[key], name) for key in leases]),
            np.array([getattr(one, name) for one in held]),
            sum(getattr(one, name) for one in gone),
            getattr(limits, name),
        )
        for name in ("bytes_per_s", "cloud_ms_per_s")
    ]
    return {key: Amount(float(found[0][row]), float(found[1][row])) for row, key in enumerate(leases)}


def _rises(wanted: Floats, held: Floats, gone: float, limit: float) -> Floats:
    """``[heads]``; up to what is held a rise costs nothing."""
    if math.isinf(limit):
        return wanted
    free = max(0.0, limit * (1 - KEPT_FREE) - float(held.sum()) - gone)
    kept = np.minimum(wanted, held)
    rises = wanted - kept
    asked = float(rises.sum())
    return kept + rises * (min(1.0, free / asked) if asked > 0 else 0.0)
