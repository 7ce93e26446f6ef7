"""The file of a spool: SQLite, write-ahead log, synchronous=FULL, every figure that is told of it counted in the transaction
that it is about. Not for several threads at once, and nothing here waits for anybody but the disk; ``spool.py`` is what
others use.

Captured records, acknowledged ones, drops and rows are counted apart from each other, so that their balance says something.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from splitmesh.datasets.contents import FolderLock
from splitmesh.durable import make_folders, sync_folder
from splitmesh.errors import MeshError, Reason
from splitmesh.samples.database import Reserve, open_database, unusable
from splitmesh.spool.damaged import (
    BUILDING,
    FILE,
    READY,
    Saved,
    change_places,
    finish,
    is_damage,
    make_aside,
    remove,
    save,
)
from splitmesh.spool.values import CORRUPT, EVICTED, Balance, Dropped, Drops, Entry, Limits, Noted, Record

T = TypeVar("T")
log = logging.getLogger(__name__)

WHAT = "records for others"
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE records (number INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, boot_id TEXT NOT NULL,
                      sequence INTEGER NOT NULL, kind TEXT NOT NULL, body BLOB NOT NULL, sha256 BLOB NOT NULL,
                      time_us INTEGER NOT NULL, worth INTEGER NOT NULL, UNIQUE (topic, boot_id, sequence)) STRICT;
CREATE INDEX waiting ON records (topic, number);
CREATE INDEX worth ON records (worth, number);
CREATE TABLE counted (topic TEXT PRIMARY KEY, captured INTEGER NOT NULL, committed INTEGER NOT NULL) STRICT;
CREATE TABLE dropped (topic TEXT, reason TEXT, n INTEGER NOT NULL, PRIMARY KEY (topic, reason)) STRICT;
CREATE TABLE set_aside (time_us INTEGER NOT NULL, saved INTEGER NOT NULL, lost INTEGER) STRICT;
CREATE TABLE life (id TEXT NOT NULL) STRICT;
INSERT INTO life VALUES (lower(hex(randomblob(16))));
"""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COLUMNS = "number, topic, boot_id, sequence, kind, body, sha256, time_us, worth"


class SpoolStore:
    """Records in order. Before :meth:`open` and after :meth:`close` every method raises NOT_READY.

    Args:
        folder: of the file; None: in memory, and gone at the end.
        limits: what it keeps to.
        now: the host's clock.
        boot: makes the name of a life.
    """

    def __init__(
        self,
        folder: Path | None,
        limits: Limits,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        boot: Callable[[], str] = lambda: uuid4().hex,
    ) -> None:
        self.boot_id = ""
        """Of this life; another one after the file was set aside."""
        self._folder = folder
        self._limits = limits
        self._now, self._boot = now, boot
        self._lock = FolderLock(folder, WHAT) if folder is not None else None
        self._reserve = Reserve(folder / "reserve") if folder is not None else None
        self._database: sqlite3.Connection | None = None
        self._sequences: Counter[str] = Counter()
        self._taken: Counter[str] = Counter()
        """By topic: up to this number records may be on their way."""
        self._untold: Counter[tuple[str, str]] = Counter()
        """By topic and reason: drops that are not in the file yet."""
        self._records, self._bytes = 0, 0

    @property
    def is_open(self) -> bool:
        """It can be used; false again where a damaged file could not be replaced, until :meth:`open` has done it."""
        return self._database is not None

    def open(self) -> None:
        """Make or open. A damaged file is set aside, what can be read of it is in the new one. MeshError SERVICE_UNAVAILABLE,
        STORAGE_FULL."""
        if self._database is not None:
            return
        try:
            if self._folder is not None and self._lock is not None:
                make_folders(self._folder)
                self._lock.take()
                finish(self._folder)
            try:
                self._database = self._opened()
            except sqlite3.DatabaseError as error:
                if self._folder is None or not is_damage(error):
                    raise
                self._database = self._made_anew(error)
            if self._folder is not None and self._reserve is not None:
                sync_folder(self._folder)
                self._reserve.hold()
            self._begin(self._database)
        except (OSError, sqlite3.Error) as error:
            self.close()
            raise unusable(error, WHAT) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go; safe to call twice."""
        if self._database is not None:
            if self._untold:
                with suppress(MeshError):
                    self._do(lambda db: None)
            self._database.close()
            self._database = None
        if self._lock is not None:
            self._lock.release()

    def note(self, entries: Sequence[Entry]) -> list[Noted | Dropped]:
        """All of them with one sync: on disk, or dropped and counted, when it returns. Raises NOT_READY only."""
        self._ready()
        most = self._limits.max_body_bytes
        fitting = [entry for entry in entries if len(entry.body) <= most]
        try:
            done = iter(self._do(lambda db: [self._noted(db, entry) for entry in fitting]))
        except MeshError as error:
            self.count_dropped([(entry.topic, error.reason.value) for entry in fitting if not entry.elsewhere])
            done = iter([Dropped(error.reason, error.message)] * len(fitting))
        large = [entry for entry in entries if len(entry.body) > most]
        if large:
            self.count_dropped([(entry.topic, Reason.FRAME_TOO_LARGE.value) for entry in large if not entry.elsewhere])
        refusal = Dropped(Reason.FRAME_TOO_LARGE, f"a record has at most {most} bytes")
        return [next(done) if len(entry.body) <= most else refusal for entry in entries]

    def count_dropped(self, drops: Sequence[tuple[str, str]]) -> None:
        """Count, by topic and reason, what never came here; when the disk fails, with the next change."""
        self._untold.update(drops)
        with suppress(MeshError):
            self._do(lambda db: None)

    def take(self, topic: str, most: int, max_bytes: int) -> list[Record]:
        """The oldest of a topic, at least one where there is any; they are not amended any more. What the disk has changed is
        dropped and counted. They stay until they are acknowledged or refused."""
        most = min(most, self._limits.batch)

        def work(db: sqlite3.Connection) -> list[Record]:
            found: list[Record] = []
            size = 0
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM records WHERE topic = ? ORDER BY number LIMIT ?", (topic, most)
            ).fetchall()
            for row in rows:
                record = _record(row)
                if hashlib.sha256(record.body).digest() != record.sha256:
                    self._remove(db, [record])
                    _count(db, {(topic, CORRUPT): 1})
                    log.error("the disk has changed a record of %s; it is dropped", topic)
                    continue
                size += len(record.body)
                if found and size > max_bytes:
                    break
                found.append(record)
            return found

        found = self._do(work, quietly=True)
        if found:
            self._taken[topic] = max(self._taken[topic], found[-1].number)
        return found

    def acknowledge(self, records: Sequence[Record]) -> None:
        """Whom they are for has them: they go. MeshError when the disk fails; then they stay, and are handed over again."""

        def work(db: sqlite3.Connection) -> None:
            for topic, gone in self._remove(db, records).items():
                db.execute("UPDATE counted SET committed = committed + ? WHERE topic = ?", (gone, topic))

        self._do(work, making_room=True)

    def refuse(self, records: Sequence[Record], reason: str) -> None:
        """Whom they are for will never take them: they go, and are counted. MeshError as for :meth:`acknowledge`."""

        def work(db: sqlite3.Connection) -> None:
            _count(db, {(topic, reason): gone for topic, gone in self._remove(db, records).items()})

        self._do(work, making_room=True)

    def balances(self) -> dict[str, Balance]:
        """By topic, at one moment."""

        found = self._do(_balances, quietly=True)
        for (topic, reason), n in self._untold.items():
            found[topic] = found.get(topic, Balance()).plus(Balance(captured=n, dropped={reason: n}))
        return found

    def drops(self, topic: str) -> Drops:
        """As the file has them: what it has not counted yet is told later."""

        def work(db: sqlite3.Connection) -> Drops:
            (life,) = db.execute("SELECT id FROM life").fetchone()
            found = db.execute("SELECT reason, n FROM dropped WHERE topic = ?", (topic,))
            return Drops(life, dict(found.fetchall()))

        return self._do(work, quietly=True)

    def times_set_aside(self) -> int:
        """How often a file was found damaged."""
        return int(self._do(lambda db: db.execute("SELECT count(*) FROM set_aside").fetchone()[0], quietly=True))

    def _noted(self, db: sqlite3.Connection, entry: Entry) -> Noted | Dropped:
        if entry.amends is not None and len(entry.amends.body) <= self._limits.max_body_bytes:
            amends = entry.amends
            if amends.boot_id == self.boot_id and self._amended(db, entry.topic, amends.sequence, amends.body):
                return Noted(self.boot_id, amends.sequence, amended=True)
        room = self._made_room(db, entry)
        if room or not entry.elsewhere:
            _capture(db, entry.topic, 1)
        if not room:
            _count(db, {(entry.topic, EVICTED): 0 if entry.elsewhere else 1})
            return Dropped(
                Reason.BUDGET_EXCEEDED, "the spool is full of records that are worth more, or may be on their way"
            )
        self._sequences[entry.topic] += 1
        sequence = self._sequences[entry.topic]
        digest = hashlib.sha256(entry.body).digest()
        values = (entry.topic, self.boot_id, sequence, entry.kind, entry.body, digest, _us(self._now()), entry.worth)
        db.execute(
            "INSERT INTO records (topic, boot_id, sequence, kind, body, sha256, time_us, worth) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            values,
        )
        self._records, self._bytes = self._records + 1, self._bytes + len(entry.body)
        return Noted(self.boot_id, sequence, amended=False)

    def _amended(self, db: sqlite3.Connection, topic: str, sequence: int, body: bytes) -> bool:
        row = db.execute(
            "SELECT number, length(body) FROM records WHERE topic = ? AND boot_id = ? AND sequence = ?",
            (topic, self.boot_id, sequence),
        ).fetchone()
        if row is None or row[0] <= self._taken[topic]:
            return False
        db.execute(
            "UPDATE records SET body = ?, sha256 = ?, time_us = ? WHERE number = ?",
            (body, hashlib.sha256(body).digest(), _us(self._now()), row[0]),
        )
        self._bytes += len(body) - row[1]
        return True

    def _made_room(self, db: sqlite3.Connection, entry: Entry) -> bool:
        """Gives up the oldest of those worth least until there is room; False when all that may go are worth more."""
        limits, size = self._limits, len(entry.body)
        while self._records + 1 > limits.max_records or self._bytes + size > limits.max_bytes:
            victim = self._victim(db)
            if victim is None or victim.worth > entry.worth:
                return False
            self._remove(db, [victim])
            _count(db, {(victim.topic, EVICTED): 1})
        return True

    def _victim(self, db: sqlite3.Connection) -> Record | None:
        """Never one of a topic's oldest, which may be on their way, in this life or since the one before."""
        kept = min(self._limits.batch, max(1, self._limits.max_records // 2))
        spared = {
            topic: number
            for (topic,) in db.execute("SELECT topic FROM counted").fetchall()
            for (number,) in db.execute(
                "SELECT number FROM records WHERE topic = ? ORDER BY number LIMIT 1 OFFSET ?", (topic, kept - 1)
            )
        }
        if not spared:
            return None
        may_go = " OR ".join("(topic = ? AND number > ?)" for _ in spared)
        bounds = [value for pair in spared.items() for value in pair]
        row = db.execute(
            f"SELECT {_COLUMNS} FROM records INDEXED BY worth WHERE {may_go} ORDER BY worth, number LIMIT 1", bounds
        ).fetchone()
        return None if row is None else _record(row)

    def _remove(self, db: sqlite3.Connection, records: Sequence[Record]) -> dict[str, int]:
        """How many went, by topic; those that are gone already are not counted again."""
        gone: Counter[str] = Counter()
        for record in records:
            # By its name too: after a damage its number may be another's.
            row = db.execute(
                "SELECT length(body) FROM records WHERE number = ? AND topic = ? AND boot_id = ? AND sequence = ?",
                (record.number, record.topic, record.boot_id, record.sequence),
            ).fetchone()
            if row is None:
                continue
            db.execute("DELETE FROM records WHERE number = ?", (record.number,))
            self._records, self._bytes = self._records - 1, self._bytes - row[0]
            gone[record.topic] += 1
        return dict(gone)

    def _do(self, work: Callable[[sqlite3.Connection], T], *, making_room: bool = False, quietly: bool = False) -> T:
        """One transaction, with the drops that are not in the file yet. MeshError as the disk has it.

        Args:
            work: what it does.
            making_room: it has to be possible on a full disk too.
            quietly: it mostly reads, and must not fail because there is no room for drops.
        """
        try:
            return self._tried(work, making_room=making_room, quietly=quietly)
        except sqlite3.Error as error:
            if not is_damage(error) or self._folder is None:
                raise unusable(error, WHAT) from error
            self._start_over(error)
            try:
                return self._tried(work, making_room=making_room, quietly=quietly)
            except sqlite3.Error as again:
                raise unusable(again, WHAT) from again

    def _tried(self, work: Callable[[sqlite3.Connection], T], *, making_room: bool, quietly: bool) -> T:
        try:
            return self._change(work, {} if quietly else self._untold)
        except sqlite3.Error as error:
            if not making_room or self._reserve is None or unusable(error, WHAT).reason is not Reason.STORAGE_FULL:
                raise
            self._reserve.give_up()
            result = self._change(work, self._untold)
            with suppress(sqlite3.Error):
                self._ready().execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._reserve.hold()
            return result

    def _change(self, work: Callable[[sqlite3.Connection], T], untold: Mapping[tuple[str, str], int]) -> T:
        told, before = dict(untold), (self._records, self._bytes, self._sequences.copy())
        db = self._ready()
        try:
            with db:
                db.execute("BEGIN IMMEDIATE")
                for (topic, _), n in told.items():
                    _capture(db, topic, n)
                _count(db, told)
                result = work(db)
        except BaseException:
            self._records, self._bytes, self._sequences = before
            raise
        self._untold.subtract(told)
        self._untold = +self._untold
        return result

    def _ready(self) -> sqlite3.Connection:
        if self._database is None:
            raise MeshError(Reason.NOT_READY, "the spool is not open")
        return self._database

    def _opened(self) -> sqlite3.Connection:
        db = open_database(":memory:" if self._folder is None else self._folder / FILE, SCHEMA, SCHEMA_VERSION, WHAT)
        try:
            (state,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if state != "ok":
                raise sqlite3.DatabaseError(f"database disk image is malformed: {state}")
        except BaseException:
            db.close()
            raise
        return db

    def _begin(self, db: sqlite3.Connection) -> None:
        self.boot_id = self._boot()
        self._sequences.clear()
        self._taken.clear()
        self._records, self._bytes = db.execute(
            "SELECT count(*), coalesce(sum(length(body)), 0) FROM records"
        ).fetchone()

    def _start_over(self, error: sqlite3.Error) -> None:
        """The file was found damaged in mid-work: what can be saved of it is in a new one. MeshError where there cannot be one
        now; then it is closed, and the damaged one stays where it is for :meth:`open`."""
        if self._database is not None:
            self._database.close()
            self._database = None
        try:
            self._database = self._made_anew(error)
            self._begin(self._database)
        except (OSError, sqlite3.Error) as failure:
            log.exception("no new file for %s could be made", WHAT)
            if self._database is not None:
                self._database.close()
                self._database = None
            self.close()
            raise unusable(failure, WHAT) from failure

    def _made_anew(self, error: sqlite3.Error) -> sqlite3.Connection:
        folder = self._folder
        if folder is None:
            raise error
        aside = make_aside(folder)
        try:
            saved = save(folder)
            self._write_anew(aside / BUILDING, saved)
            os.replace(aside / BUILDING, aside / READY)
        except Exception:
            remove(aside)  # its room is needed
            raise
        change_places(folder, aside)
        log.error("the spool is damaged (%s) and set aside as %s: %s", error, aside.name, saved.summary())
        return self._opened()

    def _write_anew(self, path: Path, saved: Saved) -> None:
        """Whole and synced, without a log, when it returns."""
        with closing(open_database(path, SCHEMA, SCHEMA_VERSION, WHAT)) as db:
            with db:
                db.execute("BEGIN IMMEDIATE")
                _restore(db, saved)
                earlier = (_us(self._now()), len(saved.records), saved.lost())
                db.execute("INSERT INTO set_aside VALUES (?, ?, ?)", earlier)
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _restore(db: sqlite3.Connection, saved: Saved) -> None:
    for row in saved.records:
        db.execute(f"INSERT INTO records ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    for topic, (captured, committed) in saved.counted().items():
        db.execute("INSERT INTO counted VALUES (?, ?, ?)", (topic, captured, committed))
    _count(db, saved.drops())
    if saved.totals is not None and saved.dropped is not None:
        db.execute("UPDATE life SET id = ?", (saved.life,))  # these counts go on; others begin at nothing
    for number, time_us, lost in saved.set_aside:
        db.execute("INSERT INTO set_aside VALUES (?, ?, ?)", (time_us, number, lost))


def _capture(db: sqlite3.Connection, topic: str, n: int) -> None:
    db.execute(
        "INSERT INTO counted VALUES (?, ?, 0) ON CONFLICT (topic) DO UPDATE SET captured = captured + excluded.captured",
        (topic, n),
    )


def _count(db: sqlite3.Connection, drops: Mapping[tuple[str, str], int]) -> None:
    for (topic, reason), n in drops.items():
        if n == 0:
            continue
        db.execute(
            "INSERT INTO dropped VALUES (?, ?, ?) ON CONFLICT (topic, reason) DO UPDATE SET n = n + excluded.n",
            (topic, reason, n),
        )


def _record(row: Sequence[object]) -> Record:
    number, topic, boot_id, sequence, kind, body, sha256, time_us, worth = row
    time = _EPOCH + timedelta(microseconds=int(time_us))  # type: ignore[call-overload]
    return Record(number, topic, boot_id, sequence, kind, body, sha256, time, worth)  # type: ignore[arg-type]


def _us(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)


def _balances(db: sqlite3.Connection) -> dict[str, Balance]:
    query = "SELECT topic, count(*), coalesce(sum(length(body)), 0) FROM records GROUP BY topic"
    waiting = {topic: (n, size) for topic, n, size in db.execute(query)}
    drops: dict[str, dict[str, int]] = {}
    for topic, reason, n in db.execute("SELECT topic, reason, n FROM dropped"):
        drops.setdefault(topic, {})[reason] = n
    return {
        topic: Balance(captured, committed, *waiting.get(topic, (0, 0)), drops.get(topic, {}))
        for topic, captured, committed in db.execute("SELECT topic, captured, committed FROM counted")
    }


def balances_beside(folder: Path) -> dict[str, Balance]:
    """By topic, of a file that another process may have open, as far as it is on the disk. MeshError when it cannot be read."""
    try:
        with closing(sqlite3.connect(f"file:{folder / FILE}?mode=ro", uri=True, isolation_level=None)) as db:
            db.execute("BEGIN")
            return _balances(db)
    except sqlite3.Error as error:
        raise unusable(error, WHAT) from error
