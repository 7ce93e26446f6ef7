"""How crowded the way to the tails is over all of a head's applications, put together from their links.

Every link listens to its own application's frames; the uplink and, as a rule, the tails are the same. Where others' frames
are in between a link seems slower and never faster, so the best figure counts; of waiting the worst.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edge.head.active import ActiveModel
from splitmesh.client.routing import UplinkLoad
from splitmesh.routing.meter import Meter

SILENT_MS = 250.0
"""What is out and should have crossed by so much sooner is waiting: answers may be on their way, or at the tail."""


SMOOTH_S = 0.5
"""Over which frames out and frames back are averaged."""
WINDOW_S = 10.0
"""In which the least time counts."""
FEWEST_PER_S = 0.1
"""Frames back; of fewer there is no average."""


@dataclass(frozen=True, slots=True)
class Crowding:
    """Now."""

    load: UplinkLoad
    """As the router is told it."""
    goodput: float
    """Bytes per second; 0: not known."""
    waits_ms: float
    """How long a frame waits for those before it to cross."""

    in_flight: int
    """Frames without an answer."""
    tail_ms: float
    """How long a frame waits at the tail."""


FREE = Crowding(UplinkLoad(backlog_ms=0.0, goodput_mbps=0.0, rtt_ms=0.0, loss=0.0, tails=0), 0.0, 0.0, 0, 0.0)
"""Nothing is known."""


def crowding(loaded: Iterable[ActiveModel], sizes: Mapping[str, float]) -> Crowding:
    """Of the links of the applications in ``sizes``, which gives the bytes of a frame of each; of all where none of them is."""
    links = [(active.info.model, active.link) for active in loaded if active.link is not None]
    lively = [entry for entry in links if entry[0] in sizes] or links
    loads, waits, rates, queues = [], [0.0], [0.0], [0.0]
    for model, link in lively:
        load, way = link.load(), link.way()
        loads.append(load)
        if way is None or load.goodput_mbps <= 0 or way.bytes_per_ms <= 0:
            continue
        rates.append(way.bytes_per_ms * 1e3)
        queues.append(way.queue_ms)
        out_ms = link.in_flight * sizes.get(model, 0.0) / way.bytes_per_ms
        waits.append(max(way.wait_ms, out_ms - SILENT_MS))
    if not loads:
        return FREE
    goodput = max(rates)
    told = UplinkLoad(
        backlog_ms=max(load.backlog_ms for load in loads),
        goodput_mbps=goodput * 8e-6,
        rtt_ms=min((load.rtt_ms for load in loads if load.rtt_ms > 0), default=0.0),
        loss=max(load.loss for load in loads),
        tails=max(load.tails for load in loads),
    )
    return Crowding(told, goodput, max(waits), sum(link.in_flight for _, link in lively), max(queues))


class Sojourn:
    """How long frames are out, by how many of them are and how many come back (Little's law), beyond the least in a while.

    A second witness beside what the links say of waiting: answers that overtake each other look like a queue to a link, and
    not here. For one thread at a time.
    """

    def __init__(self, now_s: float) -> None:
        self._out, self._back = Meter(now_s, fading_s=SMOOTH_S), Meter(now_s, fading_s=SMOOTH_S)
        self._seen_s = now_s
        self._least: deque[tuple[float, float]] = deque()

    def beyond_ms(self, in_flight: int, answered: int, tail_ms: float, now_s: float) -> float:
        """Milliseconds by which frames are out for longer than at best lately; infinite when none comes back.

        Args:
            in_flight: without an answer now.
            answered: since the last call.
            tail_ms: of that time, at the tail.
            now_s: on the caller's clock.
        """
        self._out.add(in_flight * max(0.0, now_s - self._seen_s), now_s)
        self._back.add(answered, now_s)
        self._seen_s = now_s
        out, back = self._out.per_s(now_s), self._back.per_s(now_s)
        if back < FEWEST_PER_S:
            return math.inf if in_flight else 0.0
        took_ms = max(0.0, out / back * 1e3 - tail_ms)
        while self._least and self._least[-1][1] >= took_ms:
            self._least.pop()
        self._least.append((now_s, took_ms))
        while now_s - self._least[0][0] > WINDOW_S:
            self._least.popleft()
        return took_ms - self._least[0][1]
