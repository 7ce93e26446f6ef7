"""One application of this head as its budget sees it: what its hard samples ask for, and which of them may cross now."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace

from splitmesh.client.shares import Demand as Told
from splitmesh.routing.demand import MAX_BYTES, MAX_CLOUD_MS, Demand, Histogram
from splitmesh.routing.sharing import NONE_CROSSES, Share

FADING_S = 10.0
"""What is older counts little: half a minute, as for a report, would be late here."""
MAX_PENDING = 4096
"""Hard samples between two looks; of more the newest count."""
MEAN_WEIGHT = 0.1
"""Of a new size or time in the tail against the old one."""
LEFT_WEIGHT = 0.05
"""Of a sample's time for its answer against those before."""
NEARLY = 1 + 1e-6
GOLDEN = 0.6180339887498949
"""Multiples of it modulo 1 are spread as evenly as can be, in any stretch and in any regular pick of them (Weyl)."""
PROBE_S = 3.0
"""An application whose answers would be late is let through so seldom: only an answer shows that it would be in time again."""


class Application:
    """Asking costs under a microsecond; what was asked is counted at the next :meth:`look`. For one thread at a time."""

    def __init__(self, name: str, now_s: float) -> None:
        self.name = name
        self.shares: tuple[Share, ...] = ()
        """What it may send, by how much room is left, from none to all; empty: nothing limits."""
        self.deadline_ok = True
        """Answers of the tail are expected in time."""
        self.cloud_ms = 0.0
        """That a sample takes of the tails' time; 0 until one was answered."""
        self.largest_bytes = 0.0
        """Of a sample."""
        self.mean_bytes = 0.0
        self.left_s = 0.0
        """For which the tail's answer is of use, on average."""
        self.asked_s = -math.inf
        """When it asked last."""
        self._histogram = Histogram(now_s, fading_s=FADING_S)
        self._pending: deque[tuple[float, int, float]] = deque(maxlen=MAX_PENDING)
        self._draw = 0.5
        self.only_minimum = False
        """What crosses of it is its minimum and no more."""
        self._asked_per_s = 0.0
        self._probe_s = -math.inf

    def asks(self, worth: float, size_bytes: int, now_s: float, left_s: float) -> None:
        """A hard sample, whose answer is of use for ``left_s``."""
        self.left_s += LEFT_WEIGHT * (left_s - self.left_s) if self.asked_s > -math.inf else left_s
        self._pending.append((worth, size_bytes, now_s))
        self.asked_s = now_s
        if size_bytes > self.largest_bytes:
            self.largest_bytes = size_bytes

    def crosses(self, worth: float, room: float, now_s: float) -> bool:
        """Whether its share lets a sample through while so much room is left, 0..1.

        The less there is, the more a sample has to be worth, so that what is left goes to the best, however unevenly they come (a
        bid price that depends on the capacity left: Talluri and van Ryzin, "An analysis of bid-price controls", 1998).
        """
        if not self.shares:
            return True
        share = self.shares[min(len(self.shares) - 1, int(room * len(self.shares)))]
        self._draw = (self._draw + GOLDEN) % 1.0
        if share.crosses(worth, self._draw):
            return True
        if self.deadline_ok or now_s - self._probe_s < PROBE_S:
            return False
        self._probe_s = now_s
        return True

    def stays(self, worth: float) -> str:
        """Why a sample that does not cross does not, but for the limit; empty while nothing limits."""
        if not self.shares:
            return ""
        share = self.shares[len(self.shares) // 2]
        if share.least_worth >= NONE_CROSSES:
            return f"{self.name}: {share.why}"
        only = ", its minimum," if self.only_minimum else ""
        return (
            f"{self.name}: a sample worth {worth:.3g} stays, for one worth {share.least_worth:.3g} is the last to cross: "
            f"{share.samples_per_s:.4g}{only} of {self._asked_per_s:.4g} hard samples a second were allotted"
        )

    def got(self, demand: Demand, shares: tuple[Share, ...]) -> None:
        """Its shares of what it asked for, by the room that is left; empty: nothing limits."""
        self.shares, self._asked_per_s = shares, float(demand.rates.sum())
        least = demand.min_share * self._asked_per_s
        self.only_minimum = bool(shares) and 0 < shares[len(shares) // 2].samples_per_s <= least * NEARLY

    def answered(self, cloud_ms: float) -> None:
        """A tail computed for so long; what is no time is not believed."""
        if not 0 <= cloud_ms <= MAX_CLOUD_MS:
            return
        self.cloud_ms = self.cloud_ms + MEAN_WEIGHT * (cloud_ms - self.cloud_ms) if self.cloud_ms else cloud_ms

    def look(self) -> None:
        """Count what was asked since the last one."""
        while self._pending:
            worth, size_bytes, at_s = self._pending.popleft()
            self._histogram.saw(worth, min(size_bytes, MAX_BYTES), self.cloud_ms, at_s)
            self.mean_bytes += MEAN_WEIGHT * (size_bytes - self.mean_bytes) if self.mean_bytes else size_bytes

    def demand(self, now_s: float, *, weight: float = 1.0, min_share: float = 0.0) -> Demand:
        """What is asked for, as of the last look; at today's time in the tail, where the histogram knows a mean of older ones."""
        asked = self._histogram.demand(
            self.name, now_s, weight=weight, min_share=min_share, deadline_ok=self.deadline_ok
        )
        return replace(asked, cloud_ms=self.cloud_ms)


def told(demand: Demand) -> Told:
    """What the router is told of it."""
    return Told(demand.application, tuple(demand.rates.tolist()), demand.bytes, demand.cloud_ms, demand.deadline_ok)
