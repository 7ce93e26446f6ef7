"""What passed in the last second: keeps a rate in every second there is, also after a quiet time, when a bucket is full.

A bucket alone lets its burst pass beside the rate; this lets nothing pass beside it. For one thread at a time; time is the
caller's, as :class:`Elapsed` counts it.
"""

from __future__ import annotations

import math
from collections import deque

from splitmesh.routing.elapsed import Elapsed

LENGTH_S = 1.0


class Window:
    """Amounts and when they passed, as far back as they count."""

    def __init__(self, now_s: float) -> None:
        self._elapsed, self._now_s = Elapsed(now_s), 0.0
        self._passed: deque[tuple[float, float]] = deque()
        self._sum = 0.0

    def add(self, size: float, now_s: float) -> None:
        """So much passes now."""
        self._look(now_s)
        self._passed.append((self._now_s, size))
        self._sum += size

    def passed(self, now_s: float) -> float:
        """In the last second."""
        self._look(now_s)
        return self._sum

    def wait_s(self, size: float, most: float, now_s: float) -> float:
        """Seconds until ``size`` may pass so that no second holds more than ``most``, if nothing else does: 0 now.

        What alone is more than ``most`` waits until nothing else is in its second.
        """
        self._look(now_s)
        if math.isinf(most):
            return 0.0
        left, wait_s, room = self._sum, 0.0, max(0.0, most - size)
        for at_s, passed in self._passed:
            if left <= room:
                break
            left -= passed
            wait_s = at_s + LENGTH_S - self._now_s
        return wait_s

    def _look(self, now_s: float) -> None:
        self._now_s += max(0.0, self._elapsed.since_last(now_s))
        while self._passed and self._passed[0][0] <= self._now_s - LENGTH_S:
            self._sum -= self._passed.popleft()[1]
        if not self._passed:
            self._sum = 0.0  # not what rounding left
