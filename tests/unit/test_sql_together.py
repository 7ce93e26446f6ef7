"""Writes that wait at the same moment: one commit, and each with an end of its own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, MetaData, Table, insert, select
from sqlalchemy.exc import IntegrityError

from services.fleet.schema import SCHEMA
from splitmesh.errors import MeshError, Reason
from splitmesh.sql.columns import NUMBER, NUMBERED, TEXT, key, needed
from splitmesh.sql.database import MOST_TOGETHER, Threads
from splitmesh.sql.database_url import database_at
from splitmesh.sql.together import Work
from tests.integration.registry_world import small_disk
from tests.support.stores import DURABLE, durable_url

WAIT_S = 30.0
ROOT = Path(__file__).parents[2]
WRITER = """
import asyncio, itertools, sys
from tests.unit.test_sql_together import note, opened

async def write_on(threads, numbers):
    for number in numbers:
        print(await threads.write(note(number, "x" * 500)), flush=True)

async def main():
    async with opened(sys.argv[1]) as threads:
        numbers = itertools.count(1)
        await asyncio.gather(*(write_on(threads, numbers) for _ in range(40)))

asyncio.run(main())
"""

ours = MetaData()
notes = Table("notes", ours, key("id", NUMBER), needed("text", TEXT), **NUMBERED)


@pytest.fixture(params=DURABLE)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with durable_url(request.param, tmp_path) as url:
        yield url


@pytest.fixture
async def threads(url: str) -> AsyncIterator[Threads]:
    async with opened(url) as threads:
        yield threads


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Threads]:
    threads = Threads(database_at(url, SCHEMA), open_wait_s=5.0, check_every_s=3600.0, on_lost=lambda _error: None)
    await threads.start()
    try:
        await threads.write(ours.create_all)  # leaves alone what is there
        yield threads
    finally:
        await threads.stop()


def note(number: int, text: str = "") -> Callable[[Connection], int]:
    """Writes a row and returns its number."""

    def work(connection: Connection) -> int:
        connection.execute(insert(notes).values(id=number, text=text))
        return number

    return work


async def numbers(threads: Threads) -> list[int]:
    return await threads.read(
        lambda connection: list(connection.execute(select(notes.c.id).order_by(notes.c.id)).scalars())
    )


class Busy:
    """The thread of writes stands still in a write until it is let go; counts the transactions after that."""

    def __init__(self, threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
        self._threads = threads
        self._begun, self._go = asyncio.Event(), threading.Event()
        self.transactions: list[int] = []
        database = threads._database
        write, write_each = database.write, database.write_each

        def counted_each(works: list[Work]) -> Any:
            self.transactions.append(len(works))
            return write_each(works)

        monkeypatch.setattr(database, "write_each", counted_each)
        self._write = write

    async def __aenter__(self) -> Busy:
        loop = asyncio.get_running_loop()

        def stand(_connection: Connection) -> None:
            loop.call_soon_threadsafe(self._begun.set)
            assert self._go.wait(WAIT_S)

        self._standing = asyncio.create_task(self._threads.write(stand))
        async with asyncio.timeout(WAIT_S):
            await self._begun.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._go.set()
        await self._standing


def queued(threads: Threads, *works: Callable[[Connection], Any]) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(threads.write(work)) for work in works]


async def ends(writes: list[asyncio.Task[Any]]) -> list[Any]:
    async with asyncio.timeout(WAIT_S):
        return await asyncio.gather(*writes, return_exceptions=True)


async def test_what_waits_at_once_is_one_transaction_in_order(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []

    def remembered(number: int) -> Callable[[Connection], int]:
        work = note(number)
        return lambda connection: ran.append(number) or work(connection)  # type: ignore[func-returns-value]

    async with Busy(threads, monkeypatch) as busy:
        writes = queued(threads, *(remembered(number) for number in reversed(range(50))))
        await asyncio.sleep(0)
    assert await ends(writes) == ran == [*reversed(range(50))]
    assert busy.transactions == [50]
    assert await numbers(threads) == [*range(50)]


async def test_a_transaction_takes_so_many_and_the_next_one_the_rest(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Busy(threads, monkeypatch) as busy:
        writes = queued(threads, *(note(number) for number in range(MOST_TOGETHER + 2)))
        await asyncio.sleep(0)
    await ends(writes)
    assert busy.transactions == [MOST_TOGETHER, 2]
    assert len(await numbers(threads)) == MOST_TOGETHER + 2


async def test_one_that_fails_takes_back_its_own_changes_and_nobody_elses(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(connection: Connection) -> None:
        note(10)(connection)
        raise MeshError(Reason.FIELD_INVALID, "no")

    def breaks(connection: Connection) -> None:
        note(11)(connection)
        note(1)(connection)

    async with Busy(threads, monkeypatch) as busy:
        writes = queued(threads, note(1), refuses, note(2), breaks, note(3))
        await asyncio.sleep(0)
    first, refusal, second, broken, third = await ends(writes)
    assert (first, second, third) == (1, 2, 3)
    assert isinstance(refusal, MeshError)
    assert refusal.reason is Reason.FIELD_INVALID
    assert isinstance(broken, IntegrityError)
    assert busy.transactions == [5]
    assert await numbers(threads) == [1, 2, 3]


async def test_a_mistake_in_one_leaves_nobody_waiting(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(connection: Connection) -> object:
        return next(iter(connection.execute(select(notes).where(notes.c.id == 99))))

    async with Busy(threads, monkeypatch):
        writes = queued(threads, mistaken, note(1))
        await asyncio.sleep(0)
    mistake, first = await ends(writes)
    assert isinstance(mistake, RuntimeError)
    assert first == 1
    with pytest.raises(RuntimeError):
        await threads.write(mistaken)


async def test_nobody_is_told_before_the_commit_and_a_commit_that_fails_is_everybodys(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A foreign key that is looked at only by the commit."""
    await threads.write(
        lambda connection: connection.exec_driver_sql(
            "CREATE TABLE answers (note INTEGER REFERENCES notes (id) DEFERRABLE INITIALLY DEFERRED)"
            if connection.dialect.name == "sqlite"
            else "CREATE TABLE answers (note BIGINT REFERENCES notes (id) DEFERRABLE INITIALLY DEFERRED)"
        )
    )

    def dangling(connection: Connection) -> None:
        connection.exec_driver_sql("INSERT INTO answers VALUES (99)")

    async with Busy(threads, monkeypatch):
        writes = queued(threads, note(1), dangling, note(2))
        await asyncio.sleep(0)
    assert [type(one) for one in await ends(writes)] == [IntegrityError] * 3
    assert await numbers(threads) == []
    await threads.write(note(3))
    assert await numbers(threads) == [3]


async def test_one_whose_caller_left_before_it_began_is_not_written(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Busy(threads, monkeypatch) as busy:
        writes = queued(threads, note(1), note(2), note(3))
        await asyncio.sleep(0)
        writes[1].cancel()
        await asyncio.sleep(0)
    first, left, third = await ends(writes)
    assert isinstance(left, asyncio.CancelledError)
    assert (first, third) == (1, 3)
    assert busy.transactions == [2]
    assert await numbers(threads) == [1, 3]


async def test_one_whose_caller_left_after_it_began_is_written_and_the_others_are_told(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, begun, go = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def slow(connection: Connection) -> int:
        note(1)(connection)
        loop.call_soon_threadsafe(begun.set)
        assert go.wait(WAIT_S)
        return 1

    async with Busy(threads, monkeypatch):
        writes = queued(threads, slow, note(2))
        await asyncio.sleep(0)
    async with asyncio.timeout(WAIT_S):
        await begun.wait()
    writes[0].cancel()
    go.set()
    left, second = await ends(writes)
    assert isinstance(left, asyncio.CancelledError)
    assert second == 2
    assert await numbers(threads) == [1, 2]


async def test_a_stop_finishes_what_was_accepted(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(url) as threads:
        async with Busy(threads, monkeypatch):
            writes = queued(threads, *(note(number) for number in range(MOST_TOGETHER + 5)))
            await asyncio.sleep(0)
            stopping = asyncio.create_task(threads.stop())
            await asyncio.sleep(0)
            with pytest.raises(MeshError) as caught:
                await threads.write(note(9999))
            assert caught.value.reason is Reason.NOT_READY
        await stopping
        assert await ends(writes) == [*range(MOST_TOGETHER + 5)]
    async with opened(url) as again:
        assert len(await numbers(again)) == MOST_TOGETHER + 5


async def test_a_transaction_that_the_server_takes_back_is_repeated_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0

    def clashing(connection: Connection) -> int:
        nonlocal tries
        tries += 1
        note(2)(connection)
        if tries == 1:
            connection.exec_driver_sql("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$")
        return tries

    with durable_url("postgres", Path()) as url:
        async with opened(url) as threads:
            async with Busy(threads, monkeypatch):
                writes = queued(threads, note(1), clashing, note(3))
                await asyncio.sleep(0)
            assert await ends(writes) == [1, 2, 3]
            assert await numbers(threads) == [1, 2, 3]


async def test_on_a_full_disk_all_of_a_group_are_refused_and_nothing_acknowledged_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", 1024 * 1024) as folder:
        async with opened(f"sqlite:///{folder}/fleet.db") as threads:
            kept: list[int] = []
            refused: list[MeshError] = []
            for group in range(1000):
                async with Busy(threads, monkeypatch):
                    writes = queued(threads, *(note(group * 8 + index, "x" * 20_000) for index in range(8)))
                    await asyncio.sleep(0)
                outcomes = await ends(writes)
                kept += [one for one in outcomes if isinstance(one, int)]
                refused += [one for one in outcomes if isinstance(one, MeshError)]
                if refused:
                    break
            assert {one.reason for one in refused} == {Reason.STORAGE_FULL}
            assert len(kept) + len(refused) == 8 * (group + 1)
            assert len(kept) > 8
            assert await numbers(threads) == kept
        async with opened(f"sqlite:///{folder}/fleet.db") as again:
            assert await numbers(again) == kept


async def test_a_killed_process_loses_nothing_that_it_acknowledged(url: str) -> None:
    acknowledged = await asyncio.to_thread(_kill_a_writer, url)
    async with opened(url) as threads:
        assert acknowledged <= {*await numbers(threads)}


def _kill_a_writer(url: str) -> set[int]:
    """What it acknowledged before it was killed in the midst of its groups."""
    with subprocess.Popen([sys.executable, "-c", WRITER, url], cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        first = [writer.stdout.readline() for _ in range(300)]
        assert first[-1], "the writer ended by itself"
        writer.kill()
        rest = writer.stdout.read().splitlines(keepends=True)
    return {int(line) for line in [*first, *rest] if line.endswith("\n")}


async def test_five_thousand_writes_at_once_are_all_kept(threads: Threads) -> None:
    assert await ends(queued(threads, *(note(number) for number in range(5000)))) == [*range(5000)]
    assert await numbers(threads) == [*range(5000)]
