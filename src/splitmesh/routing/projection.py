"""Pooled features, standardised, on a few directions: what ``deferral.py`` and ``unusual.py`` see of them. Numpy only.

Knows numbers somebody else found (``projection_fit.py``) and applies them; which directions, and why so many, is theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitmesh.errors import MeshError, Reason
from splitmesh.routing.number_file import Kind, Layout, corrupt
from splitmesh.tensor.spec import Array

Floats = NDArray[np.float64]

MAX_FEATURES = 4096
"""Numbers per sample; an exit reads at most 1,600 (``pooling.MAX_FEATURES``)."""


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """((features - mean) / scale) and its coordinates on ``directions``."""

    mean: Floats
    """``[F]``."""
    scale: Floats
    """``[F]``, greater than 0."""
    directions: Floats
    """``[F, k]``; values that float32 holds exactly, so that a file of half the size says the same."""

    @property
    def width(self) -> int:
        """Features per sample, F."""
        return len(self.mean)

    @property
    def count(self) -> int:
        """Directions, k."""
        return int(self.directions.shape[1])

    def standard(self, features: Array) -> Floats:
        """Features ``[n, F]`` standardised, as float64; what overflows is infinite, what is not finite stays so.

        Raises MeshError TENSOR_SHAPE_MISMATCH or TENSOR_DTYPE_MISMATCH.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            shifted: Floats = (feature_rows(features, self.width) - self.mean) / self.scale
        return shifted


def feature_rows(features: Array, width: int | None = None) -> Floats:
    """Pooled features ``[n, F]`` as float64; MeshError TENSOR_SHAPE_MISMATCH or TENSOR_DTYPE_MISMATCH for anything else."""
    if features.ndim != 2 or features.shape[1] != (features.shape[1] if width is None else width):
        expected = "features" if width is None else width
        raise MeshError(
            Reason.TENSOR_SHAPE_MISMATCH,
            f"pooled features have shape {list(features.shape)}, expected [samples, {expected}]",
        )
    if features.dtype.kind not in "fiu":
        raise MeshError(Reason.TENSOR_DTYPE_MISMATCH, f"pooled features are {features.dtype.name}, expected numbers")
    return features.astype(np.float64)


PROJECTION: Layout = {
    "features.mean": Kind(("features",)),
    "features.scale": Kind(("features",)),
    "features.directions": Kind(("features", "directions"), np.float32),
}
"""The arrays of a projection in a file."""


def arrays_of(projection: Projection) -> dict[str, Floats]:
    """For ``number_file.written``."""
    return {
        "features.mean": projection.mean,
        "features.scale": projection.scale,
        "features.directions": projection.directions,
    }


def projection_of(arrays: dict[str, Floats], what: str, most_directions: int) -> Projection:
    """From what ``number_file.read`` gave; MeshError MODEL_CORRUPT for numbers that cannot be a projection's."""
    found = Projection(
        arrays["features.mean"], arrays["features.scale"], arrays["features.directions"].astype(np.float64)
    )
    if not 1 <= found.width <= MAX_FEATURES or not 1 <= found.count <= min(most_directions, found.width):
        raise corrupt(what, f"{found.count} directions of {found.width} features are too many or none")
    if not (found.scale > 0).all():
        raise corrupt(what, "a scale is not greater than 0")
    return found
