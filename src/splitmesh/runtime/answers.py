"""Whether two backends answer alike: how far apart, and whether they name the same class."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from splitmesh.tensor.spec import Array

CLEAR_LEAD = 0.01
"""Of the largest magnitude: a class that leads by less hangs on the last digits, and either answer is right."""


def distance(right: Array, found: Array) -> float:
    """Largest difference as a share of the right answer's largest magnitude; infinite for another shape.

    Integers of more than 8 bits and flags count only by shape: they are decisions, such as a class, which on noise may
    hang on the last digit.
    """
    if right.shape != found.shape or right.dtype != found.dtype:
        return math.inf
    if right.size == 0 or (right.dtype.kind != "f" and (right.dtype.itemsize > 1 or right.dtype.kind == "b")):
        return 0.0
    wide_right, wide_found = right.astype(np.float64), found.astype(np.float64)
    if not np.array_equal(np.isfinite(wide_right), np.isfinite(wide_found)):
        return math.inf
    finite = np.isfinite(wide_right)
    if not finite.any():
        return 0.0
    scale = max(float(np.abs(wide_right[finite]).max()), float(np.finfo(np.float32).tiny))
    return float(np.abs(wide_right[finite] - wide_found[finite]).max()) / scale


def largest_distance(right: Mapping[str, Array], found: Mapping[str, Array]) -> tuple[float, str]:
    """Of all outputs the largest :func:`distance`, and which one's it is; infinite for an output that is missing."""
    apart = {name: distance(array, found[name]) if name in found else math.inf for name, array in right.items()}
    worst = max(apart, key=apart.__getitem__, default="")
    return apart.get(worst, 0.0), worst


def other_class(right: Mapping[str, Array], found: Mapping[str, Array]) -> str:
    """The first output that holds scores of classes and whose best class is another; empty: there is none.

    Scores are floats ``[samples, classes]``. A class that the right answer sees ahead by less than ``CLEAR_LEAD`` does not count.
    """
    for name, scores in right.items():
        if scores.ndim != 2 or scores.dtype.kind != "f" or scores.shape[1] < 2 or not np.isfinite(scores).all():
            continue
        ordered = np.sort(scores.astype(np.float64), axis=1)
        clear = ordered[:, -1] - ordered[:, -2] > CLEAR_LEAD * np.abs(ordered).max()
        if np.any((scores.argmax(axis=1) != found[name].argmax(axis=1)) & clear):
            return name
    return ""
