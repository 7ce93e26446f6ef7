"""The quick ways: arithmetic that is bit for bit what it was, and pictures decoded at a part of their size."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from splitmesh.errors import MeshError, Reason
from splitmesh.model.preprocess import Preprocess
from tests.support.wire import bomb_png

Pixels = NDArray[np.uint8]


def _encoded(pixels: Pixels, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def _normalised_slowly(pipeline: Preprocess, pixels: Pixels) -> NDArray[np.float32]:
    """What every version since the first was trained and calibrated with, bit for bit."""
    mean = np.asarray(pipeline.mean, dtype=np.float32) * np.float32(255)
    scale = np.float32(1) / (np.asarray(pipeline.std, dtype=np.float32) * np.float32(255))
    planes = pixels.transpose(0, 3, 1, 2).astype(np.float32)
    planes -= mean.reshape(1, -1, 1, 1)
    planes *= scale.reshape(1, -1, 1, 1)
    return np.ascontiguousarray(planes)


@pytest.mark.parametrize(
    "fields",
    [
        {"mode": "L", "mean": (0.1823,), "std": (0.1093,)},
        {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
        {"mean": (0.5,), "std": (0.229, 0.224, 0.225)},
        {"mean": (0.485, 0.456, 0.406), "std": (2.0,)},
        {},
    ],
)
def test_the_arithmetic_is_bit_for_bit_what_it_always_was(fields: dict[str, Any]) -> None:
    pipeline = Preprocess(width=33, height=17, **fields)
    pixels = np.random.default_rng(5).integers(0, 256, (3, 17, 33, pipeline.channels), dtype=np.uint8)
    got = pipeline.normalise(pixels)
    np.testing.assert_array_equal(got, _normalised_slowly(pipeline, pixels))
    assert got.flags.c_contiguous
    # Pixels that lie otherwise in memory are the same pixels.
    np.testing.assert_array_equal(pipeline.normalise(np.asfortranarray(pixels)), got)


def _scene(width: int, height: int) -> Image.Image:
    """Soft shapes, some edges and a little noise, as a camera would see them."""
    y, x = np.mgrid[0:height, 0:width] / height
    waves = np.stack([np.sin(5 * x + k) * np.cos(4 * y - k) for k in range(3)], axis=-1) * 80 + 120
    waves[height // 3 : height // 2, width // 4 : width // 2] += 60
    noisy = waves + np.random.default_rng(1).normal(0, 3, waves.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _psnr(one: Pixels, other: Pixels) -> float:
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("resize", ["stretch", "centre_crop"])
@pytest.mark.parametrize("size", [(640, 360), (645, 363), (200, 501), (97, 96), (40, 30)])
def test_a_picture_decoded_scaled_looks_like_one_decoded_in_full(
    kind: str, mode: Any, resize: Any, size: tuple[int, int]
) -> None:
    data = _encoded(np.asarray(_scene(*size)), kind)
    full = Preprocess(width=48, height=32, mode=mode, resize=resize)
    scaled = full.model_copy(update={"decode": "scaled"})
    assert scaled.pixels(data).shape == full.pixels(data).shape
    assert _psnr(scaled.pixels(data), full.pixels(data)) > 40


@pytest.mark.parametrize(
    ("size", "resize", "decoded"),
    [
        ((800, 600), "stretch", (100, 75)),  # an eighth is still twice 48 x 32
        ((1920, 1080), "stretch", (240, 135)),  # and no smaller than an eighth
        ((400, 300), "stretch", (100, 75)),
        ((383, 255), "stretch", (192, 128)),  # a quarter would be less than twice the width
        ((191, 127), "stretch", (191, 127)),
        ((2000, 130), "centre_crop", (1000, 65)),  # what is cut off counts for nothing
        ((2000, 64), "centre_crop", (2000, 64)),
    ],
)
def test_a_jpeg_is_decoded_at_no_less_than_twice_the_inputs_size(
    size: tuple[int, int], resize: Any, decoded: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[int, int]] = []
    convert = Image.Image.convert

    def seen(picture: Image.Image, *arguments: Any, **options: Any) -> Image.Image:
        loaded.append(picture.size)
        return convert(picture, *arguments, **options)

    data = _encoded(np.asarray(_scene(*size)), "JPEG")
    monkeypatch.setattr(Image.Image, "convert", seen)
    Preprocess(width=48, height=32, resize=resize, decode="scaled").pixels(data)
    assert loaded == [decoded]


def test_a_scaled_picture_is_where_the_full_one_is() -> None:
    """Sizes that no eighth divides must not shift the picture by a part of a pixel."""
    bar = np.zeros((131, 517, 3), dtype=np.uint8)
    bar[:, 250:300] = 255
    data = _encoded(bar, "JPEG", quality=95)
    full = Preprocess(width=32, height=8)
    rows = [one.pixels(data)[4, :, 0].astype(float) for one in (full, full.model_copy(update={"decode": "scaled"}))]
    centres = [float((row * np.arange(32)).sum() / row.sum()) for row in rows]
    assert centres[1] == pytest.approx(centres[0], abs=0.03)


def test_scaled_decoding_is_refused_what_full_decoding_is_refused() -> None:
    scaled = Preprocess(width=8, height=8, decode="scaled")
    data = _encoded(np.asarray(_scene(100, 50)), "JPEG")
    with pytest.raises(MeshError) as caught:
        scaled.pixels(data, max_pixels=4999)
    assert caught.value.reason is Reason.IMAGE_TOO_LARGE
    assert scaled.pixels(data, max_pixels=5000).shape == (8, 8, 3)
    for bad in (data[: len(data) // 2], b"", data[:4], bomb_png(30_000, 30_000)):
        with pytest.raises(MeshError):
            scaled.pixels(bad)


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_jpegs_of_every_colour_space_are_decoded_scaled(mode: str) -> None:
    file = io.BytesIO()
    _scene(200, 160).convert(mode).save(file, "JPEG", quality=95)
    for wanted in ("L", "RGB"):
        full = Preprocess(width=24, height=16, mode=wanted)
        scaled = full.model_copy(update={"decode": "scaled"})
        assert _psnr(scaled.pixels(file.getvalue()), full.pixels(file.getvalue())) > 40


def test_how_a_picture_is_decoded_is_said_only_where_it_is_not_in_full() -> None:
    plain = Preprocess(width=8, height=8)
    assert "decode" not in plain.model_dump_json()
    scaled = plain.model_copy(update={"decode": "scaled"})
    assert Preprocess.model_validate_json(scaled.model_dump_json()) == scaled
    assert Preprocess.model_validate_json(plain.model_dump_json()) == plain
