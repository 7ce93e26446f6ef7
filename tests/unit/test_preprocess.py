"""Pictures to inputs: the arithmetic by hand, and every bad picture refused with its reason and without a warning."""

import io
import struct
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from splitmesh.errors import MeshError, Reason
from splitmesh.model.preprocess import DEFAULT_MAX_PIXELS, FORMATS, Preprocess, decode_image
from tests.support.wire import bomb_png

Pixels = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def _no_warning_leaks() -> Iterator[None]:
    """Whatever filters pytest is given, and the filters are left as they were."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        yield
        assert warnings.filters == before


def _noise(width: int, height: int, *, colour: bool = True) -> Pixels:
    shape = (height, width, 3) if colour else (height, width)
    return np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8)


def _encoded(pixels: Pixels, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def test_a_colour_picture_is_planes_of_scaled_and_shifted_pixels() -> None:
    pixels, mean, std = _noise(5, 4), (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    batch = Preprocess(width=5, height=4, mean=mean, std=std).batch([_encoded(pixels)])
    assert batch.shape == (1, 3, 4, 5)
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous
    for channel in range(3):
        for y in range(4):
            for x in range(5):
                expected = (float(pixels[y, x, channel]) / 255 - mean[channel]) / std[channel]
                assert batch[0, channel, y, x] == pytest.approx(expected, abs=1e-5)


def test_one_mean_and_one_deviation_count_for_every_channel() -> None:
    pixels = _encoded(_noise(6, 6))
    one = Preprocess(width=6, height=6, mean=(0.4,), std=(0.2,)).batch([pixels])
    three = Preprocess(width=6, height=6, mean=(0.4,) * 3, std=(0.2,) * 3).batch([pixels])
    np.testing.assert_array_equal(one, three)


def test_grey_is_the_luma_of_a_colour_picture() -> None:
    pixels = _noise(6, 3)
    got = Preprocess(width=6, height=3, mode="L").pixels(_encoded(pixels))
    assert got.shape == (3, 6, 1)
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    assert np.abs(got[..., 0] - luma).max() <= 1


def test_a_grey_picture_fills_every_channel_of_a_colour_model() -> None:
    pixels = _noise(6, 3, colour=False)
    got = Preprocess(width=6, height=3).pixels(_encoded(pixels))
    np.testing.assert_array_equal(got, np.repeat(pixels[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "1", "I;16", "LA"])
def test_pictures_of_every_pixel_kind_become_three_channels(mode: str) -> None:
    source = Image.new(mode, (4, 4))
    file = io.BytesIO()
    source.save(file, "TIFF" if mode in ("CMYK", "I;16") else "PNG")
    assert Preprocess(width=4, height=4).pixels(file.getvalue()).shape == (4, 4, 3)


def test_stretching_by_half_averages_what_lies_together() -> None:
    halves = np.zeros((8, 16), dtype=np.uint8)
    halves[:, 8:] = 200
    got = Preprocess(width=4, height=4, mode="L").pixels(_encoded(halves))[..., 0]
    assert (got[:, 0] == 0).all()
    assert (got[:, 3] == 200).all()
    assert abs(int(got.mean()) - 100) <= 2


@pytest.mark.parametrize(
    ("size", "target", "box"),
    [
        ((10, 4), (4, 4), (3, 0, 7, 4)),  # wide: the sides go
        ((4, 10), (4, 4), (0, 3, 4, 7)),  # tall: top and bottom go
        ((8, 4), (8, 4), (0, 0, 8, 4)),
        ((12, 6), (6, 6), (3, 0, 9, 6)),
        ((9, 4), (8, 4), (0, 0, 8, 4)),  # an odd pixel goes on the right
        ((6, 12), (6, 3), (0, 4, 6, 7)),
    ],
)
def test_centre_crop_cuts_the_largest_box_of_the_right_ratio(
    size: tuple[int, int], target: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    pixels = _noise(*size)
    left, top, right, bottom = box
    got = Preprocess(width=target[0], height=target[1], resize="centre_crop").pixels(_encoded(pixels))
    np.testing.assert_array_equal(got, pixels[top:bottom, left:right])


@pytest.mark.parametrize("size", [(1, 400), (400, 1), (1, 1)])
@pytest.mark.parametrize("resize", ["stretch", "centre_crop"])
def test_a_picture_of_one_pixel_across_still_fills_the_input(size: tuple[int, int], resize: Any) -> None:
    white = np.full((size[1], size[0], 3), 255, dtype=np.uint8)
    assert (Preprocess(width=32, height=8, resize=resize).pixels(_encoded(white)) == 255).all()


def test_a_batch_keeps_the_order_of_its_pictures() -> None:
    pictures = [np.full((4, 4, 3), level, dtype=np.uint8) for level in (10, 200, 90)]
    batch = Preprocess(width=4, height=4).batch([_encoded(picture) for picture in pictures])
    np.testing.assert_allclose(batch[:, 0, 0, 0] * 255, [10, 200, 90], rtol=1e-5)


def test_pixels_of_another_shape_are_refused() -> None:
    pipeline = Preprocess(width=4, height=6, mode="L")
    assert pipeline.normalise(np.zeros((0, 6, 4, 1), dtype=np.uint8)).shape == (0, 1, 6, 4)
    for shape in ((2, 4, 6, 1), (2, 6, 4, 3), (6, 4, 1)):
        with pytest.raises(MeshError) as caught:
            pipeline.normalise(np.zeros(shape, dtype=np.uint8))
        assert caught.value.reason is Reason.TENSOR_SHAPE_MISMATCH


@pytest.mark.parametrize(
    "fields",
    [
        {"width": 0},
        {"height": 8193},
        {"mode": "HSV"},
        {"resize": "pad"},
        {"mean": (0.1, 0.2)},
        {"mode": "L", "std": (1.0, 1.0, 1.0)},
        {"std": (0.0,)},
        {"std": (float("nan"),)},
        {"mean": ()},
        {"gamma": 2.2},
        pytest.param({"mean": (float("nan"),)}),
        pytest.param({"std": (float("inf"),)}),
    ],
)
def test_a_pipeline_that_cannot_be_is_not_made(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Preprocess(**{"width": 4, "height": 4} | fields)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_of_the_list_is_read(kind: str) -> None:
    picture = np.full((8, 8, 3), 120, dtype=np.uint8)
    got = Preprocess(width=8, height=8).pixels(_encoded(picture, kind))
    assert np.abs(got.astype(int) - 120).max() <= 2


PHOTO = _noise(64, 48)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a picture",
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        _encoded(PHOTO, "JPEG")[:-500],
        _encoded(PHOTO, "PNG")[:-500],
        _encoded(PHOTO, "WEBP")[:-500],
        _encoded(PHOTO, "BMP")[:-500],
        _encoded(PHOTO, "TIFF")[: 64 * 48],
        bomb_png(60, 60),  # few pixels declared, fewer there
        _encoded(PHOTO, "GIF"),
        _encoded(PHOTO, "PPM"),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    ],
    ids=[
        "empty", "text", "jpeg-start", "png-start", "cut-jpeg", "cut-png", "cut-webp", "cut-bmp", "cut-tiff",
        "png-without-pixels", "gif", "ppm", "eps",
    ],
)  # fmt: skip
def test_what_is_no_complete_picture_of_a_known_format_is_undecodable(data: bytes) -> None:
    with pytest.raises(MeshError) as caught:
        decode_image(data)
    assert caught.value.reason is Reason.IMAGE_UNDECODABLE
    assert str(len(data)) in caught.value.message


@pytest.mark.parametrize(("width", "height"), [(4097, 4096), (20_000, 20_000), (60_000, 60_000)])
def test_a_bomb_is_refused_by_its_header(width: int, height: int) -> None:
    with pytest.raises(MeshError) as caught:
        decode_image(bomb_png(width, height))
    assert caught.value.reason is Reason.IMAGE_TOO_LARGE
    assert width * height > DEFAULT_MAX_PIXELS


@pytest.mark.parametrize("action", ["ignore", "always", "error"])
def test_a_high_limit_does_not_lift_the_decoders_own(action: Any) -> None:
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter(action)
        with pytest.raises(MeshError) as caught:
            decode_image(bomb_png(10_000, 10_000), max_pixels=10**9)
    assert caught.value.reason is Reason.IMAGE_TOO_LARGE
    assert leaked == []


def test_the_limit_is_the_callers_and_the_last_pixel_fits() -> None:
    picture = _encoded(_noise(10, 5))
    assert decode_image(picture, max_pixels=50).size == (10, 5)
    with pytest.raises(MeshError) as caught:
        decode_image(picture, max_pixels=49)
    assert caught.value.reason is Reason.IMAGE_TOO_LARGE
    assert caught.value.metadata == {"width": "10", "height": "5", "max_pixels": "49"}
    with pytest.raises(MeshError):
        Preprocess(width=4, height=4).pixels(picture, max_pixels=49)


@pytest.mark.parametrize("kind", FORMATS)
def test_no_damage_to_a_picture_gives_more_than_a_reason(kind: str) -> None:
    whole = bytearray(_encoded(_noise(24, 24), kind))
    rng = np.random.default_rng(0)
    reasons = set()
    for _ in range(150):
        damaged = bytearray(whole)
        for position in rng.integers(0, len(whole), 3):
            damaged[position] = rng.integers(0, 256)
        reasons.add(_refusal(bytes(damaged)))
    assert reasons <= {None, Reason.IMAGE_UNDECODABLE, Reason.IMAGE_TOO_LARGE}


def _refusal(data: bytes) -> Reason | None:
    try:
        Preprocess(width=8, height=8).pixels(data)
    except MeshError as error:
        return error.reason
    return None


def test_damaged_tags_of_a_tiff_give_no_more_than_a_reason() -> None:
    rng = np.random.default_rng(0)
    for compression in (None, "tiff_lzw", "tiff_deflate"):
        whole = _encoded(_noise(12, 12), "TIFF", compression=compression)
        tags = int.from_bytes(whole[4:8], "little")
        for entry in range(tags + 2, tags + 2 + 12 * whole[tags], 12):
            for kind in range(14):
                damaged = bytearray(whole)
                damaged[entry + 2] = kind  # the type of the tag's values
                for _ in range(4):
                    assert _refusal(bytes(damaged)) in (None, Reason.IMAGE_UNDECODABLE, Reason.IMAGE_TOO_LARGE)
                    damaged[rng.integers(tags, len(whole))] = rng.integers(0, 14)


@pytest.mark.parametrize("error", [TypeError("a tag"), OverflowError("a size"), struct.error("a field")])
def test_whatever_the_decoder_or_the_conversion_raises_is_undecodable(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_: object) -> None:
        raise error

    for step in ("load", "convert"):
        with monkeypatch.context() as patched:
            patched.setattr(f"PIL.PngImagePlugin.PngImageFile.{step}", broken)
            assert _refusal(_encoded(PHOTO)) is Reason.IMAGE_UNDECODABLE
