"""What a batch of each size takes on this node, learned from the batches themselves, and which size to compute next.

Knows sizes and seconds; nothing of frames, queues or models. Not for several threads.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from itertools import accumulate, count

WINDOW = 16
"""Batches of one size that a typical time is the median of, so that one stall of the host does not count."""
NEARLY = 1.1
"""A smaller batch is as good as a larger one when it costs at most so many times as much per frame: its frames are done
sooner, and times differ by as much from run to run."""
TRY_LARGEST = 32
"""Every so many batches the largest is computed whatever was measured: a size never used would never be measured again."""


class BatchTimes:
    """Seconds from choosing a batch to handing out its results, by its size."""

    def __init__(self) -> None:
        self._recent: dict[int, deque[float]] = {}
        self._typical: dict[int, float] = {}
        self._least: dict[int, float] = {}
        self._sizes: list[int] = []
        self._turns = count(1)

    def record(self, size: int, seconds: float) -> None:
        """One batch was computed."""
        recent = self._recent.get(size)
        if recent is None:
            recent = self._recent[size] = deque(maxlen=WINDOW)
            self._sizes = sorted(self._recent)
        recent.append(seconds)
        self._typical[size] = statistics.median(recent)
        self._least[size] = min(recent)

    def typical_s(self, size: int) -> float:
        """What a batch takes, seconds; 0 before the first batch.

        Between measured sizes on a line. Above them as the largest measured, which is too little: so a larger batch is tried
        as soon as there are frames for it, and then it is measured.
        """
        if not self._sizes:
            return 0.0
        place = bisect_left(self._sizes, size)
        if place == len(self._sizes):
            return self._typical[self._sizes[-1]]
        upper = self._sizes[place]
        if upper == size or not place:
            return self._typical[upper]
        lower = self._sizes[place - 1]
        share = (size - lower) / (upper - lower)
        return self._typical[lower] + share * (self._typical[upper] - self._typical[lower])

    def least_s(self) -> float:
        """What a lone frame takes at the very least: the best of the recent ones; 0 where none was seen."""
        return self._least.get(1, 0.0)

    def per_frame_s(self, waiting: int) -> float:
        """A frame's share of the best batch that can be made of so many."""
        return min((self.typical_s(size) / size for size in self._candidates(waiting)), default=0.0)

    def saved_s(self, size: int) -> float | None:
        """What one more frame in a batch of ``size`` saves against a batch of its own; None before the first batch."""
        if not self._sizes:
            return None
        return max(0.0, self.typical_s(size) + self.typical_s(1) - self.typical_s(size + 1))

    def choose(self, left_s: Sequence[float]) -> int:
        """How many of the frames at the front to compute together, at least 1.

        Args:
            left_s: seconds to each frame's deadline, in the order in which they are to be computed.

        Of the sizes that typically keep the earliest deadline among their frames the one with the least time per frame,
        and of those that are nearly as good the smallest.
        """
        earliest = list(accumulate(left_s, min))
        if not self._sizes:
            return len(earliest)
        most = next((size for size in range(len(earliest), 1, -1) if self.typical_s(size) <= earliest[size - 1]), 1)
        kept = [size for size in self._candidates(most) if size == 1 or self.typical_s(size) <= earliest[size - 1]]
        if next(self._turns) % TRY_LARGEST == 0:
            return kept[-1]
        cost = {size: self.typical_s(size) / size for size in kept}
        enough = NEARLY * min(cost.values())
        return next(size for size in kept if cost[size] <= enough)

    def _candidates(self, waiting: int) -> list[int]:
        """Sizes worth a look, ascending: between measured ones times are on a line, so none is better than both ends."""
        return sorted({1, waiting, *(size for size in self._sizes if size < waiting)}) if waiting > 0 else []
