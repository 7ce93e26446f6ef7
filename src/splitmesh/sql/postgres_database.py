"""A PostgreSQL database: connections, transactions, and that one process writes. Knows no table but ``state``.

A write first locks the one row of ``state``: writes come one after the other, as on SQLite, so sequences become visible in
order and nothing has to be repeated because of another write. A read sees one moment (REPEATABLE READ) and waits for nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, column, create_engine, event, select, table, text, update
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from splitmesh.errors import MeshError, Reason
from splitmesh.sql.database import DatabaseLostError
from splitmesh.sql.postgres_lock import PostgresLock, end_removals, share_removals
from splitmesh.sql.schema import Schema, migrate
from splitmesh.sql.sql_errors import is_away, is_to_repeat, sentence, to_mesh_error, unavailable
from splitmesh.sql.together import Outcome, Work, run_each

T = TypeVar("T")

_SETTINGS = {
    "synchronous_commit": "on",
    "statement_timeout": "30s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "60s",
    # The server must notice soon that this machine is gone, or nobody can take its place.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
_CONNECT = {
    "client_encoding": "utf8",
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
_HOLD = "10min"
"""Longest time between two checks of a hold, in which one content is removed; then the server ends it."""
_TIMES = 3
"""A transaction that the server took back because of another one is tried so often in all."""
_REST_S = 1.0
"""After a failed connection nothing is tried for so long, or everybody would wait for the time-out in turn."""
_STATE = table("state", column("id"), column("epoch"))
"""Of every service's schema: one row, which every write locks; ``epoch`` counts the processes that have had the database."""
_ROW = _STATE.c.id == 1


class PostgresDatabase:
    """See the module. Every method blocks; :meth:`read` may run in several threads, the others in one at a time."""

    readers = 3
    """Threads for reads beside the one for writes."""

    def __init__(self, url: URL, schema: Schema, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._schema = schema
        self._monotonic = monotonic
        self._engine: Engine | None = None
        self._lock: PostgresLock | None = None
        self._epoch = 0
        self._is_lost = False
        self._away_until = float("-inf")

    def open(self) -> None:
        """Becomes the database's owner and makes its tables.

        Raises:
            MeshError: SERVICE_UNAVAILABLE, it does not answer or another owner runs on it (:class:`DatabaseTakenError`: may be
                asked again); NOT_READY, it is somebody else's or refuses this user; STORAGE_FULL.
        """
        if self._engine is None:
            connect = {**_CONNECT, "application_name": f"splitmesh-{self._schema.owner}"}
            # Beside the readers' connections: one for writes, one that holds the lock, one for a hold.
            self._engine = create_engine(
                self._url, connect_args=connect, pool_size=self.readers + 3, max_overflow=0, pool_pre_ping=True
            )
            event.listen(self._engine, "connect", _prepare)
            self._lock = PostgresLock(self._engine, self._schema)
        try:
            self._guarded(self._take)
            self._epoch = self._guarded(lambda: self._transact(self._begin_epoch))
        except DBAPIError as error:
            raise MeshError(
                Reason.NOT_READY, f"the {self._schema.owner}'s database cannot be used: {sentence(error)}"
            ) from error

    def close(self) -> None:
        """Ends all connections."""
        if self._lock is not None:
            self._lock.let_go()
            self._lock = None
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    def check(self) -> None:
        """Notices that the lock is lost and takes it again, unless another owner has begun meanwhile.

        Raises:
            MeshError: SERVICE_UNAVAILABLE, the database does not answer, or another owner took over: from then on
                everything raises that, :class:`DatabaseLostError`.
        """
        if self._lock is None or self._lock.is_held():
            return
        if self.read(_epoch) != self._epoch:
            raise self._lost()
        self._guarded(self._take)
        if self.read(_epoch) != self._epoch:
            raise self._lost()

    def hold(self) -> PostgresHold:
        """Keeps other owners from beginning, while reads and writes go on; SERVICE_UNAVAILABLE."""

        def begin() -> PostgresHold:
            connection = self._open_engine().connect()
            try:
                connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{_HOLD}'"))
                share_removals(connection, self._schema)
                if _epoch(connection) != self._epoch:
                    raise self._lost()
            except BaseException:
                connection.close()
                raise
            return PostgresHold(connection)

        return self._guarded(begin)

    def read(self, work: Callable[[Connection], T]) -> T:
        """Runs statements that change nothing, all at one moment; SERVICE_UNAVAILABLE."""

        def run() -> T:
            with self._open_engine().connect() as connection:
                connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
                with connection.begin():
                    return work(connection)

        return self._guarded(run)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Runs statements as one transaction that is on disk when this returns; STORAGE_FULL, SERVICE_UNAVAILABLE."""

        def checked(connection: Connection) -> T:
            found = connection.execute(select(_STATE.c.epoch).where(_ROW).with_for_update()).scalar()
            if found != self._epoch:
                raise self._lost()
            return work(connection)

        return self._guarded(lambda: self._transact(checked))

    def write_each(self, works: Sequence[Work]) -> list[Outcome]:
        """See :meth:`~splitmesh.sql.database.Database.write_each`."""
        return self.write(lambda connection: run_each(connection, works))

    def _transact(self, work: Callable[[Connection], T]) -> T:
        for left in reversed(range(_TIMES)):
            try:
                with self._open_engine().begin() as connection:
                    return work(connection)
            except DBAPIError as error:
                if not (left and is_to_repeat(error)):
                    raise
        raise AssertionError("the last time returns or raises")

    def _guarded(self, run: Callable[[], T]) -> T:
        if self._is_lost:
            raise self._lost()
        if self._monotonic() < self._away_until:
            raise unavailable("the database does not answer")
        try:
            return run()
        except DBAPIError as error:
            if is_away(error):
                self._away_until = self._monotonic() + _REST_S
            known = to_mesh_error(error)
            if known is None:
                raise
            raise known from error

    def _take(self) -> None:
        assert self._lock is not None, "used before open"
        self._lock.take()

    def _begin_epoch(self, connection: Connection) -> int:
        encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
        if encoding != "UTF8":
            raise MeshError(
                Reason.NOT_READY, f"the {self._schema.owner}'s database has encoding {encoding}; it needs UTF8"
            )
        migrate(connection, self._schema)
        end_removals(connection, self._schema)
        counted = update(_STATE).where(_ROW).values(epoch=_STATE.c.epoch + 1).returning(_STATE.c.epoch)
        return int(connection.execute(counted).scalar_one())

    def _open_engine(self) -> Engine:
        if self._engine is None:
            raise MeshError(Reason.NOT_READY, "the database is closed", retry_after_s=1.0)
        return self._engine

    def _lost(self) -> DatabaseLostError:
        self._is_lost = True
        return DatabaseLostError(
            Reason.SERVICE_UNAVAILABLE,
            f"another {self._schema.owner} has taken over this database; this one does nothing any more and must be restarted",
            retry_after_s=5.0,
        )


class PostgresHold:
    """A transaction that shares the lock of removals; every method blocks."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def check(self) -> None:
        """SERVICE_UNAVAILABLE when the connection is gone, and with it the lock."""
        try:
            self._connection.execute(text("SELECT 1"))
        except SQLAlchemyError as error:
            raise unavailable("the database does not answer; another owner may have begun") from error

    def end(self) -> None:
        """Lets go; fine when the connection is gone."""
        with suppress(SQLAlchemyError):
            self._connection.close()


def _epoch(connection: Connection) -> int:
    return int(connection.execute(select(_STATE.c.epoch).where(_ROW)).scalar_one())


def _prepare(connection: Any, _record: object) -> None:
    with connection.cursor() as cursor:
        for name, value in _SETTINGS.items():
            cursor.execute(f"SET {name} = '{value}'")
    connection.commit()
