"""Finds how to standardise pooled features and the directions in which they vary most (principal components: Pearson 1901).

Needs scipy, hence apart from ``projection.py``; the edge never imports it. Knows no answers: what it finds depends on the
features alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.routing.projection import MAX_FEATURES, feature_rows
from splitmesh.tensor.spec import Array, require_finite

Floats = NDArray[np.float64]

_CONSTANT = 1e-5
"""Spread below this share of a feature's size is float32 rounding, not information."""
_NOISE = 1e-8
"""Variance below this share of the largest direction's is rounding of the products."""


def usable_features(features: Array) -> Floats:
    """``[n, F]`` as float64; MeshError for another shape or type, TENSOR_NOT_FINITE, FIELD_INVALID for too many or too large."""
    rows = feature_rows(features)
    require_finite("features", rows)
    if not 1 <= rows.shape[1] <= MAX_FEATURES:
        raise field_error("features", f"has {rows.shape[1]} numbers per sample, expected 1 to {MAX_FEATURES}")
    if np.abs(rows).max(initial=0.0) > np.finfo(np.float32).max:
        raise field_error("features", "holds a number beyond the range of float32")
    return rows


def standardisation(rows: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Mean ``[F]``, scale ``[F]`` greater than 0, and which features vary at all ``[F]``.

    One that does not (a channel that was never active) has the median scale of those that do: noise on it stays small, and it
    still counts when it wakes up.
    """
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    varies = spread > _CONSTANT * np.maximum(np.abs(mean), np.finfo(np.float32).tiny)
    typical = float(np.median(spread[varies])) if varies.any() else 1.0
    return mean, np.where(varies, spread, typical), varies


def principal(standard: Floats, most: int) -> tuple[Floats, Floats]:
    """Up to ``most`` orthonormal directions ``[F, k]`` of centred rows ``[n, F]`` and the variance along each ``[k]``.

    Largest first; fewer, down to none, where the rows vary along fewer. The largest entry of each direction is positive. Rounded
    to float32 (see ``Projection.directions``). Works on the smaller of the two products of the rows with themselves, so it
    costs min(n, F) cubed.
    """
    n, width = standard.shape
    wide = width > n
    product = (standard @ standard.T if wide else standard.T @ standard) / n
    size = len(product)
    variances, vectors = eigh(product, subset_by_index=[max(0, size - most), size - 1])
    variances, vectors = variances[::-1], vectors[:, ::-1]
    kept = variances > max(_NOISE * float(variances[0]), np.finfo(np.float64).tiny)
    variances, vectors = variances[kept], vectors[:, kept]
    directions = standard.T @ vectors / np.sqrt(n * variances) if wide else vectors
    if directions.shape[1]:
        largest = np.abs(directions).argmax(axis=0)
        directions = directions * np.sign(directions[largest, np.arange(directions.shape[1])])
    return rounded(directions), variances


def rounded(values: Floats) -> Floats:
    """To what float32 holds, still as float64."""
    return values.astype(np.float32).astype(np.float64)


def insufficient(samples: int, needed: int, purpose: str) -> MeshError:
    """CALIBRATION_INSUFFICIENT with both numbers."""
    return MeshError(
        Reason.CALIBRATION_INSUFFICIENT,
        f"{samples} samples are too few {purpose}; at least {needed} are needed",
        metadata={"samples": str(samples), "needed": str(needed)},
    )
