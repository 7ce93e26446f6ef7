"""What Label Studio writes otherwise than others: names of pictures it served, and boxes as JSON in a cell.

Source: labelstud.io/guide/export and the tag ``RectangleLabels``: ``x``, ``y``, ``width``, ``height`` in percent of the picture,
``rotation`` in degrees.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

from splitmesh.datasets.files.found import Numbers

_UPLOADED = "/data/upload/"
_LOCAL = "/data/local-files/"


def served_name(name: str) -> str:
    """The picture's own name where the name is a path of Label Studio's server; else the name itself."""
    if name.startswith(_UPLOADED):
        return name.rpartition("/")[2]
    if name.startswith(_LOCAL):
        return parse_qs(urlsplit(name).query).get("d", [name])[0]
    return name


def boxes_of(cell: str) -> list[tuple[str, Numbers]] | None:
    """Labels and boxes as shares of the picture, of a cell that holds them as JSON; None for other cells.

    Raises ValueError for JSON that holds anything but upright boxes, each with one label.
    """
    if not cell.startswith("[{"):
        return None
    try:
        return [_box(entry) for entry in json.loads(cell)]
    except (KeyError, TypeError, AttributeError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(f"is no list of Label Studio's boxes: {type(error).__name__} at {str(error)[:60]}") from error


def _box(entry: dict[str, Any]) -> tuple[str, Numbers]:
    labels = entry["rectanglelabels"]
    if entry.get("rotation", 0):
        raise ValueError("a box is turned; only upright boxes are read")
    if not isinstance(labels, list) or len(labels) != 1 or not isinstance(labels[0], str):
        raise ValueError("a box has not exactly one label")
    return labels[0], (_share(entry["x"]), _share(entry["y"]), _share(entry["width"]), _share(entry["height"]))


def _share(percent: object) -> float:
    if isinstance(percent, bool) or not isinstance(percent, int | float):
        raise ValueError(f"{percent!r} is no share of a picture")
    return percent / 100
