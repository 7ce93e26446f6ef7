"""Whether a sample looks like none of the calibration's: the Mahalanobis distance of its pooled features, and a limit.

A sure answer about something never seen is worth nothing, so what is strange escalates. The distance is that of Mahalanobis
(1936) under a covariance shrunk towards a multiple of the identity (Ledoit and Wolf 2004), which stays usable with fewer
samples than features. Of samples like the calibration's at most the stated share is beyond the limit (``unusual_fit.py``).

Kept as low rank plus diagonal, the directions in which the calibration varies most with their variances, and one variance for
all others: 0.8 MB at 1,600 features where a Cholesky factor takes 5 MB (both in float32), and a distance costs 0.4 million
multiplications where the factor's takes 1.3 million and reads all of it. It is the shrunk covariance itself where the
calibration varies in at most ``MAX_DIRECTIONS`` directions, else the others' variances are replaced by their mean (as in
probabilistic principal components: Tipping and Bishop 1999). The limit is measured on the same distance, so its promise holds
either way.

Runs on every frame, hence numpy and nothing else. Knows nothing of classes, answers or thresholds. A distance of features
sees what the features see: what the head does not represent is not strange to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitmesh.routing import number_file
from splitmesh.routing.number_file import Kind, Layout, corrupt
from splitmesh.routing.projection import PROJECTION, Projection, arrays_of, projection_of
from splitmesh.tensor.spec import Array

Floats = NDArray[np.float64]

VERSION = 1
MAX_BYTES = 4 * 1024 * 1024
"""A larger file is refused unread; 4,096 features on 128 directions take 2.2 MB."""
MAX_DIRECTIONS = 128
ORTHONORMAL = 1e-3
"""How far the products of the directions may be from those of orthonormal ones; float32 gives 1e-6."""

_WHAT = "the measure of unusual samples"
_LAYOUT: Layout = {
    **PROJECTION,
    "variances": Kind(("directions",)),
    "rest": Kind((1,)),
    "limit": Kind((1,), finite=False),
    "share": Kind((1,)),
    "samples": Kind((2,), np.int64),
}


@dataclass(frozen=True, slots=True, eq=False)
class Unusual:
    """Mean and covariance of features that are usual, and how far from them is too far."""

    projection: Projection
    """Directions orthonormal, in standardised features."""
    variances: Floats
    """Along each direction, ``[k]``, greater than 0."""
    rest: float
    """Along any other direction, greater than 0."""
    limit: float
    """Largest usual distance; infinite where too few samples were held out for ``share``."""
    share: float
    """Of usual samples, at most so many are beyond the limit, 0..1."""
    fit_samples: int
    """That mean and covariance come from."""
    held_samples: int
    """Others, that the limit comes from."""

    @property
    def why(self) -> str:
        """One sentence for a person where there is no limit; else empty."""
        if math.isfinite(self.limit):
            return ""
        return (
            f"{self.held_samples} held-out samples are too few for a share of {self.share:g}: at least "
            f"{samples_needed(self.share)} are needed; until then only features that are not finite are unusual"
        )

    def distance(self, features: Array) -> Floats:
        """How many standard deviations away, ``[n, F]`` to ``[n]``, at least 0; infinite where a feature is not finite.

        Raises MeshError TENSOR_SHAPE_MISMATCH or TENSOR_DTYPE_MISMATCH.
        """
        standard = self.projection.standard(features)
        directions = self.projection.directions
        with np.errstate(over="ignore", invalid="ignore"):
            along = standard @ directions
            # Taken away first and squared then: a difference of two squares loses a small rest to rounding.
            others = standard - along @ directions.T
            squared = (along**2 / self.variances).sum(axis=1) + (others**2).sum(axis=1) / self.rest
            found: Floats = np.where(np.isfinite(squared), np.sqrt(squared), np.inf)
        return found

    def strange(self, features: Array) -> NDArray[np.bool_]:
        """Which samples of ``[n, F]`` are beyond the limit or not finite, ``[n]``; errors as :meth:`distance`."""
        found = self.distance(features)
        return (found > self.limit) | np.isinf(found)

    def to_bytes(self) -> bytes:
        """A safetensors file, the same bytes for the same numbers."""
        arrays: dict[str, Any] = {
            **arrays_of(self.projection),
            "variances": self.variances,
            "rest": [self.rest],
            "limit": [self.limit],
            "share": [self.share],
            "samples": [self.fit_samples, self.held_samples],
        }
        return number_file.written(VERSION, _LAYOUT, arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> Unusual:
        """Read a file; MeshError MODEL_CORRUPT names what is wrong with it."""
        arrays = number_file.read(data, _WHAT, version=VERSION, most_bytes=MAX_BYTES, layouts=(_LAYOUT,))
        fit_samples, held_samples = (int(value) for value in arrays["samples"])
        found = cls(
            projection=projection_of(arrays, _WHAT, MAX_DIRECTIONS),
            variances=arrays["variances"],
            rest=float(arrays["rest"][0]),
            limit=float(arrays["limit"][0]),
            share=float(arrays["share"][0]),
            fit_samples=fit_samples,
            held_samples=held_samples,
        )
        found._check()
        return found

    def _check(self) -> None:
        if not (self.variances > 0).all() or not self.rest > 0:
            raise corrupt(_WHAT, "a variance is not greater than 0")
        if not self.limit >= 0 or not 0 < self.share < 1:
            raise corrupt(_WHAT, f"a limit of {self.limit:g} for a share of {self.share:g} is none")
        if self.fit_samples < 1 or self.held_samples < 0:
            raise corrupt(_WHAT, f"it comes from {self.fit_samples} and {self.held_samples} samples")
        directions = self.projection.directions
        with np.errstate(over="ignore", invalid="ignore"):
            error = np.abs(directions.T @ directions - np.eye(self.projection.count)).max()
        if not error <= ORTHONORMAL:
            raise corrupt(_WHAT, "its directions are not orthonormal")


def samples_needed(share: float) -> int:
    """Fewest held-out samples from which a limit for this share of false alarms exists."""
    return math.ceil(1 / share - 1e-9) - 1
