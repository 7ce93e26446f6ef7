"""A link and a tail on a clock that the test turns, with the head's own estimate of the way: for tests of the budget.

Frames of all applications cross one after the other, wait for the one tail in the order they came, and are answered.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from edge.head.ways import estimator_for
from splitmesh.api.routing.v1 import routing_pb2
from splitmesh.client.balance import Standing
from splitmesh.client.link_estimate import LinkEstimator
from splitmesh.model.alternatives import LinkState


class Clock:
    """Seconds, turned by hand."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Uplink:
    """What all applications share."""

    clock: Clock
    bytes_per_s: float
    rtt_ms: float = 10.0
    slow: float = 1.0
    """Times the time that the tail takes."""
    jitter_ms: Callable[[], float] = lambda: 0.0
    """Added to an answer's way, whatever crossed."""
    cut: bool = False
    """Nothing gets through: whoever sends gives up after a second."""
    crossed: list[tuple[float, str, int]] = field(default_factory=list)
    """When, whose and how many bytes were handed to the link."""
    _link_free_s: float = 0.0
    _tail_free_s: float = 0.0
    _at_tail: deque[tuple[float, float]] = field(default_factory=deque)
    _answers: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: Any = field(default_factory=itertools.count)

    def send(self, size_bytes: int, tail_ms: float) -> tuple[float, float, float]:
        """When the answer will be there, how long the tail queues and computes."""
        there = max(self.clock.now_s, self._link_free_s) + size_bytes / self.bytes_per_s
        self._link_free_s = there
        arrives = there + self.rtt_ms / 2e3
        begins = max(arrives, self._tail_free_s)
        compute_s = tail_ms * self.slow / 1e3
        self._tail_free_s = begins + compute_s
        self._at_tail.append((arrives, self._tail_free_s))
        return (
            begins + compute_s + (self.rtt_ms / 2 + self.jitter_ms()) / 1e3,
            (begins - arrives) * 1e3,
            compute_s * 1e3,
        )

    def at(self, when_s: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._answers, (when_s, next(self._numbers), do))

    def turn(self, until_s: float) -> None:
        """Everything that comes until then."""
        while self._answers and self._answers[0][0] <= until_s:
            when_s, _, do = heapq.heappop(self._answers)
            self.clock.now_s = max(self.clock.now_s, when_s)
            do()
        self.clock.now_s = until_s

    def queue_ms(self) -> float:
        """Until the link has carried all that it was handed."""
        return max(0.0, self._link_free_s - self.clock.now_s) * 1e3

    def tail_backlog_ms(self) -> float:
        """Of the frames that have arrived."""
        now_s, free_s = self.clock.now_s, 0.0
        while self._at_tail and self._at_tail[0][1] <= now_s:
            self._at_tail.popleft()
        for arrived_s, done_s in self._at_tail:
            free_s = done_s if arrived_s <= now_s else free_s
        return max(0.0, free_s - now_s) * 1e3


class FakeLink:
    """One application's link: what ``SegmentLink`` says of itself."""

    def __init__(self, uplink: Uplink, estimator: LinkEstimator | None = None) -> None:
        self._uplink, self._clock = uplink, uplink.clock
        self.estimator = estimator or estimator_for(None)
        self.standing = Standing()
        self.in_flight = 0
        self.answered = 0

    def send(self, size_bytes: int, tail_ms: float, answered: Callable[[float], None]) -> None:
        sent_ms = self._clock() * 1e3
        number = self.estimator.sent(size_bytes, sent_ms)
        self.standing.sent(number, sent_ms)
        self.in_flight += 1
        if self._uplink.cut:
            self._uplink.at(self._clock() + 1, lambda: self._gives_up(number))
            return
        when_s, queue_ms, compute_ms = self._uplink.send(size_bytes, tail_ms)

        def comes() -> None:
            now_ms = self._clock() * 1e3
            self.in_flight -= 1
            self.answered += 1
            self.estimator.answered(number, now_ms, queue_ms=queue_ms, compute_ms=compute_ms)
            self.standing.answered(number, now_ms, self._uplink.tail_backlog_ms())
            answered(compute_ms)

        self._uplink.at(when_s, comes)

    def _gives_up(self, number: int) -> None:
        now_ms = self._clock() * 1e3
        self.in_flight -= 1
        self.estimator.gave_up(number, now_ms)
        self.standing.expired(number, now_ms)

    def way(self) -> LinkState:
        return self.estimator.state(self._clock() * 1e3)

    def load(self) -> routing_pb2.UplinkLoad:
        facts, now_ms = self.estimator.facts(), self._clock() * 1e3
        return routing_pb2.UplinkLoad(
            backlog_ms=self.standing.backlog_ms(now_ms),
            goodput_mbps=facts.goodput_mbps,
            rtt_ms=facts.rtt_ms,
            loss=facts.loss,
            tails=1,
        )


def active(model: str, link: FakeLink | None) -> Any:
    """What the budget reads of an ``ActiveModel``."""
    return SimpleNamespace(info=SimpleNamespace(model=model), link=link)
