"""What happens to a sample that is offered: looked at, told from what is there, and made room for. Knows no files."""

from __future__ import annotations

import hashlib
import sqlite3
from dataclasses import replace

from splitmesh.datasets.likeness import look
from splitmesh.errors import MeshError, Reason
from splitmesh.samples import tables
from splitmesh.samples.kept import Duplicate, StoreLimits
from splitmesh.samples.record import SampleRecord


def complete(
    record: SampleRecord, picture: bytes | None, features: bytes | None, limits: StoreLimits
) -> tuple[SampleRecord, int | None]:
    """The record with what its bytes say, and the picture's dHash.

    Raises MeshError: DIGEST_MISMATCH when the record names other bytes, or ones that did not come; IMAGE_UNDECODABLE;
    IMAGE_TOO_LARGE; FRAME_TOO_LARGE for the features.
    """
    full, dhash = record, None
    if picture is not None:
        _require_size(Reason.IMAGE_TOO_LARGE, "picture", len(picture), limits.max_picture_bytes)
        looks = look(picture, max_pixels=limits.max_pixels)
        dhash = looks.dhash
        full = replace(
            full,
            picture=_sha256(picture),
            picture_bytes=len(picture),
            media_type=looks.media_type,
            width=looks.width,
            height=looks.height,
        )
    if features:
        _require_size(Reason.FRAME_TOO_LARGE, "features", len(features), limits.max_features_bytes)
        full = replace(full, features=_sha256(features), features_bytes=len(features))
    for name, came in (("picture", picture is not None), ("features", bool(features))):
        named = getattr(record, name)
        if named is not None and (not came or named != getattr(full, name)):
            raise MeshError(Reason.DIGEST_MISMATCH, f"the record names the {name} {named}, which did not come")
    if full.picture_bytes + full.features_bytes > limits.max_bytes:
        raise MeshError(Reason.BUDGET_EXCEEDED, f"the sample alone has more than {limits.max_bytes} bytes")
    return full, dhash


def count_if_known(
    db: sqlite3.Connection, record: SampleRecord, dhash: int | None, limits: StoreLimits
) -> Duplicate | None:
    """Counts it on the first sample that is equal or looks alike; None when it is new.

    Equal: same picture, or without one same features, of one model and version. Alike: of one camera too, within the window, of
    the same kind and with the same answers, so that a disputed sample is never hidden behind an audited one. Nor is one behind
    an equal sample: the first becomes what the newcomer is where that is harder to replace. A sample that comes with its id
    again is the one that is there and is not counted.
    """
    if tables.sample(db, record.id) is not None:
        return Duplicate(record.id, near=False)
    found = None
    if record.picture is not None or record.features is not None:
        found = tables.equal_to(db, record)
    near = found is None
    if near and dhash is not None and record.camera and limits.near_bits >= 0:
        found = tables.alike(db, record, dhash, limits.near_bits, limits.near_window)
    if found is None:
        return None
    tables.count_duplicate(db, found, record.captured_at)
    if not near:
        tables.raise_kind(db, found, record)
    return Duplicate(found, near)


def make_room(db: sqlite3.Connection, limits: StoreLimits, newcomer: SampleRecord | None = None) -> list[str]:
    """Gives up samples until the limits hold, the least worth first; the contents that nobody holds any more.

    MeshError BUDGET_EXCEEDED when it would be the newcomer's turn, which is in the tables already: roll back.
    """
    freed: list[str] = []
    while True:
        records, size = tables.totals(db)
        full = "records" if records > limits.max_records else "bytes" if size > limits.max_bytes else ""
        victim = tables.least(db)
        if not full or victim is None:
            return freed
        if newcomer is not None and victim == tables.worth(newcomer):
            raise MeshError(Reason.BUDGET_EXCEEDED, "the store is full of samples that are harder to replace")
        freed += tables.remove(db, victim[-1])
        tables.tally(db, "evicted", full)


def _require_size(reason: Reason, what: str, size: int, most: int) -> None:
    if size > most:
        raise MeshError(reason, f"the {what} has {size} bytes; at most {most} are kept")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
