"""What the durable metadata stores promise of large datasets: others write in between, and nothing is left of what failed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, func, select

from services.registry.metadata import sql_datasets, sql_pictures
from services.registry.metadata.records import DatasetDraft
from services.registry.metadata.sql_store import SqlStore
from services.registry.metadata.tables import picture_sets, pictures
from splitmesh.errors import MeshError, Reason
from splitmesh.sql.database import Threads
from tests.support.stores import ACTOR, DATASET, DURABLE, NOON, durable_url, made, refused

WAIT_S = 30.0
MANY = tuple(f"{number:064x}" for number in range(1000))
AT_ONCE = 10


@pytest.fixture(params=DURABLE)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with durable_url(request.param, tmp_path) as url:
        yield url


@pytest.fixture
async def store(url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SqlStore]:
    monkeypatch.setattr(sql_pictures, "AT_ONCE", AT_ONCE)
    store = SqlStore(url)
    await store.start()
    yield store
    await store.stop()


class Batches:
    """Counts them; the n-th can fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fail_at: int = 0) -> None:
        self.written = 0
        self._loop, self.begun = asyncio.get_running_loop(), asyncio.Event()
        self._fail_at, self._add = fail_at, sql_pictures.add_pictures
        monkeypatch.setattr(sql_pictures, "add_pictures", self)

    def __call__(self, connection: Connection, picture_set: int, sha256s: Sequence[str]) -> None:
        self.written += 1
        if self.written == self._fail_at:
            raise MeshError(Reason.STORAGE_FULL, "full")
        self._add(connection, picture_set, sha256s)
        self._loop.call_soon_threadsafe(self.begun.set)


async def create(store: SqlStore, **changes: object) -> int:
    draft: DatasetDraft = replace(DATASET, **{"contents": MANY, **changes})  # type: ignore[arg-type]
    return (await store.create_dataset_version(draft, ACTOR, NOON)).version


async def counted(store: SqlStore) -> tuple[int, int]:
    """Sets and pictures that are kept."""

    def count(connection: Connection) -> tuple[int, int]:
        found = [
            connection.execute(select(func.count()).select_from(table)).scalar() for table in (picture_sets, pictures)
        ]
        return int(found[0] or 0), int(found[1] or 0)

    return await store._threads.read(count)


async def test_others_write_while_a_large_dataset_comes_which_is_not_seen_before_it_is_whole(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = Batches(monkeypatch)
    creating = asyncio.create_task(create(store))
    async with asyncio.timeout(WAIT_S):
        await batches.begun.wait()
    await made(store, "m")
    assert batches.written < len(MANY) / AT_ONCE / 2
    assert not creating.done()
    await refused(store.get_dataset_version("boards", 0), Reason.DATASET_NOT_FOUND)
    assert await creating == 1
    assert batches.written == len(MANY) / AT_ONCE
    assert await store.unused([*MANY, "f" * 64]) == {"f" * 64}
    assert [event.kind for event in await store.list_events("", 0, 10)] == ["dataset.created", "version.created"]


async def test_a_deleted_dataset_leaves_no_pictures(store: SqlStore) -> None:
    assert await create(store) == 1
    assert await create(store, contents=MANY[:25]) == 2
    await store.delete_dataset_version("boards", 1, "", ACTOR, NOON, even_if_used=False)
    assert await counted(store) == (1, 25)
    assert await store.unused(MANY) == set(MANY[25:])
    await store.delete_dataset_version("boards", 2, "", ACTOR, NOON, even_if_used=False)
    assert await counted(store) == (0, 0)


async def test_a_request_that_comes_several_times_at_once_keeps_its_pictures_once(store: SqlStore) -> None:
    assert await asyncio.gather(*(create(store, request_id="r") for _ in range(4))) == [1] * 4
    assert await counted(store) == (1, len(MANY))


async def test_what_is_refused_before_or_after_its_pictures_came_leaves_none(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await refused(create(store, parent=1), Reason.VERSION_NOT_FOUND)
    assert await create(store, contents=()) == 1
    batches = Batches(monkeypatch)
    creating = asyncio.create_task(create(store, parent=1))
    async with asyncio.timeout(WAIT_S):
        await batches.begun.wait()
    await store.delete_dataset_version("boards", 1, "", ACTOR, NOON, even_if_used=False)
    await refused(creating, Reason.VERSION_NOT_FOUND)
    assert await counted(store) == (0, 0)
    Batches(monkeypatch, fail_at=30)
    await refused(create(store), Reason.STORAGE_FULL)
    assert await counted(store) == (0, 0)
    assert await create(store, contents=MANY[:5]) == 2


async def test_a_caller_that_leaves_takes_its_pictures_along(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = Batches(monkeypatch)
    creating = asyncio.create_task(create(store))
    async with asyncio.timeout(WAIT_S):
        await batches.begun.wait()
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
    assert await counted(store) == (0, 0)


async def test_who_leaves_in_the_middle_of_a_deletion_leaves_no_pictures(
    store: SqlStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await create(store) == 1
    loop, deleting, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    plain = sql_datasets.delete_dataset_version

    def slowly(connection: Connection, **values: Any) -> int:
        loop.call_soon_threadsafe(deleting.set)
        assert go_on.wait(WAIT_S)
        return plain(connection, **values)

    monkeypatch.setattr(sql_datasets, "delete_dataset_version", slowly)
    call = asyncio.create_task(store.delete_dataset_version("boards", 1, "", ACTOR, NOON, even_if_used=False))
    async with asyncio.timeout(WAIT_S):
        await deleting.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        go_on.set()
        await store.stop()
    again = SqlStore(url)
    await again._threads.start()  # without what a start removes
    assert await counted(again) == (0, 0)
    await again.stop()


async def test_pictures_that_could_not_be_removed_go_with_the_next_ones(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for count in (1000, 30, 20):
        await create(store, contents=MANY[:count])

    def fail(_connection: Connection, _picture_set: int) -> bool:
        raise MeshError(Reason.STORAGE_FULL, "full")

    with monkeypatch.context() as patch:
        patch.setattr(sql_pictures, "drop_pictures", fail)
        await store.delete_dataset_version("boards", 1, "", ACTOR, NOON, even_if_used=False)
        await store.delete_dataset_version("boards", 2, "", ACTOR, NOON, even_if_used=False)
    assert "unneeded pictures stay" in caplog.text
    assert await counted(store) == (3, 1050)
    await create(store, contents=MANY[:10])
    assert await counted(store) == (2, 30)


async def test_the_number_of_a_set_whose_end_was_not_heard_of_is_safe_for_the_next_one(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(store)

    async def lost(work: Callable[[Connection], Any]) -> Any:
        done = await Threads.write(store._threads, work)
        if (await counted(store))[0]:
            return done
        raise MeshError(Reason.SERVICE_UNAVAILABLE, "the link broke after the commit")

    with monkeypatch.context() as patch:
        patch.setattr(store._threads, "write", lost)
        await store.delete_dataset_version("boards", 1, "", ACTOR, NOON, even_if_used=False)
    batches = Batches(monkeypatch)
    creating = asyncio.create_task(create(store, contents=MANY[:500]))
    async with asyncio.timeout(WAIT_S):
        await batches.begun.wait()
        await store._pictures._forget(7)  # any other one
    assert await creating == 2
    assert await counted(store) == (1, 500)


async def test_what_a_killed_process_left_is_gone_after_the_next_start(store: SqlStore, url: str) -> None:
    assert await create(store, contents=MANY[:3]) == 1

    def half(connection: Connection) -> None:
        sql_pictures.add_pictures(connection, sql_pictures.begin_set(connection), MANY)

    for _ in range(2):
        await store._threads.write(half)
    assert await store.unused(MANY) == set()
    await store.stop()
    again = SqlStore(url)
    await again.start()
    assert await counted(again) == (1, 3)
    assert await again.unused(MANY) == set(MANY[3:])
    await again.stop()
