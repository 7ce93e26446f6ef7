"""Jobs that wait for a worker: which goes next, which cannot be done in time any more.

The nearest deadline goes first, a level of priority counting as much as a deadline that is ``PRIORITY_S`` nearer, so that nobody
starves. Where there is not enough time for all, the applications that had less than their part go first (``shares.py``), and
deadlines count within each. A job that cannot be done in time, by what such jobs took lately, is refused at once or when its turn
comes, but only where others wait: the time is theirs, and where nobody waits a wrong estimate is put right by computing.

Knows seconds; no threads, no frames, no event loop. Not for several threads.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Generic, TypeVar

from edge.head.shares import LONG_WAIT, CpuShares
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.batch_times import BatchTimes
from splitmesh.kernel.batching import PRIORITY_S

Clock = Callable[[], float]

LATEST = 0.8
"""Share of its time after which a frame that must wait has to be done by estimate: a host with more work than it can do would
else give every answer at the last moment, and its way back makes it late."""

_NUMBERS = count()


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """One that waits or is done."""

    expires: float
    took: BatchTimes
    """What jobs like this one took."""
    threads: int
    """Most that may be busy, this one's among them, when it begins."""
    priority: int = 0
    app: str = ""
    """Whose it is; empty: nobody's, it has no part of its own."""
    came: float = 0.0
    expected_s: float = 0.0
    """What its application was charged when it began."""
    order: tuple[float, int] = field(init=False)
    """When it is due, moved ahead by its priority; and when it came."""

    def __post_init__(self) -> None:
        """It gets its number."""
        self.order = (self.expires - self.priority * PRIORITY_S, next(_NUMBERS))

    def __lt__(self, other: Job) -> bool:
        """Whether it is due before."""
        return self.order < other.order


J = TypeVar("J", bound=Job)


class Queue(Generic[J]):
    """In front of ``workers``; ``shares`` counts what each application had."""

    def __init__(self, workers: int, shares: CpuShares, *, clock: Clock = time.monotonic) -> None:
        self._workers = workers
        self._shares = shares
        self._clock = clock
        self._waiting: dict[str, list[J]] = {}
        """A heap for each application that waits."""

    def __len__(self) -> int:
        """Jobs that wait."""
        return sum(map(len, self._waiting.values()))

    def add(self, job: J) -> None:
        """It waits from now on. MeshError DEADLINE_EXPIRED: it would be done too late."""
        job.came = self._clock()
        if self._waiting:
            wait_s = self._wait_s(job)
            needed_s = wait_s + job.took.least_s()
            if needed_s > LATEST * (job.expires - job.came):
                self._missed(job)
                raise MeshError(
                    Reason.DEADLINE_EXPIRED,
                    f"{len(self)} frames wait already: it would take {needed_s * 1e3:.0f} ms, which is too late",
                    retry_after_s=wait_s,
                )
        heapq.heappush(self._waiting.setdefault(job.app, []), job)
        if job.app:
            self._shares.arrived(job.app)

    def drop(self, job: J) -> None:
        """Nobody waits for it any more. Fine when its turn has come already."""
        with suppress(KeyError, ValueError):
            waiting = self._waiting[job.app]
            waiting.remove(job)
            heapq.heapify(waiting)
            self._removed(job)
            if job.app:
                self._shares.left(job.app)
            if self._clock() >= job.expires:
                self._missed(job)

    def next(self, busy: int) -> tuple[J | None, list[J]]:
        """The job to do now, with ``busy`` threads, the one that asks among them; and those whose turn came too late."""
        late: list[J] = []
        while (job := self._first()) is not None and busy <= job.threads:
            heapq.heappop(self._waiting[job.app])
            self._removed(job)
            now = self._clock()
            late_s = now - job.expires
            if late_s >= 0 or (self._waiting and late_s + job.took.least_s() > 0):
                if job.app:
                    self._shares.left(job.app)
                self._missed(job)
                late.append(job)
                continue
            if now - job.came > LONG_WAIT * (job.expires - job.came):
                self._missed(job)
            if job.app:
                job.expected_s = job.took.typical_s(1)
                self._shares.begun(job.app, job.expected_s)
            return job, late
        return None, late

    def done(self, job: J, took_s: float, busy: int) -> None:
        """It held a thread for so long, at last beside so many."""
        if job.app:
            # More threads than workers are those that wait for company, which take no core meanwhile.
            self._shares.ended(job.app, job.expected_s, took_s * min(1.0, self._workers / max(1, busy)))

    def done_at_once(self, app: str, took_s: float) -> None:
        """A job that did not wait was done beside the threads."""
        if app:
            self._shares.arrived(app)
            self._shares.ended(app, 0.0, took_s)

    def clear(self) -> list[J]:
        """Let all go, who are given back."""
        left, self._waiting = list(chain.from_iterable(self._waiting.values())), {}
        for job in left:
            if job.app:
                self._shares.left(job.app)
        return left

    def _first(self) -> J | None:
        """Whose turn it is; it still waits."""
        apps: Iterable[str] = self._waiting
        if len(self._waiting) > 1 and self._shares.saturated:
            apps = self._shares.may_go(app for app in self._waiting if app)
        return min((self._waiting[app][0] for app in apps), default=None)

    def _wait_s(self, job: J) -> float:
        """Until its turn, by estimate: behind all that go before it; where there is not enough, behind its own application's, by
        what that one can have."""
        if job.app and self._shares.saturated:
            part = self._shares.workers_of(job.app) / self._workers
            return _work_s(self._waiting.get(job.app, ()), job) / (job.threads * part)
        return _work_s(chain.from_iterable(self._waiting.values()), job) / job.threads

    def _removed(self, job: J) -> None:
        if not self._waiting[job.app]:
            del self._waiting[job.app]

    def _missed(self, job: J) -> None:
        if job.app:
            self._shares.missed()


def _work_s(jobs: Iterable[Job], job: Job) -> float:
    """Of those that go before it."""
    return sum(other.took.typical_s(1) for other in jobs if other < job)
