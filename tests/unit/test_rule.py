"""What a row is taken to mean: the score, the answer, and what has neither."""

from __future__ import annotations

import numpy as np
import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.routing.costs import NO_ANSWER
from splitmesh.routing.rule import DEFERRAL, EXPECTED_COST, Judge, Rule, known_score, row_scores

ROWS = np.array([[0.7, 0.3], [0.45, 0.55]])


def test_without_a_word_the_largest_probability_counts() -> None:
    eases, answers = Judge().eases(ROWS)
    assert eases.tolist() == [0.7, 0.55]
    assert answers.tolist() == [0, 1]


@pytest.mark.parametrize("score", row_scores())
def test_every_score_says_something_in_0_to_1_or_nothing(score: str) -> None:
    eases, answers = Judge(Rule(score)).eases(ROWS, logits=np.log(ROWS), worth=np.array([0.2, -0.5]))
    assert ((eases >= 0) & (eases <= 1)).all()
    assert answers.tolist() == [0, 1]


@pytest.mark.parametrize("row", [[np.nan, 1.0], [0.2, 0.2], [2.0, -1.0], [np.inf, 0.0]])
@pytest.mark.parametrize("rule", [*(Rule(score) for score in row_scores()), Rule(EXPECTED_COST, costs=(0, 1, 1, 0))])
def test_a_row_that_is_no_distribution_has_neither_ease_nor_answer(row: list[float], rule: Rule) -> None:
    rows = np.array([row])
    eases, answers = Judge(rule).eases(rows, logits=rows, worth=np.array([0.0]))
    assert np.isnan(eases).all()
    assert answers.tolist() == [NO_ANSWER]


@pytest.mark.parametrize("classes", [0, 1])
def test_fewer_than_two_classes_are_never_sure(classes: int) -> None:
    eases, answers = Judge().eases(np.ones((2, classes)))
    assert np.isnan(eases).all()
    assert answers.tolist() == [NO_ANSWER, NO_ANSWER]


def test_the_gain_of_asking_is_what_makes_a_sample_hard() -> None:
    eases, _ = Judge(Rule(DEFERRAL)).eases(ROWS, worth=np.array([0.25, -0.5]))
    assert eases.tolist() == [0.75, 1.0]
    eases, _ = Judge(Rule(DEFERRAL)).eases(ROWS, worth=np.array([np.nan, 3.0]))
    assert np.isnan(eases[0])
    assert eases[1] == 0.0
    assert np.isnan(Judge(Rule(DEFERRAL)).eases(ROWS)[0]).all()


def test_with_costs_the_cheapest_class_is_the_answer_not_the_probable_one() -> None:
    eases, answers = Judge(Rule(EXPECTED_COST, costs=(0, 1, 9, 0))).eases(ROWS)
    assert answers.tolist() == [1, 1]
    np.testing.assert_allclose(eases, 1 - np.array([0.7, 0.45]) / 9)


def test_a_detectors_exit_can_only_say_that_there_is_nothing() -> None:
    eases, answers = Judge(finding=True).eases(ROWS)
    assert np.isnan(eases).tolist() == [False, True]
    assert answers.tolist() == [0, 1]
    assert np.isnan(Judge(finding=True).eases(np.array([[0.9, 0.05, 0.05]]))[0]).all()


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        (Rule("sure"), "score"),
        (Rule("entropy", {"temperature": 2.0}), "parameters"),
        (Rule("temperature", {"temperature": 0.0}), "parameters"),
        (Rule(DEFERRAL, {"temperature": 1.0}), "parameters"),
        (Rule(EXPECTED_COST), "score"),
        (Rule("margin", costs=(0, 1, 1, 0)), "score"),
        (Rule(EXPECTED_COST, costs=(0, 1, 1)), "costs"),
        (Rule(EXPECTED_COST, costs=(1, 1, 1, 0)), "costs"),
        (Rule(EXPECTED_COST, costs=(0, float("nan"), 1, 0)), "costs"),
    ],
)
def test_a_rule_that_is_none_is_refused(rule: Rule, field: str) -> None:
    with pytest.raises(MeshError) as caught:
        Judge(rule)
    assert caught.value.reason is Reason.FIELD_INVALID
    assert caught.value.fields[0][0] == field


def test_costs_of_other_classes_are_refused_where_they_meet_a_row() -> None:
    with pytest.raises(MeshError) as caught:
        Judge(Rule(EXPECTED_COST, costs=(0, 1, 1, 0))).eases(np.full((1, 3), 1 / 3))
    assert caught.value.fields[0][0] == "costs"


def test_scores_go_by_sednas_names_too() -> None:
    assert known_score("CrossEntropy") == "entropy"
    assert known_score(EXPECTED_COST) == EXPECTED_COST
    for name in ("IBT", "Threshold", "", "sure"):
        with pytest.raises(MeshError):
            known_score(name)
