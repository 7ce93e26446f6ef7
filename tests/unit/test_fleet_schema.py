"""The fleet's database: the migrations make the tables that the parts know, and what is no fleet's is left alone."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from pydantic import SecretStr
from sqlalchemy import Connection, inspect

import services.fleet.nodes.tables
import services.fleet.policies.tables
import services.fleet.records.tables
import services.fleet.rollout.tables
import services.fleet.tasks.tables  # noqa: F401 (these define the tables)
from services.fleet.config import FleetSettings
from services.fleet.schema import FILE, METADATA, open_database
from services.registry.metadata.sql_store import SqlStore
from splitmesh.errors import Reason
from splitmesh.sql.database import DatabaseLostError
from splitmesh.sql.folder_lock import FolderLock
from tests.support.fleet_database import opened_database
from tests.support.postgres import fresh_database, lose_locks
from tests.support.stores import DURABLE, durable_url, refused

STATE = "SELECT id FROM state"


@pytest.fixture(params=DURABLE)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with durable_url(request.param, tmp_path) as url:
        yield url


def differences(connection: Connection) -> list[object]:
    return list(compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), METADATA))


async def test_the_migrations_make_the_tables_that_the_parts_know(url: str) -> None:
    async with opened_database(url) as threads:
        assert await threads.read(differences) == []
        names = await threads.read(lambda connection: set(inspect(connection).get_table_names()))
        assert names == {*METADATA.tables, "alembic_version"}


async def test_tables_on_sqlite_are_strict_and_lie_as_the_parts_say(tmp_path: Path) -> None:
    async with opened_database(f"sqlite:///{tmp_path}/fleet.db"):
        pass
    with closing(sqlite3.connect(tmp_path / "fleet.db")) as connection:
        found = {
            name: (bool(without_rowid), bool(strict)) for _, name, _, _, without_rowid, strict in _tables(connection)
        }
    wanted = {
        name: (table.dialect_options["sqlite"]["with_rowid"] is False, True) for name, table in METADATA.tables.items()
    }
    assert {name: one for name, one in found.items() if name in wanted} == wanted


def _tables(connection: sqlite3.Connection) -> list[tuple[str, str, str, int, int, int]]:
    return connection.execute("PRAGMA table_list").fetchall()


async def test_every_text_is_ordered_by_code_point_on_postgres() -> None:
    asked = (
        "SELECT collation_name, count(*) FROM information_schema.columns WHERE table_schema = 'public'"
        " AND data_type = 'text' GROUP BY collation_name"
    )
    with fresh_database() as url:
        async with opened_database(url) as threads:
            ((collation, columns),) = await threads.read(lambda connection: connection.exec_driver_sql(asked).all())
    assert collation == "C"
    assert columns > 20


async def test_opening_again_changes_nothing(url: str) -> None:
    for _ in range(2):
        async with opened_database(url) as threads:
            assert await threads.read(lambda connection: connection.exec_driver_sql(STATE).all()) == [(1,)]


async def test_a_schema_newer_than_the_program_is_refused_and_left_alone(url: str) -> None:
    async with opened_database(url):
        pass
    _execute(url, "UPDATE alembic_version SET version_num = '9999'")
    error = await refused(_open(url), Reason.NOT_READY)
    assert "the fleet's database has schema 9999" in error.message
    _execute(url, "UPDATE alembic_version SET version_num = 'fleet_0001'")
    await _open(url)


async def test_the_database_of_another_service_is_refused_and_left_alone(url: str) -> None:
    store = SqlStore(url)
    await store.start()
    await store.stop()
    error = await refused(_open(url), Reason.NOT_READY)
    assert "schema 0002" in error.message
    await store.start()
    await store.stop()


async def test_another_service_refuses_the_database_of_a_fleet_and_leaves_it_alone(url: str) -> None:
    await _open(url)
    store = SqlStore(url)
    error = await refused(store.start(), Reason.NOT_READY)
    assert "schema fleet_0001" in error.message
    await store.stop()
    await _open(url)


async def test_something_else_in_the_database_is_refused(url: str) -> None:
    _execute(url, "CREATE TABLE songs (title TEXT)")
    error = await refused(_open(url), Reason.NOT_READY)
    assert "something else than a fleet's data" in error.message


async def test_the_settings_say_which_database(tmp_path: Path) -> None:
    settings = FleetSettings(data_dir=tmp_path)
    threads = open_database(settings, lambda _error: None)
    await threads.start()
    await threads.stop()
    assert (tmp_path / FILE).is_file()
    with fresh_database() as url:
        threads = open_database(FleetSettings(database_url=SecretStr(url)), lambda _error: None)
        await threads.start()
        name = await threads.read(lambda connection: connection.exec_driver_sql("SELECT current_database()").scalar())
        assert str(name) in url
        await threads.stop()


async def test_one_fleet_at_a_time_has_a_database_and_a_folder(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path, "fleet"), FolderLock(tmp_path, "fleet")
    await first.start()
    error = await refused(second.start(), Reason.SERVICE_UNAVAILABLE)
    assert error.message == "another fleet is running on this data folder"
    await first.stop()
    await second.start()
    await second.stop()
    with fresh_database() as url:
        settings = FleetSettings(database_url=SecretStr(url), database_wait_s=0.0)
        lost: list[DatabaseLostError] = []
        one, other = open_database(settings, lost.append), open_database(settings, lost.append)
        await one.start()
        error = await refused(other.start(), Reason.SERVICE_UNAVAILABLE)
        assert error.message == "another fleet is running on this database"
        lose_locks(url)
        await other.start()
        await refused(one.write(lambda connection: connection.exec_driver_sql(STATE)), Reason.SERVICE_UNAVAILABLE)
        assert lost
        await other.write(lambda connection: connection.exec_driver_sql(STATE))
        await one.stop()
        await other.stop()


async def _open(url: str) -> None:
    async with opened_database(url):
        pass


def _execute(url: str, statement: str) -> None:
    """One statement without this program's help."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
            connection.execute(statement)
    else:
        with psycopg.connect(url, autocommit=True) as session:
            session.execute(statement)
