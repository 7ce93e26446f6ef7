"""What a store keeps to and what it says: its limits, the outcomes of adding, pages, filters and counts. Knows no disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

from splitmesh.datasets.likeness import BITS
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.preprocess import DEFAULT_MAX_PIXELS
from splitmesh.samples.record import KINDS, MAX_TEXT, Kind, SampleRecord, checked_label, int_of_id, utc

MAX_PAGE = 1000
MAX_HISTORY = 100
"""Labels remembered of one sample; earlier ones are forgotten."""


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Bounds of one store. FIELD_INVALID for one that is below its least."""

    max_bytes: int = 20 << 30
    """Of pictures and features; what takes the oldest and easiest to replace away."""
    max_records: int = 100_000
    """Likewise."""
    max_picture_bytes: int = 32 << 20
    """A larger picture is not kept."""
    max_features_bytes: int = 32 << 20
    max_pixels: int = DEFAULT_MAX_PIXELS
    min_free_bytes: int = 256 << 20
    """Of the disk, left to others: nothing is added that would go below."""
    near_bits: int = 4
    """Pictures that differ in at most so many of 64 bits show the same; -1: only equal ones do."""
    near_window: timedelta = timedelta(seconds=10)
    """Of capture times, either way, from the first of those that are alike."""

    def __post_init__(self) -> None:
        least = {"max_bytes": 1, "max_records": 1, "max_pixels": 1, "near_bits": -1}
        for field in fields(self):
            value = getattr(self, field.name)
            bound = timedelta(0) if field.name == "near_window" else least.get(field.name, 0)
            if value < bound:
                raise field_error(field.name, f"is {value}, expected at least {bound}")
        if self.near_bits > BITS:
            raise field_error("near_bits", f"is {self.near_bits}, expected at most {BITS}")


@dataclass(frozen=True, slots=True)
class Added:
    """Kept, durably."""

    record: SampleRecord
    """With what the store filled in about picture and features."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Not kept again: counted on the first, which takes over its kind where it is equal and harder to replace."""

    of: str
    """The first one's id."""
    near: bool
    """It only looks like the first."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """Not kept, and counted by the reason: STORAGE_FULL (the disk), BUDGET_EXCEEDED (the store is full of what is harder to
    replace), IMAGE_UNDECODABLE, IMAGE_TOO_LARGE, FRAME_TOO_LARGE (features), DIGEST_MISMATCH (the record names other bytes),
    SERVICE_UNAVAILABLE (disk or file are broken)."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One that is kept."""

    record: SampleRecord
    duplicates: int
    """Others that were equal, or looked like it."""
    last_seen_at: datetime
    """Latest capture time of these and of its own."""


def not_found(sample_id: str) -> MeshError:
    """SAMPLE_NOT_FOUND, to be raised."""
    known_as = sample_id[:40]
    return MeshError(Reason.SAMPLE_NOT_FOUND, f"there is no sample {known_as!r}", metadata={"sample": known_as})


@dataclass(frozen=True, slots=True)
class LabelEntry:
    """One step in the history of a sample's label."""

    label: str | None
    """None: it was taken back."""
    by: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Filter:
    """Which samples; None, and no kinds: any. FIELD_INVALID for a kind that is none and for times without a zone."""

    camera: str | None = None
    kinds: tuple[Kind, ...] = ()
    """Of any of these."""
    labelled: bool | None = None
    label: str | None = None
    model: str | None = None
    version: int | None = None
    since: datetime | None = None
    """Captured at this time or later."""
    until: datetime | None = None
    """Captured before."""

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            raise field_error("kinds", f"{unknown[0]!r} is none of {', '.join(KINDS)}")
        object.__setattr__(self, "kinds", tuple(kind for kind in KINDS if kind in self.kinds))
        for name in ("since", "until"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, utc(name, getattr(self, name)))

    def token(self, last_id: str) -> str:
        """Where a page of this filter ended; nobody but :meth:`position` looks inside."""
        return f"{self._mark()}{last_id}"

    def position(self, token: str) -> str:
        """The last id before the page, empty for an empty token; FIELD_INVALID for a token of another filter."""
        if not token:
            return ""
        mark, last_id = token[:_MARK], token[_MARK:]
        try:
            int_of_id(last_id)
        except MeshError as error:
            raise field_error("page_token", "was not made by this store") from error
        if mark != self._mark():
            raise field_error("page_token", "belongs to another filter")
        return last_id

    def _mark(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()[:_MARK]


_MARK = 12


@dataclass(frozen=True, slots=True)
class Page:
    """Of a list, newest capture first."""

    samples: tuple[Sample, ...]
    next_page_token: str
    """Empty: this was the last page."""


def page_of(found: Sequence[Sample], wanted: Filter, page_size: int) -> Page:
    """The first of what was found; with one more than ``page_size`` there is a next page."""
    kept = tuple(found[:page_size])
    return Page(kept, wanted.token(kept[-1].record.id) if len(found) > page_size else "")


def label_entries(labels: Mapping[str, str | None], by: str, at: datetime) -> dict[str, LabelEntry]:
    """What is to be said of each sample, checked; MeshError FIELD_INVALID."""
    if not 1 <= len(by) <= MAX_TEXT or not by.isprintable():
        raise field_error("by", f"is not 1 to {MAX_TEXT} printable characters")
    return {
        key: LabelEntry(None if label is None else checked_label("label", label), by, utc("at", at))
        for key, label in labels.items()
    }


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """Of a store, now; what was dropped and evicted since its first day."""

    records: int
    content_bytes: int
    labelled: int
    duplicates: int
    by_kind: Mapping[str, int]
    by_camera: Mapping[str, int]
    """The 1,000 with the most."""
    by_label: Mapping[str, int]
    """The 1,000 with the most."""
    dropped: Mapping[str, int]
    """Never kept, by reason."""
    evicted: Mapping[str, int]
    """Kept and given up for others, by what was full: ``records`` or ``bytes``."""
    missing_contents: int
    """Pictures and features that somebody took off the disk, as of the start."""

    def plus(self, other: StoreCounts) -> StoreCounts:
        """Of both stores together."""
        sums: dict[str, Any] = {}
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            whole = isinstance(mine, int)
            sums[field.name] = (
                mine + theirs if whole else {k: mine.get(k, 0) + theirs.get(k, 0) for k in {**mine, **theirs}}
            )
        return StoreCounts(**sums)
