"""The line in front of the head's worker threads: jobs wait (``queue.py`` says who goes first), are done, and their callers told.

A job that was cancelled is dropped. Knows jobs and deadlines, nothing of frames. How many may wait is the caller's to bound.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

from edge.head.queue import Job, Queue
from edge.head.shares import CpuShares
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.batch_times import BatchTimes
from splitmesh.kernel.threads import Teller, Threads

Clock = Callable[[], float]
T = TypeVar("T")

BEHIND_ALL = -1_000_000
"""The priority of what nobody waits for."""
SHORT_S = 0.001
"""A job that takes no longer is done on the event loop where it may be and nothing else is under way: the way to a thread
and back costs .35 ms of processor time, as much as a small head's arithmetic (benchmarks/serving_overhead)."""
MOST_COMPANY = 8
"""Most jobs that may wait for each other, see :meth:`Line.do`."""


@dataclass(slots=True, eq=False, kw_only=True)
class _Asked(Job):
    aside: bool
    """It may not keep others waiting, however long it takes."""
    running: bool = False
    extra: bool = False
    """Its thread is one more than the workers."""
    call: Callable[[], Any]
    result: asyncio.Future[Any] = field(repr=False)


class Line:
    """Jobs for ``workers`` threads. ``clock`` is the event loop's; ``shares`` counts what each application had."""

    def __init__(self, workers: int, *, shares: CpuShares | None = None, clock: Clock = time.monotonic) -> None:
        self._workers = workers
        self._clock = clock
        self._threads = Threads(workers + MOST_COMPANY - 1, "head")
        self._teller: Teller | None = None
        """To the loop of the first job."""
        self._lock = threading.Lock()
        self._queue: Queue[_Asked] = Queue(workers, shares or CpuShares(workers, clock=clock), clock=clock)
        self._busy = 0
        self._extra = 0  # of those, threads that keep nobody else from one
        self._closed = False

    def __len__(self) -> int:
        """Jobs that wait."""
        return len(self._queue)

    def close(self) -> None:
        """Let the threads go, on the loop; jobs that wait fail with NOT_READY, jobs being done are not waited for."""
        with self._lock:
            left, self._closed = self._queue.clear(), True
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
        app: str = "",
        aside: bool = False,
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
            app: whose part of the time it takes; empty: nobody's, for what goes behind all.
            aside: it keeps no frame from a thread while it is the only worker's job, or when its caller has given it up: then
                there is one thread more.

        Raises MeshError DEADLINE_EXPIRED when it could not be done in time, NOT_READY after ``close``, and what ``call``
        raises. Cancelled, it is not begun any more.
        """
        if steady and company == 1 and self._is_short(took):
            return self._at_once(call, took, app)
        loop = asyncio.get_running_loop()
        teller = self._teller = self._teller or Teller(loop)
        threads = self._workers + min(company, MOST_COMPANY) - 1
        job = _Asked(
            expires=expires,
            took=took,
            threads=threads,
            priority=priority,
            app=app,
            aside=aside,
            call=call,
            result=loop.create_future(),
        )
        with self._lock:
            if self._closed:
                raise _stopped()
            self._queue.add(job)
            start = self._busy - self._extra < threads
            self._busy += start
        if start:
            self._threads.start(partial(self._work, teller))
        try:
            return cast(T, await job.result)
        except asyncio.CancelledError:
            with self._lock:
                self._queue.drop(job)
                start = job.aside and job.running and self._spares(job)
            if start:
                self._threads.start(partial(self._work, teller))
            raise

    def _is_short(self, took: BatchTimes) -> bool:
        return not self._queue and not self._busy and 0 < took.least_s() <= SHORT_S and took.typical_s(1) <= 2 * SHORT_S

    def _at_once(self, call: Callable[[], T], took: BatchTimes, app: str) -> T:
        """On the loop: nothing else is under way."""
        begun = self._clock()
        try:
            return self._timed(call, took)
        finally:
            with self._lock:
                self._queue.done_at_once(app, self._clock() - begun)

    def _timed(self, call: Callable[[], T], took: BatchTimes) -> T:
        begun = self._clock()
        result = call()
        with self._lock:
            took.record(1, self._clock() - begun)
        return result

    def _work(self, teller: Teller) -> None:
        """In a thread: do what waits, and go when nothing does."""
        while (job := self._next(teller)) is not None:
            begun = self._clock()
            try:
                result = self._timed(job.call, job.took)
            except BaseException as error:  # whatever it is: the thread goes on with the next job, and so does the loop
                self._done(job, self._clock() - begun)
                teller.tell(partial(_fail, job, error if isinstance(error, Exception) else RuntimeError(repr(error))))
            else:
                self._done(job, self._clock() - begun)
                teller.tell(partial(_give, job, result))

    def _done(self, job: _Asked, took_s: float) -> None:
        with self._lock:
            self._queue.done(job, took_s, self._busy)
            job.running = False
            self._extra -= job.extra
            job.extra = False

    def _spares(self, job: _Asked) -> bool:
        """From now on its thread counts for nobody; whether another one has to begin with what waits. With the lock."""
        if job.extra or self._extra >= MOST_COMPANY - 1 or self._closed:
            return False
        job.extra = True
        self._extra += 1
        if start := len(self._queue) > 0:
            self._busy += 1
        return start

    def _next(self, teller: Teller) -> _Asked | None:
        with self._lock:
            job, late = self._queue.next(self._busy - self._extra)
            start = False
            if job is None:
                self._busy -= 1
            else:
                job.running = True
                start = job.aside and self._workers == 1 and self._spares(job)
        if start:
            self._threads.start(partial(self._work, teller))
        for one in late:
            teller.tell(partial(_fail, one, MeshError(Reason.DEADLINE_EXPIRED, "its turn came too late")))
        return job


def _give(job: _Asked, result: object) -> None:
    if not job.result.done():  # cancelled
        job.result.set_result(result)


def _fail(job: _Asked, error: Exception) -> None:
    if not job.result.done():
        job.result.set_exception(error)


def _stopped() -> MeshError:
    return MeshError(Reason.NOT_READY, "the head is being stopped")
