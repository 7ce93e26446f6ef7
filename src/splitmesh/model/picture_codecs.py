"""Common image codecs, as a camera would send with: a picture to bytes and back. Knows no model."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

LARGEST_SIDES = {"WEBP": 16383, "JPEG": 65500}
"""Of libwebp and libjpeg, pixels."""


@dataclass(frozen=True, slots=True)
class PictureCodec:
    """One codec at one quality."""

    name: str
    image_format: str
    """Pillow's name for it."""
    quality: int | None
    """None: lossless."""
    optimise: bool = False
    """Lossless: search longer for fewer bytes."""

    @property
    def largest_side(self) -> int:
        """Pixels of a picture's longer side; a larger picture has no form in this codec."""
        return LARGEST_SIDES.get(self.image_format, 2**31 - 1)


def available(codecs: Iterable[PictureCodec]) -> list[PictureCodec]:
    """Those that Pillow can write here; WebP is an option of its build."""
    return [codec for codec in codecs if codec.image_format != "WEBP" or features.check("webp")]


def encode_picture(picture: NDArray[np.uint8], codec: PictureCodec) -> bytes:
    """A picture uint8 ``[height, width, 1 or 3]`` as a file."""
    image = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
    options: dict[str, int] = {"optimize": 1} if codec.optimise else {}
    if codec.quality is not None:
        options["quality"] = codec.quality
    buffer = io.BytesIO()
    image.save(buffer, format=codec.image_format, **options)
    return buffer.getvalue()


def decode_picture(data: bytes, codec: PictureCodec, *, channels: int) -> NDArray[np.uint8]:
    """What :func:`encode_picture` made, as a receiver sees it: uint8 ``[height, width, channels]``."""
    image = Image.open(io.BytesIO(data), formats=[codec.image_format]).convert("L" if channels == 1 else "RGB")
    return np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, channels)
