"""When a late frame is sent to a second tail, and whether. Pure: what frames take is told by the caller.

Late is what nineteen of twenty frames are not, by a margin (Dean and Barroso, "The tail at scale", 2013). Each frame pays a
share of one hedge into a bucket, and each hedge takes one out (as Finagle's retry budget does): over any stretch the extra
frames are at most that share of all, and a handful. Where tails have queues a second copy only makes them longer, so there
is none.
"""

from __future__ import annotations

import math
from collections import deque

WINDOW = 128
"""Recent latencies that are compared with."""
FEWEST = 20
"""As many are needed before a frame is called late."""
QUANTILE = 0.95
FACTOR = 1.5
LEAST_MS = 10.0
"""No frame is late before this."""
BURST = 10.0
"""Hedges saved up at most."""
BUSY_MS = 5.0
"""A queue that is shorter is none."""
RENEWED = 8
"""Answers after which the quantile is computed anew."""


class Hedging:
    """Of one link's frames.

    Args:
        budget: second copies as a share of all frames, 0..1; 0: none.
    """

    def __init__(self, budget: float) -> None:
        self._budget = budget
        self._tokens = 0.0
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._since = 0
        self._late_ms = math.inf
        self._median_ms = 0.0

    def sent(self) -> None:
        """A frame was sent for the first time."""
        self._tokens = min(BURST, self._tokens + self._budget)

    def answered(self, took_ms: float) -> None:
        """A tail answered a frame after so long."""
        self._recent.append(took_ms)
        self._since += 1
        if len(self._recent) >= FEWEST and (self._since >= RENEWED or math.isinf(self._late_ms)):
            ordered = sorted(self._recent)
            self._median_ms = ordered[len(ordered) // 2]
            self._late_ms = max(LEAST_MS, FACTOR * ordered[math.ceil(QUANTILE * len(ordered)) - 1])
            self._since = 0

    @property
    def late_ms(self) -> float:
        """A frame that is out for longer is late; infinite while too little is known, and without a budget."""
        return self._late_ms if self._budget else math.inf

    def take(self, *, age_ms: float, left_ms: float, backlog_ms: float) -> bool:
        """Whether a late frame may be sent again now; takes it out of the budget.

        Args:
            age_ms: since it was sent first.
            left_ms: until its deadline.
            backlog_ms: how long it would wait at the other tail, by that tail's own word.
        """
        if self._tokens < 1 or left_ms <= self._median_ms or backlog_ms > max(BUSY_MS, age_ms / 4):
            return False
        self._tokens -= 1
        return True
