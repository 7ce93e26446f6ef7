"""A dataset whose pictures are small copies: what a site lets go where its pictures themselves stay.

Knows pixels and manifests; no network. A copy has no metadata, and its pixels lie as the picture's are stored, so that boxes stay
where they were.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from PIL import Image

from splitmesh.datasets.freeze import freeze_items
from splitmesh.datasets.item import Item, items_of
from splitmesh.datasets.manifest import Box, Dataset
from splitmesh.errors import MeshError, Reason
from splitmesh.model.preprocess import decode_image

_QUALITY = 85
_SMALLEST = 0.01
"""Pixels of a box's side, however small the copy."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """What stands for a picture."""

    sha256: str
    size_bytes: int
    width: int
    height: int


def make_thumbnail(picture: bytes, long_side: int) -> tuple[Thumbnail, bytes]:
    """A JPEG whose longer side has at most so many pixels, never larger than the picture, always encoded anew.

    Raises MeshError IMAGE_UNDECODABLE, IMAGE_TOO_LARGE.
    """
    image = decode_image(picture)
    try:
        small = image.convert("L" if image.mode in ("1", "L") else "RGB")
        small.thumbnail((long_side, long_side), Image.Resampling.BICUBIC, reducing_gap=2.0)
        # Pixels alone: Pillow would carry a comment of the file along.
        bare = Image.frombytes(small.mode, small.size, small.tobytes())
        written = io.BytesIO()
        bare.save(written, "JPEG", quality=_QUALITY)
    except (OSError, ValueError, SyntaxError, TypeError, OverflowError) as error:
        raise MeshError(Reason.IMAGE_UNDECODABLE, "the picture cannot be made small") from error
    data = written.getvalue()
    return Thumbnail(hashlib.sha256(data).hexdigest(), len(data), *small.size), data


def with_thumbnails(dataset: Dataset, left: Mapping[str, Thumbnail | None]) -> Dataset:
    """The dataset of what a site let go: pictures by their digest, each a copy, or itself (None). Others are not in it.

    Of pictures whose copies are equal the first one counts. Splits, groups and classes stay. MeshError FIELD_INVALID when nothing
    is left.
    """
    items = list(_left(dataset, left))
    return freeze_items(items, task=dataset.task, seed=dataset.seed, shares=dataset.shares, classes=dataset.classes)


def left_of(dataset: Dataset, thumbnails: Dataset) -> dict[str, Thumbnail | None]:
    """What a dataset of :func:`with_thumbnails` says that sites let go of this one."""
    whole = {entry.picture for entry in dataset.entries}
    origins = {_origin(entry.picture): entry.picture for entry in dataset.entries}
    found: dict[str, Thumbnail | None] = {}
    for entry in thumbnails.entries:
        if entry.picture in whole:
            found[entry.picture] = None
        elif origin := origins.get(entry.provenance):
            found[origin] = Thumbnail(entry.picture, entry.picture_bytes, entry.width, entry.height)
    return found


def _origin(picture: str) -> str:
    return f"thumbnail of {picture[:16]}"


def _left(dataset: Dataset, left: Mapping[str, Thumbnail | None]) -> Iterator[Item]:
    seen: set[str] = set()
    for item in items_of(dataset):
        if item.picture not in left:
            continue
        copy = left[item.picture]
        digest = copy.sha256 if copy else item.picture
        if digest not in seen:
            seen.add(digest)
            yield _small(item, copy) if copy else item


def _small(item: Item, copy: Thumbnail) -> Item:
    across, down = copy.width / item.width, copy.height / item.height
    boxes = item.boxes and tuple(
        Box(
            label=box.label,
            x=min(box.x * across, copy.width - _SMALLEST),
            y=min(box.y * down, copy.height - _SMALLEST),
            width=max(box.width * across, _SMALLEST),
            height=max(box.height * down, _SMALLEST),
        )
        for box in item.boxes
    )
    return replace(
        item,
        picture=copy.sha256,
        picture_bytes=copy.size_bytes,
        media_type="image/jpeg",
        width=copy.width,
        height=copy.height,
        boxes=boxes,
        provenance=_origin(item.picture),
    )
