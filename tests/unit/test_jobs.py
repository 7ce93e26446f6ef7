"""Jobs in a child process: results, errors, limits, cancellation."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.jobs import JobSlots, Progress, run_job

MEMORY = 2 << 30


def add(left: int, right: int) -> tuple[int, int]:
    return left + right, os.getpid()


def echo(data: bytes) -> bytes:
    return data


def refuse() -> None:
    error = field_error("cut", "is wrong")
    error.metadata["near"] = "relu"
    error.retry_after_s = 2.0
    raise error


def fail() -> None:
    raise RuntimeError("a secret path")


def die() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leave() -> None:
    os._exit(3)


def hog() -> int:
    return len(bytearray(8 << 30))


def wait_forever(*, progress: Progress) -> None:
    progress(str(os.getpid()), 0.0)
    signal.pause()


def two_steps(name: str, *, progress: Progress) -> str:
    progress("first", 0.0)
    progress("second", 0.5)
    return name


async def run(function: object, *args: object, deadline_s: float = 30.0) -> object:
    return await run_job(function, *args, deadline_s=deadline_s, max_memory_bytes=MEMORY)  # type: ignore[arg-type]


async def test_the_result_comes_from_another_process() -> None:
    total, pid = await run_job(add, 2, 3, deadline_s=30.0, max_memory_bytes=MEMORY)
    assert total == 5
    assert pid != os.getpid()


async def test_large_arguments_and_results_pass_whole() -> None:
    data = os.urandom(1 << 20) * 20
    assert await run(echo, data) == data


async def test_the_event_loop_runs_on_while_a_job_starts_and_works() -> None:
    longest, last = 0.0, time.monotonic()
    job = asyncio.create_task(run(echo, bytes(32 << 20)))
    while not job.done():
        await asyncio.wait([job], timeout=0.01)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    # generous: the machine may be busy; starting the process in the loop would take longer than this
    assert longest < 0.5


async def test_a_mesh_error_crosses_with_all_its_parts() -> None:
    with pytest.raises(MeshError) as caught:
        await run(refuse)
    assert caught.value.reason is Reason.FIELD_INVALID
    assert caught.value.fields == (("cut", "is wrong"),)
    assert caught.value.metadata == {"near": "relu"}
    assert caught.value.retry_after_s == 2.0


async def test_an_unexpected_failure_tells_the_log_and_not_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(MeshError) as caught:
        await run(fail)
    assert caught.value.reason is Reason.INTERNAL
    assert "secret" not in caught.value.message
    assert "a secret path" in caplog.text


@pytest.mark.parametrize(("function", "how"), [(die, "SIGSEGV"), (leave, "exit status 3")])
async def test_a_crash_becomes_an_error_that_says_how(function: object, how: str) -> None:
    with pytest.raises(MeshError, match=how) as caught:
        await run(function)
    assert caught.value.reason is Reason.INTERNAL


async def test_a_job_that_wants_more_memory_than_allowed_is_refused() -> None:
    with pytest.raises(MeshError, match="2048 MiB") as caught:
        await run(hog)
    assert caught.value.reason is Reason.MODEL_TOO_LARGE


async def test_a_job_is_stopped_at_its_deadline() -> None:
    pids: list[int] = []
    with pytest.raises(MeshError) as caught:
        await run_job(
            wait_forever, deadline_s=3.0, max_memory_bytes=MEMORY, on_progress=lambda pid, _: pids.append(int(pid))
        )
    assert caught.value.reason is Reason.DEADLINE_EXPIRED
    assert not _alive(pids[0])


async def test_cancelling_the_call_ends_the_child() -> None:
    runs: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    job = asyncio.create_task(
        run_job(
            wait_forever, deadline_s=3600, max_memory_bytes=MEMORY, on_progress=lambda pid, _: runs.set_result(int(pid))
        )
    )
    async with asyncio.timeout(30):
        pid = await runs
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert not _alive(pid)


async def test_a_call_cancelled_at_once_never_runs_the_function() -> None:
    pids: list[int] = []
    job = asyncio.create_task(
        run_job(
            wait_forever, deadline_s=3600, max_memory_bytes=MEMORY, on_progress=lambda pid, _: pids.append(int(pid))
        )
    )
    await asyncio.wait([job], timeout=0.001)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert not pids


async def test_progress_arrives_in_order_before_the_result() -> None:
    seen: list[tuple[str, float]] = []
    result = await run_job(
        two_steps,
        "done",
        deadline_s=30,
        max_memory_bytes=MEMORY,
        on_progress=lambda step, share: seen.append((step, share)),
    )
    assert result == "done"
    assert seen == [("first", 0.0), ("second", 0.5)]


async def test_one_job_more_than_there_are_places_is_refused_and_a_freed_place_is_taken() -> None:
    slots = JobSlots(running=1, waiting=1)
    order: list[str] = []
    first_may_end, first_runs = asyncio.Event(), asyncio.Event()

    async def job(name: str, may_end: asyncio.Event | None = None) -> None:
        async with slots:
            order.append(name)
            first_runs.set()
            if may_end is not None:
                await may_end.wait()

    first = asyncio.create_task(job("first", first_may_end))
    await first_runs.wait()
    second = asyncio.create_task(job("second"))
    await asyncio.wait([second], timeout=0.01)
    assert order == ["first"]
    with pytest.raises(MeshError) as caught:
        await job("third")
    assert caught.value.reason is Reason.QUEUE_FULL
    first_may_end.set()
    await asyncio.gather(first, second)
    await job("fourth")
    assert order == ["first", "second", "fourth"]


async def test_a_waiter_that_gives_up_frees_its_place() -> None:
    slots = JobSlots(running=1, waiting=1)
    async with slots:
        waiter = asyncio.create_task(slots.__aenter__())
        await asyncio.wait([waiter], timeout=0.01)
        waiter.cancel()
        await asyncio.wait([waiter])
        waiter = asyncio.create_task(slots.__aenter__())
        await asyncio.wait([waiter], timeout=0.01)
        assert not waiter.done()
    await waiter


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
