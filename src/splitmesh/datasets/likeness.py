"""What a picture is by its bytes, and whether two show nearly the same. Knows pixels, no records.

The likeness is the difference hash (dHash; N. Krawetz, "Kind of Like That", 2013): the picture in grey at 9 x 8 pixels, a bit
for each pixel that is brighter than its right neighbour. It sees the scene and not a scratch on it: a defect of a few
pixels changes no bit, so it tells only frames shortly after each other from frames of something else.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from splitmesh.errors import MeshError, Reason
from splitmesh.model.preprocess import DEFAULT_MAX_PIXELS, FORMATS, Preprocess

BITS = 64

MEDIA_TYPES: Mapping[str, str] = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
}
"""By the name that Pillow gives a format; MPO is a JPEG with an index of further pictures behind the first."""
ENDINGS: Mapping[str, str] = {
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/webp": ".webp",
    "image/bmp": ".bmp",
    "image/tiff": ".tif",
}
"""Of files, by media type."""

_GREY = Preprocess(width=9, height=8, mode="L", decode="scaled")


@dataclass(frozen=True, slots=True)
class Looks:
    """Of one picture."""

    media_type: str
    width: int
    """Pixels, as the picture is stored."""
    height: int
    dhash: int
    """0..2**64-1."""


def look(picture: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Looks:
    """Decodes it once. MeshError IMAGE_UNDECODABLE, also when it is cut short; IMAGE_TOO_LARGE above ``max_pixels``."""
    grey = _GREY.pixels(picture, max_pixels=max_pixels)[..., 0]
    bits = np.packbits(grey[:, :-1] > grey[:, 1:])
    try:
        with Image.open(io.BytesIO(picture), formats=FORMATS) as header:
            kind, (width, height) = header.format or "", header.size
    except OSError as error:
        raise MeshError(Reason.IMAGE_UNDECODABLE, f"{len(picture)} bytes are no picture") from error
    if kind not in MEDIA_TYPES:
        raise MeshError(Reason.IMAGE_UNDECODABLE, f"a picture of the format {kind!r} is not kept")
    return Looks(MEDIA_TYPES[kind], width, height, int.from_bytes(bits.tobytes(), "big"))


def distance(one: int, other: int) -> int:
    """Bits in which two difference hashes differ, 0..64."""
    return (one ^ other).bit_count()
