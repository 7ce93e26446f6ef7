"""The table of profiles: its schema and statements. Knows no transaction and no thread; ``sqlite_store`` has both."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta

from services.registry.store import MAX_PROFILES, ProfileRecord, too_many_profiles, up_to

PROFILES_SCHEMA = """
CREATE TABLE profiles (
    sha256 TEXT NOT NULL, key TEXT NOT NULL, node TEXT NOT NULL, content TEXT NOT NULL,
    update_time_us INTEGER NOT NULL, PRIMARY KEY (sha256, key)
) STRICT;
"""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def put_profile(db: sqlite3.Connection, record: ProfileRecord) -> None:
    """Insert or replace, inside a transaction of the caller's; STORAGE_FULL when there are too many."""
    others = db.execute(
        "SELECT count(*) FROM profiles WHERE sha256 = ? AND key <> ?", (record.sha256, record.key)
    ).fetchone()[0]
    if others >= MAX_PROFILES:
        raise too_many_profiles()
    db.execute(
        "INSERT INTO profiles VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE"
        " SET content = excluded.content, update_time_us = excluded.update_time_us",
        (record.sha256, record.key, record.node, record.content, to_us(record.update_time)),
    )


def list_profiles(db: sqlite3.Connection, sha256: str, node: str, max_bytes: int | None) -> list[ProfileRecord]:
    """Newest first; of one node unless it is empty; no more than fit in ``max_bytes`` are read."""
    rows = db.execute(
        "SELECT sha256, key, node, content, update_time_us FROM profiles"
        " WHERE sha256 = ?1 AND (?2 = '' OR node = ?2) ORDER BY update_time_us DESC, key DESC",
        (sha256, node),
    )
    records = (
        ProfileRecord(digest, key, owner, content, from_us(update_us))
        for digest, key, owner, content, update_us in rows
    )
    return up_to(records, max_bytes)


def to_us(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def from_us(microseconds: int) -> datetime:
    """The inverse of :func:`to_us`."""
    return _EPOCH + timedelta(microseconds=microseconds)
