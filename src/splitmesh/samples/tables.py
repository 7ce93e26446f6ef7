"""The tables of a store of samples, as functions on an open transaction of SQLite.

A sample's record is kept as its JSON, beside columns for what is searched. A content (picture or features, by SHA-256) is held by
any number of samples and goes with the last; triggers keep the totals. Knows no files and no limits.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from splitmesh.datasets.likeness import distance
from splitmesh.samples.kept import MAX_HISTORY, Filter, LabelEntry, Sample, StoreCounts, not_found
from splitmesh.samples.record import KINDS, Kind, SampleRecord

FILE = "samples.sqlite"
SCHEMA_VERSION = 1

SCHEMA = """
CREATE TABLE samples (
    id TEXT PRIMARY KEY, record TEXT NOT NULL, camera TEXT NOT NULL, model TEXT NOT NULL, version INTEGER NOT NULL,
    kind INTEGER NOT NULL, captured_us INTEGER NOT NULL, label TEXT, picture TEXT, features TEXT, dhash INTEGER,
    duplicates INTEGER NOT NULL DEFAULT 0, last_seen_us INTEGER NOT NULL) STRICT;
CREATE INDEX samples_by_picture ON samples (picture, model, version);
CREATE INDEX samples_by_features ON samples (features, model, version);
CREATE INDEX samples_by_camera ON samples (camera, captured_us);
CREATE INDEX samples_by_worth ON samples (label IS NOT NULL, kind, id);
CREATE TABLE contents (digest TEXT PRIMARY KEY, bytes INTEGER NOT NULL, holders INTEGER NOT NULL) STRICT;
CREATE TABLE labels (sample TEXT, number INTEGER, label TEXT, by TEXT NOT NULL, at_us INTEGER NOT NULL,
                     PRIMARY KEY (sample, number)) STRICT;
CREATE TABLE tallies (what TEXT, reason TEXT, n INTEGER NOT NULL, PRIMARY KEY (what, reason)) STRICT;
CREATE TABLE totals (records INTEGER NOT NULL, bytes INTEGER NOT NULL) STRICT;
INSERT INTO totals VALUES (0, 0);
CREATE TRIGGER sample_in AFTER INSERT ON samples BEGIN UPDATE totals SET records = records + 1; END;
CREATE TRIGGER sample_out AFTER DELETE ON samples BEGIN UPDATE totals SET records = records - 1; END;
CREATE TRIGGER content_in AFTER INSERT ON contents BEGIN UPDATE totals SET bytes = bytes + new.bytes; END;
CREATE TRIGGER content_out AFTER DELETE ON contents BEGIN UPDATE totals SET bytes = bytes - old.bytes; END;
"""

Worth = tuple[bool, int, str]
"""What is given up first sorts first: without a label, of the kind that is easiest to replace, the oldest."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SIGN = 1 << 63
_MAX_NEAR = 10_000
_MAX_SUMS = 1000
_COLUMNS = "record, duplicates, last_seen_us"


def worth(record: SampleRecord) -> Worth:
    """Of a record that may or may not be in the store."""
    return record.label is not None, KINDS.index(record.kind), record.id


def least(db: sqlite3.Connection) -> Worth | None:
    """Of the sample that would be given up next."""
    query = "SELECT label IS NOT NULL, kind, id FROM samples ORDER BY label IS NOT NULL, kind, id LIMIT 1"
    row = db.execute(query).fetchone()
    return (bool(row[0]), row[1], row[2]) if row else None


def totals(db: sqlite3.Connection) -> tuple[int, int]:
    """Records and bytes of contents."""
    records, size = db.execute("SELECT records, bytes FROM totals").fetchone()
    return records, size


def insert(db: sqlite3.Connection, record: SampleRecord, dhash: int | None) -> None:
    """A new sample, holding its contents."""
    seen = microseconds(record.captured_at)
    db.execute(
        "INSERT INTO samples (id, record, camera, model, version, kind, captured_us, label, picture, features, dhash,"
        " last_seen_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            record.id,
            record.to_json(),
            record.camera,
            record.model,
            record.version,
            KINDS.index(record.kind),
            seen,
            record.label,
            record.picture,
            record.features,
            None if dhash is None else dhash - _SIGN,
            seen,
        ),
    )
    for digest, size in ((record.picture, record.picture_bytes), (record.features, record.features_bytes)):
        if digest is not None:
            db.execute(
                "INSERT INTO contents VALUES (?, ?, 1) ON CONFLICT (digest) DO UPDATE SET holders = holders + 1",
                (digest, size),
            )


def remove(db: sqlite3.Connection, sample_id: str) -> list[str]:
    """The contents that nobody holds any more, gone from the tables with it."""
    row = db.execute("DELETE FROM samples WHERE id = ? RETURNING picture, features", (sample_id,)).fetchone()
    db.execute("DELETE FROM labels WHERE sample = ?", (sample_id,))
    freed = []
    for digest in row or ():
        db.execute("UPDATE contents SET holders = holders - 1 WHERE digest = ?", (digest,))
        if db.execute("DELETE FROM contents WHERE digest = ? AND holders = 0", (digest,)).rowcount:
            freed.append(digest)
    return freed


def has_content(db: sqlite3.Connection, digest: str) -> bool:
    """Whether any sample holds it."""
    return db.execute("SELECT 1 FROM contents WHERE digest = ?", (digest,)).fetchone() is not None


def contents(db: sqlite3.Connection) -> dict[str, int]:
    """Bytes by digest."""
    return dict(db.execute("SELECT digest, bytes FROM contents"))


def equal_to(db: sqlite3.Connection, record: SampleRecord) -> str | None:
    """The first sample of the same model and version with the same picture, or where there is none the same features."""
    column = "picture" if record.picture is not None else "features"
    query = f"SELECT id FROM samples WHERE {column} = ? AND model = ? AND version = ?"
    if column == "features":
        query += " AND picture IS NULL"
    key = (getattr(record, column), record.model, record.version)
    row = db.execute(f"{query} ORDER BY id LIMIT 1", key).fetchone()
    return row[0] if row else None


def alike(db: sqlite3.Connection, record: SampleRecord, dhash: int, bits: int, window: timedelta) -> str | None:
    """The first sample of the same camera, model, version, kind and answers, captured at most ``window`` away, whose dHash
    differs in at most ``bits``."""
    at, width = microseconds(record.captured_at), window // _MICROSECOND
    rows = db.execute(
        "SELECT id, dhash FROM samples WHERE camera = ? AND captured_us BETWEEN ? AND ? AND model = ? AND version = ?"
        " AND kind = ? AND dhash IS NOT NULL ORDER BY id LIMIT ?",
        (record.camera, at - width, at + width, record.model, record.version, KINDS.index(record.kind), _MAX_NEAR),
    )
    for sample_id, seen in rows.fetchall():
        if distance(seen + _SIGN, dhash) <= bits:
            other = found(db, sample_id).record
            if (other.exit_label, other.tail_label) == (record.exit_label, record.tail_label):
                return other.id
    return None


def count_duplicate(db: sqlite3.Connection, sample_id: str, captured_at: datetime) -> None:
    """One more on the first."""
    db.execute(
        "UPDATE samples SET duplicates = duplicates + 1, last_seen_us = max(last_seen_us, ?) WHERE id = ?",
        (microseconds(captured_at), sample_id),
    )


def raise_kind(db: sqlite3.Connection, sample_id: str, newcomer: SampleRecord) -> None:
    """The first takes kind, reason and a tail's answer of an equal one that is harder to replace; its label stays."""
    before = found(db, sample_id).record
    if KINDS.index(newcomer.kind) <= KINDS.index(before.kind):
        return
    told = before if newcomer.tail_label is None else newcomer
    record = replace(
        before,
        kind=newcomer.kind,
        why=newcomer.why,
        tail_label=told.tail_label,
        tail_confidence=told.tail_confidence,
    )
    row = (record.to_json(), KINDS.index(record.kind), record.id)
    db.execute("UPDATE samples SET record = ?, kind = ? WHERE id = ?", row)


def label(db: sqlite3.Connection, sample_id: str, entry: LabelEntry) -> bool:
    """Whether that says anything new; then it is the label, and in the history. SAMPLE_NOT_FOUND."""
    before = found(db, sample_id).record
    if before.label == entry.label and (entry.label is None or before.labelled_by == entry.by):
        return False
    by, at = (None, None) if entry.label is None else (entry.by, entry.at)
    record = replace(before, label=entry.label, labelled_by=by, labelled_at=at)
    row = (record.to_json(), record.label, record.id)
    db.execute("UPDATE samples SET record = ?, label = ? WHERE id = ?", row)
    query = "SELECT coalesce(max(number), 0) + 1 FROM labels WHERE sample = ?"
    (number,) = db.execute(query, (record.id,)).fetchone()
    values = (record.id, number, entry.label, entry.by, microseconds(entry.at))
    db.execute("INSERT INTO labels VALUES (?, ?, ?, ?, ?)", values)
    db.execute("DELETE FROM labels WHERE sample = ? AND number <= ?", (record.id, number - MAX_HISTORY))
    return True


def history(db: sqlite3.Connection, sample_id: str) -> list[LabelEntry]:
    """Oldest first."""
    rows = db.execute("SELECT label, by, at_us FROM labels WHERE sample = ? ORDER BY number", (sample_id,))
    return [LabelEntry(label, by, _time(at)) for label, by, at in rows]


def sample(db: sqlite3.Connection, sample_id: str) -> Sample | None:
    """By id."""
    row = db.execute(f"SELECT {_COLUMNS} FROM samples WHERE id = ?", (sample_id,)).fetchone()
    return _sample(row) if row else None


def found(db: sqlite3.Connection, sample_id: str) -> Sample:
    """By id; MeshError SAMPLE_NOT_FOUND."""
    kept = sample(db, sample_id)
    if kept is None:
        raise not_found(sample_id)
    return kept


def select(db: sqlite3.Connection, wanted: Filter, before: str, most: int) -> list[Sample]:
    """Newest first, beginning behind the id ``before`` (empty: at the newest)."""
    tests: list[tuple[str, object]] = [
        ("camera = ?", wanted.camera),
        ("(label IS NOT NULL) = ?", wanted.labelled),
        ("label = ?", wanted.label),
        ("model = ?", wanted.model),
        ("version = ?", wanted.version),
        ("captured_us >= ?", None if wanted.since is None else microseconds(wanted.since)),
        ("captured_us < ?", None if wanted.until is None else microseconds(wanted.until)),
        ("id < ?", before or None),
    ]
    used = [(test, value) for test, value in tests if value is not None]
    where = " AND ".join([*(test for test, _ in used), *_one_of(wanted.kinds)]) or "1"
    query = f"SELECT {_COLUMNS} FROM samples WHERE {where} ORDER BY id DESC LIMIT ?"
    return [_sample(row) for row in db.execute(query, (*(value for _, value in used), most))]


def _one_of(kinds: Sequence[Kind]) -> list[str]:
    return [f"kind IN ({', '.join(str(KINDS.index(kind)) for kind in kinds)})"] if kinds else []


def ids_of(db: sqlite3.Connection, picture: str) -> list[str]:
    """Of every sample with this picture, oldest first."""
    return [row[0] for row in db.execute("SELECT id FROM samples WHERE picture = ? ORDER BY id", (picture,))]


def tally(db: sqlite3.Connection, what: str, reason: str, n: int = 1) -> None:
    """Count."""
    db.execute(
        "INSERT INTO tallies VALUES (?, ?, ?) ON CONFLICT (what, reason) DO UPDATE SET n = n + excluded.n",
        (what, reason, n),
    )


def counts(db: sqlite3.Connection, untold: Mapping[str, int], missing: int) -> StoreCounts:
    """All of them; ``untold`` are drops that are not in the tables yet."""
    labelled, duplicates = db.execute("SELECT count(label), coalesce(sum(duplicates), 0) FROM samples").fetchone()
    kinds = dict(db.execute("SELECT kind, count(*) FROM samples GROUP BY kind"))
    return StoreCounts(
        *totals(db),
        labelled=labelled,
        duplicates=duplicates,
        by_kind={kind: kinds.get(number, 0) for number, kind in enumerate(KINDS)},
        by_camera=_sums(db, "camera"),
        by_label=_sums(db, "label"),
        dropped=dict(Counter(_tallies(db, "dropped")) + Counter(untold)),
        evicted=_tallies(db, "evicted"),
        missing_contents=missing,
    )


def microseconds(at: datetime) -> int:
    """Since 1970, exactly."""
    return (at - _EPOCH) // _MICROSECOND


def _sample(row: tuple[str, int, int]) -> Sample:
    return Sample(SampleRecord.from_json(row[0]), row[1], _time(row[2]))


def _time(at_us: int) -> datetime:
    return _EPOCH + at_us * _MICROSECOND


def _tallies(db: sqlite3.Connection, what: str) -> dict[str, int]:
    return dict(db.execute("SELECT reason, n FROM tallies WHERE what = ? ORDER BY reason", (what,)))


def _sums(db: sqlite3.Connection, column: Literal["camera", "label"]) -> dict[str, int]:
    query = f"SELECT {column}, count(*) FROM samples WHERE {column} IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT ?"
    return dict(db.execute(query, (_MAX_SUMS,)))
