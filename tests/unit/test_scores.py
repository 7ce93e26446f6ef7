"""Scores of rows and boxes: what is easy, what is undefined, and that Sedna's miners say what they said."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from splitmesh.errors import MeshError, Reason
from splitmesh.routing.scores import BOX_SCORES, ROW_SCORES, SEDNA, box_ease, ease, names

SURE, EVEN, TORN = [1.0, 0.0, 0.0], [1 / 3] * 3, [0.5, 0.5, 0.0]
ROWS = arrays.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(2, 6)), elements=st.floats(0.0, 1.0))
SCORES = st.lists(st.floats(0.0, 1.0), max_size=8)


def rows(*given: list[float], dtype: str = "float64") -> np.ndarray:
    return np.array(given, dtype=dtype)


@pytest.mark.parametrize("name", ROW_SCORES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_sure_is_easier_than_torn_and_torn_than_even_in_every_type(name: str, dtype: str) -> None:
    given = rows(SURE, TORN, EVEN, dtype=dtype)
    logits = np.array([[9.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    sure, torn, even = ease(name, given, logits=logits)
    assert 0 <= even <= torn + 1e-12
    assert torn <= sure <= 1
    assert sure > even


@pytest.mark.parametrize("name", sorted(set(ROW_SCORES) - {"energy"}))
def test_one_hot_rows_of_any_type_are_as_easy_as_can_be(name: str) -> None:
    for dtype in ("float32", "uint8", "int64"):
        assert ease(name, np.eye(3, dtype=dtype)).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", ROW_SCORES)
@pytest.mark.parametrize(
    "bad",
    [[math.nan, 0.5, 0.5], [math.inf, 0.0, 0.0], [1.5, -0.5, 0.0], [0.2, 0.2, 0.2], [0.0, 0.0, 0.0]],
    ids=["nan", "infinite", "outside", "no sum of 1", "nothing"],
)
def test_a_row_that_is_no_distribution_is_undefined_and_disturbs_no_other(name: str, bad: list[float]) -> None:
    found = ease(name, rows(bad, SURE), logits=np.zeros((2, 3)))
    assert np.isnan(found[0])
    assert np.isfinite(found[1])


@pytest.mark.parametrize("name", ROW_SCORES)
def test_a_lone_class_no_rows_and_types_without_numbers_are_undefined(name: str) -> None:
    assert np.isnan(ease(name, np.ones((2, 1)))).all()
    assert ease(name, np.zeros((0, 3))).shape == (0,)
    assert np.isnan(ease(name, np.full((2, 3), True))).all()


@pytest.mark.parametrize("name", ROW_SCORES)
@given(given=ROWS)
def test_whatever_comes_the_ease_is_a_share_or_undefined(name: str, given: np.ndarray) -> None:
    total = given.sum(axis=1, keepdims=True)
    for tried in (given, np.divide(given, total, out=np.zeros_like(given), where=total > 0)):
        found = ease(name, tried, logits=given * 100)
        assert found.shape == (len(given),)
        assert ((found >= 0) & (found <= 1) | np.isnan(found)).all()


def test_margin_and_entropy_are_what_their_formulas_say() -> None:
    assert ease("margin", rows([0.7, 0.2, 0.1])).tolist() == pytest.approx([0.5])
    expected = 1 + (0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1)) / math.log(3)
    assert ease("entropy", rows([0.7, 0.2, 0.1])).tolist() == pytest.approx([expected])


def test_a_temperature_makes_rows_less_sure_and_keeps_their_order() -> None:
    given = rows([0.9, 0.1, 0.0], [0.6, 0.3, 0.1])
    cool, warm = (ease("temperature", given, parameters={"temperature": t}) for t in (1.0, 3.0))
    assert cool.tolist() == pytest.approx([0.9, 0.6])
    assert (warm < cool).all()
    assert warm[0] > warm[1]
    logits = np.log(np.array([0.6, 0.3, 0.1])) / 3
    assert warm[1] == pytest.approx(np.exp(logits).max() / np.exp(logits).sum())


def test_energy_is_the_logits_matter_and_undefined_without_them() -> None:
    given = rows(EVEN, EVEN)
    logits = np.array([[10.0, 10.0, 10.0], [-10.0, -10.0, -10.0]])
    high, low = ease("energy", given, logits=logits)
    assert high > 0.99
    assert low < 0.01
    at_mean = ease("energy", rows(EVEN), logits=np.zeros((1, 3)), parameters={"mean": math.log(3), "scale": 2.0})
    assert at_mean.tolist() == pytest.approx([0.5])
    assert np.isnan(ease("energy", given)).all()
    assert np.isnan(ease("energy", given, logits=np.full((2, 3), np.nan))).all()
    huge = ease("energy", given, logits=np.full((2, 3), 1e300))
    assert ((huge >= 0) & (huge <= 1) | np.isnan(huge)).all()


@given(scores=SCORES.filter(bool), t_box=st.floats(0.0, 1.0), t_img=st.floats(0.0, 1.0))
def test_ibt_calls_hard_what_sednas_does(scores: list[float], t_box: float, t_img: float) -> None:
    share = sum(score <= t_box for score in scores) / len(scores)
    found = box_ease("IBT", scores, parameters={"box_threshold": t_box})
    if abs(share - (1 - t_img)) > 1e-9:  # on the line itself it is hard there, and easy here
        assert (found < t_img) == (share >= 1 - t_img)


@given(scores=SCORES.filter(bool), t=st.floats(0.0, 1.0))
def test_threshold_calls_hard_what_sednas_does(scores: list[float], t: float) -> None:
    mean = float(np.mean(scores))
    if abs(mean - t) > 1e-9:
        assert (box_ease("Threshold", scores) < t) == (mean < t)


@pytest.mark.parametrize("name", BOX_SCORES)
def test_nothing_found_is_hard_unless_somebody_says_how_easy_it_is(name: str) -> None:
    assert box_ease(name, []) == 0.0
    assert box_ease(name, np.zeros((0, 1), np.float32), parameters={"nothing_ease": 0.75}) == 0.75


@pytest.mark.parametrize("name", BOX_SCORES)
@pytest.mark.parametrize("bad", [[0.5, math.nan], [math.inf], [-0.1], [1.0000001]])
def test_a_box_without_a_score_in_range_makes_all_undefined(name: str, bad: list[float]) -> None:
    assert math.isnan(box_ease(name, bad))


def test_every_score_has_one_name_and_sednas_are_known() -> None:
    assert len(set(names())) == len(ROW_SCORES) + len(BOX_SCORES)
    assert set(SEDNA.values()) <= set(names())


@pytest.mark.parametrize(
    ("name", "parameters", "field"),
    [
        ("best", {}, "score"),
        ("ibt", {}, "score"),
        ("margin", {"temperature": 2.0}, "parameters"),
        ("temperature", {"temperature": 0.0}, "parameters"),
        ("temperature", {"temperature": math.nan}, "parameters"),
    ],
)
def test_an_unknown_score_or_parameter_is_named(name: str, parameters: dict[str, float], field: str) -> None:
    with pytest.raises(MeshError) as caught:
        ease(name, rows(SURE), parameters=parameters)
    assert (caught.value.reason, caught.value.fields[0][0]) == (Reason.FIELD_INVALID, field)


def test_rows_and_logits_of_another_shape_are_refused() -> None:
    for tried, logits in ((np.zeros(3), None), (rows(SURE), np.zeros((2, 3)))):
        with pytest.raises(MeshError) as caught:
            ease("energy", tried, logits=logits)
        assert caught.value.reason is Reason.TENSOR_SHAPE_MISMATCH
