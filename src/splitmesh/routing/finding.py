"""Whether a detector found something, as its exits learn it and as a head compares it. Numpy only."""

from __future__ import annotations

import numpy as np

from splitmesh.tensor.spec import Array

NOTHING, SOMETHING = 0, 1
"""The classes of a detector's exit."""

FINDINGS = ("nothing", "something")
"""Their names."""


def something_found(scores: Array, min_score: float) -> bool:
    """Whether any score of one sample reaches ``min_score``.

    No score at all is nothing; a score that is not a number is something: it must not be answered as nothing.
    """
    # a comparison with NaN is false, so what is not below the score is something
    return bool(np.logical_not(scores.astype(np.float64) < min_score).any())
