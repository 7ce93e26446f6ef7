"""Databases of older, newer and no releases: what the registry's metadata store makes of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, make_url

from services.registry.metadata.records import AliasMove, Artifact, ProfileRecord, Version
from services.registry.metadata.schema import SCHEMA
from services.registry.metadata.sql_store import SqlStore
from services.registry.metadata.tables import metadata
from splitmesh.errors import Reason
from splitmesh.sql.database import Database
from splitmesh.sql.postgres_database import PostgresDatabase
from splitmesh.sql.sqlite_database import SqliteDatabase
from tests.support.postgres import fresh_database
from tests.support.stores import ACTOR, DATASET, DURABLE, NOON, draft, durable_url, move, refused

NOON_US = 1777896000123456

FIRST_RELEASE = """
CREATE TABLE models (
    name TEXT PRIMARY KEY, latest_version INTEGER NOT NULL, create_time_us INTEGER NOT NULL
) WITHOUT ROWID, STRICT;
CREATE TABLE versions (
    model TEXT NOT NULL REFERENCES models (name), version INTEGER NOT NULL, parent INTEGER NOT NULL,
    created_by TEXT NOT NULL, description TEXT NOT NULL, request_id TEXT, create_time_us INTEGER NOT NULL,
    PRIMARY KEY (model, version), UNIQUE (model, request_id)
) WITHOUT ROWID, STRICT;
CREATE TABLE artifacts (
    model TEXT NOT NULL, version INTEGER NOT NULL, position INTEGER NOT NULL,
    name TEXT NOT NULL, sha256 TEXT NOT NULL, size_bytes INTEGER NOT NULL,
    PRIMARY KEY (model, version, position), UNIQUE (model, version, name),
    FOREIGN KEY (model, version) REFERENCES versions (model, version)
) WITHOUT ROWID, STRICT;
CREATE TABLE aliases (
    model TEXT NOT NULL, alias TEXT NOT NULL, version INTEGER NOT NULL, revision INTEGER NOT NULL,
    PRIMARY KEY (model, alias), FOREIGN KEY (model, version) REFERENCES versions (model, version)
) WITHOUT ROWID, STRICT;
"""
SECOND_RELEASE = """
CREATE TABLE profiles (
    sha256 TEXT NOT NULL, key TEXT NOT NULL, node TEXT NOT NULL, content TEXT NOT NULL,
    update_time_us INTEGER NOT NULL, PRIMARY KEY (sha256, key)
) STRICT;
"""
ROWS = f"""
INSERT INTO models VALUES ('m', 2, {NOON_US}), ('n', 1, {NOON_US});
INSERT INTO versions VALUES ('m', 1, 0, 'push', 'first', 'r1', {NOON_US}), ('m', 2, 1, 'split', '', NULL, {NOON_US + 5}),
    ('n', 1, 0, 'push', '', NULL, {NOON_US + 7});
INSERT INTO artifacts VALUES ('m', 1, 0, 'manifest.json', '{"b" * 64}', 10), ('m', 1, 1, 'a.onnx', '{"a" * 64}', 20);
INSERT INTO aliases VALUES ('n', 'prod', 1, 1), ('m', 'prod', 2, 7), ('m', 'old', 1, 3);
"""


@pytest.fixture(params=DURABLE)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with durable_url(request.param, tmp_path) as url:
        yield url


def database_at(url: str) -> Database:
    found = make_url(url)
    if found.drivername == "sqlite":
        assert found.database is not None
        return SqliteDatabase(Path(found.database), SCHEMA)
    return PostgresDatabase(found.set(drivername="postgresql+psycopg"), SCHEMA)


def execute(url: str, statement: str) -> None:
    """One statement without this program's help."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
            connection.execute(statement)
    else:
        with psycopg.connect(url, autocommit=True) as session:
            session.execute(statement)


def old_file(folder: Path, script: str, version: int) -> Path:
    """A file as an older release left it."""
    path = folder / "registry.sqlite3"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"PRAGMA journal_mode=WAL; {script} PRAGMA user_version = {version};")
    return path


def tables_of(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def differences(connection: Connection) -> list[object]:
    return list(compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata))


def test_the_migrations_make_the_tables_that_the_program_knows(url: str) -> None:
    database = database_at(url)
    database.open()
    try:
        assert database.read(differences) == []
        names = database.read(lambda connection: set(inspect(connection).get_table_names()))
        assert names == {*metadata.tables, "alembic_version"}
    finally:
        database.close()


def test_every_text_is_ordered_by_code_point_on_postgres() -> None:
    asked = (
        "SELECT collation_name, count(*) FROM information_schema.columns WHERE table_schema = 'public'"
        " AND data_type = 'text' GROUP BY collation_name"
    )
    with fresh_database() as url:
        database = database_at(url)
        database.open()
        ((collation, columns),) = database.read(lambda connection: connection.exec_driver_sql(asked).all())
        database.close()
    assert collation == "C"
    assert columns > 40


def test_opening_again_changes_nothing(url: str) -> None:
    for _ in range(2):
        database = database_at(url)
        database.open()
        assert database.read(lambda connection: connection.exec_driver_sql("SELECT id FROM state").all()) == [(1,)]
        database.close()


@pytest.mark.parametrize(("script", "version"), [(FIRST_RELEASE, 1), (FIRST_RELEASE + SECOND_RELEASE, 2)])
async def test_a_file_of_an_older_release_keeps_everything_that_is_in_it(
    tmp_path: Path, script: str, version: int
) -> None:
    store = SqlStore.sqlite(old_file(tmp_path, script + ROWS, version))
    await store.start()
    parts = (Artifact("manifest.json", "b" * 64, 10), Artifact("a.onnx", "a" * 64, 20))
    first = Version("m", 1, 0, parts, "push", "first", NOON, aliases=("old",))
    assert await store.get_version("m", 1) == first == await store.find_request("m", "r1")
    assert (await store.newest("m")).parent == 1
    moves, newest = await store.alias_states("m", "")
    assert newest == 3
    assert moves == [
        AliasMove(1, "m", "old", 0, 1, "", "pointed here when moves began to be recorded", NOON),
        replace(moves[1], sequence=2, alias="prod", version=2, move_time=(await store.newest("m")).create_time),
    ]
    assert [move.sequence for move in await store.alias_moves_after("n", "prod", 0, 10)] == [3]

    assert (await move(store, "prod", 1)).sequence == 4
    assert (await store.create_version(draft(parent=2), ACTOR, NOON)).version == 3
    await store.create_dataset_version(DATASET, ACTOR, NOON)
    record = ProfileRecord("a" * 64, "k", "n", "{}", NOON)
    await store.put_profile(record)
    await store.stop()
    again = SqlStore.sqlite(tmp_path / "registry.sqlite3")
    await again.start()
    assert (await again.version_at("m", "prod")).version == 1
    assert list(await again.list_profiles("a" * 64, "")) == [record]
    await again.stop()
    database = SqliteDatabase(tmp_path / "registry.sqlite3", SCHEMA)
    database.open()
    assert database.read(differences) == []
    database.close()


async def test_profiles_of_the_release_before_are_kept(tmp_path: Path) -> None:
    row = f"INSERT INTO profiles VALUES ('{'a' * 64}', 'k', 'n', '{{}}', {NOON_US});"
    store = SqlStore.sqlite(old_file(tmp_path, FIRST_RELEASE + SECOND_RELEASE + row, 2))
    await store.start()
    assert list(await store.list_profiles("a" * 64, "")) == [ProfileRecord("a" * 64, "k", "n", "{}", NOON)]
    await store.stop()


async def test_the_release_before_refuses_a_file_of_this_one(tmp_path: Path) -> None:
    path = old_file(tmp_path, FIRST_RELEASE + SECOND_RELEASE, 2)
    store = SqlStore.sqlite(path)
    await store.start()
    await store.stop()
    with closing(sqlite3.connect(path)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    assert version not in (0, 1, 2)  # the only ones that it takes


async def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    """Here it meets a table that a person made under a name that it wants."""
    path = old_file(tmp_path, FIRST_RELEASE + ROWS + "CREATE TABLE events (x TEXT);", 1)
    before = tables_of(path)
    store = SqlStore.sqlite(path)
    error = await refused(store.start(), Reason.NOT_READY)
    assert "events" in error.message
    await store.stop()
    assert tables_of(path) == before
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        connection.execute("DROP TABLE events")
    again = SqlStore.sqlite(path)
    await again.start()
    assert (await again.newest("m")).version == 2
    await again.stop()


async def test_a_schema_newer_than_the_program_is_refused_and_left_alone(url: str) -> None:
    store = SqlStore(url)
    await store.start()
    await store.create_version(draft(), ACTOR, NOON)
    await store.stop()
    execute(url, "UPDATE alembic_version SET version_num = '9999'")
    error = await refused(store.start(), Reason.NOT_READY)
    assert "9999" in error.message
    await store.stop()
    execute(url, "UPDATE alembic_version SET version_num = '0002'")
    await store.start()
    assert (await store.newest("m")).version == 1
    await store.stop()


async def test_a_database_with_something_else_in_it_is_refused(url: str) -> None:
    execute(url, "CREATE TABLE songs (title TEXT)")
    store = SqlStore(url)
    error = await refused(store.start(), Reason.NOT_READY)
    assert "something else" in error.message
    await store.stop()
    database = database_at(url)
    execute(url, "DROP TABLE songs")
    database.open()
    database.close()
