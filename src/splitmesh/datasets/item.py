"""One picture with what is said of it, before it is divided: what readers of files and sample stores hand to ``freeze``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from splitmesh.datasets.divide import Split
from splitmesh.datasets.likeness import look
from splitmesh.datasets.manifest import Box, Dataset
from splitmesh.model.preprocess import DEFAULT_MAX_PIXELS


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """Nothing of it is checked before it is frozen."""

    picture: str
    """SHA-256."""
    picture_bytes: int
    media_type: str
    width: int
    """Pixels, as the picture is stored."""
    height: int
    label: str = ""
    """Empty: nobody said, or a detection."""
    boxes: tuple[Box, ...] | None = None
    """None: nobody said, or a classification; none of them: somebody looked, and nothing is there."""
    site: str = ""
    camera: str = ""
    captured_at: datetime | None = None
    """With a zone; None: unknown."""
    group: str = ""
    """What it must not be parted from; empty: see :attr:`split_group`."""
    split: Split | None = None
    """Where it is known already; None: to be drawn."""
    provenance: str = ""
    sample: str = ""
    labelled_by: str = ""
    name: str = ""
    """What an error calls it: a file's name, a sample's id; empty: the digest."""

    @property
    def split_group(self) -> str:
        """Its group; or its site, camera and hour (UTC); or, where no moment is known, itself alone."""
        if self.group or self.captured_at is None:
            return self.group or f"picture/{self.picture[:16]}"
        return f"{self.site}/{self.camera}/{self.captured_at.astimezone(UTC):%Y-%m-%dT%H}"


def item_of(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS, **fields: Any) -> Item:
    """The item of an encoded picture; ``fields`` are what is said of it. IMAGE_UNDECODABLE, IMAGE_TOO_LARGE."""
    looks = look(data, max_pixels=max_pixels)
    return Item(
        picture=hashlib.sha256(data).hexdigest(),
        picture_bytes=len(data),
        media_type=looks.media_type,
        width=looks.width,
        height=looks.height,
        **fields,
    )


def items_of(dataset: Dataset, *, keep_splits: bool = True) -> Iterator[Item]:
    """The pictures of a version, to be frozen again with others; in the splits they have unless they are to be drawn anew."""
    for entry in dataset.entries:
        values = {name: getattr(entry, name) for name in _SAME}
        yield Item(
            **values,
            boxes=entry.boxes if dataset.task == "detection" else None,
            captured_at=datetime.fromisoformat(entry.captured_at) if entry.captured_at else None,
            split=entry.split if keep_splits else None,
            name=entry.sample or entry.picture,
        )


_SAME = (
    "picture",
    "picture_bytes",
    "media_type",
    "width",
    "height",
    "label",
    "site",
    "camera",
    "group",
    "provenance",
    "sample",
    "labelled_by",
)
