"""A classifier's output as class probabilities, whether the graph ends in logits or in a softmax. Numpy only."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from splitmesh.errors import MeshError, Reason
from splitmesh.tensor.spec import Array

_SUM_TOLERANCE = 0.01


class ScoreForm(StrEnum):
    """What a class output holds."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"


def score_form(output: Array) -> ScoreForm | None:
    """Of a class output ``[n, ...]``, by the rule of :func:`as_probabilities`; None for one of whole numbers."""
    if output.dtype.kind != "f":
        return None
    rows = output.reshape(len(output), -1).astype(np.float64)
    return ScoreForm.PROBABILITIES if _are_distributions(rows) else ScoreForm.LOGITS


def as_probabilities(output: Array) -> NDArray[np.float64]:
    """``[n, classes]`` (further axes of length 1 are dropped) as rows that sum to 1.

    Rows that already are distributions stay as they are; anything else is taken for logits. NaN stays NaN.
    MeshError TENSOR_SHAPE_MISMATCH when it is not one score per class.
    """
    rows = output.reshape(output.shape[0], -1).astype(np.float64)
    if max(output.shape[1:], default=0) != rows.shape[1]:
        raise MeshError(
            Reason.TENSOR_SHAPE_MISMATCH, f"an output of shape {list(output.shape)} holds no single score per class"
        )
    with np.errstate(invalid="ignore", over="ignore"):
        if _are_distributions(rows):
            return rows
        powers = np.exp(rows - rows.max(axis=1, keepdims=True))
        probabilities: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def _are_distributions(rows: NDArray[np.float64]) -> bool:
    with np.errstate(invalid="ignore", over="ignore"):
        return bool((rows >= 0).all() and (np.abs(rows.sum(axis=1) - 1) <= _SUM_TOLERANCE).all())
