"""What is noted, what became of it, and the bounds. Knows no disk and no network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime

from splitmesh.errors import Reason, field_error

CORRUPT = "CORRUPT"
"""Reason of what the disk has changed, or lost with the file that it was in."""
EVICTED = Reason.BUDGET_EXCEEDED.value
"""Reason of what gave way to something newer that is worth as much, or was worth less than all that is there."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one spool. FIELD_INVALID for one that is below its least."""

    max_records: int = 100_000
    """That wait."""
    max_bytes: int = 256 << 20
    """Of their bodies."""
    max_body_bytes: int = 1 << 20
    """Of one; a larger one is dropped."""
    max_waiting: int = 4096
    """Entries on their way to the disk."""
    max_waiting_bytes: int = 16 << 20
    """Of their bodies."""
    batch: int = 500
    """Most records that are handed over at once. Of each topic so many, the oldest ones, are never given up: they may be on
    their way."""

    def __post_init__(self) -> None:
        for one in fields(self):
            if getattr(self, one.name) < 1:
                raise field_error(one.name, f"is {getattr(self, one.name)}, expected at least 1")


@dataclass(frozen=True, slots=True)
class Amend:
    """What a record of this life becomes, if nobody has taken it yet."""

    boot_id: str
    sequence: int
    body: bytes
    """What it said, and the entry with it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Something to note."""

    topic: str
    """Whom it is for; a topic is taken in order, by one who takes."""
    kind: str
    body: bytes
    worth: int = 0
    """Of two, the one worth less gives way first."""
    amends: Amend | None = None
    """Rather than a record of its own, where that is possible still."""
    elsewhere: bool = False
    """What cannot be noted here is noted elsewhere: it counts there, and not as dropped here."""


@dataclass(frozen=True, slots=True)
class Record:
    """Something that was noted. Node, ``boot_id``, topic and ``sequence`` name it for ever."""

    number: int
    """Within the file, in the order of noting; of no meaning to others."""
    topic: str
    boot_id: str
    """Life of the spool that noted it."""
    sequence: int
    """From 1 within a life and topic, without gaps."""
    kind: str
    body: bytes
    sha256: bytes
    """Of the body."""
    time: datetime
    """When it was noted, or last amended, by the host's clock, UTC."""
    worth: int = 0


@dataclass(frozen=True, slots=True)
class Noted:
    """On disk."""

    boot_id: str
    sequence: int
    amended: bool


@dataclass(frozen=True, slots=True)
class Dropped:
    """Not noted, and counted by the reason: QUEUE_FULL (the disk is too slow), STORAGE_FULL (the disk is full),
    BUDGET_EXCEEDED (the spool is full of what is worth more), FRAME_TOO_LARGE (the body), SERVICE_UNAVAILABLE (disk or file
    are broken)."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Drops:
    """Of one topic, as others are told."""

    life: str
    """Of the counts, which never go down within one; they begin anew with another where nobody could read them."""
    by_reason: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Balance:
    """What became of everything that was noted, or was to be, since the spool was first made."""

    captured: int = 0
    committed: int = 0
    """Acknowledged by whom it was for."""
    queued: int = 0
    """There now."""
    queued_bytes: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    """By reason."""

    @property
    def holds(self) -> bool:
        """Nothing was lost without a word, and nothing counted twice; each figure is counted by itself."""
        return self.captured == self.committed + self.queued + sum(self.dropped.values())

    def plus(self, other: Balance) -> Balance:
        """The sum."""
        dropped = dict(self.dropped)
        for reason, n in other.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + n
        return Balance(
            self.captured + other.captured,
            self.committed + other.committed,
            self.queued + other.queued,
            self.queued_bytes + other.queued_bytes,
            dropped,
        )
