"""How fast the way to the tail is, judged from the frames that cross it anyway. Pure: times come from the caller.

A message of ``s`` bytes takes ``rtt + s / goodput`` beside the tail's own time, and messages cross one after the other.
So each answer tells how long the link was busy with its frame: from when it was free for it until the frame was there.
A frame that is still out tells as much: a link that has been busy with it for long cannot be fast. The estimate
therefore falls while nothing comes back, long before a deadline passes. Frames of one size cannot tell the round trip
from the transfer; a small call now and then does (:meth:`LinkEstimator.pinged`).
"""

from __future__ import annotations

import math
from collections import deque

from splitmesh.model.alternatives import LinkState

WINDOW_S = 5.0
"""The round trip is the least seen in this time: jitter and waiting only add."""
WINDOW_SAMPLES = 256
CREDIBLE_MS = 2.0
"""A shorter crossing tells only that the link is at least so fast: timers and jitter are of this size."""
FALLING, RISING = 0.6, 0.3
"""Weight of a new rate against the old one, on a logarithmic scale: a link that got worse is believed sooner."""
TAIL_WEIGHT = 0.2
"""Of a new time in the tail against the old one."""
FRESH_MS = 1000.0
"""What is older counts for less: after so long without a frame a new one weighs at least 1 - 1/e."""


class LinkEstimator:
    """Of one head's uplink, over all its tails. All times in milliseconds on one monotonic clock.

    Args:
        bytes_per_ms: believed until something crossed.
        rtt_ms: likewise.
    """

    def __init__(self, bytes_per_ms: float, rtt_ms: float) -> None:
        self.planned = LinkState(bytes_per_ms, rtt_ms)
        """What was believed at first."""
        self._rate = bytes_per_ms
        self._queue_ms = 0.0
        self._service_ms = 0.0
        self._wait_ms = 0.0
        self._out: dict[int, tuple[int, float]] = {}  # bytes and time of sending; the oldest first
        self._numbers = 0
        self._free_ms = -math.inf  # when the frame that left last had crossed
        self._pings: deque[tuple[float, float]] = deque(maxlen=WINDOW_SAMPLES)
        self._networks: deque[tuple[float, float]] = deque(maxlen=WINDOW_SAMPLES)
        self.heard_ms = -math.inf
        """When a frame's answer came last."""

    def sent(self, size_bytes: int, now_ms: float) -> int:
        """A frame was handed to the link; returns the number to call it by."""
        self._numbers += 1
        self._out[self._numbers] = (max(1, size_bytes), now_ms)
        return self._numbers

    def gave_up(self, number: int, now_ms: float) -> None:
        """Nobody waits for the answer any more; what its absence told stays believed."""
        if number in self._out:
            self._rate = min(self._rate, self._limit(now_ms))
            del self._out[number]

    def forget(self, number: int) -> None:
        """The frame failed in a way that says nothing about the link's speed."""
        self._out.pop(number, None)

    def answered(self, number: int, now_ms: float, *, queue_ms: float, compute_ms: float) -> None:
        """The answer came; the tail says how long it waited and computed."""
        if number not in self._out:
            return
        size_bytes, sent_ms = self._out.pop(number)
        news = 1 - math.exp((self.heard_ms - now_ms) / FRESH_MS)
        self.heard_ms = now_ms
        self._queue_ms += max(TAIL_WEIGHT, news) * (queue_ms - self._queue_ms)
        self._service_ms += max(TAIL_WEIGHT, news) * (queue_ms + compute_ms - self._service_ms)
        network_ms = max(0.0, now_ms - sent_ms - queue_ms - compute_ms)
        _remember(self._networks, network_ms, now_ms)
        arrived_ms = sent_ms + max(0.0, network_ms - self._rtt_ms)
        begun_ms = max(sent_ms, self._free_ms)
        self._wait_ms += max(TAIL_WEIGHT, news) * (begun_ms - sent_ms - self._wait_ms)
        self._free_ms = max(self._free_ms, arrived_ms)
        if begun_ms <= arrived_ms:
            self._saw_crossing(size_bytes, arrived_ms - begun_ms, news)

    def pinged(self, round_trip_ms: float, now_ms: float) -> None:
        """A call without content took so long."""
        _remember(self._pings, round_trip_ms, now_ms)

    def state(self, now_ms: float) -> LinkState:
        """The link now, with what the frames still out tell of it."""
        return LinkState(min(self._rate, self._limit(now_ms)), self._rtt_ms, self._queue_ms, self._wait_ms)

    @property
    def _rtt_ms(self) -> float:
        pinged = min((trip for _, trip in self._pings), default=self.planned.rtt_ms)
        # A frame takes a round trip and its transfer: no round trip is longer than any frame took.
        return min(pinged, min((trip for _, trip in self._networks), default=math.inf))

    def _limit(self, now_ms: float) -> float:
        """No link that has not delivered the oldest frame yet is faster."""
        if not self._out:
            return math.inf
        size_bytes, sent_ms = next(iter(self._out.values()))
        busy_ms = now_ms - max(sent_ms, self._free_ms) - self._rtt_ms - 2 * self._service_ms
        return size_bytes / busy_ms if busy_ms > 2 * CREDIBLE_MS else math.inf

    def _saw_crossing(self, size_bytes: int, busy_ms: float, news: float) -> None:
        if busy_ms < CREDIBLE_MS:
            self._rate = max(self._rate, size_bytes / CREDIBLE_MS)
            return
        seen = size_bytes / busy_ms
        weight = max(news, FALLING if seen < self._rate else RISING)
        self._rate = math.exp((1 - weight) * math.log(self._rate) + weight * math.log(seen))


def _remember(window: deque[tuple[float, float]], value_ms: float, now_ms: float) -> None:
    window.append((now_ms, value_ms))
    while now_ms - window[0][0] > WINDOW_S * 1e3:
        window.popleft()
