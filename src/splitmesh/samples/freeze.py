"""A version of a dataset: which pictures with which labels, divided into train, val and test once and for all.

The manifest is a JSON file of sorted entries and fields; the same samples, seed and shares give the same bytes, and their
SHA-256 is the version's id. Knows records; no pictures, no store and no clock.

What was taken by one camera in one hour, or was given one split group, stays together. A group's split follows from the seed
and the group's name alone, so that it keeps its split when the dataset grows, and what was once tested on is never trained on
later. Only where a split would stay empty, with a handful of groups, one is moved.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.samples.problems import Problems
from splitmesh.samples.record import SampleRecord

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SHARES: Mapping[Split, float] = {"train": 0.8, "val": 0.1, "test": 0.1}

MAX_MANIFEST_BYTES = 512 << 20
"""A larger one is refused unread; an entry takes about 400 bytes."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Entry(_Frozen):
    """One picture."""

    picture: Sha256
    picture_bytes: Count
    media_type: str
    width: Count
    height: Count
    label: str
    sample: str
    """Id of the record; the earliest where several show the picture."""
    site: str
    camera: str
    captured_at: str
    """ISO 8601, UTC."""
    group: str
    split: Split


class SplitStatistics(_Frozen):
    """Of one split."""

    pictures: Count
    picture_bytes: Count
    groups: Count
    labels: dict[str, Count]
    """Pictures by label; every class is named."""
    cameras: dict[str, Count]


class Statistics(_Frozen):
    """Of all; what was left out was none of the dataset's pictures."""

    splits: dict[Split, SplitStatistics]
    unlabelled: Count = 0
    without_picture: Count = 0
    repeated: Count = 0
    """Samples of a picture that another one stands for."""


class Dataset(_Frozen):
    """The manifest. Entries are sorted by picture."""

    schema_version: Literal[1] = 1
    seed: int
    shares: dict[Split, float]
    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    statistics: Statistics

    @model_validator(mode="after")
    def _whole(self) -> Dataset:
        pictures = [entry.picture for entry in self.entries]
        if pictures != sorted(set(pictures)):
            raise ValueError("the entries are not sorted by picture, or one is there twice")
        parted = {entry.group: entry.split for entry in self.entries}
        if any(parted[entry.group] != entry.split for entry in self.entries):
            raise ValueError("a group is in two splits")
        if {entry.label for entry in self.entries} - set(self.classes):
            raise ValueError("a label is none of the classes")
        if self.statistics.splits != _by_split(self.entries, self.classes):
            raise ValueError("the statistics are not the entries'")
        return self

    def to_json(self) -> bytes:
        """The manifest; the same bytes for the same content."""
        values = self.model_dump(mode="json")
        return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"

    @property
    def id(self) -> str:
        """SHA-256 of the manifest."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @classmethod
    def from_json(cls, data: bytes, *, sha256: str = "") -> Dataset:
        """Read a manifest. MeshError DIGEST_MISMATCH when its SHA-256 is not the one given, FIELD_INVALID for anything
        that :func:`freeze` cannot have made."""
        if len(data) > MAX_MANIFEST_BYTES:
            raise field_error("manifest", f"has {len(data)} bytes; at most {MAX_MANIFEST_BYTES} are read")
        if sha256 and hashlib.sha256(data).hexdigest() != sha256:
            raise MeshError(Reason.DIGEST_MISMATCH, "the manifest of the dataset is not the one that was asked for")
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "manifest"
            raise field_error("manifest", f"{where}: {first['msg']}") from error


def freeze(
    records: Iterable[SampleRecord],
    *,
    seed: int,
    shares: Mapping[Split, float] = SHARES,
    classes: Sequence[str] = (),
) -> Dataset:
    """A dataset of the records that have a label and a picture.

    Args:
        records: in any order; their order changes nothing.
        seed: of the division.
        shares: of the groups that go to each split, together 1; a split of 0 gets none.
        classes: of the labels, in the order that counts for the model; empty: those found, sorted.

    Raises MeshError FIELD_INVALID for two labels of one picture, a label that is none of ``classes``, shares that are none;
    CALIBRATION_INSUFFICIENT when there are fewer groups than splits.
    """
    wanted = _checked(shares)
    chosen, left_out = _chosen(records, classes)
    division = _divide({record.group for record in chosen}, seed, wanted)
    entries = tuple(_entry(record, division[record.group]) for record in chosen)
    names = tuple(classes) or tuple(sorted({entry.label for entry in entries}))
    statistics = Statistics(splits=_by_split(entries, names), **left_out)
    return Dataset(seed=seed, shares=wanted, classes=names, entries=entries, statistics=statistics)


def _checked(shares: Mapping[Split, float]) -> dict[Split, float]:
    if unknown := sorted(set(shares) - set(SPLITS)):
        raise field_error("shares", f"{unknown[0]!r} is none of {', '.join(SPLITS)}")
    wanted = {split: float(shares.get(split, 0.0)) for split in SPLITS}
    if not all(0 <= share <= 1 for share in wanted.values()) or abs(sum(wanted.values()) - 1) > 1e-9:
        raise field_error("shares", f"are {list(wanted.values())}, expected three of 0 to 1 that sum to 1")
    return wanted


def _chosen(records: Iterable[SampleRecord], classes: Sequence[str]) -> tuple[list[SampleRecord], dict[str, int]]:
    kept: dict[str, SampleRecord] = {}
    left_out = Counter(unlabelled=0, without_picture=0, repeated=0)
    with Problems("label", "the samples cannot be frozen") as problems:
        for record in records:
            if record.picture is None:
                left_out["without_picture"] += 1
            elif record.label is None:
                left_out["unlabelled"] += 1
            elif classes and record.label not in classes:
                problems.add(record.id, f"its label {record.label!r} is none of the classes")
            else:
                other = kept.setdefault(record.picture, record)
                if other.label != record.label:
                    problems.add(record.id, f"shows what {other.id} shows: {record.label!r}, there {other.label!r}")
                left_out["repeated"] += other is not record
                kept[record.picture] = min(other, record, key=lambda one: one.id)
    return [kept[digest] for digest in sorted(kept)], dict(left_out)


def _divide(groups: set[str], seed: int, shares: Mapping[Split, float]) -> dict[str, Split]:
    wanted = [split for split in SPLITS if shares[split] > 0]
    if len(groups) < len(wanted):
        raise MeshError(
            Reason.CALIBRATION_INSUFFICIENT,
            f"{len(groups)} groups of samples (a camera's hour each) cannot be divided into {', '.join(wanted)}",
        )
    order = sorted((_place(group, seed), group) for group in groups)
    division: dict[str, Split] = {}
    for place, group in order:
        reached = 0.0
        for split in wanted:
            reached += shares[split]
            division[group] = split
            if place < reached:
                break
    for empty in [split for split in wanted if split not in division.values()]:
        sizes = Counter(division.values())
        giver = max(wanted, key=lambda split: sizes[split])
        division[next(group for _, group in order if division[group] == giver)] = empty
    return division


def _place(group: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}\n{group}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)


def _entry(record: SampleRecord, split: Split) -> Entry:
    return Entry(
        picture=record.picture or "",
        picture_bytes=record.picture_bytes,
        media_type=record.media_type,
        width=record.width,
        height=record.height,
        label=record.label or "",
        sample=record.id,
        site=record.site,
        camera=record.camera,
        captured_at=record.captured_at.astimezone(UTC).isoformat(timespec="microseconds"),
        group=record.group,
        split=split,
    )


def _by_split(entries: Sequence[Entry], classes: Sequence[str]) -> dict[Split, SplitStatistics]:
    found: dict[Split, SplitStatistics] = {}
    for split in SPLITS:
        here = [entry for entry in entries if entry.split == split]
        labels = Counter(entry.label for entry in here)
        found[split] = SplitStatistics(
            pictures=len(here),
            picture_bytes=sum(entry.picture_bytes for entry in here),
            groups=len({entry.group for entry in here}),
            labels={name: labels[name] for name in classes},
            cameras=dict(Counter(entry.camera for entry in here)),
        )
    return found
