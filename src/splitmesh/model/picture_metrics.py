"""How alike two pictures are: structural similarity and peak signal to noise ratio.

SSIM as in Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural
similarity" (IEEE Transactions on Image Processing 13(4), 2004): a Gaussian window of 11 x 11 and 1.5 pixels, K1 = 0.01,
K2 = 0.03, weighted (not sample) variances, the mean over every place where the window lies inside the picture, and over
the channels. Knows arrays only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from splitmesh.errors import MeshError, Reason

Floats = NDArray[np.float64]
AnyPictures = NDArray[np.uint8] | NDArray[np.float32] | NDArray[np.float64]

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03

MAX_PSNR_DB = 100.0
"""What two pictures without any difference have; the ratio itself would be infinite."""


def ssim(first: AnyPictures, second: AnyPictures, *, data_range: float = 255.0) -> Floats:
    """Structural similarity of each pair, -1..1, 1 for equal pictures: ``[n]``.

    Args:
        first: pictures ``[n, height, width, channels]``.
        second: as many of the same shape.
        data_range: from the darkest to the brightest value that a pixel can have.

    A side below 11 pixels takes the largest odd window that fits, of the same sigma. Raises MeshError
    TENSOR_SHAPE_MISMATCH for arrays that are no such pairs.
    """
    x, y = _pair(first, second)
    windows = [window(side) for side in x.shape[1:3]]
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    mean_x, mean_y = _weighted(x, windows), _weighted(y, windows)
    variance_x = _weighted(x * x, windows) - mean_x**2
    variance_y = _weighted(y * y, windows) - mean_y**2
    covariance = _weighted(x * y, windows) - mean_x * mean_y
    likeness: Floats = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    likeness /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    means: Floats = likeness.mean(axis=(1, 2, 3))
    return means


def psnr_db(first: AnyPictures, second: AnyPictures, *, data_range: float = 255.0) -> Floats:
    """``10 log10(data_range^2 / mean squared error)`` of each pair, at most 100 dB: ``[n]``. Takes and raises as `ssim`."""
    x, y = _pair(first, second)
    errors = np.square(x - y).mean(axis=(1, 2, 3))
    least = data_range**2 / 10 ** (MAX_PSNR_DB / 10)
    found: Floats = 10 * np.log10(data_range**2 / np.maximum(errors, least))
    return found


def window(side: int) -> Floats:
    """Weights of the Gaussian window along a side of so many pixels; they add up to 1."""
    size = min(WINDOW, side - 1 + side % 2)
    places = np.arange(size) - size // 2
    weights: Floats = np.exp(-(places**2) / (2 * SIGMA**2))
    normed: Floats = weights / weights.sum()
    return normed


def _pair(first: AnyPictures, second: AnyPictures) -> tuple[Floats, Floats]:
    if first.ndim != 4 or first.shape != second.shape or 0 in first.shape:
        raise MeshError(
            Reason.TENSOR_SHAPE_MISMATCH,
            f"pictures of shapes {list(first.shape)} and {list(second.shape)} cannot be compared; expected two of "
            "[n, height, width, channels]",
        )
    return first.astype(np.float64), second.astype(np.float64)


def _weighted(pictures: Floats, windows: list[Floats]) -> Floats:
    """The weighted mean around every place where the window lies inside the picture."""
    for axis, weights in enumerate(windows, start=1):
        margin = len(weights) // 2
        inside = slice(margin, pictures.shape[axis] - margin)
        pictures = correlate1d(pictures, weights, axis=axis, mode="constant")
        pictures = pictures[:, inside] if axis == 1 else pictures[:, :, inside]
    return pictures
