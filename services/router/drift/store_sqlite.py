"""The durable store of drifts: one SQLite file. Knows tables; what they mean is said in `drift_store.py`."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from services.router.drift.events import DriftEvent
from services.router.drift.store import MAX_LINES, Remembered, SavedLine
from services.router.sqlite_file import SqliteFile

log = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE events (number INTEGER PRIMARY KEY, event TEXT NOT NULL) STRICT;
CREATE TABLE last_event (place INTEGER PRIMARY KEY CHECK (place = 1), number INTEGER NOT NULL) STRICT;
INSERT INTO last_event VALUES (1, 0);
CREATE TABLE lines (model TEXT, version INTEGER, saved INTEGER NOT NULL, watches BLOB NOT NULL, basis TEXT NOT NULL,
                    audits TEXT NOT NULL, sights INTEGER NOT NULL, left_out INTEGER NOT NULL,
                    PRIMARY KEY (model, version)) STRICT;
CREATE TABLE collected (model TEXT, version INTEGER, number INTEGER, samples BLOB NOT NULL,
                        PRIMARY KEY (model, version, number)) STRICT;
"""

_EVENT = TypeAdapter(DriftEvent)


class SqliteDriftStore:
    """A DriftStore in one file. MeshErrors as of :class:`SqliteFile`."""

    def __init__(self, path: Path) -> None:
        self._file = SqliteFile(path, _SCHEMA)

    async def start(self) -> None:
        """See DriftStore."""
        await self._file.start()

    async def stop(self) -> None:
        """See DriftStore."""
        await self._file.stop()

    async def remembered(self) -> Remembered:
        """See DriftStore."""
        return await self._file.do(_remembered)

    async def put(self, events: Sequence[DriftEvent], forget: Sequence[int] = ()) -> None:
        """See DriftStore."""
        rows = [(event.number, _EVENT.dump_json(event).decode()) for event in events]

        def work(db: sqlite3.Connection) -> None:
            db.executemany("INSERT OR REPLACE INTO events VALUES (?, ?)", rows)
            highest = max((number for number, _ in rows), default=0)
            db.execute("UPDATE last_event SET number = max(number, ?)", (highest,))
            db.executemany("DELETE FROM events WHERE number = ?", [(number,) for number in forget])

        await self._file.do(work)

    async def save(self, model: str, version: int, line: SavedLine) -> None:
        """See DriftStore."""
        await self._file.do(lambda db: _save(db, model, version, line))


def _remembered(db: sqlite3.Connection) -> Remembered:
    events = []
    for number, text in db.execute("SELECT number, event FROM events ORDER BY number"):
        try:
            events.append(_EVENT.validate_json(text))
        except ValidationError:
            log.warning("drift event %d cannot be read and is left out", number)
    collected: dict[tuple[str, int], dict[int, bytes]] = {}
    for model, version, number, samples in db.execute("SELECT model, version, number, samples FROM collected"):
        collected.setdefault((model, version), {})[number] = samples
    query = "SELECT model, version, watches, basis, audits, sights, left_out FROM lines ORDER BY saved"
    lines = {}
    for model, version, watches, basis, audits, sights, left_out in db.execute(query):
        samples_of = collected.get((model, version), {})
        lines[model, version] = SavedLine(watches, basis, audits, sights, left_out, samples_of)
    (last,) = db.execute("SELECT number FROM last_event").fetchone()
    return Remembered(tuple(events), last, lines)


def _save(db: sqlite3.Connection, model: str, version: int, line: SavedLine) -> None:
    (saved,) = db.execute("SELECT coalesce(max(saved), 0) + 1 FROM lines").fetchone()
    row = (model, version, saved, line.watches, line.basis, line.audits, line.sights, line.left_out)
    db.execute("INSERT OR REPLACE INTO lines VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    db.execute("DELETE FROM collected WHERE model = ? AND version = ?", (model, version))
    rows = [(model, version, number, samples) for number, samples in line.collected.items()]
    db.executemany("INSERT INTO collected VALUES (?, ?, ?, ?)", rows)
    db.execute(
        "DELETE FROM lines WHERE saved NOT IN (SELECT saved FROM lines ORDER BY saved DESC LIMIT ?)", (MAX_LINES,)
    )
    db.execute("DELETE FROM collected WHERE (model, version) NOT IN (SELECT model, version FROM lines)")
