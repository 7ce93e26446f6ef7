"""What a version with three classes and features of length ``width`` brings for deciding, made by hand."""

from __future__ import annotations

import numpy as np

from splitmesh.routing.deferral import CERTAIN, Deferral, Logistic
from splitmesh.routing.projection import Projection
from splitmesh.routing.unusual import Unusual


def _first_axis(width: int) -> Projection:
    return Projection(np.zeros(width), np.ones(width), np.eye(width, 1))


def deferral(*, features: bool = False, width: int = 2, classes: int = 3) -> Deferral:
    """The surer the exit the less is gained; with features, more the larger the first of them is. The tail is always right."""
    inputs = min(classes, 3) + 2 + features
    right = np.zeros(inputs)
    right[min(classes, 3)] = 4.0  # of the margin
    if features:
        right[-1] = -4.0
    seen = min(classes, 3) + 2
    projection = _first_axis(width) if features else None
    tail = Logistic(np.zeros(inputs), CERTAIN)
    return Deferral(classes, np.zeros(seen), np.ones(seen), projection, Logistic(right, 0.0), tail, 100)


def strange_beyond(limit: float, *, width: int = 2) -> Unusual:
    """Usual around 0, in standard deviations of 1."""
    return Unusual(_first_axis(width), np.array([1.0]), 1.0, limit, 0.01, 100, 200)
