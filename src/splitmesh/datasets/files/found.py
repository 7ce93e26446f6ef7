"""What a form says of one picture, before the picture is opened. Plain values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from splitmesh.datasets.files import inside
from splitmesh.datasets.manifest import MAX_BOXES
from splitmesh.errors import field_error

Form = Literal["imagefolder", "csv", "coco", "yolo"]
FORMS: tuple[Form, ...] = ("imagefolder", "csv", "coco", "yolo")

ANNOTATIONS = "annotations.json"
IMAGES = "images"
LABELS = "labels"
TABLE = "labels.csv"
UNLABELLED = "_unlabelled"
"""The folder of pictures that have no label yet."""

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""What tools call a split, and what it is called here."""

Numbers = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Mark:
    """A label of a picture, or of a box in it."""

    label: str
    box: Numbers | None = None
    """x, y of the upper left corner, width, height; None: the whole picture."""
    where: str = field(default="", compare=False)
    """File and line."""


def gather(marks: dict[Mark, None], more: Iterable[Mark]) -> None:
    """Adds to one picture's marks, each once. Of too many one above :data:`MAX_BOXES` is kept, which tells that there were."""
    for mark in more:
        if len(marks) <= MAX_BOXES:
            marks[mark] = None


@dataclass(frozen=True, slots=True)
class Found:
    """One picture as a form names it. Nothing of it is checked against the picture."""

    name: str
    """As it was written, below the source's folder."""
    file: Path | None
    """The picture, where it lies beside: a plain file below the folder."""
    marks: tuple[Mark, ...] = ()
    relative: bool = False
    """Whether boxes are shares of the picture's width and height; else they are pixels."""
    size: tuple[int, int] | None = None
    """Width and height that the form claims."""
    split: str = ""
    """Empty: the form does not say."""
    group: str = ""
    site: str = ""
    camera: str = ""
    captured_at: datetime | None = None


@dataclass(slots=True)
class Listing:
    """Everything that a source names."""

    classes: tuple[str, ...] = ()
    """In the form's order."""
    boxes: bool | None = None
    """Whether marks are boxes; None: only the pictures' sizes can tell."""
    found: list[Found] = field(default_factory=list)

    def add(self, found: Found) -> None:
        """One more. MeshError FIELD_INVALID when there are too many."""
        if len(self.found) >= inside.MAX_LISTED:
            raise field_error("source", f"has more than {inside.MAX_LISTED} entries")
        self.found.append(found)

    def __iter__(self) -> Iterator[Found]:
        return iter(self.found)
