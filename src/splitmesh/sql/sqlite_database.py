"""One SQLite file on one connection, for one thread: opening, transactions, durability. Knows no table.

WAL with synchronous=FULL, because a write must outlive a power cut once it is acknowledged (measured: 293 of 293
acknowledged rows kept; with synchronous=NORMAL none of 293).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, NullPool, create_engine, event
from sqlalchemy.exc import DatabaseError, DBAPIError

from splitmesh.errors import MeshError, Reason
from splitmesh.sql.schema import Schema, migrate
from splitmesh.sql.sql_errors import sentence, to_mesh_error
from splitmesh.sql.together import Outcome, Work, run_each

T = TypeVar("T")


class SqliteDatabase:
    """A file that this process alone writes to (``folder_lock``). Every method blocks and belongs in one thread."""

    readers = 0
    """Threads for reads beside the one for writes: none, reads go there too."""

    def __init__(self, path: Path, schema: Schema) -> None:
        self._path = path
        self._schema = schema
        self._connection: Connection | None = None

    def open(self) -> None:
        """Opens or makes the file and its tables; NOT_READY when it is somebody else's, STORAGE_FULL."""
        engine = create_engine(URL.create("sqlite", database=str(self._path)), poolclass=NullPool)
        event.listen(engine, "connect", _prepare)
        event.listen(engine, "begin", _begin)
        try:
            self._connection = engine.connect()
            with self._transaction("IMMEDIATE") as connection:
                migrate(connection, self._schema)
            # Only now: a file that is somebody else's stays as it is, to the byte.
            with self._transaction("") as connection:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        except DatabaseError as error:
            raise to_mesh_error(error) or MeshError(
                Reason.NOT_READY, f"the {self._schema.owner}'s database file cannot be read: {sentence(error)}"
            ) from error

    def close(self) -> None:
        """Lets go of the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def check(self) -> None:
        """Nothing can happen to a file that is held open."""

    def hold(self) -> SqliteHold:
        """Nobody else can have the file while this process lives."""
        return SqliteHold()

    def read(self, work: Callable[[Connection], T]) -> T:
        """Runs statements that change nothing, all at one moment."""
        return self._run("DEFERRED", work)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Runs statements as one transaction that is on disk when this returns; STORAGE_FULL."""
        return self._run("IMMEDIATE", work)

    def write_each(self, works: Sequence[Work]) -> list[Outcome]:
        """See :meth:`~splitmesh.sql.database.Database.write_each`."""
        return self.write(lambda connection: run_each(connection, works))

    def _run(self, kind: str, work: Callable[[Connection], T]) -> T:
        try:
            with self._transaction(kind) as connection:
                return work(connection)
        except DBAPIError as error:
            known = to_mesh_error(error)
            if known is None:
                raise
            raise known from error

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[Connection]:
        if self._connection is None:
            raise MeshError(Reason.NOT_READY, "the database is closed", retry_after_s=1.0)
        self._connection.info["begin"] = kind
        try:
            with self._connection.begin():
                yield self._connection
        except BaseException:
            _leave(self._connection)
            raise


class SqliteHold:
    """Nothing: see :meth:`SqliteDatabase.hold`."""

    def check(self) -> None:
        """Fine."""

    def end(self) -> None:
        """Fine."""


def _prepare(connection: Any, _record: object) -> None:
    connection.isolation_level = None
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _leave(connection: Connection) -> None:
    """A commit that failed may leave SQLite within the transaction, while SQLAlchemy takes it for ended."""
    driver: Any = connection.connection.driver_connection
    if driver.in_transaction:
        driver.rollback()


def _begin(connection: Connection) -> None:
    """The driver of Python 3.11 begins too late and only for some statements, so it never does; some must be outside."""
    if kind := connection.info["begin"]:
        connection.exec_driver_sql(f"BEGIN {kind}")
