"""A small dataset of a site in Lyon, and folders that hold its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from splitmesh.client.dataset_sharing import Rule, Sharing
from splitmesh.datasets.folder import FolderLimits, PictureFolder
from splitmesh.datasets.freeze import freeze_items
from splitmesh.datasets.item import item_of
from splitmesh.datasets.manifest import Dataset
from tests.unit.dataset_files import png

COUNT = 12
PICTURES = [png(n, 40, 20) for n in range(COUNT)]
ALL: Any = {"train": 1.0, "val": 0.0, "test": 0.0}
OPEN = Sharing(manifests=("*",), pictures=(Rule(share="whole"),))
LIMITS = FolderLimits(min_free_bytes=0)


def boards(count: int = COUNT) -> Dataset:
    """The first so many of them, all of one split, half of them ng."""
    items = [
        item_of(data, label=("ng", "ok")[n % 2], site="lyon", group=f"u{n}") for n, data in enumerate(PICTURES[:count])
    ]
    return freeze_items(items, seed=0, shares=ALL)


def site(folder: Path, pictures: Sequence[bytes] = PICTURES) -> PictureFolder:
    """A folder with these."""
    made = PictureFolder(folder, LIMITS)
    for data in pictures:
        made.add(data)
    return made
