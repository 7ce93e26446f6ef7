"""The router's durable store: one SQLite file, write-ahead log, synchronous=FULL.

A commit is on disk when the call returns (`sqlite_file.py`). Knows tables; what they mean is said in `store.py`.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from services.router.sqlite_file import SqliteFile
from services.router.store import MAX_BOOTS, MAX_ENTRIES, Counts, Load, NodeOutcomes, Report, Seen

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
        self._file = SqliteFile(path, _SCHEMA, SCHEMA_VERSION, _UPGRADES)

    async def start(self) -> None:
        """Open or make the file. SERVICE_UNAVAILABLE when it is no database or of a later schema."""
        await self._file.start()

    async def stop(self) -> None:
        """Close; every accepted call is done before."""
        await self._file.stop()

    async def goals(self, model: str) -> str | None:
        """See RouterStore."""

        def work(db: sqlite3.Connection) -> str | None:
            row = db.execute("SELECT goals FROM goals WHERE model = ?", (model,)).fetchone()
            return row[0] if row else None

        return await self._file.do(work)

    async def set_goals(self, model: str, text: str) -> None:
        """See RouterStore."""
        await self._file.do(lambda db: db.execute("INSERT OR REPLACE INTO goals VALUES (?, ?)", (model, text)))

    async def sites(self) -> dict[str, str]:
        """See RouterStore."""
        return await self._file.do(lambda db: dict(db.execute("SELECT site, stated FROM sites ORDER BY site")))

    async def set_site(self, name: str, text: str) -> None:
        """See RouterStore."""
        await self._file.do(lambda db: db.execute("INSERT OR REPLACE INTO sites VALUES (?, ?)", (name, text)))

    async def revision(self, model: str, version: int, policy: str) -> int:
        """See RouterStore."""

        def work(db: sqlite3.Connection) -> int:
            query = "SELECT revision, policy FROM policies WHERE model = ? AND version = ?"
            revision, last = db.execute(query, (model, version)).fetchone() or (0, None)
            if policy != last:
                revision += 1
                db.execute("INSERT OR REPLACE INTO policies VALUES (?, ?, ?, ?)", (model, version, revision, policy))
            return int(revision)

        return await self._file.do(work)

    async def add(self, report: Report, at: datetime) -> bool:
        """See RouterStore."""
        return await self._file.do(lambda db: _add(db, report, at))

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

        return sorted(await self._file.do(work), key=lambda entry: (entry.node, entry.version))


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
