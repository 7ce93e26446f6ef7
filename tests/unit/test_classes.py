"""Scores of any classifier as probabilities: distributions stay, logits become one, anything else is refused."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from splitmesh.errors import MeshError, Reason
from splitmesh.model.classes import as_probabilities


def _softmax(row: list[float]) -> list[float]:
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def test_logits_become_a_softmax() -> None:
    rows = [[1.0, 2.0, -3.0], [0.0, 0.0, 0.0], [-5.0, 9.0, 8.5]]
    got = as_probabilities(np.array(rows, dtype=np.float32))
    np.testing.assert_allclose(got, [_softmax(row) for row in rows], rtol=1e-6)
    assert got.dtype == np.float64


def test_distributions_stay_as_they_are() -> None:
    rows = np.array([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0], [0.335, 0.335, 0.335]])
    np.testing.assert_array_equal(as_probabilities(rows), rows)


@pytest.mark.parametrize(
    "rows",
    [
        [[0.2, 0.5, 0.4]],  # sums to 1.1
        [[-0.1, 0.6, 0.5]],  # sums to 1 with a negative score
        [[0.2, 0.5, 0.3], [0.0, 0.0, 0.0]],  # one row of the batch is none
    ],
)
def test_what_only_looks_like_a_distribution_is_taken_for_logits(rows: list[list[float]]) -> None:
    np.testing.assert_allclose(as_probabilities(np.array(rows)), [_softmax(row) for row in rows])


def test_large_logits_do_not_overflow() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = as_probabilities(np.array([[3e38, 1.0, -3e38]], dtype=np.float32))
    np.testing.assert_array_equal(got, [[1.0, 0.0, 0.0]])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_show_as_nan_without_a_warning(bad: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = as_probabilities(np.array([[bad, 1.0], [2.0, 1.0]]))
    assert np.isnan(got[0]).any()
    np.testing.assert_allclose(got[1], _softmax([2.0, 1.0]))


def test_minus_infinity_is_a_class_that_cannot_be() -> None:
    np.testing.assert_allclose(as_probabilities(np.array([[-math.inf, 1.0, 1.0]])), [[0.0, 0.5, 0.5]])


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 1, 3), (2, 1, 1, 3)])
def test_axes_of_length_one_are_dropped(shape: tuple[int, ...]) -> None:
    rows = np.array([[1.0, 2.0, 3.0], [3.0, 1.0, 0.0]])
    np.testing.assert_array_equal(as_probabilities(rows.reshape(shape)), as_probabilities(rows))


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 3, 8, 8), (4,)])
def test_an_output_without_one_score_per_class_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MeshError) as caught:
        as_probabilities(np.zeros(shape))
    assert caught.value.reason is Reason.TENSOR_SHAPE_MISMATCH
    assert str(list(shape)) in caught.value.message


def test_whole_numbers_are_scores_too() -> None:
    np.testing.assert_allclose(as_probabilities(np.array([[2, 1]], dtype=np.int32)), [_softmax([2, 1])])


@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(-50, 50, width=32)))
def test_every_row_is_a_distribution_that_keeps_the_order(scores: NDArray[np.float32]) -> None:
    got = as_probabilities(scores)
    np.testing.assert_allclose(got.sum(axis=1), 1, atol=0.01)
    for row, probabilities in zip(scores, got, strict=True):
        assert (np.diff(probabilities[np.argsort(row, kind="stable")]) >= 0).all()
