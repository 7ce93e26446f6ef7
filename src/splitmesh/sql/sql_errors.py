"""What a database's errors mean to callers. Knows the codes of SQLite and PostgreSQL, and no statement.

Codes: https://www.sqlite.org/rescode.html, https://www.postgresql.org/docs/current/errcodes-appendix.html.
"""

from __future__ import annotations

import sqlite3

from sqlalchemy.exc import DBAPIError

from splitmesh.errors import MeshError, Reason

try:
    import psycopg
except ModuleNotFoundError:  # the extra `postgres`: without it there is no server to be away
    _SERVERS: tuple[type[Exception], ...] = ()
    _UNREACHABLE: tuple[type[Exception], ...] = ()
else:
    _SERVERS = (psycopg.Error,)
    _UNREACHABLE = (psycopg.OperationalError, psycopg.InterfaceError)

_SQLITE_AWAY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_AWAY = ("08", "57P", "53300", "57014", "55P03", "25006", "25P03")
"""Connection lost, server stopping or starting, too many connections, too slow, locked, only a copy to read from."""
_NOT_USABLE = ("28", "3D", "42501")
"""Wrong user or password, no such database, not allowed."""
_AGAIN = ("40001", "40P01")


def is_to_repeat(error: DBAPIError) -> bool:
    """The database took the transaction back because of another one: the same again can succeed at once."""
    return _state(error).startswith(_AGAIN)


def is_away(error: DBAPIError) -> bool:
    """The server could not be reached, or the connection broke."""
    if not isinstance(error.orig, _SERVERS):
        return False
    lost = isinstance(error.orig, _UNREACHABLE) and not _state(error)
    return lost or error.connection_invalidated or _state(error).startswith(("08", "57P", "53300"))


def to_mesh_error(error: DBAPIError) -> MeshError | None:
    """STORAGE_FULL, SERVICE_UNAVAILABLE or NOT_READY; None: a mistake of this program, or a broken file."""
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        if code & 0xFF == sqlite3.SQLITE_FULL:
            return storage_full()
        return unavailable("the database file is locked by another program") if code & 0xFF in _SQLITE_AWAY else None
    state = _state(error)
    if state == "53100":
        return storage_full()
    if state.startswith(_NOT_USABLE):
        return MeshError(Reason.NOT_READY, f"the database refuses this service: {sentence(error)}")
    if is_away(error) or state.startswith((*_AWAY, *_AGAIN)):
        return unavailable("the database does not answer; whether anything was changed is not known")
    return None


def storage_full() -> MeshError:
    """No space for more rows."""
    return MeshError(Reason.STORAGE_FULL, "no space is left to record this; nothing was changed", retry_after_s=60.0)


def unavailable(message: str) -> MeshError:
    """It may work soon."""
    return MeshError(Reason.SERVICE_UNAVAILABLE, message, retry_after_s=1.0)


def sentence(error: DBAPIError) -> str:
    """What the database said, in its first line."""
    return str(error.orig).partition("\n")[0]


def _state(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""
