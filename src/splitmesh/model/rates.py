"""At which rate a cut crosses: the best one that the link carries in the time allowed, frame after frame.

Pure: what the link is like and the time come from the caller. A rate is a size, best first (``segments.Coding``); the
graphs are the same at every rate, so a change costs nothing and may come between any two frames. A lower rate costs
answers, so what decides is how long frames were seen to take, not what a load is expected to lead to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from splitmesh.model.alternatives import LinkState

ROOM = 0.7
"""Of the time allowed, that a better rate must keep to be gone back to: a link at the limit would swing."""
PROBE_ROOM = 0.25
"""Of the time allowed: where frames take less, the next better rate is tried although the estimate says no. Small frames
can only tell that a link is at least so fast."""
RISE_S, LONGEST_RISE_S = 2.0, 60.0
"""There must have been room for so long; doubled each time that a better rate had to be left soon."""
HELD_S = 10.0
"""A better rate that is kept for so long was right."""


class RateChooser:
    """Of one cut.

    Args:
        sizes_bytes: mean payload of every rate, best first.
        allowed_ms: time on the link for one frame, waiting for the frames before it included, the round trip not.
    """

    def __init__(self, sizes_bytes: Sequence[float], allowed_ms: float) -> None:
        self._sizes = tuple(max(1.0, size_bytes) for size_bytes in sizes_bytes)
        self._allowed_ms = allowed_ms
        self._room_since_s = math.inf
        self._rose_s = -math.inf
        self._pause_s = RISE_S
        self.rate = 0
        """The one to use now."""

    def choose(self, link: LinkState, now_s: float) -> int:
        """The rate from now on. Goes down at once, and up when there has been room for a while.

        Args:
            link: as estimated from frames at the rate used until now.
            now_s: on any clock that does not go back.
        """
        fitting = self._best(link, self._allowed_ms)
        if fitting > self.rate:
            if now_s - self._rose_s < HELD_S:
                self._pause_s = min(2 * self._pause_s, LONGEST_RISE_S)
            self.rate, self._room_since_s, self._rose_s = fitting, math.inf, -math.inf
            return self.rate
        if now_s - self._rose_s >= HELD_S and self._rose_s > -math.inf:
            self._pause_s, self._rose_s = RISE_S, -math.inf
        better = self._best(link, ROOM * self._allowed_ms)
        if better >= self.rate and self._takes_ms(self.rate, link) <= PROBE_ROOM * self._allowed_ms:
            better = self.rate - 1
        if not 0 <= better < self.rate:
            self._room_since_s = math.inf
            return self.rate
        self._room_since_s = min(self._room_since_s, now_s)
        if now_s - self._room_since_s >= self._pause_s:
            self.rate, self._rose_s, self._room_since_s = better, now_s, math.inf
        return self.rate

    def _best(self, link: LinkState, allowed_ms: float) -> int:
        """The first that fits; the last where none does."""
        fitting = (rate for rate in range(len(self._sizes)) if self._takes_ms(rate, link) <= allowed_ms)
        return next(fitting, len(self._sizes) - 1)

    def _takes_ms(self, rate: int, link: LinkState) -> float:
        """Crossing and waiting; the wait is taken to grow and shrink as the frames do."""
        if link.bytes_per_ms <= 0:
            return math.inf
        size_bytes = self._sizes[rate]
        return size_bytes / link.bytes_per_ms + link.wait_ms * size_bytes / self._sizes[self.rate]
