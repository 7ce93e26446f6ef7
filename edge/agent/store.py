"""What an agent has to know after a power cut: its tasks and how they ended, what heads are to serve. One SQLite file.

Write-ahead log, synchronous=FULL: what a method has written is on disk when it returns. Blocks on the disk: call it in a thread;
any thread may. Messages are kept as they came; what they mean is for others to know.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import DecodeError

from splitmesh.api.fleet.v1 import fleet_pb2
from splitmesh.durable import make_folders
from splitmesh.errors import MeshError, Reason

T = TypeVar("T")
log = logging.getLogger(__name__)

FILE = "agent.sqlite"
SCHEMA_VERSION = 1
MAX_ACKNOWLEDGED = 1000
"""Ended tasks that the fleet knows of and that are kept all the same, so that none of them is run again."""

_SCHEMA = """
CREATE TABLE tasks (id TEXT PRIMARY KEY, number INTEGER NOT NULL, attempt INTEGER NOT NULL, task BLOB NOT NULL,
                    ended BLOB, acknowledged INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE INDEX tasks_by_age ON tasks (acknowledged, number);
CREATE TABLE kept (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
"""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_PRIMARY = 0xFF
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


@dataclass(frozen=True, slots=True)
class LoggedTask:
    """A task as it is on disk."""

    task: fleet_pb2.Task
    ended: fleet_pb2.TaskUpdate | None
    """How; None: it has begun and not ended."""
    acknowledged: bool


class AgentStore:
    """In one folder. Every method but :meth:`open` and :meth:`close` raises STORAGE_FULL and SERVICE_UNAVAILABLE as the disk has
    it, and NOT_READY while the store is closed."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None

    def open(self) -> None:
        """Opens or makes it; one that is damaged is put aside, and a new one begun: the fleet offers again what was in it."""
        with self._lock:
            if self._database is not None:
                return
            try:
                make_folders(self._path.parent)
                try:
                    self._database = _opened(self._path)
                except sqlite3.DatabaseError as error:
                    if getattr(error, "sqlite_errorcode", 0) & _PRIMARY not in _DAMAGED:
                        raise
                    log.error("%s is damaged and put aside: %s", self._path.name, error)
                    _put_aside(self._path)
                    self._database = _opened(self._path)
            except (OSError, sqlite3.Error) as error:
                raise _unusable(error) from error

    def close(self) -> None:
        """Lets go; safe to call twice."""
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None

    def tasks(self) -> list[LoggedTask]:
        """All that are known, the oldest first; what cannot be read is left out and said."""
        rows = self._do(
            lambda db: db.execute("SELECT id, task, ended, acknowledged FROM tasks ORDER BY number").fetchall()
        )
        found = []
        for name, task, ended, acknowledged in rows:
            try:
                update = None if ended is None else fleet_pb2.TaskUpdate.FromString(ended)
                found.append(LoggedTask(fleet_pb2.Task.FromString(task), update, bool(acknowledged)))
            except DecodeError:
                log.error("the task %s cannot be read any more", name)
        return found

    def begin(self, task: fleet_pb2.Task) -> None:
        """A task in the place of an earlier attempt at it."""
        self._do(
            lambda db: db.execute(
                "INSERT OR REPLACE INTO tasks (id, number, attempt, task) "
                "VALUES (?, (SELECT coalesce(max(number), 0) + 1 FROM tasks), ?, ?)",
                (task.id, task.attempt, task.SerializeToString()),
            )
        )

    def end(self, update: fleet_pb2.TaskUpdate) -> None:
        """How an attempt ended; nothing when another one stands in its place."""
        self._do(
            lambda db: db.execute(
                "UPDATE tasks SET ended = ? WHERE id = ? AND attempt = ?",
                (update.SerializeToString(), update.task_id, update.attempt),
            )
        )

    def acknowledge(self, task_id: str, attempt: int) -> list[str]:
        """The fleet knows how it ended; the ids of older such tasks that are forgotten for it."""

        def work(db: sqlite3.Connection) -> list[str]:
            db.execute("UPDATE tasks SET acknowledged = 1 WHERE id = ? AND attempt = ?", (task_id, attempt))
            oldest = "SELECT id FROM tasks WHERE acknowledged = 1 ORDER BY number DESC LIMIT -1 OFFSET ?"
            forgotten = [name for (name,) in db.execute(oldest, (MAX_ACKNOWLEDGED,))]
            db.executemany("DELETE FROM tasks WHERE id = ?", [(name,) for name in forgotten])
            return forgotten

        return self._do(work)

    def keep(self, name: str, value: bytes, forgotten: Iterable[str] = ()) -> None:
        """A value by name, in place of the one before; in the same transaction others are forgotten."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("INSERT OR REPLACE INTO kept (name, value) VALUES (?, ?)", (name, value))
            db.executemany("DELETE FROM kept WHERE name = ?", [(other,) for other in forgotten])

        self._do(work)

    def kept(self) -> Mapping[str, bytes]:
        """All values by name, the one that was kept longest ago first."""
        # A value that is replaced gets a row, and so a number, of its own: the highest so far.
        asked = "SELECT name, value FROM kept ORDER BY rowid"
        rows: list[tuple[str, bytes]] = self._do(lambda db: db.execute(asked).fetchall())
        return dict(rows)

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            if self._database is None:
                raise MeshError(Reason.NOT_READY, "the agent's store is closed")
            try:
                with self._database as db:
                    db.execute("BEGIN IMMEDIATE")
                    return work(db)
            except sqlite3.Error as error:
                raise _unusable(error) from error


def _opened(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        (sound,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if sound != "ok":
            error = sqlite3.DatabaseError(str(sound))
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error
        (found,) = db.execute("PRAGMA user_version").fetchone()
        if found > SCHEMA_VERSION:
            raise MeshError(
                Reason.SERVICE_UNAVAILABLE,
                f"the agent's store has schema {found}; this program knows up to {SCHEMA_VERSION}",
            )
        if found == 0:
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    except BaseException:
        db.close()
        raise
    return db


def _put_aside(path: Path) -> None:
    """Kept for who wants to look; the one that was put aside before goes. What belongs to it goes along, or is a new one's."""
    for ending in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + ending).replace(path.with_name(f"{path.name}.damaged{ending}"))


def _unusable(error: OSError | sqlite3.Error) -> MeshError:
    if isinstance(error, OSError):
        full, detail = error.errno in _FULL, error.strerror or type(error).__name__
    else:
        full, detail = getattr(error, "sqlite_errorcode", 0) & _PRIMARY == sqlite3.SQLITE_FULL, str(error)
    reason = Reason.STORAGE_FULL if full else Reason.SERVICE_UNAVAILABLE
    return MeshError(reason, f"the agent's store cannot be used: {detail}", retry_after_s=60.0)
