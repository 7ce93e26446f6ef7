"""The decision at the exit: is this answer sure enough to stay at the edge?

Runs on every frame, so it is numpy and nothing else. Knows one number, the threshold; how that number is chosen and
what it guarantees is ``threshold.py``. The rule fails safe: whatever is not a probability distribution escalates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.finding import NOTHING
from splitmesh.tensor.spec import Array

ESCALATE_ALL = 2.0
"""A threshold that no confidence reaches: every sample crosses the link."""

SUM_TOLERANCE = 0.01
"""How far a row may be from summing to 1; wide enough for a float16 softmax over a thousand classes."""


def confidence(probabilities: Array) -> NDArray[np.float64]:
    """The largest probability of each row: ``[n, classes]`` to ``[n]``, in 0..1.

    NaN, which is below every threshold, stands for a row that is no distribution: a value that is not finite or outside
    0..1, a sum other than 1, fewer than two classes (a lone class is always "sure").
    MeshError TENSOR_SHAPE_MISMATCH unless ``probabilities`` has two dimensions.
    """
    if probabilities.ndim != 2:
        raise MeshError(
            Reason.TENSOR_SHAPE_MISMATCH,
            f"exit probabilities have shape {list(probabilities.shape)}, expected [samples, classes]",
        )
    if probabilities.shape[1] < 2 or probabilities.dtype.kind not in "fiu":
        return np.full(probabilities.shape[0], np.nan)
    rows = probabilities.astype(np.float64)
    smallest, largest = rows.min(axis=1), rows.max(axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        total = rows.sum(axis=1)
        # comparisons with NaN are false, so one non-finite value in a row fails all of these
        valid = (smallest >= 0) & (largest <= 1 + SUM_TOLERANCE) & (np.abs(total - 1) <= SUM_TOLERANCE)
    return np.where(valid, np.minimum(largest, 1.0), np.nan)


def nothing_confidence(probabilities: Array) -> NDArray[np.float64]:
    """The same for a detector's exit, ``[n, 2]`` (nothing, something): P(nothing) where that is the answer, else NaN.

    "Something" is no answer, wherever it was found: such a sample always escalates.
    """
    sure = confidence(probabilities)
    if probabilities.shape[1] != 2:
        return np.full(len(sure), np.nan)
    return np.where(probabilities.argmax(axis=1) == NOTHING, sure, np.nan)


def exit_confidence(probabilities: Array, *, finding: bool) -> NDArray[np.float64]:
    """What an exit's threshold is compared with, ``[n]``; ``finding``: it is a detector's (``ExitInfo.finding``)."""
    return nothing_confidence(probabilities) if finding else confidence(probabilities)


@dataclass(frozen=True, slots=True)
class Gate:
    """Accepts the exit's answer where its confidence reaches the threshold."""

    threshold: float
    """Smallest accepted confidence, at least 0; above 1 (``ESCALATE_ALL``) nothing is accepted."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise field_error("threshold", f"is {self.threshold}, expected a finite number of at least 0")

    def decide(self, probabilities: Array, *, finding: bool = False) -> NDArray[np.bool_]:
        """True per row of ``[n, classes]`` where the edge's answer stands; False where the sample is hard.

        With several exits each is asked in turn, from the input on, about the samples that none before it answered.
        ``finding``: the exit is a detector's; only "nothing" can stand.
        """
        return exit_confidence(probabilities, finding=finding) >= self.threshold
