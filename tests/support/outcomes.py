"""Calibration outcomes with given confidences and agreements."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from splitmesh.model.outcomes import CalibrationOutcomes, Part


def outcomes_of(confidences: ArrayLike, agrees: ArrayLike, *, classes: int = 10, seed: int = 0) -> CalibrationOutcomes:
    """Hold-out samples: ``confidences`` ``[n]`` or ``[n, exits]``, 1 / ``classes`` to 1 or NaN for no distribution; ``agrees``
    likewise.

    The whole model names class 0; an exit that agrees does too, and one that does not class 1.
    """
    sure = np.asarray(confidences, dtype=np.float64)
    same = np.asarray(agrees, dtype=np.bool_)
    if sure.ndim == 1:
        sure, same = sure[:, None], same[:, None]
    rows = np.repeat(((1 - sure) / (classes - 1))[:, :, None], classes, axis=2)
    np.put_along_axis(rows, np.where(same, 0, 1)[:, :, None], sure[:, :, None], axis=2)
    rows[np.isnan(sure)] = 0.0
    n = len(rows)
    return CalibrationOutcomes(
        probabilities=rows.astype(np.float32),
        whole=np.zeros(n, np.int64),
        part=np.full(n, int(Part.HOLDOUT), np.uint8),
        seed=seed,
    )
