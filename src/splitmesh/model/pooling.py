"""Features of any size to a short row of numbers, for an exit: mean, maximum and standard deviation, per cell of a grid.

One cell (``grid`` 1) forgets where something was seen; a finer grid remembers, at the price of more numbers to fit. Numpy
only; ``exit_graph.py`` writes the same arithmetic as ONNX nodes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splitmesh.errors import MeshError, Reason
from splitmesh.tensor.spec import Array, TensorSpec

Floats = NDArray[np.float64]

STD_EPSILON = 1e-8
"""Under the square root of the standard deviation, where its slope is infinite at 0."""

STATISTICS = 3
"""Mean, maximum, standard deviation."""

GRIDS = (8, 4, 2)
"""Finer than one cell, finest first."""

MAX_FEATURES = 1600
"""Numbers per sample; a fit takes seconds and the exit stays below 10,000 multiplications per class of a small model."""

FEATURES_PER_SAMPLE = 1.5
"""More numbers than this per calibration sample and the exit learns the samples by heart."""

POOL_ROWS = 64
"""Samples pooled at once: a whole calibration set in float64 would take gigabytes."""


def pool(features: Array, grid: int = 1) -> Floats:
    """Statistics side by side: ``[n, 3 * channels * grid * grid]``, means first.

    Over the cells of ``[n, channels, height, width]``, whose sides ``grid`` divides; over axis 1 of tokens
    ``[n, tokens, channels]``, in one cell; ``[n, features]`` stays as it is. MeshError CUT_INVALID for other ranks.
    """
    if features.ndim == 2:
        return features.astype(np.float64)
    axes = pooled_axes(features.ndim)
    if grid > 1 and features.ndim == 4:
        n, channels, height, width = features.shape
        features = features.reshape(n, channels, grid, height // grid, grid, width // grid)
        axes = CELL_AXES
    parts = [_pooled(features[row : row + POOL_ROWS], axes) for row in range(0, max(len(features), 1), POOL_ROWS)]
    return np.concatenate(parts)


CELL_AXES = (3, 5)
"""What is pooled over in ``[n, channels, grid, height / grid, grid, width / grid]``."""


def _pooled(features: Array, axes: tuple[int, ...]) -> Floats:
    wide = features.astype(np.float64)
    n = len(wide)
    kept = int(np.prod([size for axis, size in enumerate(wide.shape) if axis and axis not in axes]))
    deviation = np.sqrt(wide.var(axis=axes) + STD_EPSILON)
    statistics = (wide.mean(axis=axes), wide.max(axis=axes), deviation)
    return np.concatenate([statistic.reshape(n, kept) for statistic in statistics], axis=1)


def pooled_axes(rank: int) -> tuple[int, ...]:
    """The axes one cell is pooled over; empty for rank 2. MeshError CUT_INVALID when the rank is not 2, 3 or 4."""
    try:
        return {2: (), 3: (1,), 4: (2, 3)}[rank]
    except KeyError:
        raise MeshError(Reason.CUT_INVALID, f"an exit reads tensors of rank 2, 3 or 4, not {rank}") from None


def choose_grid(spec: TensorSpec, samples: int) -> int:
    """The finest grid for a tensor that this many calibration samples can carry; 1 where none divides its sides."""
    if len(spec.shape) != 4 or min(spec.shape[1:]) < 1:
        return 1
    _, channels, height, width = spec.shape
    most = min(MAX_FEATURES, FEATURES_PER_SAMPLE * samples)
    for grid in GRIDS:
        divides = height % grid == 0 and width % grid == 0 and grid < min(height, width)
        if divides and STATISTICS * channels * grid * grid <= most:
            return grid
    return 1
