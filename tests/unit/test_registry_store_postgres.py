"""What the metadata store promises on PostgreSQL alone: one registry at a time, order, and clear words when it is away."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Connection, make_url, text

from services.registry.metadata import sql_aliases
from services.registry.metadata.records import AliasChange
from services.registry.metadata.schema import SCHEMA
from services.registry.metadata.sql_store import SqlStore
from splitmesh.errors import MeshError, Reason
from splitmesh.sql.postgres_database import PostgresDatabase
from tests.integration.registry_world import small_disk
from tests.support.postgres import PostgresServer, fresh_database, lose_locks, shared_server, standing_by
from tests.support.stores import ACTOR, DRAFT, NOON, draft, made, move, refused

NEVER_S = 3600.0
OURS = "datname = %(name)s"


@pytest.fixture
def url() -> Iterator[str]:
    with fresh_database() as url:
        yield url


@pytest.fixture
def database(url: str) -> Iterator[PostgresDatabase]:
    made = PostgresDatabase(make_url(url).set(drivername="postgresql+psycopg"), SCHEMA)
    made.open()
    yield made
    made.close()


async def test_a_second_registry_is_refused_and_may_come_afterwards(url: str) -> None:
    first, second = SqlStore(url), SqlStore(url, lock_wait_s=0.01)
    await first.start()
    error = await refused(second.start(), Reason.SERVICE_UNAVAILABLE)
    assert error.message == "another registry is running on this database"
    await second.stop()
    await made(first, "m")
    await first.stop()
    await second.start()
    assert (await second.create_version(DRAFT, ACTOR, NOON)).version == 2
    await second.stop()


async def test_a_registry_waits_for_the_one_before_it_to_end(url: str) -> None:
    first, second = SqlStore(url), SqlStore(url, lock_wait_s=60.0)
    await first.start()
    starting = asyncio.create_task(second.start())
    await standing_by(url)
    assert not starting.done()
    await made(first, "m")
    await first.stop()
    await starting
    assert (await second.newest("m")).version == 1
    await second.stop()


async def test_a_registry_that_lost_its_lock_takes_it_again(url: str) -> None:
    first, second = SqlStore(url, check_every_s=NEVER_S), SqlStore(url, lock_wait_s=0.01)
    await first.start()
    lose_locks(url)
    await first.check()
    await refused(second.start(), Reason.SERVICE_UNAVAILABLE)
    await second.stop()
    await made(first, "m")
    await first.stop()


async def test_a_registry_that_another_has_replaced_writes_nothing_any_more(url: str) -> None:
    first, second = SqlStore(url, check_every_s=NEVER_S), SqlStore(url)
    await first.start()
    await made(first, "m")
    lose_locks(url)
    await second.start()
    error = await refused(first.create_version(DRAFT, ACTOR, NOON), Reason.SERVICE_UNAVAILABLE)
    assert "another registry has taken over" in error.message
    for call in (first.newest("m"), first.check(), move(first, "prod", 1)):
        await refused(call, Reason.SERVICE_UNAVAILABLE)
    assert (await second.create_version(DRAFT, ACTOR, NOON)).version == 2
    await first.stop()
    await second.check()
    await second.stop()


async def test_a_registry_notices_by_itself_that_it_was_replaced(url: str) -> None:
    store = SqlStore(url, check_every_s=0.001)
    await store.start()
    await made(store, "m")
    with psycopg.connect(url, autocommit=True) as another_registry:
        another_registry.execute("UPDATE state SET epoch = epoch + 1")
    await asyncio.to_thread(lose_locks, url)
    error = None
    while error is None:
        try:
            await store.newest("m")
        except MeshError as caught:
            error = caught
    assert "another registry has taken over" in error.message
    await store.stop()


def test_a_move_is_not_seen_before_those_with_lower_sequences(url: str, database: PostgresDatabase) -> None:
    inside, go = threading.Event(), threading.Event()

    def set_alias(connection: Connection, alias: str) -> int:
        return sql_aliases.set_alias(connection, AliasChange("m", alias, 1), ACTOR, NOON).sequence

    def slowly(connection: Connection) -> int:
        sequence = set_alias(connection, "slow")
        inside.set()
        assert go.wait(30)
        return sequence

    def newest(connection: Connection) -> int:
        return sql_aliases.alias_states(connection, "m", "")[1]

    database.write(lambda connection: _create(connection))
    answers: dict[str, int] = {}
    slow = threading.Thread(target=lambda: answers.update(slow=database.write(slowly)))
    slow.start()
    assert inside.wait(30)
    quick = threading.Thread(
        target=lambda: answers.update(quick=database.write(lambda connection: set_alias(connection, "quick")))
    )
    quick.start()
    blocked = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND " + OURS
    while not shared_server().execute(blocked, name=make_url(url).database):
        assert quick.is_alive()
    assert database.read(newest) == 0
    go.set()
    slow.join()
    quick.join()
    assert answers == {"slow": 1, "quick": 2}
    assert database.read(newest) == 2


def _create(connection: Connection) -> None:
    from services.registry.metadata.sql_versions import create_version

    create_version(connection, DRAFT, ACTOR, NOON, NOON)


def test_a_registry_is_not_replaced_in_the_middle_of_a_write(url: str, database: PostgresDatabase) -> None:
    def replace(_connection: Connection) -> None:
        with psycopg.connect(url, autocommit=True) as another_registry:
            another_registry.execute("SET lock_timeout = '10ms'")
            another_registry.execute("UPDATE state SET epoch = epoch + 1")

    with pytest.raises(psycopg.errors.LockNotAvailable):
        database.write(replace)
    database.read(replace)
    with pytest.raises(MeshError) as caught:
        database.write(_create)
    assert caught.value.reason is Reason.SERVICE_UNAVAILABLE


def test_a_transaction_that_the_server_takes_back_is_repeated_a_few_times(database: PostgresDatabase) -> None:
    tries = 0

    def work(connection: Connection, failures: int) -> int:
        nonlocal tries
        tries += 1
        if tries <= failures:
            connection.execute(text("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$"))
        return tries

    assert database.write(lambda connection: work(connection, 2)) == 3
    tries = 0
    with pytest.raises(MeshError) as caught:
        database.write(lambda connection: work(connection, 9))
    assert caught.value.reason is Reason.SERVICE_UNAVAILABLE
    assert tries == 3


def test_a_statement_that_takes_too_long_is_given_up(database: PostgresDatabase) -> None:
    def work(connection: Connection) -> None:
        connection.execute(text("SET LOCAL statement_timeout = 1"))
        connection.execute(text("SELECT pg_sleep(60)"))

    for run in (database.read, database.write):
        with pytest.raises(MeshError) as caught:
            run(work)
        assert caught.value.reason is Reason.SERVICE_UNAVAILABLE
        assert caught.value.retry_after_s is not None


def test_connections_wait_for_the_disk_and_for_nothing_else_without_end(database: PostgresDatabase) -> None:
    names = ("synchronous_commit", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    found = database.read(lambda connection: [connection.execute(text(f"SHOW {name}")).scalar() for name in names])
    assert found == ["on", "30s", "10s", "1min"]


async def test_a_server_that_is_away_is_named_and_used_again_when_it_is_back() -> None:
    server = PostgresServer()
    try:
        time = [0.0]
        with server.database() as url:
            opened = make_url(url).set(drivername="postgresql+psycopg")
            database = PostgresDatabase(opened, SCHEMA, monotonic=lambda: time[0])
            database.open()
            database.write(_create)
            server.control("stop", "-m", "fast")
            for _ in range(2):
                with pytest.raises(MeshError) as caught:
                    database.write(_create)
                assert caught.value.reason is Reason.SERVICE_UNAVAILABLE
                assert caught.value.retry_after_s is not None
            server.control("start")
            with pytest.raises(MeshError):  # it rests after a failure instead of asking again and again
                database.read(_count)
            time[0] = 2.0
            assert database.read(_count) == 1
            database.check()
            database.write(_create)
            assert database.read(_count) == 2
            database.close()
    finally:
        server.stop()


def _count(connection: Connection) -> int:
    return int(connection.execute(text("SELECT count(*) FROM versions")).scalar_one())


async def test_a_database_that_cannot_be_used_is_refused_with_a_reason(url: str, tmp_path: Path) -> None:
    server = shared_server()
    server.execute("CREATE ROLE guest LOGIN")
    guest = make_url(url).set(username="guest").render_as_string()
    with server.database("ENCODING 'SQL_ASCII' LOCALE_PROVIDER 'libc' LOCALE 'C' TEMPLATE template0") as ascii_url:
        for bad, reason, words in (
            (server.url("nowhere"), Reason.SERVICE_UNAVAILABLE, "does not answer"),
            (f"postgresql://x@/x?host={tmp_path}", Reason.SERVICE_UNAVAILABLE, "does not answer"),
            (ascii_url, Reason.NOT_READY, "SQL_ASCII"),
            (guest, Reason.NOT_READY, "permission denied"),
        ):
            store = SqlStore(bad)
            error = await refused(store.start(), reason)
            assert words in error.message
            await store.stop()


async def test_a_full_disk_refuses_and_keeps_what_was_acknowledged() -> None:
    server = shared_server()
    with small_disk(server.folder / "disk", 16 * 1024 * 1024) as folder:
        shutil.chown(folder, server.folder.owner())
        filler = folder / "filler"
        filler.write_bytes(bytes(4 * 1024 * 1024))
        server.execute(f"CREATE TABLESPACE small LOCATION '{folder}'")
        try:
            with server.database("TABLESPACE small") as url:
                store = SqlStore(url)
                try:
                    await store.start()
                    acknowledged, refusal = 0, None
                    while refusal is None and acknowledged < 10_000:
                        try:
                            await store.create_version(draft(description=os.urandom(50_000).hex()), ACTOR, NOON)
                            acknowledged += 1
                        except MeshError as error:
                            refusal = error
                    assert refusal is not None
                    assert refusal.reason is Reason.STORAGE_FULL
                    filler.unlink()  # a server that has no room at all may not be able to read either
                    assert (await store.newest("m")).version == acknowledged > 0
                    assert len(await store.list_events("m", 0, 10_000)) == acknowledged
                finally:
                    await store.stop()
        finally:
            server.execute("DROP TABLESPACE small")
