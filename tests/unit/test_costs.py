"""Answers of least expected cost: the formula, plain costs, and tables that are refused."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from splitmesh.errors import MeshError, Reason
from splitmesh.routing.costs import MAX_CLASSES, NO_ANSWER, Costs, cost_ease
from splitmesh.routing.gate import confidence

GOOD, DEFECT = 0, 1


def _distribution(drawn: np.ndarray) -> np.ndarray:
    return drawn / drawn.sum(axis=1, keepdims=True)


def _rows(classes: int) -> st.SearchStrategy[np.ndarray]:
    shape = st.tuples(st.integers(1, 6), st.just(classes))
    return arrays.arrays(np.float64, shape, elements=st.floats(0.001, 1.0)).map(_distribution)


TABLES = arrays.arrays(np.float64, (4, 4), elements=st.floats(0.0, 100.0)).map(lambda t: t * (1 - np.eye(4)))


@given(rows=st.integers(2, 7).flatmap(_rows), off=st.floats(0.995, 1.005))
def test_with_costs_of_0_and_1_it_is_the_largest_probability_and_its_class(rows: np.ndarray, off: float) -> None:
    rows = rows * off
    ease, answer = cost_ease(rows, 1 - np.eye(rows.shape[1]))
    np.testing.assert_array_equal(ease, confidence(rows))
    np.testing.assert_array_equal(answer, rows.argmax(axis=1))


@given(rows=_rows(4), table=TABLES.filter(lambda t: t.max() > 0.01))
def test_no_other_answer_is_expected_to_cost_less_and_the_ease_says_what_it_costs(
    rows: np.ndarray, table: np.ndarray
) -> None:
    ease, answer = cost_ease(rows, table)
    for row, found, said in zip(rows, ease, answer, strict=True):
        expected = [sum(row[true] * table[true, saying] for true in range(4)) for saying in range(4)]
        assert expected[said] == pytest.approx(min(expected), abs=1e-9)
        assert found == pytest.approx(1 - min(expected) / table.max(), abs=1e-9)
        assert 0 <= found <= 1


@given(rows=_rows(4), table=TABLES.filter(lambda t: t.max() > 0.01), power=st.integers(-8, 8))
def test_the_unit_of_the_costs_changes_nothing(rows: np.ndarray, table: np.ndarray, power: int) -> None:
    plain, scaled = cost_ease(rows, table), cost_ease(rows, table * 2.0**power)
    np.testing.assert_array_equal(plain, scaled)


@pytest.mark.parametrize("ratio", [1.0, 4.0, 99.0])
def test_a_defect_is_named_from_the_probability_on_at_which_missing_it_costs_more(ratio: float) -> None:
    costs = [[0, 1], [ratio, 0]]  # a false alarm costs 1, a missed defect the ratio
    turn = 1 / (1 + ratio)
    below, above = turn - 1e-6, turn + 1e-6
    ease, answer = cost_ease(np.array([[1 - below, below], [1 - above, above], [1.0, 0.0], [0.0, 1.0]]), costs)
    assert answer.tolist() == [GOOD, DEFECT, GOOD, DEFECT]
    assert ease[2:].tolist() == [1.0, 1.0]
    assert ease[0] == pytest.approx(1 - below, abs=1e-5)
    assert ease[1] == pytest.approx(1 - (1 - above) / max(ratio, 1.0), abs=1e-5)


@given(rows=_rows(3), more=st.floats(1.0, 50.0))
def test_a_dearer_miss_never_turns_an_answer_away_from_the_class(rows: np.ndarray, more: float) -> None:
    table = 1 - np.eye(3)
    dearer = table.copy()
    dearer[2] *= more
    named = rows[:, 2] > rows[:, :2].max(axis=1) + 1e-9
    assert (cost_ease(rows, table)[1][named] == 2).all()
    assert (cost_ease(rows, dearer)[1][named] == 2).all()


@pytest.mark.parametrize("bad", [[math.nan, 1.0], [math.inf, 0.0], [1.5, -0.5], [0.2, 0.2], [0.0, 0.0]])
def test_a_row_that_is_no_distribution_has_no_ease_and_no_answer_and_disturbs_no_other(bad: list[float]) -> None:
    ease, answer = cost_ease(np.array([bad, [0.25, 0.75]]), [[0, 1], [1, 0]])
    assert math.isnan(ease[0])
    assert ease[1] == 0.75
    assert answer.tolist() == [NO_ANSWER, DEFECT]


def test_no_rows_give_no_eases_and_types_without_numbers_no_answers() -> None:
    assert [part.shape for part in cost_ease(np.zeros((0, 2)), [[0, 1], [1, 0]])] == [(0,), (0,)]
    assert cost_ease(np.full((2, 2), True), [[0, 1], [1, 0]])[1].tolist() == [NO_ANSWER, NO_ANSWER]


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8"])
def test_rows_of_any_number_type_are_read(dtype: str) -> None:
    ease, answer = cost_ease(np.array([[0, 1, 0]], dtype=dtype), 1 - np.eye(3))
    assert (ease.tolist(), answer.tolist()) == ([1.0], [1])
    assert (ease.dtype, answer.dtype) == (np.float64, np.int64)


def test_a_table_that_was_checked_before_answers_the_same_and_outlives_changes_to_its_source() -> None:
    rows, source = np.array([[0.7, 0.3]]), np.array([[0.0, 1.0], [10.0, 0.0]])
    table = Costs(source)
    plain = cost_ease(rows, source)
    source[:] = 0
    np.testing.assert_array_equal(cost_ease(rows, table), plain)
    assert (table.classes, plain[1].tolist()) == (2, [DEFECT])


@pytest.mark.parametrize(
    ("costs", "problem"),
    [
        ([[0, 1]], "shape"),
        ([0, 1], "shape"),
        ([[0]], "shape"),
        (np.zeros((2, 2, 2)), "shape"),
        ([[0, -1], [1, 0]], "below 0"),
        ([[0, math.nan], [1, 0]], "not finite"),
        ([[0, math.inf], [1, 0]], "not finite"),
        ([[0.1, 1], [1, 0]], "diagonal"),
        ([[0, 0], [0, 0]], "no entry above 0"),
        ([[0, "much"], [1, 0]], "no table of numbers"),
        ([[0, 1], [1]], "no table of numbers"),
        (np.broadcast_to(0.0, (MAX_CLASSES + 1,) * 2), "shape"),
    ],
)
def test_what_is_no_table_of_costs_is_refused(costs: Any, problem: str) -> None:
    with pytest.raises(MeshError, match=problem) as caught:
        cost_ease(np.array([[0.5, 0.5]]), costs)
    assert caught.value.reason is Reason.FIELD_INVALID
    assert caught.value.fields[0][0] == "costs"


def test_costs_of_other_classes_than_the_rows_and_rows_of_other_dimensions_are_refused() -> None:
    with pytest.raises(MeshError, match="for 2 classes, the rows have 3"):
        cost_ease(np.array([[0.5, 0.25, 0.25]]), [[0, 1], [1, 0]])
    with pytest.raises(MeshError) as caught:
        cost_ease(np.array([0.5, 0.5]), [[0, 1], [1, 0]])
    assert caught.value.reason is Reason.TENSOR_SHAPE_MISMATCH
