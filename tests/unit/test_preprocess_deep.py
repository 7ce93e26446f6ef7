"""Pictures with more than 8 bits of grey: as bright as they are, everywhere a picture is decoded."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from splitmesh.client.dataset_thumbnails import make_thumbnail
from splitmesh.errors import MeshError, Reason
from splitmesh.model.preprocess import Preprocess, decode_image
from splitmesh.samples.thumbnail import thumbnail

RAMP: NDArray[np.uint16] = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
WAYS = [
    Preprocess(width=64, height=64, mode=mode, decode=decode) for mode in ("L", "RGB") for decode in ("full", "scaled")
]


def encoded(values: NDArray[np.generic], kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind)
    return file.getvalue()


def twelve_bits(*values: int) -> bytes:
    """A TIFF of one row, two values in three bytes."""
    packed = int("".join(f"{value:012b}" for value in values), 2).to_bytes(len(values) * 12 // 8, "big")
    tags = [
        (256, len(values)),
        (257, 1),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 1),
        (279, len(packed)),
    ]
    folder = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + folder + bytes(4)


@pytest.mark.parametrize(
    "data",
    [encoded(RAMP, "PNG"), encoded(RAMP, "TIFF"), encoded(RAMP.astype(">u2"), "TIFF")],
    ids=["png", "tiff", "tiff big endian"],
)
def test_sixteen_bits_of_grey_become_their_upper_eight(data: bytes) -> None:
    expected = (RAMP >> 8).astype(np.uint8)
    for way in WAYS:
        for source in (data, Image.open(io.BytesIO(data))):
            np.testing.assert_array_equal(way.pixels(source), np.repeat(expected[..., None], way.channels, axis=2))
    np.testing.assert_array_equal(np.asarray(decode_image(data)), expected)


def test_twelve_bits_in_sixteen_are_scaled_by_twelve() -> None:
    got = Preprocess(width=4, height=1, mode="L").pixels(twelve_bits(0, 0x7F8, 0x800, 0xFFF))
    assert got.reshape(-1).tolist() == [0, 127, 128, 255]


def test_small_copies_of_deep_pictures_are_as_bright_as_they_are() -> None:
    data = encoded(RAMP, "PNG")
    for small in (thumbnail(data), make_thumbnail(data, 32)[1]):
        assert np.asarray(Image.open(io.BytesIO(small)), dtype=np.float64).mean() == pytest.approx(127, abs=3)


def test_what_else_the_file_says_stays_with_a_deep_picture() -> None:
    file = io.BytesIO()
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.fromarray(RAMP[:, :20]).save(file, "PNG", exif=tags)
    assert Image.open(io.BytesIO(thumbnail(file.getvalue()))).size == (64, 20)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_grey_without_a_known_white_is_refused(dtype: type[np.generic]) -> None:
    data = encoded(RAMP.astype(dtype), "TIFF")
    for source in (data, Image.open(io.BytesIO(data))):
        with pytest.raises(MeshError, match="32 bits") as caught:
            WAYS[0].pixels(source)
        assert caught.value.reason is Reason.IMAGE_UNDECODABLE
