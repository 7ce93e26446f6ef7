"""Spools for the tests of them: small, with a clock that stands, and disks that are full or slow."""

from __future__ import annotations

import errno
import itertools
import sqlite3
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from splitmesh.spool.damaged import FILE, Saved
from splitmesh.spool.store import SpoolStore
from splitmesh.spool.values import Balance, Entry, Limits, Record

NOW = datetime(2026, 3, 4, 10, 0, tzinfo=UTC)
WAIT_S = 20.0
TOPIC = "samples"


def entry(text: str = "one", worth: int = 0, topic: str = TOPIC, **more: Any) -> Entry:
    return Entry(topic, "sample", text.encode(), worth, **more)


def store(folder: Path | None, **limits: int) -> SpoolStore:
    """Open, with lives named life-1, life-2, … by the files in it."""
    made = SpoolStore(folder, Limits(**limits), now=lambda: NOW)
    made.open()
    return made


def texts(records: Sequence[Record]) -> list[str]:
    return [record.body.decode() for record in records]


def everything(spool: SpoolStore, topic: str = TOPIC) -> list[str]:
    """Taken and acknowledged until nothing is left."""
    found: list[str] = []
    while records := spool.take(topic, 100, 1 << 20):
        found += texts(records)
        spool.acknowledge(records)
    return found


def total(spool: SpoolStore) -> Balance:
    balance = Balance()
    for one in spool.balances().values():
        balance = balance.plus(one)
    return balance


def fill(spool: SpoolStore, *names: str, worth: int = 0) -> None:
    spool.note([entry(name, worth) for name in names])


class FullDisk(SpoolStore):
    """A store whose file may not grow while ``full`` is set."""

    def fill_up(self) -> None:
        (pages,) = self._ready().execute("PRAGMA page_count").fetchone()
        self._ready().execute(f"PRAGMA max_page_count = {pages}")

    def free(self) -> None:
        self._ready().execute("PRAGMA max_page_count = 1000000")


class NoRoomForAnother(SpoolStore):
    """A store on a disk without room for a second file while ``full`` is set."""

    full = False

    def _write_anew(self, path: Path, saved: Saved) -> None:
        super()._write_anew(path, saved)
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")


class SlowDisk(SpoolStore):
    """A store whose notes wait for ``goes_on``, and that counts its transactions of notes."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.goes_on, self.hangs = threading.Event(), threading.Event()
        self.groups: list[int] = []

    def note(self, entries: Sequence[Entry]) -> Any:
        self.hangs.set()
        assert self.goes_on.wait(WAIT_S)
        self.groups.append(len(entries))
        return super().note(entries)


def damage(folder: Path, text: str) -> None:
    """Changes one byte of a record's body behind SQLite's back."""
    merge_log(folder)
    path = folder / FILE
    content = bytearray(path.read_bytes())
    at = content.index(text.encode())
    content[at] ^= 1
    path.write_bytes(content)


def break_pages(folder: Path, *, first: int, last: int) -> None:
    """Overwrites whole pages, counted from 1."""
    merge_log(folder)
    path = folder / FILE
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[16:18], "big")
    for page in range(first, last + 1):
        content[(page - 1) * size : page * size] = bytes(itertools.islice(itertools.cycle(b"\xa5\x5a\xff"), size))
    path.write_bytes(content)


def damage_in_use(spool: SpoolStore, folder: Path) -> None:
    """Overwrites all but the first page of a file that is open, and sees to it that nothing of it is read from memory."""
    spool._ready().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    spool._ready().execute("PRAGMA cache_size = 1")
    path = folder / FILE
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (len(content) - 4096))
    spool._ready().execute("PRAGMA shrink_memory")
    with sqlite3.connect(path) as other:  # moves the log on
        other.execute("PRAGMA user_version = 1")
    other.close()


def pages(folder: Path) -> int:
    merge_log(folder)
    with sqlite3.connect(folder / FILE) as db:
        (count,) = db.execute("PRAGMA page_count").fetchone()
    db.close()
    return int(count)


def merge_log(folder: Path) -> None:
    db = sqlite3.connect(folder / FILE)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
