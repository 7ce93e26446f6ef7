"""A simulated site: three applications, one uplink, one tail that is slowed in the middle; what crossed, and what came of it.

Everything is seeded. Samples are the hard ones only: what the exits answer themselves takes nothing of the uplink.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

UPLINK_BYTES_PER_S = 625_000.0
"""5 Mbit/s, which is what the link carries and what is stated."""
RTT_S = 0.03
DEADLINE_S = 1.0
SLOWED = 3.0
"""Times as long takes everything at the tail in the middle third."""
CLOUD_MS_PER_S = 1000.0
"""One tail, one sample at a time."""


@dataclass(frozen=True, slots=True)
class Application:
    """Hard samples of one model."""

    name: str
    per_s: float
    bytes: float
    """Mean; sizes are spread by a quarter, normally."""
    cloud_ms: float
    worth: tuple[float, float]
    """Of a Beta distribution."""
    weight: float
    min_share: float
    rush: float = 1.0
    """Times as many come between a sixth and a third of the run."""


APPLICATIONS = (
    Application("solder-joints", 40.0, 12_000.0, 12.0, (2.0, 3.0), weight=5.0, min_share=0.0),
    Application("helmets", 25.0, 20_000.0, 20.0, (1.0, 3.0), weight=2.0, min_share=0.1),
    Application("faces", 60.0, 6_000.0, 8.0, (1.5, 4.0), weight=1.0, min_share=0.1, rush=3.0),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One hard sample."""

    at_s: float
    application: Application
    worth: float
    size_bytes: int

    @property
    def value(self) -> float:
        """Of an answer of the tail in time."""
        return self.application.weight * self.worth


def slowdown(at_s: float, length_s: float) -> float:
    """Of the tail."""
    return SLOWED if length_s / 3 <= at_s < 2 * length_s / 3 else 1.0


def samples(length_s: float, seed: int) -> list[Sample]:
    """In the order of time; each application is a Poisson process."""
    found = []
    for place, one in enumerate(APPLICATIONS):
        rng = np.random.default_rng((seed, place))
        at_s = 0.0
        while True:
            rush = one.rush if length_s / 6 <= at_s < length_s / 3 else 1.0
            at_s += float(rng.exponential(1 / (one.per_s * rush)))
            if at_s >= length_s:
                break
            size = int(max(500.0, rng.normal(one.bytes, one.bytes / 4)))
            found.append(Sample(at_s, one, float(rng.beta(*one.worth)), size))
    return sorted(found, key=lambda sample: sample.at_s)


@dataclass(slots=True)
class Crossed:
    """A sample that crossed."""

    sample: Sample
    done_s: float
    work_ms: float

    @property
    def value(self) -> float:
        """Nothing where the answer was late."""
        return self.sample.value if self.done_s <= self.sample.at_s + DEADLINE_S else 0.0


@dataclass
class Site:
    """The link and the tail, first in, first out."""

    clock: Callable[[], float]
    length_s: float
    crossed: list[Crossed] = field(default_factory=list)
    peaks: list[tuple[float, float]] = field(default_factory=list)
    """Back-log of the tail in milliseconds, whenever a sample came there."""
    in_flight: Counter[str] = field(default_factory=Counter)
    """Samples without an answer, by application."""
    _link_free_s: float = 0.0
    _tail_free_s: float = 0.0
    _told: deque[tuple[float, float]] = field(default_factory=deque)
    """When samples come to the tail, and until when it is busy then."""
    _busy_s: float = 0.0

    def send(self, sample: Sample, answered: Callable[[float], None]) -> None:
        """Over the link now; ``answered`` gets the tail's milliseconds when the answer is back."""
        now_s = self.clock()
        self._link_free_s = max(now_s, self._link_free_s) + sample.size_bytes / UPLINK_BYTES_PER_S
        there_s = self._link_free_s + RTT_S / 2
        begins_s = max(there_s, self._tail_free_s)
        work_ms = sample.application.cloud_ms * slowdown(begins_s, self.length_s)
        self._tail_free_s = begins_s + work_ms / 1e3
        self._told.append((there_s, self._tail_free_s))
        self.peaks.append((there_s, (self._tail_free_s - there_s) * 1e3))
        self.crossed.append(Crossed(sample, self._tail_free_s + RTT_S / 2, work_ms))
        self.in_flight[sample.application.name] += 1
        delay_s = self._tail_free_s + RTT_S / 2 - now_s
        asyncio.get_running_loop().call_later(delay_s, self._answer, sample.application.name, work_ms, answered)

    def _answer(self, application: str, work_ms: float, answered: Callable[[float], None]) -> None:
        self.in_flight[application] -= 1
        answered(work_ms)

    def late(self, sample: Sample) -> bool:
        """Its answer would come after the deadline, as far as a head can know."""
        waits_s = self.link_wait_s() + sample.size_bytes / UPLINK_BYTES_PER_S + RTT_S + self.backlog_ms() / 1e3
        return waits_s > DEADLINE_S

    def link_wait_s(self) -> float:
        """For those before."""
        return max(0.0, self._link_free_s - self.clock())

    def backlog_ms(self) -> float:
        """As the tail told half a round trip ago."""
        then_s = self.clock() - RTT_S / 2
        while self._told and self._told[0][0] <= then_s:
            self._busy_s = self._told.popleft()[1]
        return max(0.0, self._busy_s - then_s) * 1e3


def worst_window(crossed: list[Crossed], seconds: float = 1.0) -> tuple[float, float]:
    """Most bytes within any such time, and the share of the samples that end a window above the budget."""
    window: deque[Sample] = deque()
    total, most, above = 0, 0, 0
    for one in crossed:
        window.append(one.sample)
        total += one.sample.size_bytes
        while window[0].at_s <= one.sample.at_s - seconds:
            total -= window.popleft().size_bytes
        most = max(most, total)
        above += total > UPLINK_BYTES_PER_S * seconds
    return most, above / max(1, len(crossed))


def least_shares(everything: list[Sample], crossed: list[Crossed], window_s: float) -> Mapping[str, float]:
    """Of each application's hard samples that crossed, in its worst window."""
    least = {}
    for one in APPLICATIONS:
        asked = np.array([sample.at_s for sample in everything if sample.application is one])
        went = np.array([entry.sample.at_s for entry in crossed if entry.sample.application is one])
        edges = np.arange(0.0, asked.max() + 1e-9, window_s)
        counts, passed = np.histogram(asked, edges)[0], np.histogram(went, edges)[0]
        least[one.name] = float((passed / np.maximum(counts, 1)).min())
    return least
