"""One SQLite file with a thread of its own: write-ahead log, synchronous=FULL, so that what is committed is on disk.

SQLite wants one writer, and the event loop must not wait for a disk. Knows no table.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from splitmesh.errors import MeshError, Reason

T = TypeVar("T")


class SqliteFile:
    """A database. MeshError STORAGE_FULL when SQLite cannot write, SERVICE_UNAVAILABLE at a bad file, NOT_READY when closed.

    Args:
        path: of the file; its folder is made when missing.
        schema: statements that make its tables.
        version: of the schema; a file of a later one is refused.
        upgrades: statements from each earlier version to the next.
    """

    def __init__(self, path: Path, schema: str, version: int = 1, upgrades: Mapping[int, str] | None = None) -> None:
        self._path, self._schema, self._version, self._upgrades = path, schema, version, upgrades or {}
        self._thread: ThreadPoolExecutor | None = None
        self._database: sqlite3.Connection | None = None

    async def start(self) -> None:
        """Open or make the file."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=self._path.stem)
        try:
            await self._run(self._open)
        except OSError as error:
            detail = f"the router's folder is not usable: {error.strerror}"
            raise MeshError(Reason.SERVICE_UNAVAILABLE, detail) from error

    async def stop(self) -> None:
        """Close; every accepted call is done before. Safe to call twice, and after a failed start."""
        if self._thread is not None:
            thread, self._thread = self._thread, None
            await asyncio.get_running_loop().run_in_executor(thread, self._close)
            thread.shutdown()

    async def do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """One transaction; once begun it is finished, whatever becomes of the caller."""

        def transaction() -> T:
            if self._database is None:
                raise _closed()
            with self._database as db:
                db.execute("BEGIN IMMEDIATE")
                return work(db)

        return await self._run(transaction)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._thread is None:
            raise _closed()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.OperationalError as error:
            detail = f"{self._path.name} cannot be written: {error}"
            raise MeshError(Reason.STORAGE_FULL, detail, retry_after_s=5.0) from error
        except sqlite3.DatabaseError as error:
            raise MeshError(Reason.SERVICE_UNAVAILABLE, f"{self._path.name} is not usable: {error}") from error

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        db = self._database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        (found,) = db.execute("PRAGMA user_version").fetchone()
        if found > self._version:
            detail = f"{self._path.name} has schema {found}; this router knows up to {self._version}"
            raise MeshError(Reason.SERVICE_UNAVAILABLE, detail)
        if found < self._version:
            steps = [self._upgrades[number] for number in range(found, self._version)] if found else [self._schema]
            script = f"BEGIN IMMEDIATE; {' '.join(steps)} PRAGMA user_version = {self._version}; COMMIT;"
            db.executescript(script)

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None


def _closed() -> MeshError:
    return MeshError(Reason.NOT_READY, "the store is closed")
