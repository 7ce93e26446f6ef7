"""A picture small enough to be looked at in a list. Knows pixels, no records."""

from __future__ import annotations

import io

from PIL import Image, ImageOps

from splitmesh.errors import MeshError, Reason
from splitmesh.model.preprocess import DEFAULT_MAX_PIXELS, decode_image
from splitmesh.tensor.spec import Buffer

SIDE = 160
"""Most pixels of the longer side."""
MEDIA_TYPE = "image/jpeg"
_QUALITY = 80


def thumbnail(picture: Buffer, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> bytes:
    """The whole picture as a JPEG of at most 160 pixels a side, never larger than it is, turned as its camera says, without
    what else the file tells (place, time, camera, comments, profiles).

    MeshError IMAGE_UNDECODABLE; IMAGE_TOO_LARGE above ``max_pixels``, before a pixel is decoded.
    """
    image = decode_image(picture, max_pixels=max_pixels)
    try:
        small = image.convert("RGB")
        small.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=2.0)
        small = ImageOps.exif_transpose(small)
        # Pixels alone: Pillow would carry what else it read along, such as a comment.
        bare = Image.frombytes(small.mode, small.size, small.tobytes())
        written = io.BytesIO()
        bare.save(written, "JPEG", quality=_QUALITY)
    except (OSError, ValueError, SyntaxError, TypeError, OverflowError) as error:
        raise MeshError(Reason.IMAGE_UNDECODABLE, "the picture cannot be made small") from error
    return written.getvalue()
