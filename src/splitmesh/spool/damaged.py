"""A file that the disk has changed: set aside, and what can be read of it saved. Knows the tables of ``store.py``, not what
for.

A row counts as read when its body has its digest. What the counts say was there and nobody can read any more is counted as
dropped; where the counts are gone too, nobody knows how much was lost, and the new file begins with what was saved.

The new file is whole, and synced, before the damaged one moves: a kill or a full disk leaves either the damaged one where it
was, or a new one that :func:`finish` puts in its place."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from splitmesh.durable import sync_folder
from splitmesh.spool.values import CORRUPT

FILE = "spool.db"
ASIDE = "damaged-"
BUILDING, READY = "building.db", "ready.db"
"""The new file, in the folder for the damaged one: while it is written, and once it is whole."""
MOST_ASIDE = 3
"""Damaged files that are kept for somebody to look at; the oldest goes."""
_BESIDE = ("", "-wal", "-shm")
_PRIMARY = 0xFF
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_SCHEMA, sqlite3.SQLITE_MISMATCH)


@dataclass(frozen=True)
class Saved:
    """What could be read."""

    records: Sequence[tuple[Any, ...]] = ()
    totals: Mapping[str, tuple[int, int]] | None = None
    """Captured and committed by topic; None: not readable."""
    dropped: Mapping[tuple[str, str], int] | None = None
    """By topic and reason; None: not readable."""
    set_aside: Sequence[tuple[int, int, int | None]] = field(default_factory=tuple)
    """Earlier files: saved, time, lost."""
    life: str | None = None
    """Of the counts; None: not readable, and with them the counts are nobody's."""

    def counted(self) -> dict[str, tuple[int, int]]:
        """Captured and committed by topic, as the new file begins with."""
        if self.totals is None or self.dropped is None:
            return {topic: (n, 0) for topic, n in self._waiting.items()}
        # Rows that came after the counts that could be read were captured too.
        return {
            topic: (captured + max(0, -self._missing[topic]), done) for topic, (captured, done) in self._known.items()
        }

    def drops(self) -> dict[tuple[str, str], int]:
        """By topic and reason, with what is lost."""
        if self.totals is None or self.dropped is None:
            return {}
        drops = Counter(dict(self.dropped))
        drops.update({(topic, CORRUPT): n for topic, n in self._missing.items() if n > 0})
        return dict(drops)

    def lost(self) -> int | None:
        """Records that nobody can read any more; None: nobody knows."""
        if self.totals is None or self.dropped is None:
            return None
        return sum(n for n in self._missing.values() if n > 0)

    def summary(self) -> str:
        """In words."""
        lost = self.lost()
        return f"{len(self.records)} records are saved, {'an unknown number' if lost is None else lost} lost"

    @cached_property
    def _waiting(self) -> Counter[str]:
        return Counter(row[1] for row in self.records)

    @cached_property
    def _known(self) -> dict[str, tuple[int, int]]:
        return dict.fromkeys(self._waiting, (0, 0)) | dict(self.totals or {})

    @cached_property
    def _missing(self) -> dict[str, int]:
        """By topic: counted, and neither acknowledged nor dropped nor here."""
        dropped: Counter[str] = Counter()
        for (topic, _), n in (self.dropped or {}).items():
            dropped[topic] += n
        return {
            topic: captured - committed - dropped[topic] - self._waiting[topic]
            for topic, (captured, committed) in self._known.items()
        }


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file is at fault, and not the room for it or a program."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return isinstance(error, sqlite3.DatabaseError) and "malformed" in str(error)
    return code & _PRIMARY in _DAMAGE


def make_aside(folder: Path) -> Path:
    """An empty folder for the file; what an earlier try has left unfinished goes."""
    known = _asides(folder)
    for aside in known:
        if not (aside / FILE).exists() and not (aside / READY).exists():
            remove(aside)
    aside = folder / f"{ASIDE}{_number(known[-1]) + 1 if known else 1}"
    aside.mkdir()
    return aside


def change_places(folder: Path, aside: Path) -> None:
    """The damaged file and its log go aside, and the new one takes their place. Can be begun again wherever it has ended."""
    sync_folder(aside)
    sync_folder(folder)
    for suffix in _BESIDE:
        with suppress(FileNotFoundError):
            os.replace(folder / (FILE + suffix), aside / (FILE + suffix))
    sync_folder(aside)
    sync_folder(folder)
    os.replace(aside / READY, folder / FILE)
    sync_folder(aside)
    sync_folder(folder)
    for old in _asides(folder)[:-MOST_ASIDE]:
        remove(old)


def finish(folder: Path) -> None:
    """Ends a change of places that an earlier life has begun."""
    for aside in _asides(folder):
        if (aside / READY).exists():
            change_places(folder, aside)


def save(folder: Path) -> Saved:
    """Everything that can be read of the file where it is."""
    try:
        # Not read-only: what is in the log only has to be recovered first.
        with closing(sqlite3.connect(folder / FILE)) as db:
            (life,) = (*_read(db, "SELECT id FROM life")[0], (None,))[0]
            known = isinstance(life, str)
            return Saved(
                _rows(db),
                _mapping(db, "SELECT topic, captured, committed FROM counted") if known else None,
                _drops(db),
                _read(db, "SELECT saved, time_us, lost FROM set_aside")[0],
                life if known else None,
            )
    except sqlite3.Error:
        return Saved()


def _rows(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
    """From both ends: what is in the middle may stop a walk."""
    columns = "number, topic, boot_id, sequence, kind, body, sha256, time_us, worth"
    found: dict[int, tuple[Any, ...]] = {}
    for order in ("", " DESC"):
        rows, whole = _read(db, f"SELECT {columns} FROM records NOT INDEXED ORDER BY number{order}")
        found.update({row[0]: row for row in rows if _sound(row)})
        if whole:
            break
    return [found[number] for number in sorted(found)]


def _sound(row: tuple[Any, ...]) -> bool:
    kinds = (int, str, str, int, str, bytes, bytes, int, int)
    return all(isinstance(value, kind) for value, kind in zip(row, kinds, strict=True)) and (
        hashlib.sha256(row[5]).digest() == row[6]
    )


def _mapping(db: sqlite3.Connection, query: str) -> dict[str, tuple[int, int]] | None:
    rows, whole = _read(db, query)
    return {topic: (captured, committed) for topic, captured, committed in rows} if whole else None


def _drops(db: sqlite3.Connection) -> dict[tuple[str, str], int] | None:
    rows, whole = _read(db, "SELECT topic, reason, n FROM dropped")
    return {(topic, reason): n for topic, reason, n in rows} if whole else None


def _read(db: sqlite3.Connection, query: str) -> tuple[list[tuple[Any, ...]], bool]:
    """Rows up to the first that cannot be read, and whether these are all."""
    found: list[tuple[Any, ...]] = []
    try:
        for row in db.execute(query):
            found.append(row)
    except (sqlite3.Error, UnicodeDecodeError):
        return found, False
    return found, True


def _asides(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted((one for one in folder.glob(f"{ASIDE}*") if one.name.removeprefix(ASIDE).isdecimal()), key=_number)


def _number(aside: Path) -> int:
    return int(aside.name.removeprefix(ASIDE))


def remove(aside: Path) -> None:
    """With what is in it, as far as that is possible."""
    with suppress(OSError):
        for entry in aside.iterdir():
            entry.unlink()
        aside.rmdir()
