"""A version of a dataset: which pictures with which labels or boxes, divided into train, val and test once and for all.

The manifest is a JSON file of sorted entries and fields; the same entries give the same bytes, and their SHA-256 is the
version's id. It names pictures by digest: it may travel where they may not. Knows no pictures, no store and no clock; how one is
made, ``freeze`` knows.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from splitmesh.datasets.divide import SPLITS, Split
from splitmesh.errors import MeshError, Reason, field_error

Task = Literal["classification", "detection"]
TASKS: tuple[Task, ...] = ("classification", "detection")

MAX_MANIFEST_BYTES = 256 << 20
"""A larger one is not frozen, and refused unread everywhere; an entry takes about 450 bytes."""
MAX_ENTRIES = 500_000
MAX_BOXES = 2000
"""Of one picture."""
MAX_ALL_BOXES = 1_000_000
"""Of all pictures. Reading a manifest at all of these limits takes 3 GiB of memory and 30 s."""
MAX_CLASSES = 10_000
MAX_SIDE = 1 << 20
"""Pixels."""
MAX_LABEL_CHARS = 200
MAX_GROUP_CHARS = 400
MAX_PROVENANCE_CHARS = 200
MAX_NAME_CHARS = 128

_SLACK = 1e-6
"""Of a pixel, by which a box may seem to stick out where its sides were added as floats."""


_NO_ENTRIES = '"entries":[]'
"""Nothing before the entries reads like it: in a text the quotation marks have backslashes."""


def _canonical(values: object) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds characters that cannot be printed")
    return text


def _label(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return _printable(text)


def _moment(text: str) -> str:
    if text and text != moment_text(datetime.fromisoformat(text)):
        raise ValueError("is no time in ISO 8601 with microseconds, in UTC")
    return text


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Label = Annotated[str, Field(max_length=MAX_LABEL_CHARS), AfterValidator(_label)]
Name = Annotated[str, Field(max_length=MAX_NAME_CHARS), AfterValidator(_printable)]
Pixels = Annotated[float, Field(ge=0, le=MAX_SIDE, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Box(_Frozen):
    """Where something is: pixels from the left and upper edge of the picture as it is stored."""

    label: Label
    x: Pixels
    """Of the left side."""
    y: Pixels
    """Of the upper side."""
    width: Annotated[Pixels, Field(gt=0)]
    height: Annotated[Pixels, Field(gt=0)]


class Entry(_Frozen):
    """One picture."""

    picture: Sha256
    picture_bytes: Annotated[int, Field(ge=1, lt=1 << 40)]
    media_type: Annotated[str, Field(pattern=r"^image/[a-z0-9.+-]{1,40}$")]
    width: Side
    height: Side
    label: Annotated[str, Field(max_length=MAX_LABEL_CHARS), AfterValidator(_printable)]
    """Of a classification; empty in a detection."""
    boxes: Annotated[tuple[Box, ...], Field(max_length=MAX_BOXES)]
    """Of a detection, where a picture of the background has none; empty in a classification."""
    site: Name
    camera: Name
    """Empty: unknown."""
    captured_at: Annotated[str, Field(max_length=40), AfterValidator(_moment)]
    """ISO 8601, UTC; empty: unknown."""
    group: Annotated[str, Field(min_length=1, max_length=MAX_GROUP_CHARS), AfterValidator(_printable)]
    split: Split
    provenance: Annotated[str, Field(max_length=MAX_PROVENANCE_CHARS), AfterValidator(_printable)]
    """In a line, where the picture and what is said of it come from."""
    labelled_by: Name
    """Empty: unknown."""
    sample: Annotated[str, Field(pattern=r"^([0-9A-Z]{26})?$")]
    """Id of the sample it was; the earliest where several show the picture; empty: none."""

    @model_validator(mode="after")
    def _inside(self) -> Entry:
        for box in self.boxes:
            if box.x + box.width > self.width + _SLACK or box.y + box.height > self.height + _SLACK:
                raise ValueError(f"a box of {box.label[:40]!r} sticks out of the picture")
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        """Its label, or those of its boxes, each as often as it is there."""
        return tuple(box.label for box in self.boxes) or ((self.label,) if self.label else ())


class SplitStatistics(_Frozen):
    """Of one split."""

    pictures: Count
    picture_bytes: Count
    groups: Count
    labels: dict[str, Count]
    """Pictures by label, boxes by label in a detection; every class is named."""
    cameras: dict[str, Count]


class Statistics(_Frozen):
    """Of all; what was left out was none of the dataset's pictures."""

    splits: dict[Split, SplitStatistics]
    unlabelled: Count = 0
    without_picture: Count = 0
    repeated: Count = 0
    """Items of a picture that another one stands for."""
    given: Count = 0
    """Pictures whose split was not drawn but said by whoever brought them."""


class Dataset(_Frozen):
    """The manifest. Entries are sorted by picture."""

    schema_version: Literal[2] = 2
    task: Task
    seed: int
    shares: dict[Split, float]
    """Of the groups that were drawn."""
    classes: Annotated[tuple[Label, ...], Field(max_length=MAX_CLASSES)]
    """In the order that counts for a model."""
    entries: Annotated[tuple[Entry, ...], Field(max_length=MAX_ENTRIES)]
    statistics: Statistics

    @model_validator(mode="after")
    def _whole(self) -> Dataset:
        pictures = [entry.picture for entry in self.entries]
        if pictures != sorted(set(pictures)):
            raise ValueError("the entries are not sorted by picture, or one is there twice")
        parted = {entry.group: entry.split for entry in self.entries}
        if any(parted[entry.group] != entry.split for entry in self.entries):
            raise ValueError("a group is in two splits")
        if (boxes := sum(len(entry.boxes) for entry in self.entries)) > MAX_ALL_BOXES:
            raise ValueError(f"there are {boxes} boxes, more than {MAX_ALL_BOXES}")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class is named twice")
        if {label for entry in self.entries for label in entry.labels} - set(self.classes):
            raise ValueError("a label is none of the classes")
        if self.task == "classification" and any(entry.boxes or not entry.label for entry in self.entries):
            raise ValueError("a picture of a classification has boxes, or no label")
        if self.task == "detection" and any(entry.label for entry in self.entries):
            raise ValueError("a picture of a detection has a label of its own")
        if self.statistics.splits != split_statistics(self.entries, self.classes):
            raise ValueError("the statistics are not the entries'")
        return self

    def to_json(self) -> bytes:
        """The manifest; the same bytes for the same content."""
        # One entry after the other: all of them as dictionaries would take gigabytes.
        around = _canonical({**self.model_dump(mode="json", exclude={"entries"}), "entries": []})
        entries = ",".join(_canonical(entry.model_dump(mode="json")) for entry in self.entries)
        return around.replace(_NO_ENTRIES, f'"entries":[{entries}]', 1).encode() + b"\n"

    @property
    def id(self) -> str:
        """SHA-256 of the manifest."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @classmethod
    def from_json(cls, data: bytes, *, sha256: str = "") -> Dataset:
        """Read a manifest. MeshError DIGEST_MISMATCH when its SHA-256 is not the one given, FIELD_INVALID for anything
        that is not, byte for byte, what :meth:`to_json` writes."""
        if len(data) > MAX_MANIFEST_BYTES:
            raise field_error("manifest", f"has {len(data)} bytes; at most {MAX_MANIFEST_BYTES} are read")
        if sha256 and hashlib.sha256(data).hexdigest() != sha256:
            raise MeshError(Reason.DIGEST_MISMATCH, "the manifest of the dataset is not the one that was asked for")
        try:
            found = cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])[:200]
            if where == "schema_version":
                raise field_error("manifest", "is of another form than 2: it must be frozen again") from error
            raise field_error("manifest", f"{where}: {first['msg']}" if where else first["msg"]) from error
        if found.to_json() != data:
            raise field_error("manifest", "says what a dataset says, but in other bytes than a dataset is written in")
        return found


def split_statistics(entries: Sequence[Entry], classes: Sequence[str]) -> dict[Split, SplitStatistics]:
    """What a manifest says of its splits."""
    found: dict[Split, SplitStatistics] = {}
    for split in SPLITS:
        here = [entry for entry in entries if entry.split == split]
        labels = Counter(label for entry in here for label in entry.labels)
        found[split] = SplitStatistics(
            pictures=len(here),
            picture_bytes=sum(entry.picture_bytes for entry in here),
            groups=len({entry.group for entry in here}),
            labels={name: labels[name] for name in classes},
            cameras=dict(Counter(entry.camera for entry in here)),
        )
    return found


def moment_text(at: datetime | None) -> str:
    """As a manifest writes a moment; empty for None. ValueError without a zone."""
    if at is None:
        return ""
    if at.tzinfo is None:
        raise ValueError("is no time with a zone")
    return at.astimezone(UTC).isoformat(timespec="microseconds")
