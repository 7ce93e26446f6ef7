"""Who goes first, who is not computed any more, and how many at once, with threads that wait until they are let go."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable

import pytest

from edge.head.line import BEHIND_ALL, Line
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.batch_times import BatchTimes

WAIT_S = 10.0
SOON_S, LATER_S = 5.0, 60.0


class _Held:
    """A job that holds its thread until it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.go.wait(WAIT_S)
        return "held"


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    made = Line(1)
    yield made
    made.close()


@pytest.fixture
async def held(line: Line) -> AsyncIterator[_Held]:
    """The only worker is busy until the test lets it go."""
    job = _Held()
    task = asyncio.create_task(line.do(job, expires=now() + LATER_S, took=BatchTimes()))
    assert await asyncio.to_thread(job.begun.wait, WAIT_S)
    yield job
    job.go.set()
    assert await task == "held"


def now() -> float:
    return asyncio.get_running_loop().time()


def took(seconds: float) -> BatchTimes:
    times = BatchTimes()
    times.record(1, seconds)
    return times


async def waiting(line: Line, count: int) -> None:
    async with asyncio.timeout(WAIT_S):
        while len(line) < count:  # noqa: ASYNC110 - the line tells nobody
            await asyncio.sleep(0)


def note(done: list[str], name: str) -> Callable[[], str]:
    def call() -> str:
        done.append(name)
        return name

    return call


async def test_the_nearest_deadline_goes_first_and_a_priority_moves_it_nearer(line: Line, held: _Held) -> None:
    done: list[str] = []
    begun = now()

    def asked(name: str, left_s: float, priority: int = 0) -> asyncio.Task[str]:
        return asyncio.create_task(
            line.do(note(done, name), expires=begun + left_s, took=BatchTimes(), priority=priority)
        )

    tasks = [asked("late", 20.0), asked("near", 10.0), asked("urgent", 10.3, 5), asked("shadow", 1.0, BEHIND_ALL)]
    await waiting(line, len(tasks))
    held.go.set()
    await asyncio.gather(*tasks)
    assert done == ["urgent", "near", "late", "shadow"]


async def test_a_cancelled_job_is_never_begun(line: Line, held: _Held) -> None:
    done: list[str] = []
    gone = asyncio.create_task(line.do(note(done, "gone"), expires=now() + SOON_S, took=BatchTimes()))
    stays = asyncio.create_task(line.do(note(done, "stays"), expires=now() + LATER_S, took=BatchTimes()))
    await waiting(line, 2)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert len(line) == 1, "what was cancelled takes no room either"
    held.go.set()
    assert await stays == "stays"
    assert done == ["stays"]


async def test_a_job_that_those_before_it_would_make_late_is_refused_at_once(line: Line, held: _Held) -> None:
    slow = took(30.0)
    first = asyncio.create_task(line.do(lambda: "first", expires=now() + 50, took=slow))
    await waiting(line, 1)
    with pytest.raises(MeshError) as caught:
        await line.do(lambda: "never", expires=now() + 55, took=slow)
    assert caught.value.reason is Reason.DEADLINE_EXPIRED
    assert caught.value.retry_after_s == pytest.approx(30)
    assert len(line) == 1
    # Those that are computed together do not wait for each other's turn.
    company = asyncio.create_task(line.do(lambda: "company", expires=now() + 55, took=slow, company=4))
    held.go.set()
    assert [await first, await company] == ["first", "company"]


async def test_what_goes_before_the_others_does_not_wait_for_them(line: Line, held: _Held) -> None:
    slow = asyncio.create_task(line.do(lambda: "slow", expires=now() + 50, took=took(30.0)))
    await waiting(line, 1)
    quick = asyncio.create_task(line.do(lambda: "quick", expires=now() + 10, took=took(0.001)))
    await waiting(line, 2)
    held.go.set()
    assert [await slow, await quick] == ["slow", "quick"]


async def test_an_expired_job_is_answered_when_its_turn_comes() -> None:
    clock = time.monotonic()
    line = Line(1, clock=lambda: clock)
    job, done = _Held(), list[str]()
    busy = asyncio.create_task(line.do(job, expires=clock + LATER_S, took=BatchTimes()))
    late = asyncio.create_task(line.do(note(done, "late"), expires=clock + 1, took=BatchTimes()))
    hopeless = asyncio.create_task(line.do(note(done, "hopeless"), expires=clock + 2.5, took=took(1.0)))
    slow = BatchTimes()
    last = asyncio.create_task(line.do(note(done, "last"), expires=clock + 3.5, took=slow))
    await waiting(line, 3)
    slow.record(1, 30.0)
    clock += 2
    job.go.set()
    for task in (late, hopeless):
        with pytest.raises(MeshError) as caught:
            await task
        assert caught.value.reason is Reason.DEADLINE_EXPIRED
    # With nobody waiting behind it even what was slow is computed: a time out of date would never be put right.
    assert await last == "last"
    assert await busy == "held"
    assert done == ["last"]
    line.close()


async def test_a_job_that_fails_fails_alone_and_keeps_its_thread_working(line: Line) -> None:
    def fails() -> None:
        raise MeshError(Reason.IMAGE_UNDECODABLE, "no")

    with pytest.raises(MeshError) as caught:
        await line.do(fails, expires=now() + SOON_S, took=BatchTimes())
    assert caught.value.reason is Reason.IMAGE_UNDECODABLE
    assert await line.do(lambda: 7, expires=now() + SOON_S, took=BatchTimes()) == 7


@pytest.mark.parametrize(("company", "side_by_side"), [(1, 2), (3, 4), (100, 9)])
async def test_those_that_wait_for_company_get_threads_beside_the_workers(company: int, side_by_side: int) -> None:
    line, jobs = Line(2), [_Held() for _ in range(12)]
    tasks = [
        asyncio.create_task(line.do(job, expires=now() + LATER_S, took=BatchTimes(), company=company)) for job in jobs
    ]
    await waiting(line, len(jobs) - side_by_side)
    assert await asyncio.to_thread(lambda: [job.begun.wait(WAIT_S) for job in jobs[:side_by_side]])
    assert not any(job.begun.is_set() for job in jobs[side_by_side:])
    for job in jobs:
        job.go.set()
    assert await asyncio.gather(*tasks) == ["held"] * len(jobs)
    line.close()


async def test_jobs_that_wait_when_the_line_is_closed_are_told() -> None:
    line, job = Line(1), _Held()
    busy = asyncio.create_task(line.do(job, expires=now() + LATER_S, took=BatchTimes()))
    waits = asyncio.create_task(line.do(lambda: 1, expires=now() + LATER_S, took=BatchTimes()))
    await waiting(line, 1)
    line.close()
    with pytest.raises(MeshError) as caught:
        await waits
    assert caught.value.reason is Reason.NOT_READY
    job.go.set()
    assert await busy == "held"


async def test_times_of_jobs_are_learnt_from_those_that_succeed(line: Line) -> None:
    times = BatchTimes()

    def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await line.do(fails, expires=now() + SOON_S, took=times)
    assert times.least_s() == 0
    await line.do(lambda: time.sleep(0.02), expires=now() + SOON_S, took=times)
    assert times.least_s() >= 0.02


async def test_a_short_steady_job_is_done_on_the_loop_and_only_while_nothing_else_is_under_way(line: Line) -> None:
    times = took(0.0005)
    assert await line.do(threading.get_ident, expires=now() + SOON_S, took=times, steady=True) == threading.get_ident()
    assert await line.do(threading.get_ident, expires=now() + SOON_S, took=times) != threading.get_ident()
    for other in (BatchTimes(), took(0.1)):  # not known yet, and long
        assert (
            await line.do(threading.get_ident, expires=now() + SOON_S, took=other, steady=True) != threading.get_ident()
        )


async def test_a_short_job_takes_its_place_in_the_line_behind_a_long_one(line: Line, held: _Held) -> None:
    job = line.do(threading.get_ident, expires=now() + SOON_S, took=took(0.0005), steady=True)
    waiting = asyncio.create_task(job)
    await asyncio.sleep(0)
    assert not waiting.done()
    held.go.set()
    assert await waiting != threading.get_ident()


async def test_a_job_that_got_slow_goes_back_to_a_thread(line: Line) -> None:
    times = took(0.0005)
    for _ in range(2):
        assert await line.do(lambda: time.sleep(0.005), expires=now() + SOON_S, took=times, steady=True) is None
    assert await line.do(threading.get_ident, expires=now() + SOON_S, took=times, steady=True) != threading.get_ident()


async def test_the_threads_of_those_that_wait_for_company_are_nobody_elses() -> None:
    line, now_working, most, lock = Line(1), 0, 0, threading.Lock()
    together = _Held()

    def alone() -> None:
        nonlocal now_working, most
        with lock:
            now_working += 1
            most = max(most, now_working)
        time.sleep(0.005)
        with lock:
            now_working -= 1

    later = now() + LATER_S
    company = [asyncio.create_task(line.do(together, expires=later, took=BatchTimes(), company=4)) for _ in range(4)]
    assert await asyncio.to_thread(together.begun.wait, WAIT_S)
    others = [asyncio.create_task(line.do(alone, expires=later, took=BatchTimes())) for _ in range(12)]
    await asyncio.sleep(0)
    together.go.set()
    await asyncio.gather(*company, *others)
    assert most == 1
    line.close()


@pytest.mark.parametrize("kind", [MemoryError, SystemExit, asyncio.CancelledError, GeneratorExit])
async def test_whatever_a_job_raises_its_caller_hears_of_it_and_the_thread_works_on(
    line: Line, kind: type[BaseException]
) -> None:
    def fails() -> None:
        raise kind

    with pytest.raises((MemoryError, RuntimeError)):
        async with asyncio.timeout(WAIT_S):
            await line.do(fails, expires=now() + LATER_S, took=BatchTimes())
    async with asyncio.timeout(WAIT_S):
        assert await line.do(lambda: 1, expires=now() + LATER_S, took=BatchTimes()) == 1


async def test_a_line_that_was_closed_takes_nothing_more(line: Line) -> None:
    line.close()
    with pytest.raises(MeshError) as refused:
        await line.do(lambda: 1, expires=now() + LATER_S, took=BatchTimes())
    assert refused.value.reason == Reason.NOT_READY
