"""Records as the fleet keeps them. Knows no store and no message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Record:
    """Something that a head has noted; head, life and sequence name it for ever."""

    boot_id: str
    sequence: int
    kind: str
    body: bytes
    sha256: bytes
    """Of the body."""
    time: datetime
    """When it was noted, by the host's clock."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a head hands over in one call; checked."""

    tenant: str
    edge: str
    records: tuple[Record, ...]
    dropped: Mapping[str, int]
    """By reason, in one life of the head's counts."""
    dropped_life: str


@dataclass(frozen=True, slots=True)
class KeptRecord:
    """A record that came."""

    position: int
    """Counts all that came."""
    edge: str
    record: Record
    commit_time: datetime


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which records; empty: any."""

    tenant: str
    edge: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Totals:
    """Of all records that are wanted."""

    records: int
    dropped: Mapping[str, int]
    """By the heads that are wanted, by reason."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is kept at most."""

    max_records: int
    max_bytes: int
    """Of bodies."""
