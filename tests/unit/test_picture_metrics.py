"""SSIM and PSNR against hand-made cases and a slow, direct implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from splitmesh.errors import MeshError, Reason
from splitmesh.model.picture_metrics import MAX_PSNR_DB, psnr_db, ssim, window


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def slow_ssim(first: NDArray[np.uint8], second: NDArray[np.uint8], size: int = 11) -> float:
    """The formula of the paper, window by window, in two dimensions."""
    weights = {
        (row, column): math.exp(-((row - size // 2) ** 2 + (column - size // 2) ** 2) / (2 * 1.5**2))
        for row in range(size)
        for column in range(size)
    }
    total = sum(weights.values())
    x, y = first.astype(float), second.astype(float)
    found = []
    for top in range(x.shape[0] - size + 1):
        for left in range(x.shape[1] - size + 1):
            places = [(top + row, left + column, weight / total) for (row, column), weight in weights.items()]
            mean_x = sum(w * x[r, c] for r, c, w in places)
            mean_y = sum(w * y[r, c] for r, c, w in places)
            variance_x = sum(w * (x[r, c] - mean_x) ** 2 for r, c, w in places)
            variance_y = sum(w * (y[r, c] - mean_y) ** 2 for r, c, w in places)
            covariance = sum(w * (x[r, c] - mean_x) * (y[r, c] - mean_y) for r, c, w in places)
            c1, c2 = 6.5025, 58.5225  # (0.01 * 255)^2, (0.03 * 255)^2
            found.append(
                (2 * mean_x * mean_y + c1)
                * (2 * covariance + c2)
                / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
            )
    return float(sum(found) / len(found))


def test_equal_pictures_are_wholly_alike() -> None:
    pictures = noise(3, 20, 17, 3)
    np.testing.assert_allclose(ssim(pictures, pictures), 1.0, atol=1e-12)
    np.testing.assert_array_equal(psnr_db(pictures, pictures), MAX_PSNR_DB)


def test_flat_pictures_differ_by_their_brightness_alone() -> None:
    dark, bright = np.full((1, 16, 16, 1), 100, np.uint8), np.full((1, 16, 16, 1), 150, np.uint8)
    # variances are 0: what remains is (2 m1 m2 + C1) / (m1^2 + m2^2 + C1)
    assert ssim(dark, bright)[0] == pytest.approx((2 * 100 * 150 + 6.5025) / (100**2 + 150**2 + 6.5025), abs=1e-9)
    assert psnr_db(dark, bright)[0] == pytest.approx(20 * math.log10(255 / 50))


def test_a_negative_is_unlike() -> None:
    pictures = noise(1, 32, 32, 1)
    assert ssim(pictures, 255 - pictures)[0] < -0.5


@pytest.mark.parametrize("shape", [(13, 18), (11, 11), (16, 12)])
def test_it_is_the_formula_of_the_paper(shape: tuple[int, int]) -> None:
    first = noise(1, *shape, 1)
    second = np.clip(first.astype(int) + np.random.default_rng(1).integers(-60, 60, first.shape), 0, 255).astype(
        np.uint8
    )
    assert ssim(first, second)[0] == pytest.approx(slow_ssim(first[0, ..., 0], second[0, ..., 0]), abs=1e-9)


def test_channels_count_the_same_and_samples_stay_apart() -> None:
    first, second = noise(2, 15, 14, 3), noise(2, 15, 14, 3, seed=1)
    expected = [np.mean([slow_ssim(first[n, ..., c], second[n, ..., c]) for c in range(3)]) for n in range(2)]
    np.testing.assert_allclose(ssim(first, second), expected, atol=1e-9)


def test_small_pictures_take_the_largest_odd_window_that_fits() -> None:
    first, second = noise(1, 6, 6, 1), noise(1, 6, 6, 1, seed=1)
    assert ssim(first, second)[0] == pytest.approx(slow_ssim(first[0, ..., 0], second[0, ..., 0], size=5), abs=1e-9)
    assert ssim(noise(1, 1, 1, 1), noise(1, 1, 1, 1)).tolist() == pytest.approx([1.0])
    assert [len(window(side)) for side in (1, 2, 3, 10, 11, 12, 500)] == [1, 1, 3, 9, 11, 11, 11]


def test_the_range_of_values_does_not_matter_once_it_is_told() -> None:
    first, second = noise(1, 20, 20, 1), noise(1, 20, 20, 1, seed=1)
    scaled = ssim(first / 255, second / 255, data_range=1.0)
    np.testing.assert_allclose(scaled, ssim(first, second), atol=1e-9)
    np.testing.assert_allclose(psnr_db(first / 255, second / 255, data_range=1.0), psnr_db(first, second), atol=1e-9)


def test_one_wrong_pixel_has_a_known_ratio() -> None:
    first = np.zeros((1, 10, 10, 1), np.uint8)
    second = first.copy()
    second[0, 3, 3, 0] = 255
    assert psnr_db(first, second)[0] == pytest.approx(20.0)


def test_what_is_no_pair_of_pictures_is_refused() -> None:
    for first, second in ((noise(1, 8, 8, 1), noise(1, 8, 9, 1)), (noise(8, 8), noise(8, 8)), (noise(0, 8, 8, 1),) * 2):
        for metric in (ssim, psnr_db):
            with pytest.raises(MeshError) as caught:
                metric(first, second)
            assert caught.value.reason is Reason.TENSOR_SHAPE_MISMATCH
