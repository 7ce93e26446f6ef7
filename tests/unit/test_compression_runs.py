"""Compressions of a service, with a real store and work that does nothing: ends that collide with cancellations."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from services.compressor.apply import MAX_DESCRIPTION, _description
from services.compressor.runs import Runs
from services.compressor.store import ENDED, Request, State, Status, Store
from splitmesh.compress.child import Result
from splitmesh.compress.recipe import make_recipe, parse_step
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.jobs import Progress
from splitmesh.kernel.streams import Drain
from tests.unit.compression_reports import full_report


def request(*steps: str) -> Request:
    recipe = make_recipe([parse_step(step) for step in steps or ("fp16",)])
    return Request(
        compression_id=f"compression-{'0' * 32}", model="m", version=1, recipe=recipe, create_time=datetime.now(UTC)
    )


class SlowStore(Store):
    """Takes its time to write down an end."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.writes, self.may_end = threading.Event(), threading.Event()

    def write(self, status: Status) -> None:
        if status.state in ENDED:
            self.writes.set()
            assert self.may_end.wait(20)
        super().write(status)


class Idle:
    """Runs until it is told to fail."""

    def __init__(self) -> None:
        self.fail = asyncio.Event()

    async def apply(self, request: Request, progress: Progress) -> Result:
        progress("waits", 0.5)
        await self.fail.wait()
        raise MeshError(Reason.MODEL_CORRUPT, "told to fail")

    async def register(self, request: Request, result: Result) -> tuple[int, bytes]:
        raise AssertionError("nothing to register")

    async def stands(self, request: Request, version: int) -> bool:
        raise AssertionError("nothing was registered")


class Done(Idle):
    """Ends at once; its versions are counted from 1 and stand until they are deleted."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0
        self.deleted = set[int]()

    async def apply(self, request: Request, progress: Progress) -> Result:
        return Result({}, {}, full_report())

    async def register(self, request: Request, result: Result) -> tuple[int, bytes]:
        self.made += 1
        return self.made, result.report.to_json()

    async def stands(self, request: Request, version: int) -> bool:
        return version not in self.deleted


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[Runs, SlowStore, Idle, str]]:
    """One compression under way."""
    store, work = SlowStore(folder), Idle()
    runs = Runs(store, work, max_running=1, max_queued=0, max_kept=5, watch_stream_s=60.0, drain=Drain())
    await runs.start()
    try:
        async with asyncio.timeout(20):
            identifier = (await runs.submit(request())).request.compression_id
            async for status in runs.follow(identifier):
                if status.step == "waits":
                    break
            yield runs, store, work, identifier
    finally:
        store.may_end.set()
        await runs.stop()


async def until_written(store: SlowStore) -> None:
    assert await asyncio.to_thread(store.writes.wait, 20)


async def test_two_cancellations_at_once_end_it_once_and_both_are_told(tmp_path: Path) -> None:
    async with running(tmp_path) as (runs, store, _, identifier):
        first = asyncio.create_task(runs.cancel(identifier))
        await until_written(store)
        second = asyncio.create_task(runs.cancel(identifier))
        await asyncio.sleep(0)
        store.may_end.set()
        assert [status.state for status in await asyncio.gather(first, second)] == [State.CANCELLED] * 2
        assert [status.state async for status in runs.follow(identifier)] == [State.CANCELLED]
        # its place in the queue of one is free again
        assert (await runs.resume(identifier)).state is State.QUEUED


async def test_a_cancellation_while_a_failure_is_written_down_comes_too_late(tmp_path: Path) -> None:
    async with running(tmp_path) as (runs, store, work, identifier):
        work.fail.set()
        await until_written(store)
        cancelling = asyncio.create_task(runs.cancel(identifier))
        await asyncio.sleep(0)
        store.may_end.set()
        assert (await cancelling).state is State.FAILED
        (status,) = runs.page("", None, 9)
        assert status.error is not None
        assert status.error.reason is Reason.MODEL_CORRUPT
        assert (await runs.resume(identifier)).state is State.QUEUED


async def test_one_whose_version_was_deleted_is_done_anew_and_every_other_is_joined(tmp_path: Path) -> None:
    work = Done()
    runs = Runs(Store(tmp_path), work, max_running=1, max_queued=0, max_kept=5, watch_stream_s=60.0, drain=Drain())
    await runs.start()

    async def ended() -> Status:
        async with asyncio.timeout(20):
            identifier = (await runs.submit(request())).request.compression_id
            return [status async for status in runs.follow(identifier)][-1]

    try:
        assert [(await ended()).result_version for _ in range(2)] == [1, 1]
        work.deleted.add(1)
        again = await ended()
        assert (again.state, again.result_version) == (State.SUCCEEDED, 2)
        assert [status.result_version for status in runs.page("", None, 9)] == [2]
        assert (await ended()).result_version == 2
    finally:
        await runs.stop()


def test_long_names_of_tensors_do_not_make_a_description_that_the_registry_refuses() -> None:
    steps = ["split:at=" + "+".join(f"{number}{'x' * 900}" for number in range(9)), "int8-cut"]
    assert len(_description(request(*steps))) == MAX_DESCRIPTION
    assert _description(request("split:at=cut", "int8-cut")) == "version 1 with split:at=cut, int8-cut"
