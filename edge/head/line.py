"""The line in front of the head's worker threads: whose deadline is nearest goes first, and nobody is computed in vain.

A level of priority counts as much as a deadline that is ``PRIORITY_S`` nearer, so that nobody starves. A frame that was
cancelled is dropped; one that cannot be done in time, by what such frames took lately, is refused at once or when its turn
comes, but only where others wait: the time is theirs, and where nobody waits a wrong estimate is put right by computing.
Knows jobs and deadlines, nothing of frames. How many may wait is the caller's to bound.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.batch_times import BatchTimes
from splitmesh.kernel.batching import PRIORITY_S
from splitmesh.kernel.threads import Teller, Threads

Clock = Callable[[], float]
T = TypeVar("T")

BEHIND_ALL = -1_000_000
"""The priority of what nobody waits for."""
SHORT_S = 0.001
"""A job that takes no longer is done on the event loop where it may be and nothing else is under way: the way to a thread
and back costs .35 ms of processor time, as much as a small head's arithmetic (benchmarks/serving_overhead)."""
LATEST = 0.8
"""Share of its time after which a frame that must wait has to be done by estimate: a host with more work than it can do would
else give every answer at the last moment, and its way back makes it late."""
MOST_COMPANY = 8
"""Most jobs that may wait for each other, see :meth:`Line.do`."""


@dataclass(order=True, slots=True)
class _Job:
    turn: float
    """When it is due, moved ahead by its priority."""
    number: int
    call: Callable[[], Any] = field(compare=False)
    expires: float = field(compare=False)
    took: BatchTimes = field(compare=False)
    threads: int = field(compare=False)
    """Most that may be busy, this one's among them, when it begins."""
    result: asyncio.Future[Any] = field(compare=False)


class Line:
    """Jobs for ``workers`` threads. ``clock`` is the event loop's."""

    def __init__(self, workers: int, *, clock: Clock = time.monotonic) -> None:
        self._workers = workers
        self._clock = clock
        self._threads = Threads(workers + MOST_COMPANY - 1, "head")
        self._teller: Teller | None = None
        """To the loop of the first job."""
        self._lock = threading.Lock()
        self._waiting: list[_Job] = []
        self._busy = 0
        self._closed = False
        self._numbers = itertools.count()

    def __len__(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    def close(self) -> None:
        """Let the threads go, on the loop; jobs that wait fail with NOT_READY, jobs being done are not waited for."""
        with self._lock:
            left, self._waiting, self._closed = self._waiting, [], True
        for job in left:
            if not job.result.done():
                job.result.set_exception(_stopped())
        self._threads.close(cancel=True)

    async def do(
        self,
        call: Callable[[], T],
        *,
        expires: float,
        took: BatchTimes,
        priority: int = 0,
        company: int = 1,
        steady: bool = False,
    ) -> T:
        """What ``call`` gives, from a worker thread; a short ``steady`` one from the event loop.

        Args:
            call: blocking.
            expires: by the clock; the caller stops waiting then.
            took: times of jobs like this one, of one line only; the line adds to it.
            priority: how urgent it is beside others.
            company: how many such jobs may wait for each other inside ``call`` to be computed together. Who waits takes no
                core, so there are as many threads more, less one.
            steady: every job like this one takes about as long, so that a short one will be short again.

        Raises MeshError DEADLINE_EXPIRED when it could not be done in time, NOT_READY after ``close``, and what ``call``
        raises. Cancelled, it is not begun any more.
        """
        if steady and company == 1 and self._is_short(took):
            return self._timed(call, took)
        loop = asyncio.get_running_loop()
        teller = self._teller = self._teller or Teller(loop)
        turn, threads = expires - priority * PRIORITY_S, self._workers + min(company, MOST_COMPANY) - 1
        job = _Job(turn, next(self._numbers), call, expires, took, threads, loop.create_future())
        with self._lock:
            if self._closed:
                raise _stopped()
            self._require_time(job)
            heapq.heappush(self._waiting, job)
            start = self._busy < threads
            self._busy += start
        if start:
            self._threads.start(partial(self._work, teller))
        try:
            return cast(T, await job.result)
        except asyncio.CancelledError:
            self._drop(job)
            raise

    def _is_short(self, took: BatchTimes) -> bool:
        return (
            not self._waiting and not self._busy and 0 < took.least_s() <= SHORT_S and took.typical_s(1) <= 2 * SHORT_S
        )

    def _timed(self, call: Callable[[], T], took: BatchTimes) -> T:
        begun = self._clock()
        result = call()
        with self._lock:
            took.record(1, self._clock() - begun)
        return result

    def _drop(self, job: _Job) -> None:
        with self._lock, suppress(ValueError):  # its turn has come already
            self._waiting.remove(job)
            heapq.heapify(self._waiting)

    def _require_time(self, job: _Job) -> None:
        if not self._waiting:
            return
        before_s = sum(other.took.typical_s(1) for other in self._waiting if other < job)
        wait_s = before_s / job.threads
        needed_s = wait_s + job.took.least_s()
        if needed_s > LATEST * (job.expires - self._clock()):
            raise MeshError(
                Reason.DEADLINE_EXPIRED,
                f"{len(self._waiting)} frames wait already: it would take {needed_s * 1e3:.0f} ms, which is too late",
                retry_after_s=wait_s,
            )

    def _work(self, teller: Teller) -> None:
        """In a thread: do what waits, and go when nothing does."""
        while (job := self._next(teller)) is not None:
            try:
                result = self._timed(job.call, job.took)
            except BaseException as error:  # whatever it is: the thread goes on with the next job, and so does the loop
                teller.tell(partial(_fail, job, error if isinstance(error, Exception) else RuntimeError(repr(error))))
            else:
                teller.tell(partial(_give, job, result))

    def _next(self, teller: Teller) -> _Job | None:
        with self._lock:
            while self._waiting and self._busy <= self._waiting[0].threads:
                job = heapq.heappop(self._waiting)
                late_s = self._clock() - job.expires
                if late_s >= 0 or (self._waiting and late_s + job.took.least_s() > 0):
                    late = MeshError(Reason.DEADLINE_EXPIRED, "its turn came too late")
                    teller.tell(partial(_fail, job, late))
                    continue
                return job
            self._busy -= 1
            return None


def _give(job: _Job, result: object) -> None:
    if not job.result.done():  # cancelled
        job.result.set_result(result)


def _fail(job: _Job, error: Exception) -> None:
    if not job.result.done():
        job.result.set_exception(error)


def _stopped() -> MeshError:
    return MeshError(Reason.NOT_READY, "the head is being stopped")
