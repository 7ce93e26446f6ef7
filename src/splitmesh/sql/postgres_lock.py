"""One owner per PostgreSQL database, by a session's advisory lock on a connection of its own.

The lock keeps a second one from starting; it is not what makes writes safe. When its connection breaks the server lets go
of it, and another owner may start: that one counts ``state.epoch`` up, and every write of this one compares the epoch in its
own transaction, under the lock of that row (``postgres_database``). So there is no moment in which both can write.

A second advisory lock does the same for what is not in the database, without stopping writes: whoever removes files shares it
in a transaction that compares the epoch, and whoever counts the epoch up must have it alone.
"""

from __future__ import annotations

from contextlib import suppress

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from splitmesh.errors import Reason
from splitmesh.sql.database import DatabaseTakenError
from splitmesh.sql.schema import Schema

_REMOVALS_WAIT_S = 1.0
"""Longest uninterrupted wait for the end of a removal: a start can be given up in between."""
_LOCK_NOT_AVAILABLE = "55P03"


class PostgresLock:
    """See the module; every method blocks, and one thread at a time calls."""

    def __init__(self, engine: Engine, schema: Schema) -> None:
        self._engine = engine
        self._schema = schema
        self._connection: Connection | None = None
        """Of the lock, or of who waits for it."""
        self._is_taken = False

    def take(self) -> None:
        """:class:`DatabaseTakenError` when another owner is running; asked again it uses the same connection."""
        if self.is_held():
            return
        try:
            if self._connection is None:
                self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
                self._connection.execute(text("SET statement_timeout = '10s'"))
            asked = text("SELECT pg_try_advisory_lock(:key)")
            self._is_taken = bool(self._connection.execute(asked, {"key": self._schema.lock_key}).scalar_one())
        except DBAPIError:
            self.let_go()
            raise
        if not self._is_taken:
            raise _taken(self._schema)

    def is_held(self) -> bool:
        """Asks the server, on the connection that holds it."""
        if self._connection is None or not self._is_taken:
            return False
        try:
            self._connection.execute(text("SELECT 1"))
        except DBAPIError:
            self.let_go()
            return False
        return True

    def let_go(self) -> None:
        """Ends the connection, and with it the lock; fine when there is none."""
        if self._connection is not None:
            connection, self._connection, self._is_taken = self._connection, None, False
            with suppress(DBAPIError):
                connection.invalidate()
            connection.close()


def share_removals(connection: Connection, schema: Schema) -> None:
    """Until the transaction ends nobody passes :func:`end_removals`."""
    connection.execute(text("SELECT pg_advisory_xact_lock_shared(:key)"), {"key": _removals(schema)})


def end_removals(connection: Connection, schema: Schema) -> None:
    """When it returns nobody shares them, nor can until the transaction ends; :class:`DatabaseTakenError` when somebody does."""
    connection.execute(text(f"SET LOCAL lock_timeout = {round(_REMOVALS_WAIT_S * 1000)}"))
    try:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _removals(schema)})
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", "") != _LOCK_NOT_AVAILABLE:
            raise
        raise _taken(schema) from error


def _removals(schema: Schema) -> int:
    return schema.lock_key + 1


def _taken(schema: Schema) -> DatabaseTakenError:
    return DatabaseTakenError(
        Reason.SERVICE_UNAVAILABLE, f"another {schema.owner} is running on this database", retry_after_s=5.0
    )
