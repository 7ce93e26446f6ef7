"""Reads a folder of real AOI pictures: ``labels.csv`` with at least image, unit, quality, defect, site and split.

The pictures are not part of this repository. Knows the table's columns; decodes nothing.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

QUALITIES = ("ok", "ng")
"""Values of the ``quality`` column, in class order."""

SPLITS = ("train", "val", "test")
"""Values of the ``split`` column. It is by unit, because joints of a unit show in each other's pictures."""

_COLUMNS = ("image", "unit", "quality", "defect", "site", "split")


@dataclass(frozen=True)
class Joint:
    """One row of the table."""

    image: Path
    """Path of the picture."""
    unit: str
    """The board position; all its joints are in one split."""
    quality: str
    """One of QUALITIES."""
    defect: str
    """Finer name of what is wrong, ``ok`` for good joints."""
    site: str
    """The factory the picture is counted to."""
    split: str
    """One of SPLITS."""


def load(root: Path) -> list[Joint]:
    """All rows of ``root/labels.csv`` in file order.

    Raises FileNotFoundError when the folder or its table is absent, ValueError when the table lacks a column or a row
    holds an unknown quality or split.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"no folder {root}: point --data at a folder with labels.csv and the pictures it names, "
            "or leave --data out to train on rendered pictures"
        )
    table = root / "labels.csv"
    if not table.is_file():
        raise FileNotFoundError(f"{root} has no labels.csv (expected columns: {', '.join(_COLUMNS)})")
    with table.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{table} lacks the columns {', '.join(missing)}")
        return [_joint(root, row, f"{table}:{reader.line_num}") for row in reader]


def _joint(root: Path, row: dict[str, str], where: str) -> Joint:
    for column, allowed in (("quality", QUALITIES), ("split", SPLITS)):
        if row[column] not in allowed:
            raise ValueError(f"{where}: {column} is {row[column]!r}, expected one of {', '.join(allowed)}")
    return Joint(root / row["image"], row["unit"], row["quality"], row["defect"], row["site"], row["split"])
