"""What a detector found."""

from __future__ import annotations

import numpy as np
import pytest

from splitmesh.routing.finding import something_found


@pytest.mark.parametrize(
    ("scores", "found"),
    [
        (np.zeros((1, 0, 6), np.float32), False),
        (np.array([[0.1, 0.49]], np.float32), False),
        (np.array([[0.1, 0.5]], np.float32), True),
        (np.array([[0.1, np.nan]], np.float32), True),
        (np.array([[-np.inf]], np.float32), False),
        (np.array([[0, 1]], np.int64), True),
        (np.array([[0, 0]], np.int64), False),
    ],
)
def test_any_score_that_is_not_below_the_limit_is_something(scores: np.ndarray, found: bool) -> None:
    assert something_found(scores, 0.5) is found
