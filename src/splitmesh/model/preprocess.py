"""Pictures to model inputs, as data: the same code prepares a frame at training, calibration and at the edge.

Two steps, so that calibration sets can be kept as small uint8 arrays: :meth:`Preprocess.pixels` (decode and resize) and
:meth:`Preprocess.normalise` (vectorised arithmetic). Knows nothing of models or cameras.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from splitmesh.errors import MeshError, Reason
from splitmesh.tensor.spec import Buffer

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""Container formats a camera may send; anything else is refused before a decoder sees it."""

DEFAULT_MAX_PIXELS = 4096 * 4096

SCALED_TIMES = 2
"""A picture that is decoded scaled keeps at least so many times the model's width and height."""

_FILTERS = threading.Lock()

_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, TypeError, OverflowError, struct.error)
"""What Pillow's decoders raise on damaged files; the last three come from TIFF tags of a wrong type or size."""

_DEEP = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
"""Pillow's modes of grey in 16 bits."""
_BITS_PER_SAMPLE = 258
"""A tag of TIFF."""

_JPEG_STEPS = (1, 2, 4, 8)

_Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Preprocess(BaseModel):
    """How a picture becomes one row of the model's input batch.

    The input tensor is float32, NCHW, ``(pixel / 255 - mean) / std`` per channel.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(ge=1, le=8192)
    """Width of the model's input in pixels."""
    height: int = Field(ge=1, le=8192)
    """Height of the model's input in pixels."""
    mode: Literal["L", "RGB"] = "RGB"
    """``L``: one grey channel; ``RGB``: three colour channels."""
    resize: Literal["stretch", "centre_crop"] = "stretch"
    """``stretch`` ignores the aspect ratio; ``centre_crop`` cuts the largest centred box of the right ratio first."""
    mean: tuple[Finite, ...] = (0.0,)
    """Per channel, on the 0..1 scale; one value counts for all channels."""
    std: tuple[Finite, ...] = (1.0,)
    """Per channel, on the 0..1 scale, greater than 0; one value counts for all channels."""

    decode: Literal["full", "scaled"] = "full"
    """``full``: every pixel is decoded, then resized. ``scaled``: a picture of at least twice the input's size (four times, eight
    times) is decoded at a half (a quarter, an eighth) of its size, inside the JPEG decoder where it is a JPEG, and resized
    from there: the same picture for the eye, not the same pixels."""

    @model_validator(mode="after")
    def _check(self) -> Preprocess:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ValueError(f"{name} has {len(values)} values, expected 1 or {self.channels}")
        if any(not value > 0 for value in self.std):
            raise ValueError("std must be greater than 0")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without ``decode`` where it changes nothing: nodes that do not know the field refuse it."""
        fields: dict[str, Any] = handler(self)
        if self.decode == "full":
            fields.pop("decode", None)
        return fields

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return 1 if self.mode == "L" else 3

    def pixels(self, image: Buffer | Image.Image, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> NDArray[np.uint8]:
        """Decode (when bytes) and resize one picture to uint8 ``[height, width, channels]``.

        Raises MeshError IMAGE_UNDECODABLE or IMAGE_TOO_LARGE (the header's size is checked before any pixel is decoded).
        """
        scaled = self.decode == "scaled"
        if isinstance(image, Image.Image):
            picture, box = _eight_bits(image), None
        else:
            picture, box = _decode(image, max_pixels, self if scaled else None)
        try:
            picture = picture.convert(self.mode)
        except _DAMAGE as error:
            raise MeshError(Reason.IMAGE_UNDECODABLE, f"the picture cannot be turned into {self.mode}") from error
        picture = self._fitted(picture, box, SCALED_TIMES if scaled else None)
        return np.asarray(picture, dtype=np.uint8).reshape(self.height, self.width, self.channels)

    def _fitted(self, picture: Image.Image, box: _Box | None, gap: float | None) -> Image.Image:
        """Cut and resized; ``box`` is where a picture decoded at a part of its size lies, in parts of its pixels."""
        if box is not None and self.resize == "centre_crop":
            box = _centre_part(box, self.width / self.height)
        elif self.resize == "centre_crop":
            picture = picture.crop(_centre_box(picture.size, self.width / self.height))
        size = (self.width, self.height)
        if box is None and picture.size == size:
            return picture
        return picture.resize(size, Image.Resampling.BILINEAR, box, reducing_gap=gap)

    def seen(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Which part of a picture of this size becomes the input, in its pixels: left, top, right, bottom.

        Of a picture that is decoded scaled, within one pixel.
        """
        if self.resize == "stretch":
            return 0.0, 0.0, float(width), float(height)
        left, top, right, bottom = _centre_box((width, height), self.width / self.height)
        return float(left), float(top), float(right), float(bottom)

    def normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 ``[n, height, width, channels]`` to float32 ``[n, channels, height, width]``, contiguous."""
        expected = (self.height, self.width, self.channels)
        if pixels.ndim != 4 or pixels.shape[1:] != expected:
            raise MeshError(Reason.TENSOR_SHAPE_MISMATCH, f"pixels have shape {pixels.shape}, expected (n, {expected})")
        mean = np.asarray(self.mean, dtype=np.float32) * np.float32(255)
        scale = np.float32(1) / (np.asarray(self.std, dtype=np.float32) * np.float32(255))
        planes = np.empty((len(pixels), self.channels, self.height, self.width), dtype=np.float32)
        # Plane by plane: arithmetic along a row of one channel is eleven times faster than along three channels.
        for channel in range(self.channels):
            plane = planes[:, channel]
            plane[...] = pixels[..., channel]
            plane -= mean[channel % len(mean)]
            plane *= scale[channel % len(scale)]
        return planes

    def batch(self, images: Sequence[Buffer | Image.Image]) -> NDArray[np.float32]:
        """Decode, resize and normalise several pictures: float32 ``[n, channels, height, width]``."""
        return self.normalise(np.stack([self.pixels(image) for image in images]))


def decode_image(data: Buffer, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Decode a picture whose declared size is at most ``max_pixels``, from an allow-list of formats, to at most 8 bits a channel.

    Raises MeshError IMAGE_UNDECODABLE or IMAGE_TOO_LARGE.
    """
    return _decode(data, max_pixels, None)[0]


def _decode(data: Buffer, max_pixels: int, draft: Preprocess | None) -> tuple[Image.Image, _Box | None]:
    """The picture; made smaller by the JPEG decoder where ``draft`` leaves room for it, and then where in it it lies."""
    try:
        with _quiet():
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = picture.size
            if width * height > max_pixels:
                raise MeshError(
                    Reason.IMAGE_TOO_LARGE,
                    f"the picture is {width}x{height} pixels; at most {max_pixels} pixels are accepted",
                    metadata={"width": str(width), "height": str(height), "max_pixels": str(max_pixels)},
                )
            if picture.format == "TIFF":
                picture.load()  # its decoder talks about damaged tags
        box = None if draft is None else _draft(picture, draft)
        picture.load()
        return _eight_bits(picture), box
    except MeshError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise MeshError(Reason.IMAGE_TOO_LARGE, str(error)) from error
    except _DAMAGE as error:
        raise MeshError(
            Reason.IMAGE_UNDECODABLE,
            f"{len(data)} bytes are not a complete picture in one of {', '.join(FORMATS)}",
        ) from error


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Deep grey as 8 bits, by the depth that the file states, as decoders do with deep colour: Pillow cuts it off at white.

    MeshError IMAGE_UNDECODABLE for 32-bit grey, of which nobody knows what is white.
    """
    if picture.mode in _DEEP or (picture.mode == "I" and picture.format == "PNG"):
        values = np.asarray(picture) >> (_depth(picture) - 8)
        made = Image.fromarray(np.minimum(values, 255).astype(np.uint8))
        made.info = dict(picture.info)
        return made
    if picture.mode in ("I", "F"):
        text = f"the picture has 32 bits a pixel (mode {picture.mode}), whose white is unknown; save it with 8 or 16"
        raise MeshError(Reason.IMAGE_UNDECODABLE, text)
    return picture


def _depth(picture: Image.Image) -> int:
    """Bits of a grey value that is stored in 16."""
    said = getattr(picture, "tag_v2", {}).get(_BITS_PER_SAMPLE)
    return said[0] if isinstance(said, tuple) and len(said) == 1 and 8 <= said[0] <= 16 else 16


def _draft(picture: Image.Image, wanted: Preprocess) -> _Box | None:
    """Tell the decoder of a JPEG to scale while it decodes, and to leave colour out of what becomes grey."""
    width, height = picture.size
    box = (0.0, 0.0, float(width), float(height))
    left, top, right, bottom = (
        _centre_part(box, wanted.width / wanted.height) if wanted.resize == "centre_crop" else box
    )
    times = min((right - left) / wanted.width, (bottom - top) / wanted.height) / SCALED_TIMES
    scale = max(step for step in _JPEG_STEPS if step <= max(1.0, times))
    drafted = picture.draft(wanted.mode, (max(1, width // scale), max(1, height // scale)))
    return None if drafted is None or scale == 1 else drafted[1]


@contextmanager
def _quiet() -> Iterator[None]:
    """A bomb is an error, other warnings of Pillow are not our callers'. Filters are global: one thread at a time."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _centre_box(size: tuple[int, int], ratio: float) -> tuple[int, int, int, int]:
    width, height = size
    if width / height > ratio:
        crop = max(1, round(height * ratio))
        left = (width - crop) // 2
        return left, 0, left + crop, height
    crop = max(1, round(width / ratio))
    top = (height - crop) // 2
    return 0, top, width, top + crop


def _centre_part(box: _Box, ratio: float) -> _Box:
    """The largest centred part of the right ratio, without rounding; ``box`` begins at 0, 0."""
    _, _, width, height = box
    across, down = min(width, height * ratio), min(height, width / ratio)
    left, top = (width - across) / 2, (height - down) / 2
    return left, top, left + across, top + down
