"""The SQLite file of a store, of samples unless it is said otherwise: opening it, and what its failures and those of the disk
mean. Knows no tables' meaning."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import suppress
from pathlib import Path

from splitmesh.errors import MeshError, Reason
from splitmesh.samples.tables import SCHEMA, SCHEMA_VERSION

_FULL = (errno.ENOSPC, errno.EDQUOT)
_PRIMARY = 0xFF
"""SQLite's extended result codes say more above these bits."""

RESERVE_BYTES = 512 * 1024
"""A transaction that labels or deletes writes a few dozen KiB to the log first."""


class Reserve:
    """A file of nothing, given up so that what makes room can be written on a disk that others have filled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def hold(self) -> None:
        """Take the space again, as far as there is any."""
        with suppress(OSError):
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
            finally:
                os.close(descriptor)

    def give_up(self) -> None:
        """Leave it to whoever writes next."""
        with suppress(OSError):
            os.unlink(self._path)


def open_database(
    path: Path | str, schema: str = SCHEMA, version: int = SCHEMA_VERSION, what: str = "samples"
) -> sqlite3.Connection:
    """Write-ahead log, synchronous=FULL, autocommit. SERVICE_UNAVAILABLE for a later schema; sqlite3.Error for no database."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        (found,) = db.execute("PRAGMA user_version").fetchone()
        if found > version:
            raise MeshError(
                Reason.SERVICE_UNAVAILABLE, f"the {what} have schema {found}; this program knows up to {version}"
            )
        if found == 0:
            db.executescript(f"BEGIN IMMEDIATE; {schema} PRAGMA user_version = {version}; COMMIT;")
    except BaseException:
        db.close()
        raise
    return db


def unusable(error: OSError | sqlite3.Error, what: str = "samples") -> MeshError:
    """STORAGE_FULL when space is what is missing, else SERVICE_UNAVAILABLE."""
    if isinstance(error, OSError):
        full, detail = error.errno in _FULL, error.strerror or type(error).__name__
    else:
        full, detail = getattr(error, "sqlite_errorcode", 0) & _PRIMARY == sqlite3.SQLITE_FULL, str(error)
    if full:
        return MeshError(Reason.STORAGE_FULL, f"the store of {what} cannot write: {detail}", retry_after_s=60.0)
    return MeshError(Reason.SERVICE_UNAVAILABLE, f"the store of {what} is not usable: {detail}")
