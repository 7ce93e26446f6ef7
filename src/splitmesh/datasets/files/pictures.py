"""The pictures that a form names, opened: what each is by its bytes, and its boxes in pixels inside it.

Knows pixels and what EXIF says; no form. Nothing of a picture is kept but its digest and size.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path

from PIL import Image

from splitmesh.datasets.files.found import Found, Mark
from splitmesh.datasets.item import Item, item_of
from splitmesh.datasets.manifest import MAX_BOXES, MAX_LABEL_CHARS, MAX_NAME_CHARS, Box
from splitmesh.errors import MeshError
from splitmesh.model.preprocess import FORMATS

MAX_PICTURE_BYTES = 64 << 20
"""A larger file is not read."""
EDGE = 0.5
"""Pixels by which a box may stick out: tools round. It is cut off there; one that sticks out more is refused."""
DECIMALS = 3
"""Of a box's pixels, so that writing shares of a width and reading them back gives the same numbers."""

_AHEAD = 64
_WORKERS = 4
_EXIF, _MAKE, _MODEL, _TAKEN, _ZONE, _ORIENTATION = 0x8769, 0x010F, 0x0110, 0x9003, 0x9011, 0x0112
_BROKEN_EXIF = (OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError)


@dataclass(frozen=True, slots=True)
class Opened:
    """One picture that could be read."""

    found: Found
    item: Item
    path: Path
    turned: bool = False
    """Whether EXIF says to show it turned; looked at only where there are boxes."""


def open_pictures(found: Sequence[Found], *, exif: bool = False) -> Iterator[tuple[Found, Opened | str]]:
    """Each with what it is, or what is wrong with it, in order; several are decoded at once.

    ``exif``: take the moment and the camera from it where the form says neither.
    """
    waiting = iter(found)
    with ThreadPoolExecutor(_WORKERS) as pool:
        while ahead := list(islice(waiting, _AHEAD)):
            yield from zip(ahead, pool.map(lambda one: _open(one, exif), ahead), strict=True)


def _open(found: Found, exif: bool) -> Opened | str:
    path = found.file
    if path is None:
        return "is not there"
    try:
        size = path.stat().st_size
        if size > MAX_PICTURE_BYTES:
            return f"has {size} bytes; at most {MAX_PICTURE_BYTES} are read"
        data = path.read_bytes()
        item = item_of(data, name=found.name)
    except MeshError as error:
        return f"cannot be decoded: {error.message}"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if exif:
        camera, taken = read_exif(data)
        found = replace(found, camera=found.camera or camera, captured_at=found.captured_at or taken)
    return Opened(found, item, path, any(mark.box for mark in found.marks) and _is_turned(data))


def read_exif(data: bytes) -> tuple[str, datetime | None]:
    """Maker and model of the camera, and when the picture was taken where EXIF also says in which zone; empty and None else."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            tags = image.getexif()
            inner = tags.get_ifd(_EXIF)
    except _BROKEN_EXIF:
        return "", None
    words = [_text(tags.get(tag)) for tag in (_MAKE, _MODEL)]
    camera = words[1] if words[0] and words[1].startswith(words[0]) else " ".join(filter(None, words))
    return camera[:MAX_NAME_CHARS].strip(), _moment(_text(inner.get(_TAKEN)), _text(inner.get(_ZONE)))


def _is_turned(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.getexif().get(_ORIENTATION, 1) not in (0, 1)
    except _BROKEN_EXIF:
        return False


def _text(value: object) -> str:
    words = value.replace("\0", " ").strip() if isinstance(value, str) else ""
    return "".join(letter for letter in words if letter.isprintable())


def _moment(taken: str, zone: str) -> datetime | None:
    try:
        at = datetime.strptime(f"{taken}{zone}", "%Y:%m:%d %H:%M:%S%z")
    except ValueError:
        return None
    return at


def label_problem(label: str) -> str:
    """What keeps a label from being one; empty: nothing."""
    if not label.strip() or not label.isprintable() or len(label) > MAX_LABEL_CHARS:
        return f"the label {label[:40]!r} is not 1 to {MAX_LABEL_CHARS} printable characters"
    return ""


def covers(mark: Mark, found: Found, width: int, height: int) -> bool:
    """Whether a mark is of the whole picture, within :data:`EDGE`."""
    if mark.box is None:
        return True
    wide, high = found.size or (width, height)
    return all(
        abs(one - other) <= EDGE
        for one, other in zip(_pixels(mark, found, wide, high), (0, 0, wide, high), strict=True)
    )


def boxes_in(opened: Opened) -> tuple[tuple[Box, ...], list[tuple[str, str]]]:
    """The boxes of a picture, and where and what is wrong with others."""
    found, width, height = opened.found, opened.item.width, opened.item.height
    if found.size is not None and found.size != (width, height):
        told = f"is {width} x {height} pixels, but was said to be {found.size[0]} x {found.size[1]}"
        return (), [(found.name, f"{told}: its boxes would be elsewhere")]
    if opened.turned:
        return (), [(found.name, "is turned by its EXIF, and tools differ in which way its boxes lie: save it upright")]
    if len(found.marks) > MAX_BOXES:
        return (), [(found.name, f"has more than {MAX_BOXES} boxes")]
    boxes: list[Box] = []
    wrong: list[tuple[str, str]] = []
    for mark in found.marks:
        try:
            boxes.append(_box(mark, found, width, height))
        except ValueError as error:
            wrong.append((mark.where or found.name, f"{error} ({found.name})"))
    return tuple(dict.fromkeys(boxes)), wrong


def _pixels(mark: Mark, found: Found, width: int, height: int) -> tuple[float, float, float, float]:
    x, y, wide, high = mark.box or (0.0, 0.0, 0.0, 0.0)
    return (x * width, y * height, wide * width, high * height) if found.relative else (x, y, wide, high)


def _box(mark: Mark, found: Found, width: int, height: int) -> Box:
    if problem := label_problem(mark.label):
        raise ValueError(problem)
    if mark.box is None:
        raise ValueError(f"the label {mark.label!r} has no box")
    x, y, wide, high = _pixels(mark, found, width, height)
    if not all(map(math.isfinite, (x, y, wide, high))):
        raise ValueError("a box is not finite")
    if wide <= 0 or high <= 0:
        raise ValueError(f"a box is {wide:g} wide and {high:g} high")
    right, lower = x + wide, y + high
    if min(x, y) < -EDGE or right > width + EDGE or lower > height + EDGE:
        told = f"a box from {x:g}, {y:g} to {right:g}, {lower:g}"
        raise ValueError(f"{told} sticks out of the picture of {width} x {height} pixels")
    x, y = round(max(x, 0.0), DECIMALS), round(max(y, 0.0), DECIMALS)
    wide, high = round(min(right, width) - x, DECIMALS), round(min(lower, height) - y, DECIMALS)
    if wide <= 0 or high <= 0:
        raise ValueError("a box has no area inside the picture")
    return Box(label=mark.label, x=x, y=y, width=wide, height=high)
