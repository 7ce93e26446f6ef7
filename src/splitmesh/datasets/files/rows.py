"""One picture on its way into files, and the name of its file. Plain values, whoever's picture it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from splitmesh.datasets.likeness import ENDINGS
from splitmesh.datasets.manifest import Box, Entry

_MAX_NAME_BYTES = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What files say of a picture."""

    picture: str
    """SHA-256; its file is called after it."""
    media_type: str
    width: int
    """Pixels."""
    height: int
    label: str = ""
    """Empty: none."""
    boxes: tuple[Box, ...] | None = None
    """None: no detection."""
    split: str = ""
    """Empty: not divided."""
    captured_at: str = ""
    """ISO 8601; empty: unknown."""
    told: Mapping[str, object] = field(default_factory=dict)
    """Further fields by name, for a table's columns and for a COCO image."""

    @property
    def file_name(self) -> str:
        """``<sha256>.<ending>``."""
        return f"{self.picture}{ENDINGS.get(self.media_type, '')}"


Rows = Iterable[tuple[Row, bytes]]
"""Pictures with their bytes, in the order in which they are written."""


def row_of(entry: Entry, detection: bool) -> Row:
    """Of a picture of a dataset."""
    return Row(
        picture=entry.picture,
        media_type=entry.media_type,
        width=entry.width,
        height=entry.height,
        label=entry.label,
        boxes=entry.boxes if detection else None,
        split=entry.split,
        captured_at=entry.captured_at,
        told={
            name: getattr(entry, name) for name in ("group", "site", "camera", "labelled_by", "provenance", "sample")
        },
    )


def names_folder(name: str, reserved: Iterable[str]) -> bool:
    """Whether a label can be a folder's name that is none of ``reserved``."""
    plain = not ({"/", "\\"} & set(name) or name.startswith("."))
    return plain and name not in reserved and len(name.encode()) <= _MAX_NAME_BYTES
