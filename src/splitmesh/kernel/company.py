"""Whether an idle node should wait a moment for more frames before it computes those it has.

While compute is busy the queue forms by itself and nobody waits for company. What is left is a thread that is free and a
frame that may not stay alone: cameras that are triggered together, clients that answer an answer with the next frame. The
rule waits only where that is likely, and never longer than company would save, which bounds the loss by what the best
choice in hindsight costs (the ski-rental argument: Karlin et al., *Competitive snoopy caching*, 1988). A lone frame of a
lone client goes at once. Clipper (NSDI 2017) and Triton wait a fixed delay instead.

Knows counts and seconds; nothing of frames.
"""

from __future__ import annotations

from itertools import count

from splitmesh.kernel.batch_times import BatchTimes

FADING = 0.1
"""How fast the usual number of frames is forgotten, a share per arrival."""
PAYS = 0.4
"""Waiting goes on while at least so many waits of late brought company."""
LEARNING = 0.25
"""Weight of the last wait in that share."""
PROBE = 32
"""Where waiting did not pay, one chance in so many is used all the same: cameras change."""


class Company:
    """The rule for one segment.

    Args:
        times: of the segment's batches.
        most: largest batch.
        max_delay_s: the longest wait of a frame, seconds.
    """

    def __init__(self, times: BatchTimes, most: int, max_delay_s: float) -> None:
        self._times = times
        self._most = most
        self._max_delay_s = max_delay_s
        self._usual = 1.0
        self._last_arrival = 0.0
        self._paid = 1.0
        self._waited_with: int | None = None
        self._chances = count(1)
        self._probing = False

    def arrived(self, present: int, now: float) -> None:
        """A frame came; ``present`` are all of the segment that have no answer yet, itself included."""
        self._last_arrival = now
        if self._waited_with is None:
            self._probing = next(self._chances) % PROBE == 0
        self._usual = max(present, self._usual + FADING * (present - self._usual))

    def until(self, now: float, *, waiting: int, arriving: int, oldest: float, earliest: float) -> float:
        """When to compute at the latest if nobody else comes; in the past: now.

        Args:
            now: on the clock of all other times here.
            waiting: frames that could be computed, at least one.
            arriving: frames that are here and being unpacked.
            oldest: when the first of those that wait came.
            earliest: the nearest deadline among them.
        """
        if waiting >= self._most or not self._max_delay_s:
            return oldest
        likely = self._usual >= waiting + 0.5 and (self._paid >= PAYS or self._probing)
        if not (arriving or likely):
            return oldest
        saved_s = self._times.saved_s(waiting)
        patience_s = self._max_delay_s if saved_s is None else saved_s
        until = min(
            oldest + self._max_delay_s,
            self._last_arrival + patience_s,
            earliest - self._times.typical_s(waiting + 1),
        )
        if until > now and self._waited_with is None:
            self._waited_with = waiting
        return until

    def taken(self, waiting: int) -> None:
        """A batch is being made of so many frames that waited: the wait, if there was one, is over."""
        if self._waited_with is None:
            return
        brought = waiting > self._waited_with
        self._paid += LEARNING * (brought - self._paid)
        if not brought:
            self._usual = float(waiting)
        self._waited_with = None
