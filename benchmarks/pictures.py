"""Pictures like natural ones, made up: dead leaves over a 1/f background, with texture, uneven light and sensor noise.

Overlapping shapes whose sizes follow a power law have the edges, flat areas and spectrum of natural scenes (Lee, Mumford
and Huang 2001), so image codecs and activations find in them what they would find in photographs; no data set is needed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CALIBRATION_SEED, TEST_SEED = 7001, 7002
"""Pictures of one are never among those of the other."""

LEAVES = 260
SMALLEST, LARGEST = 0.015, 0.5
"""Radii of the shapes, as shares of the side."""
TEXTURE, NOISE = 9.0, 2.0
"""Standard deviations, in grey levels of 256."""


def natural_pictures(count: int, side: int, seed: int) -> NDArray[np.uint8]:
    """``[count, side, side, 3]``; picture ``i`` depends on ``seed`` and ``i`` only."""
    return np.stack([_picture(side, np.random.default_rng((seed, index))) for index in range(count)])


def _picture(side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    canvas = np.stack([_cloud(side, 1.0, rng) * 35 + rng.uniform(60, 190) for _ in range(3)], axis=2)
    rows, columns = np.mgrid[0:side, 0:side] / side
    # Radii with density r^-3, the largest drawn first so that small ones lie on top.
    draws = rng.uniform(SMALLEST**2, LARGEST**2, LEAVES)
    radii = np.sort(SMALLEST * LARGEST / np.sqrt(draws))[::-1]
    for radius in radii:
        x, y, stretch, angle = *rng.uniform(-0.1, 1.1, 2), rng.uniform(0.4, 1), rng.uniform(0, np.pi)
        across = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
        along = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
        inside = across**2 + (along / stretch) ** 2 < radius**2
        shading = 1 + rng.uniform(-0.5, 0.5) * across[inside] / radius
        canvas[inside] = rng.uniform(15, 240, 3) * shading[:, None]
    grain = _cloud(side, 0.5, rng) * TEXTURE
    light = 1 + 0.15 * _cloud(side, 2.0, rng)
    noisy = (canvas + grain[..., None]) * light[..., None] + rng.normal(0, NOISE, canvas.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _cloud(side: int, slope: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Noise with an amplitude spectrum of 1/f^slope, standard deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) / frequency**slope
    field = np.fft.irfft2(spectrum, s=(side, side))
    return np.asarray(field / field.std())
