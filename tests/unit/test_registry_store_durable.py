"""What the durable metadata stores promise beyond the others: nothing that was acknowledged is lost."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from services.registry.metadata.records import Signature
from services.registry.metadata.schema import SCHEMA
from services.registry.metadata.sql_store import SqlStore
from splitmesh.errors import MeshError, Reason
from splitmesh.model.lineage import DatasetUse, Lineage
from splitmesh.sql.sqlite_database import SqliteDatabase
from tests.integration.registry_world import small_disk
from tests.support.stores import ACTOR, DATASET, DRAFT, DURABLE, NOON, draft, durable_url, made, move, refused

ROOT = Path(__file__).parents[2]
WRITER = """
import asyncio, sys
from services.registry.metadata.sql_store import SqlStore
from tests.support.stores import ACTOR, draft, move, NOON

async def main():
    store = SqlStore(sys.argv[1])
    await store.start()
    number = 0
    while True:
        number += 1
        await store.create_version(draft(request_id=str(number), description="x" * 2000), ACTOR, NOON)
        moved = await move(store, "prod", number)
        assert moved.sequence == number
        print(number, flush=True)

asyncio.run(main())
"""


@pytest.fixture(params=DURABLE)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with durable_url(request.param, tmp_path) as url:
        yield url


async def test_everything_is_kept_over_a_restart(url: str) -> None:
    first = SqlStore(url)
    await first.start()
    await first.create_dataset_version(DATASET, ACTOR, NOON)
    lineage = Lineage(datasets=(DatasetUse("boards", 1, "d" * 64),), metrics={"auroc": 0.99}, seeds=(1,))
    await first.create_version(draft(request_id="r", lineage=lineage), ACTOR, NOON)
    await first.add_signature("m", 1, Signature("k", b"e"), ACTOR, NOON)
    await first.hold_version("m", 1, "line/4", None, ACTOR, NOON)
    await first.put_keyring(1, b"ring", ACTOR, NOON)
    await made(first, "m")
    moved = await move(first, "prod", 1)
    before = (await first.get_version("m", 1), await first.list_events("", 0, 100))
    await first.stop()

    second = SqlStore(url)
    await second.start()
    assert (await second.get_version("m", 1), await second.list_events("", 0, 100)) == before
    assert (before[0].aliases, before[0].holders, before[0].lineage) == (("prod",), ("line/4",), lineage)
    assert (await second.create_version(draft(request_id="r"), ACTOR, NOON)).version == 1
    assert list(await second.keyrings(0)) == [b"ring"]
    assert await second.alias_states("m", "") == ([moved], 1)
    await second.stop()


async def test_numbers_and_sequences_go_on_after_deletes_and_restarts(url: str) -> None:
    first = SqlStore(url)
    await first.start()
    await made(first, "m", "m")
    await first.create_dataset_version(DATASET, ACTOR, NOON)
    await move(first, "prod", 1)
    await move(first, "prod", 0)
    for number in (1, 2):
        await first.delete_version("m", number, "", ACTOR, NOON)
    await first.delete_dataset_version("boards", 1, "", ACTOR, NOON, even_if_used=False)
    events = await first.list_events("", 0, 1)
    await first.stop()

    second = SqlStore(url)
    await second.start()
    assert (await second.create_version(DRAFT, ACTOR, NOON)).version == 3
    assert (await second.create_dataset_version(DATASET, ACTOR, NOON)).version == 2
    assert (await move(second, "prod", 3)).sequence == 3
    assert [event.sequence for event in await second.list_events("", 0, 3)] == [
        events[0].sequence + late for late in (3, 2, 1)
    ]
    await second.stop()


async def test_a_killed_process_loses_nothing_that_it_acknowledged(url: str) -> None:
    store = SqlStore(url)
    acknowledged = await asyncio.to_thread(_kill_a_writer, url)
    await store.start()
    newest = await store.newest("m")
    assert acknowledged <= newest.version <= acknowledged + 1
    moves, sequence = await store.alias_states("m", "prod")
    assert acknowledged <= moves[0].version == sequence <= newest.version
    for version in await store.list_versions("m", 0, 1000):
        assert (version.artifacts, version.description) == (DRAFT.artifacts, "x" * 2000)
        assert await store.find_request("m", str(version.version)) == version
    events = await store.list_events("m", 0, 1000)
    assert len(events) == newest.version + sequence
    await store.stop()


def _kill_a_writer(url: str) -> int:
    """How many rounds it acknowledged before it was killed in the midst of them."""
    with subprocess.Popen([sys.executable, "-c", WRITER, url], cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(25):
            assert writer.stdout.readline(), "the writer ended by itself"
        writer.kill()
        return 25 + len(writer.stdout.read().splitlines())


async def test_a_closed_store_says_so(url: str) -> None:
    store = SqlStore(url)
    await refused(store.newest("m"), Reason.NOT_READY)
    await store.start()
    await store.stop()
    await refused(store.newest("m"), Reason.NOT_READY)
    await refused(store.create_version(DRAFT, ACTOR, NOON), Reason.NOT_READY)
    await store.stop()


def test_sqlite_syncs_before_it_acknowledges(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "registry.sqlite3", SCHEMA)
    database.open()
    try:
        found = [
            database.read(lambda connection, name=name: connection.exec_driver_sql(f"PRAGMA {name}").scalar())  # type: ignore[misc]
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
        assert found == ["wal", 2, 1]
    finally:
        database.close()


async def test_sqlite_on_a_full_disk_refuses_and_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1024 * 1024) as folder:
        store = SqlStore.sqlite(folder / "registry.sqlite3")
        await store.start()
        acknowledged, refusal = 0, None
        while refusal is None and acknowledged < 10_000:
            try:
                await store.create_version(draft(description="x" * 4000), ACTOR, NOON)
                acknowledged += 1
            except MeshError as error:
                refusal = error
        assert refusal is not None
        assert refusal.reason is Reason.STORAGE_FULL
        assert (await store.newest("m")).version == acknowledged > 0
        assert len(await store.list_events("m", 0, 10_000)) == acknowledged
        await store.stop()
        again = SqlStore.sqlite(folder / "registry.sqlite3")
        await again.start()
        assert len(await again.list_versions("m", 0, 10_000)) == acknowledged
        await again.stop()


@pytest.mark.parametrize(
    "url",
    [
        "mysql://user:secret@host/registry",
        "secret",
        "sqlite://",
        "sqlite:///:memory:",
        "postgresql://user:secret@host:port/x",
    ],
)
def test_a_url_of_no_known_database_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(MeshError) as caught:
        SqlStore(url)
    assert caught.value.reason is Reason.FIELD_INVALID
    assert caught.value.fields[0][0] == "database_url"
    assert "secret" not in str(caught.value)


async def test_sqlite_refuses_what_is_no_registry_file(tmp_path: Path) -> None:
    newer, noise, other = tmp_path / "newer", tmp_path / "noise", tmp_path / "other"
    with closing(sqlite3.connect(newer)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    noise.write_bytes(b"this is not a database at all" * 100)
    for path, words in ((newer, "newer program"), (noise, "cannot be read"), (other, "something else")):
        before = path.read_bytes()
        store = SqlStore.sqlite(path)
        error = await refused(store.start(), Reason.NOT_READY)
        assert words in error.message
        await store.stop()
        assert path.read_bytes() == before
