"""The exit's decision, frame by frame: who is sure, and why not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from splitmesh.errors import MeshError, Reason
from splitmesh.routing.costs import NO_ANSWER
from splitmesh.routing.finding import FINDINGS
from splitmesh.routing.gate import ESCALATE_ALL, Gate, Override, Verdict, Why, confidence
from splitmesh.routing.rule import DEFERRAL, EXPECTED_COST, Judge, Rule
from tests.support.fitted import deferral, strange_beyond

LABELS = ("dark", "grey", "bright")
SURE = [0.9, 0.05, 0.05]
FINDING = Judge(finding=True)


def verdict(gate: Gate, row: list[float], **about: object) -> Verdict:
    return gate.verdict(np.array([row]), **about)  # type: ignore[arg-type]


def passes(gate: Gate, rows: np.ndarray) -> list[bool]:
    return [gate.verdict(rows[[index]]).sure for index in range(len(rows))]


def test_confidence_is_the_largest_probability_of_each_row() -> None:
    rows = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], dtype=np.float32)
    np.testing.assert_allclose(confidence(rows), [0.7, 0.8], rtol=1e-6)


def test_a_confidence_equal_to_the_threshold_is_accepted() -> None:
    assert passes(Gate(0.75), np.array([[0.75, 0.25], [0.5, 0.5]])) == [True, False]


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
    assert passes(Gate(0.0), np.array([good, row, good])) == [True, False, True]
    undefined = verdict(Gate(0.0), row)
    assert (undefined.why, undefined.answer, undefined.worth) == (Why.UNDEFINED, NO_ANSWER, 1.0)
    assert math.isnan(undefined.ease)


@pytest.mark.parametrize("row", [np.empty((1, 0)), np.ones((1, 1)), np.array([["1.0", "0.0"]])])
def test_a_row_without_two_classes_or_of_other_than_numbers_is_never_accepted(row: np.ndarray) -> None:
    assert Gate(0.0).verdict(row).why is Why.UNDEFINED


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 1)])
def test_probabilities_without_rows_and_classes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MeshError) as caught:
        Gate(0.5).verdict(np.ones(shape))
    assert caught.value.reason is Reason.TENSOR_SHAPE_MISMATCH


def test_nothing_passes_the_threshold_that_escalates_all() -> None:
    sure = np.array([[1.0, 0.0], [1.004, 0.0]], dtype=np.float32)
    assert passes(Gate(ESCALATE_ALL), sure) == passes(Gate(1.001), sure) == [False, False]
    assert passes(Gate(1.0), sure) == [True, True]
    assert verdict(Gate(ESCALATE_ALL), SURE).why is Why.NO_PROMISE


def test_a_float16_softmax_over_a_thousand_classes_still_counts_as_a_distribution() -> None:
    row = np.full((1, 1000), 0.001, dtype=np.float16)
    assert Gate(0.0).verdict(row).sure


@pytest.mark.parametrize("threshold", [math.nan, math.inf, -0.1])
def test_a_threshold_that_is_no_bound_is_refused(threshold: float) -> None:
    for overrides in ([], [Override("north", "", threshold)]):
        with pytest.raises(MeshError) as caught:
            Gate(0.5 if overrides else threshold, overrides=overrides)
        assert caught.value.reason is Reason.FIELD_INVALID


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=5)), st.floats(0, 2))
def test_whatever_is_accepted_is_a_distribution_that_reaches_the_threshold(rows, threshold: float) -> None:
    for row, accepted in zip(rows, passes(Gate(threshold), rows), strict=True):
        if accepted:
            assert np.isfinite(row).all()
            assert abs(row.astype(float).sum() - 1) <= 0.011
            assert min(1.0, float(row.max())) >= threshold


def test_a_detectors_exit_can_answer_nothing_but_nothing() -> None:
    whys = {
        (0.9, 0.1): Why.SURE,
        (0.1, 0.9): Why.FINDING,
        (0.7, 0.3): Why.UNSURE,
        (math.nan, 1.0): Why.UNDEFINED,
    }
    assert {row: verdict(Gate(0.8, FINDING), list(row)).why for row in whys} == whys
    assert math.isnan(verdict(Gate(0.8, FINDING), [0.1, 0.9]).ease)


def test_a_row_of_more_than_two_classes_is_no_detectors() -> None:
    assert not verdict(Gate(0.0, FINDING), [1.0, 0.0, 0.0]).sure


def test_the_most_special_override_holds() -> None:
    gate = Gate(
        0.5,
        overrides=[
            Override("", "dark", 0.6),
            Override("north", "", 0.7),
            Override("north", "dark", 0.8),
        ],
    )
    dark, grey = SURE, [0.05, 0.9, 0.05]
    found = {
        (camera, label): verdict(gate, row, camera=camera, labels=LABELS).threshold
        for camera in ("north", "south")
        for label, row in (("dark", dark), ("grey", grey))
    }
    assert found == {
        ("north", "dark"): 0.8,
        ("north", "grey"): 0.7,
        ("south", "dark"): 0.6,
        ("south", "grey"): 0.5,
    }


def test_where_an_override_fits_no_exit_before_the_cut_answers() -> None:
    gate = Gate(0.5, overrides=[Override("north", "", 0.3)])
    row = np.array([[0.8, 0.1, 0.1]])
    assert not gate.verdict(row, camera="north", labels=LABELS, at_cut=False).sure
    assert gate.verdict(row, camera="north", labels=LABELS).sure
    assert gate.verdict(row, camera="south", labels=LABELS, at_cut=False).sure


def test_an_override_without_camera_and_class_holds_for_the_rest() -> None:
    gate = Gate(0.5, overrides=[Override("", "", 0.95), Override("north", "", 0.2)])
    assert (verdict(gate, SURE).threshold, verdict(gate, SURE, camera="north").threshold) == (0.95, 0.2)


def test_where_things_drifted_escalates_and_nowhere_else() -> None:
    gate = Gate(0.5, overrides=[Override("north", "", ESCALATE_ALL)])
    drifted = verdict(gate, SURE, camera="north")
    assert (drifted.sure, drifted.why, drifted.threshold) == (False, Why.DRIFTED, ESCALATE_ALL)
    assert verdict(gate, SURE, camera="south").why is Why.SURE


def test_a_class_without_a_name_goes_by_its_number() -> None:
    gate = Gate(0.5, overrides=[Override("", "2", ESCALATE_ALL)])
    assert verdict(gate, [0.05, 0.05, 0.9]).why is Why.DRIFTED
    assert verdict(gate, [0.05, 0.05, 0.9], labels=LABELS).why is Why.SURE


def test_a_row_that_names_no_class_meets_no_override_of_one() -> None:
    gate = Gate(0.5, overrides=[Override("", LABELS[-1], 0.0), Override("", str(NO_ANSWER), 0.0)])
    assert verdict(gate, [math.nan] * 3, labels=LABELS).threshold == 0.5


def test_of_a_detector_the_names_of_findings_count() -> None:
    gate = Gate(0.5, FINDING, overrides=[Override("", FINDINGS[0], ESCALATE_ALL)])
    assert verdict(gate, [0.9, 0.1], labels=FINDINGS).why is Why.DRIFTED


def test_what_the_caller_wants_of_the_whole_model_is_worth_all_and_never_sure() -> None:
    asked = verdict(Gate(0.5), SURE, asked=True)
    assert (asked.sure, asked.why, asked.worth) == (False, Why.ASKED, 1.0)
    assert asked.ease == pytest.approx(0.9)


def test_without_a_fitted_score_the_worth_is_what_the_ease_lacks() -> None:
    assert verdict(Gate(0.95), SURE).worth == pytest.approx(0.1)


def test_costs_choose_the_answer_of_least_expected_cost() -> None:
    # Not to see "bright" costs ten times any other mistake.
    costs = (0, 1, 1, 1, 0, 1, 10, 10, 0)
    gate = Gate(0.5, Judge(Rule(EXPECTED_COST, costs=tuple(map(float, costs)))))
    cheapest = verdict(gate, [0.7, 0.1, 0.2], labels=LABELS)
    assert (cheapest.answer, cheapest.why) == (2, Why.SURE)
    assert cheapest.ease == pytest.approx(1 - 0.8 / 10)
    with pytest.raises(MeshError) as caught:
        verdict(gate, [0.7, 0.3])
    assert caught.value.reason is Reason.FIELD_INVALID


def test_a_fitted_score_is_the_worth_and_where_it_is_asked_for_the_ease() -> None:
    gate = Gate(0.6, Judge(Rule(DEFERRAL)), deferral=deferral())
    easy, hard = verdict(gate, [0.98, 0.01, 0.01]), verdict(gate, [0.4, 0.3, 0.3])
    assert (easy.why, hard.why) == (Why.SURE, Why.UNSURE)
    assert easy.ease == pytest.approx(1 - easy.worth)
    assert hard.worth > easy.worth > 0
    beside = verdict(Gate(0.3, deferral=deferral()), [0.4, 0.3, 0.3])
    assert (beside.why, beside.ease) == (Why.SURE, pytest.approx(0.4))
    assert beside.worth == hard.worth


def test_a_fitted_score_says_nothing_about_exits_before_the_cut() -> None:
    gate = Gate(0.0, Judge(Rule(DEFERRAL)), deferral=deferral())
    assert verdict(gate, SURE).sure
    early = verdict(gate, SURE, at_cut=False)
    assert (early.why, early.worth) == (Why.UNDEFINED, 1.0)


def test_a_fitted_score_that_reads_features_says_nothing_without_them_or_where_they_are_not_finite() -> None:
    gate = Gate(0.2, Judge(Rule(DEFERRAL)), deferral=deferral(features=True))
    assert verdict(gate, SURE, features=np.array([[-1.0, 0.0]])).sure
    assert verdict(gate, SURE).why is Why.UNDEFINED
    undefined = verdict(gate, SURE, features=np.array([[math.nan, 0.0]]))
    assert (undefined.why, undefined.worth) == (Why.UNDEFINED, 1.0)


def test_the_logits_are_read_by_the_score_that_needs_them() -> None:
    gate = Gate(0.5, Judge(Rule("energy")))
    assert verdict(gate, SURE, logits=np.array([[9.0, 1.0, 1.0]])).sure
    assert verdict(gate, SURE).why is Why.UNDEFINED


@pytest.mark.parametrize("features", [[9.0, 0.0], [math.nan, 0.0], [0.0, math.inf]])
def test_what_is_unlike_the_calibration_escalates_however_sure_the_exit_is(features: list[float]) -> None:
    gate, given_ = Gate(0.5, unusual=strange_beyond(3.0)), np.array([features])
    strange = verdict(gate, SURE, features=given_)
    assert (strange.sure, strange.why, strange.unusual) == (False, Why.UNUSUAL, True)
    assert verdict(gate, SURE, features=np.array([[1.0, 0.0]])).unusual is False
    assert verdict(gate, SURE).unusual is None


def test_where_the_unusual_may_stay_it_is_told_all_the_same() -> None:
    gate = Gate(0.5, unusual=strange_beyond(3.0), escalate_unusual=False)
    strange = verdict(gate, SURE, features=np.array([[9.0, 0.0]]))
    assert (strange.sure, strange.why, strange.unusual) == (True, Why.SURE, True)
