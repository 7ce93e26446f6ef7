"""The exit's decision, frame by frame."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from splitmesh.errors import MeshError, Reason
from splitmesh.model.gate import ESCALATE_ALL, Gate, confidence, exit_confidence


def test_confidence_is_the_largest_probability_of_each_row() -> None:
    rows = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], dtype=np.float32)
    np.testing.assert_allclose(confidence(rows), [0.7, 0.8], rtol=1e-6)


def test_a_confidence_equal_to_the_threshold_is_accepted() -> None:
    assert Gate(0.75).decide(np.array([[0.75, 0.25], [0.5, 0.5]])).tolist() == [True, False]


@pytest.mark.parametrize(
    "row",
    [
        [math.nan, 1.0],
        [math.nan, math.nan],
        [math.inf, 0.0],
        [1.0, -math.inf],
        [1.5, -0.5],
        [1.004, -0.004],
        [1.0, 1.0],
        [0.0, 0.0],
        [12.0, -3.0],
        [1e308, 1e308],
    ],
)
def test_a_row_that_is_no_distribution_is_never_accepted(row: list[float]) -> None:
    good = [1.0, 0.0]
    assert Gate(0.0).decide(np.array([good, row, good])).tolist() == [True, False, True]


def test_a_row_without_classes_or_with_only_one_is_never_accepted() -> None:
    assert Gate(0.0).decide(np.empty((2, 0))).tolist() == [False, False]
    assert Gate(0.0).decide(np.ones((2, 1))).tolist() == [False, False]


def test_no_rows_give_no_decisions() -> None:
    assert Gate(0.5).decide(np.empty((0, 3))).shape == (0,)


def test_rows_of_other_types_than_numbers_are_never_accepted() -> None:
    assert Gate(0.0).decide(np.array([["1.0", "0.0"]])).tolist() == [False]


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 1)])
def test_probabilities_without_rows_and_classes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MeshError) as caught:
        Gate(0.5).decide(np.ones(shape))
    assert caught.value.reason is Reason.TENSOR_SHAPE_MISMATCH


def test_nothing_passes_the_threshold_that_escalates_all() -> None:
    sure = np.array([[1.0, 0.0], [1.004, 0.0]], dtype=np.float32)
    assert not Gate(ESCALATE_ALL).decide(sure).any()
    assert not Gate(1.001).decide(sure).any()
    assert Gate(1.0).decide(sure).all()


def test_a_float16_softmax_over_a_thousand_classes_still_counts_as_a_distribution() -> None:
    row = np.full((1, 1000), 0.001, dtype=np.float16)
    assert Gate(0.0).decide(row).all()


@pytest.mark.parametrize("threshold", [math.nan, math.inf, -0.1])
def test_a_threshold_that_is_no_bound_is_refused(threshold: float) -> None:
    with pytest.raises(MeshError) as caught:
        Gate(threshold)
    assert caught.value.reason is Reason.FIELD_INVALID


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=5)), st.floats(0, 2))
def test_whatever_is_accepted_is_a_distribution_that_reaches_the_threshold(rows, threshold: float) -> None:
    for row, accepted in zip(rows, Gate(threshold).decide(rows), strict=True):
        if accepted:
            assert np.isfinite(row).all()
            assert abs(row.astype(float).sum() - 1) <= 0.011
            assert min(1.0, float(row.max())) >= threshold


def test_a_detectors_exit_can_answer_nothing_but_nothing() -> None:
    rows = np.array([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5], [np.nan, 1.0]])
    assert Gate(0.0).decide(rows, finding=True).tolist() == [True, False, True, False]
    assert Gate(0.8).decide(rows, finding=True).tolist() == [True, False, False, False]
    np.testing.assert_array_equal(exit_confidence(rows, finding=True), [0.9, np.nan, 0.5, np.nan])
    np.testing.assert_array_equal(exit_confidence(rows[:3], finding=False), [0.9, 0.9, 0.5])


def test_a_row_of_more_than_two_classes_is_no_detectors() -> None:
    assert not Gate(0.0).decide(np.array([[1.0, 0.0, 0.0]]), finding=True).any()
