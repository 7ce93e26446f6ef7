"""Who owns a PostgreSQL database: while contents are removed nobody else, and who lost it for good is told so."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
from sqlalchemy import make_url

from services.registry.metadata.sql_store import SqlStore
from splitmesh.errors import MeshError, Reason
from splitmesh.sql.database import DatabaseLostError
from tests.support.postgres import PostgresServer, fresh_database, lose_locks, shared_server, standing_by
from tests.support.stores import ACTOR, DRAFT, NOON, made, refused

NEVER_S = 3600.0
WAIT_S = 30.0
SOME = ["e" * 64]


@pytest.fixture
def url() -> Iterator[str]:
    with fresh_database() as url:
        yield url


@pytest.fixture
async def owner(url: str) -> AsyncIterator[SqlStore]:
    store = SqlStore(url, check_every_s=NEVER_S)
    await store.start()
    yield store
    await store.stop()


async def waiting(url: str) -> None:
    """Somebody waits for the end of a removal."""
    asked = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = %(name)s"
    async with asyncio.timeout(WAIT_S):
        while not await asyncio.to_thread(shared_server().execute, asked, name=make_url(url).database):
            pass


def said_by_the_server() -> str:
    return (shared_server().folder / "server.log").read_text()


def end_owner_session(url: str) -> None:
    """The server ends the connection that holds the owner's lock, and no other."""
    asked = "SELECT pid FROM pg_locks JOIN pg_database ON oid = database WHERE mode = 'ExclusiveLock' AND {}".format(
        "locktype = 'advisory' AND granted AND datname = %(name)s"
    )
    ((pid,),) = shared_server().execute(asked, name=make_url(url).database)
    shared_server().execute("SELECT pg_terminate_backend(%(pid)s, 10000)", pid=pid)


async def test_nobody_becomes_the_owner_in_the_middle_of_a_removal_and_writes_go_on(url: str, owner: SqlStore) -> None:
    next_one = SqlStore(url, lock_wait_s=WAIT_S)
    async with owner.removing(SOME) as removal:
        end_owner_session(url)
        starting = asyncio.create_task(next_one.start())
        await waiting(url)
        await made(owner, "m")
        await removal.check()
        impatient = SqlStore(url, lock_wait_s=0.01)
        await refused(impatient.start(), Reason.SERVICE_UNAVAILABLE)
        assert not starting.done()
    await starting
    await refused(owner.create_version(DRAFT, ACTOR, NOON), Reason.SERVICE_UNAVAILABLE)
    assert (await next_one.create_version(DRAFT, ACTOR, NOON)).version == 2
    await next_one.stop()


async def test_a_store_that_was_replaced_removes_nothing(url: str, owner: SqlStore) -> None:
    lose_locks(url)
    next_one = SqlStore(url)
    await next_one.start()
    error = await refused(owner.removing(SOME).__aenter__(), Reason.SERVICE_UNAVAILABLE)
    assert isinstance(error, DatabaseLostError)
    async with next_one.removing(SOME) as removal:
        assert removal.unused == {*SOME}
    await next_one.stop()


async def test_a_removal_whose_connection_broke_is_told_before_the_next_content(url: str, owner: SqlStore) -> None:
    async with owner.removing(SOME) as removal:
        await removal.check()
        await asyncio.to_thread(lose_locks, url)
        await refused(removal.check(), Reason.SERVICE_UNAVAILABLE)
        await refused(removal.check(), Reason.SERVICE_UNAVAILABLE)
    await owner.check()
    async with owner.removing(SOME) as removal:
        await removal.check()


async def test_a_store_that_was_replaced_says_so_and_one_whose_database_is_away_does_not() -> None:
    told: list[MeshError] = []
    server = PostgresServer()
    try:
        with server.database() as url:
            store = SqlStore(url, check_every_s=NEVER_S, on_lost=told.append)
            await store.start()
            server.control("stop", "-m", "fast")
            await refused(store.check(), Reason.SERVICE_UNAVAILABLE)
            await refused(store.create_version(DRAFT, ACTOR, NOON), Reason.SERVICE_UNAVAILABLE)
            server.control("start")
            async with asyncio.timeout(WAIT_S):
                while True:
                    try:
                        await store.check()
                        break
                    except MeshError:
                        assert not told
            await made(store, "m")
            _replace(server, url)
            await refused(store.create_version(DRAFT, ACTOR, NOON), Reason.SERVICE_UNAVAILABLE)
            assert [type(one) for one in told] == [DatabaseLostError]
            await store.stop()
    finally:
        server.stop()


def _replace(server: PostgresServer, url: str) -> None:
    with psycopg.connect(url, autocommit=True) as another_registry:
        another_registry.execute("UPDATE state SET epoch = epoch + 1")


async def test_a_start_that_waits_for_another_registry_can_be_given_up(url: str, owner: SqlStore) -> None:
    standby = SqlStore(url, lock_wait_s=NEVER_S)
    starting = asyncio.create_task(standby.start())
    await standing_by(url)
    starting.cancel()
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(asyncio.CancelledError):
            await starting
    await standby.stop()
    await made(owner, "m")


async def test_a_standby_takes_over_however_long_it_has_waited(
    url: str, owner: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitmesh.sql.database.PAUSE_S", 0.001)
    tries, loop, tried = itertools.count(1), asyncio.get_running_loop(), asyncio.Event()
    standby = SqlStore(url, lock_wait_s=NEVER_S)
    plain_open = standby._threads._database.open

    def counted() -> None:
        if next(tries) == 5:
            loop.call_soon_threadsafe(tried.set)
        plain_open()

    monkeypatch.setattr(standby._threads._database, "open", counted)
    before = len(said_by_the_server())
    starting = asyncio.create_task(standby.start())
    async with asyncio.timeout(WAIT_S):
        await tried.wait()
    await made(owner, "m")
    assert "ERROR" not in said_by_the_server()[before:]
    await owner.stop()
    await starting
    assert (await standby.newest("m")).version == 1
    await standby.stop()
