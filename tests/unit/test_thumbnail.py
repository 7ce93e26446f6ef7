"""Pictures made small: whole, upright, without what else a file tells, and never a way to fill the memory."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from splitmesh.errors import MeshError, Reason
from splitmesh.samples.thumbnail import SIDE, thumbnail
from tests.unit.sample_records import encoded

ORIENTATION = 0x0112
TURNED = 6


def halves(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Left black, right white."""
    grey = np.zeros((height, width), np.uint8)
    grey[:, width // 2 :] = 255
    return Image.fromarray(grey).convert(mode)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    assert image.format == "JPEG"
    return image


@pytest.mark.parametrize(("size", "small"), [((1600, 400), (160, 40)), ((300, 600), (80, 160)), ((100, 50), (100, 50))])
@pytest.mark.parametrize("ending", ["PNG", "JPEG", "TIFF"])
def test_the_longer_side_is_at_most_so_long(size: tuple[int, int], small: tuple[int, int], ending: str) -> None:
    image = opened(thumbnail(encoded(halves(*size), ending)))
    assert image.size == small
    assert max(image.size) <= SIDE
    pixels = np.asarray(image.convert("L"))
    assert pixels[:, : small[0] // 3].max() < 20
    assert pixels[:, -small[0] // 3 :].min() > 235


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK"])
def test_every_kind_of_pixels_becomes_a_jpeg(mode: str) -> None:
    picture = encoded(halves(320, 320, mode), "TIFF")
    assert opened(thumbnail(picture)).size == (SIDE, SIDE)


def test_it_is_turned_as_the_camera_says_and_tells_nothing_else() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED
    exif[0x010F] = "maker of cameras"
    picture = encoded(halves(640, 320), "JPEG", exif=exif, comment=b"hall of the maker", icc_profile=b"maker's colours")
    image = opened(thumbnail(picture))
    assert image.size == (80, 160)
    assert not image.getexif()
    assert b"maker" not in thumbnail(picture)


def test_what_is_no_picture_or_too_large_is_refused() -> None:
    whole = encoded(halves(640, 320), "JPEG")
    for data, most, reason in (
        (b"nonsense", 1 << 20, Reason.IMAGE_UNDECODABLE),
        (whole[: len(whole) // 2], 1 << 20, Reason.IMAGE_UNDECODABLE),
        (whole, 640 * 320 - 1, Reason.IMAGE_TOO_LARGE),
    ):
        with pytest.raises(MeshError) as error:
            thumbnail(data, max_pixels=most)
        assert error.value.reason is reason
