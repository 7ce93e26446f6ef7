"""How fast the way to the tail is, judged from what crosses it anyway. Pure: times and the kernel's facts come from the caller.

A message of ``s`` bytes takes ``rtt + s / goodput`` beside the tail's own time, and messages cross one after the other.
So each answer tells how long the link was busy with its frame: from when it was free for it until the frame was there.
A frame that is still out tells as much: a link that has been busy with it for long cannot be fast. The estimate
therefore falls while nothing comes back, long before a deadline passes. A frame that crosses within the jitter tells
only that the link is at least so fast, and one no larger than its own headers never more than that: what was believed
stays believed, and :meth:`LinkEstimator.facts` says that nobody knows.

Frames of one size cannot tell the round trip from the transfer. A small frame can, and so can the kernel's own least
round trip (``kernel.tcp_info``), unless the connection ends at a relay or proxy: then data leaves for the proxy far
faster than the frames cross, and the kernel's figure is only a lower bound. Where neither tells, :attr:`quiet_ms` says
for how long; a call without content helps (:meth:`LinkEstimator.pinged`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from splitmesh.kernel.tcp_info import Peer, TcpFacts
from splitmesh.model.alternatives import LinkState

WINDOW_S = 5.0
"""The round trip is the least seen in this time: jitter and waiting only add."""
WINDOW_SAMPLES = 256
LOSS_WINDOW_S = 10.0
KNOWN_S = 60.0
"""A rate that nothing has told for so long is believed and no longer reported."""
SMALL_BYTES = 256
"""A payload up to this size crosses like its own headers: it tells a round trip and no rate, but that the link is not
slower than this."""
PACKET_BYTES = 1400
"""One up to this size moves what is believed, to be careful; alone it does not tell a slow link from a longer round trip."""
CREDIBLE_MS = 2.0
"""A shorter crossing tells only that the link is at least so fast: timers are of this size."""
JITTERS, MOST_JITTER_MS = 3.5, 4.0
"""So does one shorter than so many times the jitter, which counts up to a limit: a rate that swings is no jitter."""
SURELY = 2.0
"""A frame that took less than so many times what is credible is believed when the next one says so too."""
FIRST_JITTER_MS, JITTER_WEIGHT = 3.0, 1 / 16
"""Assumed at first, and weight of a new difference between two frames' transit (RFC 3550, 6.4.1)."""
FALLING, RISING = 0.6, 0.3
"""Weight of a new rate against the old one, on a logarithmic scale: a link that got worse is believed sooner."""
TAIL_WEIGHT = 0.2
"""Of a new time in the tail against the old one."""
FRESH_MS = 1000.0
"""What is older counts for less: after so long without a frame a new one weighs at least 1 - 1/e."""
PROXY = 2.0
"""A connection that takes data so many times faster than frames cross ends before the tail does."""
NEAR_MS = 1.0
"""So does one with a shorter round trip over which frames take longer: it does not leave the building, and they do."""


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """What is known of the link; 0 where nothing has told."""

    goodput_mbps: float
    rtt_ms: float
    """Without transfer and waiting."""
    loss: float
    """Share of TCP segments that were sent again in the last ``LOSS_WINDOW_S``."""


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
        self._silence = math.inf  # no faster than this, by the frames given up since the last answer
        self._told_ms = -math.inf  # when a frame told the rate itself and not only a bound
        self._queue_ms = 0.0
        self._service_ms = 0.0
        self._wait_ms = 0.0
        self._jitter_ms = FIRST_JITTER_MS
        self._late = False  # the frame before took longer than the jitter explains
        self._transit_ms: float | None = None  # of the frame before: without waiting and transfer
        self._out: dict[int, tuple[int, float]] = {}  # bytes and time of sending; the oldest first
        self._numbers = 0
        self._free_ms = -math.inf  # when the frame that left last had crossed
        self._small = _Least()
        self._networks = _Least()
        self._kernel = KernelFacts()
        self._now_ms = -math.inf  # when anything was heard last
        self.heard_ms = -math.inf
        """When a frame's answer came last."""

    def sent(self, size_bytes: int, now_ms: float) -> int:
        """A frame was handed to the link; returns the number to call it by."""
        self._numbers += 1
        self._out[self._numbers] = (max(1, size_bytes), now_ms)
        return self._numbers

    def gave_up(self, number: int, now_ms: float) -> None:
        """Nobody waits for the answer any more; what its absence told stays believed until another answer comes."""
        if number in self._out:
            self._silence = min(self._silence, self._limit(now_ms))
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
        self.heard_ms = self._now_ms = now_ms
        self._queue_ms += max(TAIL_WEIGHT, news) * (queue_ms - self._queue_ms)
        self._service_ms += max(TAIL_WEIGHT, news) * (queue_ms + compute_ms - self._service_ms)
        network_ms = max(0.0, now_ms - sent_ms - queue_ms - compute_ms)
        self._networks.add(network_ms, size_bytes, now_ms)
        if size_bytes <= SMALL_BYTES:
            self._small.add(network_ms, size_bytes, now_ms)
        arrived_ms = sent_ms + max(0.0, network_ms - self._rtt_ms)
        begun_ms = max(sent_ms, self._free_ms)
        self._wait_ms += max(TAIL_WEIGHT, news) * (begun_ms - sent_ms - self._wait_ms)
        self._free_ms = max(self._free_ms, arrived_ms)
        if size_bytes > SMALL_BYTES and begun_ms <= arrived_ms:
            self._rate = min(self._rate, self._silence)
        self._silence = math.inf
        if begun_ms <= arrived_ms:
            self._saw_crossing(size_bytes, arrived_ms - begun_ms, news)
        self._saw_jitter(size_bytes, network_ms, begun_ms - sent_ms)

    def pinged(self, round_trip_ms: float, now_ms: float) -> None:
        """A call without content took so long."""
        self._now_ms = now_ms
        self._small.add(round_trip_ms, 1, now_ms)

    def kernel_told(self, facts: Mapping[Peer, TcpFacts], now_ms: float) -> None:
        """What the kernel knows of the connections to the tails now."""
        self._now_ms = now_ms
        self._kernel.told(facts, now_ms)

    def state(self, now_ms: float) -> LinkState:
        """The link now, with what the frames still out tell of it."""
        rate = min(self._rate, self._silence, self._limit(now_ms))
        return LinkState(rate, self._rtt_ms, self._queue_ms, self._wait_ms)

    def facts(self) -> LinkFacts:
        """What was really seen, as of the last time that anything was heard."""
        rate = 0.0
        if self._now_ms - self._told_ms <= KNOWN_S * 1e3:
            rate = min(self._rate, self._silence, self._limit(self._now_ms))
        return LinkFacts(rate * 8e-3, self._seen_rtt_ms, self._kernel.loss)

    def quiet_ms(self, now_ms: float) -> float:
        """For how long nothing has told the round trip; 0 where the kernel's figure and the frames agree."""
        return 0.0 if self._kernel_agrees else now_ms - self._small.last_ms

    @property
    def _rtt_ms(self) -> float:
        if self._small or self._kernel_agrees:
            return self._seen_rtt_ms
        # A frame takes a round trip and its transfer: no round trip is longer than any frame took.
        return max(min(self.planned.rtt_ms, self._networks.least_ms), self._kernel.min_rtt_ms)

    @property
    def _seen_rtt_ms(self) -> float:
        """0 where nothing has told; never less than the kernel's, which is the way to the first proxy at least."""
        least_ms = 0.0
        if self._small:
            least_ms = min(self._small.least_ms, self._networks.least_ms)
        elif self._networks and not self._kernel_agrees:
            return 0.0
        return max(least_ms, self._kernel.min_rtt_ms)

    @property
    def _kernel_agrees(self) -> bool:
        """Frames crossed, and what they took beyond the kernel's round trip the connection's own rate explains."""
        if not self._kernel.min_rtt_ms or not self._networks:
            return False
        beyond_ms = self._networks.least_ms - self._kernel.min_rtt_ms
        if beyond_ms <= CREDIBLE_MS:
            return True
        return (
            self._kernel.min_rtt_ms >= NEAR_MS
            and 0 < self._kernel.bytes_per_ms <= PROXY * self._networks.least_bytes / beyond_ms
        )

    @property
    def _credible_ms(self) -> float:
        return max(CREDIBLE_MS, JITTERS * min(self._jitter_ms, MOST_JITTER_MS))

    def _limit(self, now_ms: float) -> float:
        """No link that has not delivered the oldest frame yet is faster."""
        if not self._out:
            return math.inf
        size_bytes, sent_ms = next(iter(self._out.values()))
        busy_ms = now_ms - max(sent_ms, self._free_ms) - self._rtt_ms - 2 * self._service_ms
        return max(size_bytes, SMALL_BYTES) / busy_ms if busy_ms > 2 * self._credible_ms else math.inf

    def _saw_crossing(self, size_bytes: int, busy_ms: float, news: float) -> None:
        if busy_ms < self._credible_ms:
            self._rate = max(self._rate, max(size_bytes, SMALL_BYTES) / self._credible_ms)
            self._late = False
            return
        if size_bytes <= SMALL_BYTES:
            return
        was_late, self._late = self._late, True
        if not was_late and busy_ms < SURELY * self._credible_ms:
            return
        if size_bytes > PACKET_BYTES:
            self._told_ms = self._now_ms
        seen = size_bytes / busy_ms
        weight = max(news, FALLING if seen < self._rate else RISING)
        self._rate = math.exp((1 - weight) * math.log(self._rate) + weight * math.log(seen))

    def _saw_jitter(self, size_bytes: int, network_ms: float, waited_ms: float) -> None:
        transit_ms = network_ms - waited_ms - size_bytes / self._rate
        if self._transit_ms is not None:
            self._jitter_ms += JITTER_WEIGHT * (abs(transit_ms - self._transit_ms) - self._jitter_ms)
        self._transit_ms = transit_ms


class KernelFacts:
    """Facts on the connections to all peers, put together and compared with those before."""

    def __init__(self) -> None:
        self._counts: dict[Peer, tuple[int, int]] = {}
        self._sent: deque[tuple[float, int, int]] = deque()
        self.min_rtt_ms = 0.0
        """The least over all peers; 0: not known."""
        self.bytes_per_ms = 0.0
        """The rate of the fastest one, at least; 0: not known."""

    def told(self, facts: Mapping[Peer, TcpFacts], now_ms: float) -> None:
        """A new look; a connection whose counts went back is a new one."""
        counts = {peer: (one.sent_segments, one.resent_segments) for peer, one in facts.items()}
        for peer, (sent, resent) in counts.items():
            sent_before, resent_before = self._counts.get(peer, (sent, resent))
            if sent < sent_before or resent < resent_before:
                sent_before = resent_before = 0
            self._sent.append((now_ms, sent - sent_before, resent - resent_before))
        while self._sent and now_ms - self._sent[0][0] > LOSS_WINDOW_S * 1e3:
            self._sent.popleft()
        self._counts = counts
        self.min_rtt_ms = min((one.min_rtt_ms for one in facts.values() if one.min_rtt_ms), default=0.0)
        self.bytes_per_ms = max((one.delivery_bytes_per_s / 1e3 for one in facts.values()), default=0.0)

    @property
    def loss(self) -> float:
        """Share of segments sent again; 0 where none was sent."""
        sent, resent = (sum(entry[place] for entry in self._sent) for place in (1, 2))
        return min(1.0, resent / sent) if sent else 0.0


class _Least:
    """The shortest time in a window, and the size that took it."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float, int]] = deque(maxlen=WINDOW_SAMPLES)
        self.last_ms = -math.inf

    def __bool__(self) -> bool:
        return bool(self._seen)

    def add(self, took_ms: float, size_bytes: int, now_ms: float) -> None:
        self.last_ms = now_ms
        self._seen.append((now_ms, took_ms, size_bytes))
        while now_ms - self._seen[0][0] > WINDOW_S * 1e3:
            self._seen.popleft()

    @property
    def least_ms(self) -> float:
        """Infinite where nothing was seen."""
        return min((took_ms for _, took_ms, _ in self._seen), default=math.inf)

    @property
    def least_bytes(self) -> int:
        return min(self._seen, key=lambda entry: entry[1])[2] if self._seen else 0
