"""Learns from features of usual samples what is unusual (``unusual.py``).

Mean and covariance come from one part of the samples, the limit from the distances of the other, so that it is a
split-conformal quantile (Vovk, Gammerman, Shafer 2005; Lei et al. 2018): with n samples held out, the ceil((n + 1)(1 -
share))-th smallest distance. What is guaranteed: a new sample that is exchangeable with the held-out ones is beyond the limit
with probability at most ``share``, over the draw of both, whatever the features look like. Not guaranteed: that anything in
particular is found, and the share given *one* draw, which varies by about sqrt(share / n). Samples of one unit that resemble
each other count for less than n.

Needs scipy; the edge never imports it. Knows nothing of classes and answers.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.routing.division import divided
from splitmesh.routing.projection import Projection
from splitmesh.routing.projection_fit import insufficient, principal, standardisation, usable_features
from splitmesh.routing.unusual import MAX_DIRECTIONS, Unusual
from splitmesh.tensor.spec import Array

Floats = NDArray[np.float64]

MIN_FIT_SAMPLES = 10
"""Of the part that mean and covariance come from."""
LEAST_SHRINKAGE = 1e-6
"""Keeps a variance in every direction, also where the samples all lie on a line."""


def fit_unusual(
    features: Array, *, share: float = 0.01, holdout: float = 0.5, seed: int = 0, groups: ArrayLike | None = None
) -> Unusual:
    """What is usual, and the limit beyond which at most ``share`` of usual samples are.

    Args:
        features: ``[n, F]`` pooled features of samples as production has them; n may be smaller than F.
        share: of false alarms, 0..1 both excluded. Needs ``unusual.samples_needed(share)`` held-out samples: with fewer the limit
            is infinite and ``Unusual.why`` says so.
        holdout: share of the samples that the limit comes from, 0..1 both excluded.
        seed: of the division; the same seed gives the same measure.
        groups: ``[n]``; samples with the same value (pictures of one unit) stay in the same part.

    Raises MeshError CALIBRATION_INSUFFICIENT for fewer than ``MIN_FIT_SAMPLES`` samples beside the held-out ones, or when no
    feature varies; FIELD_INVALID, TENSOR_NOT_FINITE, TENSOR_SHAPE_MISMATCH or TENSOR_DTYPE_MISMATCH for unusable arguments.
    """
    for name, value in (("share", share), ("holdout", holdout)):
        if not 0 < value < 1:
            raise field_error(name, f"is {value}, expected a number between 0 and 1, both excluded")
    rows = usable_features(features)
    held = divided(len(rows), [1 - holdout, holdout], seed=seed, groups=groups) == 1
    fit = rows[~held]
    if len(fit) < MIN_FIT_SAMPLES:
        raise insufficient(len(fit), MIN_FIT_SAMPLES, "beside the held-out ones to tell what is usual")
    mean, scale, varies = standardisation(fit)
    if not varies.any():
        raise MeshError(
            Reason.CALIBRATION_INSUFFICIENT,
            f"all {len(fit)} samples have the same features: nothing tells how far from them is unusual",
            metadata={"samples": str(len(fit))},
        )
    standard = (fit - mean) / scale
    directions, spread = principal(standard, min(MAX_DIRECTIONS, standard.shape[1]))
    variances, rest = _shrunk(standard, spread)
    without = Unusual(Projection(mean, scale, directions), variances, rest, math.inf, share, len(fit), int(held.sum()))
    limit = _limit(without.distance(rows[held]), share)
    return Unusual(without.projection, variances, rest, limit, share, without.fit_samples, without.held_samples)


def shrinkage(standard: Floats) -> float:
    """How far the covariance of centred rows ``[n, F]`` goes towards its mean variance times the identity, 0..1.

    Ledoit and Wolf's estimate of the best in squared error ("A well-conditioned estimator for large-dimensional covariance
    matrices", 2004).
    """
    n, width = standard.shape
    product = standard @ standard.T if n < width else standard.T @ standard
    squares = float((product**2).sum()) / n**2  # |covariance|^2, by either product
    norms = (standard**2).sum(axis=1)
    mean_variance = float(norms.sum()) / n / width
    away = squares - width * mean_variance**2
    noise = (float((norms**2).sum()) / n - squares) / n
    if away <= 1e-12 * squares:
        return 1.0  # it is a multiple of the identity already
    return float(min(1.0, max(LEAST_SHRINKAGE, noise / away)))


def _shrunk(standard: Floats, spread: Floats) -> tuple[Floats, float]:
    """Variances along the principal directions ``[k]``, and the mean one along all others."""
    n, width = standard.shape
    towards = shrinkage(standard)
    total = float((standard**2).sum()) / n
    floor = towards * total / width
    variances: Floats = (1 - towards) * spread + floor
    others = width - len(spread)
    if others == 0:
        return variances, float(variances.min())
    left = max(0.0, total - float(spread.sum()))
    return variances, (1 - towards) * left / others + floor


def _limit(distances: Floats, share: float) -> float:
    n = len(distances)
    rank = n + 1 - math.floor((n + 1) * share + 1e-9)
    return math.inf if rank > n else float(np.sort(distances)[rank - 1])
