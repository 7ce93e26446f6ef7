"""The router's durable store: one SQLite file, write-ahead log, synchronous=FULL.

A commit is on disk when the call returns. All statements run in one thread of their own: SQLite wants one writer, and
the event loop must not wait for a disk. Knows tables; what they mean is said in `store.py`.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from services.router.store import MAX_BOOTS, MAX_ENTRIES, Counts, Load, NodeOutcomes, Report, Seen
from splitmesh.errors import MeshError, Reason

T = TypeVar("T")

SCHEMA_VERSION = 3

_SCHEMA = """
CREATE TABLE goals (model TEXT PRIMARY KEY, goals TEXT NOT NULL) STRICT;
CREATE TABLE sites (site TEXT PRIMARY KEY, stated TEXT NOT NULL) STRICT;
CREATE TABLE policies (model TEXT, version INTEGER, revision INTEGER NOT NULL, policy TEXT NOT NULL,
                       PRIMARY KEY (model, version)) STRICT;
CREATE TABLE seen (node TEXT, boot_id TEXT, floor INTEGER NOT NULL, early TEXT NOT NULL, touched INTEGER NOT NULL,
                   PRIMARY KEY (node, boot_id)) STRICT;
CREATE TABLE outcomes (model TEXT, version INTEGER, node TEXT, counts TEXT NOT NULL, last_report_us INTEGER NOT NULL,
                       load TEXT, PRIMARY KEY (model, version, node)) STRICT;
"""

_UPGRADES = {
    1: "ALTER TABLE outcomes ADD COLUMN load TEXT;",
    # What was stated as a tolerance are goals that say nothing of the rest.
    2: """
CREATE TABLE goals (model TEXT PRIMARY KEY, goals TEXT NOT NULL) STRICT;
CREATE TABLE sites (site TEXT PRIMARY KEY, stated TEXT NOT NULL) STRICT;
INSERT INTO goals SELECT model, json_object('max_disagreement', max_disagreement, 'delta', delta) FROM tolerances;
DROP TABLE tolerances;
""",
}
"""From each earlier schema to the next."""


class SqliteStore:
    """A RouterStore in one file. MeshError STORAGE_FULL when SQLite cannot write, SERVICE_UNAVAILABLE at a bad file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread: ThreadPoolExecutor | None = None
        self._database: sqlite3.Connection | None = None

    async def start(self) -> None:
        """Open or make the file. SERVICE_UNAVAILABLE when it is no database or of a later schema."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="router-store")
        try:
            await self._run(self._open)
        except OSError as error:
            detail = f"the router's folder is not usable: {error.strerror}"
            raise MeshError(Reason.SERVICE_UNAVAILABLE, detail) from error

    async def stop(self) -> None:
        """Close; every accepted call is done before."""
        if self._thread is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
            self._thread.shutdown()
            self._thread = None

    async def goals(self, model: str) -> str | None:
        """See RouterStore."""

        def work(db: sqlite3.Connection) -> str | None:
            row = db.execute("SELECT goals FROM goals WHERE model = ?", (model,)).fetchone()
            return row[0] if row else None

        return await self._do(work)

    async def set_goals(self, model: str, text: str) -> None:
        """See RouterStore."""
        await self._do(lambda db: db.execute("INSERT OR REPLACE INTO goals VALUES (?, ?)", (model, text)))

    async def sites(self) -> dict[str, str]:
        """See RouterStore."""
        return await self._do(lambda db: dict(db.execute("SELECT site, stated FROM sites ORDER BY site")))

    async def set_site(self, name: str, text: str) -> None:
        """See RouterStore."""
        await self._do(lambda db: db.execute("INSERT OR REPLACE INTO sites VALUES (?, ?)", (name, text)))

    async def revision(self, model: str, version: int, policy: str) -> int:
        """See RouterStore."""

        def work(db: sqlite3.Connection) -> int:
            query = "SELECT revision, policy FROM policies WHERE model = ? AND version = ?"
            revision, last = db.execute(query, (model, version)).fetchone() or (0, None)
            if policy != last:
                revision += 1
                db.execute("INSERT OR REPLACE INTO policies VALUES (?, ?, ?, ?)", (model, version, revision, policy))
            return int(revision)

        return await self._do(work)

    async def add(self, report: Report, at: datetime) -> bool:
        """See RouterStore."""
        return await self._do(lambda db: _add(db, report, at))

    async def outcomes(self, model: str, version: int | None = None) -> list[NodeOutcomes]:
        """See RouterStore."""

        def work(db: sqlite3.Connection) -> list[NodeOutcomes]:
            query = "SELECT node, version, counts, last_report_us, load FROM outcomes WHERE model = :model"
            if version is not None:
                query += " AND version = :version"
            query += " ORDER BY last_report_us DESC LIMIT :limit"
            rows = db.execute(query, {"model": model, "version": version, "limit": MAX_ENTRIES})
            return [
                NodeOutcomes(node, found, _counts(text), _time(us), _load(load)) for node, found, text, us, load in rows
            ]

        return sorted(await self._do(work), key=lambda entry: (entry.node, entry.version))

    async def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """One transaction; once begun it is finished, whatever becomes of the caller."""

        def transaction() -> T:
            if self._database is None:
                raise MeshError(Reason.NOT_READY, "the store is closed")
            with self._database as db:
                db.execute("BEGIN IMMEDIATE")
                return work(db)

        return await self._run(transaction)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._thread is None:
            raise MeshError(Reason.NOT_READY, "the store is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.OperationalError as error:
            raise MeshError(
                Reason.STORAGE_FULL, f"the router's store cannot write: {error}", retry_after_s=5.0
            ) from error
        except sqlite3.DatabaseError as error:
            raise MeshError(Reason.SERVICE_UNAVAILABLE, f"the router's store is not usable: {error}") from error

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        db = self._database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        (found,) = db.execute("PRAGMA user_version").fetchone()
        if found > SCHEMA_VERSION:
            raise MeshError(
                Reason.SERVICE_UNAVAILABLE, f"the store has schema {found}; this router knows up to {SCHEMA_VERSION}"
            )
        if found == 0:
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        elif found < SCHEMA_VERSION:
            steps = " ".join(_UPGRADES[number] for number in range(found, SCHEMA_VERSION))
            db.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None


def _add(db: sqlite3.Connection, report: Report, at: datetime) -> bool:
    boot = (report.node, report.boot_id)
    row = db.execute("SELECT floor, early FROM seen WHERE node = ? AND boot_id = ?", boot).fetchone()
    seen = Seen(row[0], frozenset(json.loads(row[1]))) if row else Seen()
    fresh = report.sequence not in seen
    if fresh:
        seen = seen.plus(report.sequence)
    (touched,) = db.execute("SELECT coalesce(max(touched), 0) + 1 FROM seen WHERE node = ?", boot[:1]).fetchone()
    early = json.dumps(sorted(seen.early))
    db.execute("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?, ?)", (*boot, seen.floor, early, touched))
    db.execute(
        "DELETE FROM seen WHERE node = :node AND boot_id NOT IN"
        " (SELECT boot_id FROM seen WHERE node = :node ORDER BY touched DESC LIMIT :keep)",
        {"node": report.node, "keep": MAX_BOOTS},
    )
    if fresh:
        key = (report.model, report.version, report.node)
        query = "SELECT counts FROM outcomes WHERE model = ? AND version = ? AND node = ?"
        found = db.execute(query, key).fetchone()
        total = (_counts(found[0]) if found else Counts()).plus(report.counts)
        load = json.dumps(asdict(report.load)) if report.load is not None else None
        values = (*key, _text(total), _microseconds(at), load)
        db.execute("INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?, ?, ?)", values)
    return fresh


def _text(counts: Counts) -> str:
    return json.dumps(
        {
            "edge_exit": counts.edge_exit,
            "cloud_tail": counts.cloud_tail,
            "tail_disagreed": counts.tail_disagreed,
            "edge_fallback": dict(counts.edge_fallback),
            "refused": dict(counts.refused),
            "edge_whole": counts.edge_whole,
            "hard": dict(counts.hard),
        }
    )


def _counts(text: str) -> Counts:
    return Counts(**json.loads(text))


def _load(text: str | None) -> Load | None:
    return Load(**json.loads(text)) if text is not None else None


def _microseconds(at: datetime) -> int:
    return round(at.timestamp() * 1e6)


def _time(microseconds: int) -> datetime:
    return datetime.fromtimestamp(microseconds / 1e6, UTC)
