"""Policies from goals and calibration outcomes: the bound, class limits, costs, the choice of a score, unusual samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from services.router.goals import ClassLimit, Goals, PolicyOverride
from services.router.policy import Policy, make_policy
from splitmesh.errors import MeshError, Reason
from splitmesh.model.outcomes import CalibrationOutcomes, Part
from splitmesh.routing.gate import ESCALATE_ALL, Gate, Why
from splitmesh.routing.rule import Judge, Rule
from tests.support.outcomes import outcomes_of

GOALS = Goals(0.02, 0.05, 0.015)
NAMES = ("OK", "NG", "dirt")


def policy(outcomes: CalibrationOutcomes | bytes | None, goals: Goals = GOALS, **changes: object) -> Policy:
    given = outcomes.to_bytes() if isinstance(outcomes, CalibrationOutcomes) else outcomes
    return make_policy("joints", 3, replace(goals, **changes), given)  # type: ignore[arg-type]


def rows(probability: np.ndarray, said: np.ndarray) -> np.ndarray:
    """Three classes: ``probability`` of the class said, the rest shared."""
    found = np.repeat(((1 - probability) / 2)[:, None], 3, axis=1)
    found[np.arange(len(said)), said] = probability
    return found[:, None, :].astype(np.float32)


def line(n: int = 3000, *, missed: int = 30, names: tuple[str, ...] = NAMES) -> CalibrationOutcomes:
    """A third of each class, sure and right, but for some defects called OK at a confidence of 0.9."""
    whole = np.arange(n) % 3
    said, sure = whole.copy(), np.linspace(0.95, 1.0, n)
    wrong = np.flatnonzero(whole == 1)[:missed]
    said[wrong], sure[wrong] = 0, 0.9
    part = np.full(n, int(Part.HOLDOUT), np.uint8)
    return CalibrationOutcomes(rows(sure, said), whole, part, names=names)


def both_parts(outcomes: CalibrationOutcomes, worth: NDArray[np.float32] | None = None) -> CalibrationOutcomes:
    """Every other sample, in no order, is for validation."""
    half = np.random.default_rng(7).permutation(outcomes.n) % 2
    part = np.where(half, int(Part.HOLDOUT), int(Part.VALIDATION)).astype(np.uint8)
    return replace(outcomes, part=part, worth=worth)


def test_without_class_limits_the_disagreement_alone_is_promised() -> None:
    found = policy(line())
    assert found.coverage == 1.0
    assert [bound.constraint for bound in found.bounds] == ["samples exit and disagree"]
    assert found.bounds[0].limit == 0.02
    assert (found.bounds[0].events, found.bounds[0].n) == (30, 3000)
    assert found.disagreement_bound == found.bounds[0].bound <= 0.02
    assert "few to choose a score" in found.why


def test_a_limited_class_raises_the_threshold_until_its_promise_holds_too() -> None:
    found = policy(line(), classes=(ClassLimit("NG", 0.01, 0.03),))
    assert 0.9 < found.threshold <= 0.95
    missed, false_alarms = found.bounds[1:]
    assert missed.constraint == "samples of class NG exit and say another class"
    assert (missed.limit, missed.events, missed.n) == (0.01, 0, 1000)
    assert 0 < missed.bound <= 0.01
    assert false_alarms.constraint == "samples of other classes than NG exit and say class NG"
    assert (false_alarms.limit, false_alarms.n) == (0.03, 2000)


def test_a_class_that_the_version_does_not_know_lets_nothing_pass_and_is_named() -> None:
    found = policy(line(), classes=(ClassLimit("NG", 0.01), ClassLimit("crack", 0.01)))
    assert found.threshold == ESCALATE_ALL
    assert "'crack'" in found.why
    assert "OK, NG, dirt" in found.why
    assert found.bounds == ()


def test_classes_without_names_are_limited_by_their_numbers() -> None:
    unnamed = line(names=())
    assert policy(unnamed, classes=(ClassLimit("1", 0.01),)).bounds[1].n == 1000
    assert policy(unnamed, classes=(ClassLimit("NG", 0.01),)).threshold == ESCALATE_ALL


def test_a_class_with_too_few_samples_lets_nothing_pass_and_the_policy_says_how_many_are_missing() -> None:
    found = policy(line(300, missed=0), classes=(ClassLimit("NG", 0.01),))
    assert found.threshold == ESCALATE_ALL
    assert "of class NG are too few" in found.why
    assert [bound.n for bound in found.bounds] == [300, 100]


def test_with_costs_the_answer_is_the_one_of_least_expected_cost() -> None:
    dear = (0.0, 1.0, 1.0, 100.0, 0.0, 100.0, 1.0, 1.0, 0.0)
    found = policy(line(), costs=dear)
    assert (found.score, found.costs) == ("expected_cost", dear)
    # "OK" of 0.9 leaves 0.05 for the defect, which is too dear to be passed over: the answer becomes the right one.
    assert found.bounds[0].events < 30
    gate = Gate(found.threshold, Judge(Rule(found.score, found.parameters, found.costs)))
    assert gate.verdict(np.array([[0.9, 0.05, 0.05]])).answer == 1


def test_costs_for_another_number_of_classes_let_nothing_pass() -> None:
    found = policy(line(), costs=(0.0, 1.0, 1.0, 0.0))
    assert found.threshold == ESCALATE_ALL
    assert "2 classes" in found.why


def test_the_score_that_keeps_most_validation_samples_is_chosen() -> None:
    # Wrong where the second class is close behind, at any probability of the first: only the margin tells.
    n = 4000
    wrong = np.arange(n) % 4 == 0
    top = np.random.default_rng(5).uniform(0.4, 0.5, n)
    table = np.zeros((n, 1, 6), np.float32)
    table[:, 0, 0] = top
    table[wrong, 0, 1] = 0.8 - top[wrong]
    rest = 1 - table[:, 0].sum(axis=1)
    table[:, 0, 2:] += (rest / 4)[:, None]
    made = CalibrationOutcomes(table, wrong.astype(np.int64), np.ones(n, np.uint8))
    found = policy(both_parts(made))
    assert found.score in ("margin", "entropy")
    assert found.calibration_samples == 2000
    assert found.coverage > 0.7
    assert policy(both_parts(made), score="max_probability").coverage < 0.2
    assert "2000 validation samples" in found.why
    assert "max_probability" in found.why
    # Every limit counts, not only that of a class that is never missed.
    assert policy(both_parts(made), classes=(ClassLimit("5", 0.5),)).score == found.score


def test_equal_scores_and_few_validation_samples_leave_the_largest_probability() -> None:
    equal = both_parts(outcomes_of(np.linspace(0.5, 1.0, 2000), np.arange(2000) > 10))
    assert policy(equal).score == "max_probability"
    few = replace(equal, part=np.where(np.arange(2000) < 49, 1, 2).astype(np.uint8))
    assert policy(few).score == "max_probability"
    assert "49 validation samples are too few" in policy(few).why


def test_the_choice_of_the_score_respects_the_limits_of_classes() -> None:
    # By worth everything but a few samples may stay; those few are all of class 1, which is limited.
    n = 4000
    whole = (np.arange(n) % 20 == 0).astype(np.int64)
    said = np.zeros(n, np.int64)
    sure = np.where(whole == 1, 0.6, 0.7)
    made = CalibrationOutcomes(rows(sure, said), whole, np.ones(n, np.uint8), names=NAMES)
    worthless = both_parts(made, worth=np.where(np.arange(n) < 200, 0.9, 0.1).astype(np.float32))
    loose = replace(GOALS, max_disagreement=0.2)
    assert policy(worthless, loose, classes=(ClassLimit("NG", 0.05),)).score == "max_probability"
    assert policy(worthless, loose, classes=(ClassLimit("NG", 0.05),)).coverage == pytest.approx(0.95, abs=0.01)


def test_the_energy_score_is_set_to_the_energies_of_the_validation_samples() -> None:
    n = 2000
    scale = np.random.default_rng(3).uniform(20, 60, n)
    logits = np.zeros((n, 1, 3), np.float32)
    logits[:, 0, 0] = scale
    table = np.exp(logits - logits.max(axis=2, keepdims=True))
    table /= table.sum(axis=2, keepdims=True)
    wrong = scale < 30
    made = both_parts(CalibrationOutcomes(table, wrong.astype(np.int64), np.ones(n, np.uint8), logits=logits))
    found = policy(made)
    assert found.score == "energy"
    assert found.parameters["mean"] == pytest.approx(40, abs=1)
    assert found.parameters["scale"] == pytest.approx(40 / np.sqrt(12), abs=1)
    assert found.coverage == pytest.approx(0.76, abs=0.05)
    stated = policy(made, score="energy", parameters={"mean": 30.0, "temperature": 2.0})
    assert (stated.parameters["mean"], stated.parameters["temperature"]) == (30.0, 2.0)
    assert stated.parameters["scale"] == pytest.approx(found.parameters["scale"], rel=1e-3)


@pytest.mark.parametrize(("score", "reads"), [("energy", "logits"), ("deferral", "what asking is worth")])
def test_a_score_that_the_exit_does_not_give_lets_nothing_pass(score: str, reads: str) -> None:
    found = policy(line(), score=score)
    assert found.threshold == ESCALATE_ALL
    assert reads in found.why


def test_unusual_samples_escalate_where_the_version_can_tell_them() -> None:
    strange = np.arange(3000) % 10 == 0
    known = replace(line(missed=0), strange=strange)
    unset, on, off = (policy(known, escalate_unusual=stated) for stated in (None, True, False))
    assert (unset.escalate_unusual, on.escalate_unusual, off.escalate_unusual) == (True, True, False)
    assert (unset.coverage, off.coverage) == (0.9, 1.0)


def test_unusual_samples_that_cannot_be_told_are_no_promise_that_is_given_silently() -> None:
    assert not policy(line()).escalate_unusual
    stated = policy(line(), escalate_unusual=True)
    assert stated.threshold == ESCALATE_ALL
    assert "cannot tell unusual samples" in stated.why


def test_samples_of_one_unit_count_once() -> None:
    units = replace(line(missed=0), groups=np.arange(3000) // 30)
    found = policy(units)
    assert found.threshold == ESCALATE_ALL
    assert found.bounds[0].n == 100
    alone = policy(replace(line(missed=0), groups=np.arange(3000)))
    assert alone.bounds[0].n == 3000
    assert "units" not in alone.why


def test_overrides_go_with_a_policy_and_not_with_one_by_which_everything_escalates() -> None:
    override = PolicyOverride("cam-1", "NG", ESCALATE_ALL, "disagreement rose")
    loose = PolicyOverride("cam-2", "", 0.1, "recalibrated")
    kept = make_policy("joints", 3, GOALS, line().to_bytes(), (override, loose))
    assert kept.overrides == (override, loose)
    assert make_policy("joints", 3, GOALS, None, (override, loose)).overrides == ()


def test_a_policy_says_who_may_be_audited_and_its_text_holds_everything_but_the_revision() -> None:
    found = policy(line(), audit_share=0.1)
    assert found.audit_share == 0.1
    assert found.content() == replace(found, revision=9).content()
    assert found.content() != replace(found, audit_share=0.2).content()


def test_a_gate_of_the_policy_lets_as_many_calibration_samples_pass_as_the_policy_says() -> None:
    outcomes = line()
    found = policy(outcomes, classes=(ClassLimit("NG", 0.01),))
    gate = Gate(found.threshold, Judge(Rule(found.score, found.parameters, found.costs)))
    verdicts = [gate.verdict(row) for row in outcomes.probabilities]
    assert np.mean([verdict.sure for verdict in verdicts]) == pytest.approx(found.coverage)
    assert {verdict.why for verdict in verdicts} == {Why.SURE, Why.UNSURE}


def limit(label: str, missed: float = 0.1, false_alarms: float = 0.0) -> ClassLimit:
    return ClassLimit(label, missed, false_alarms)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"max_disagreement": 0.0}, "max_disagreement"),
        ({"max_disagreement": float("nan")}, "max_disagreement"),
        ({"delta": 1.0}, "delta"),
        ({"audit_share": 0.6}, "audit_share"),
        ({"audit_share": float("nan")}, "audit_share"),
        ({"score": "guess"}, "score"),
        ({"score": "threshold"}, "score"),
        ({"score": "expected_cost"}, "score"),
        ({"score": "margin", "costs": (0.0, 1.0, 1.0, 0.0)}, "score"),
        ({"score": "margin", "parameters": {"temperature": 1.0}}, "parameters"),
        ({"parameters": {"temperature": 1.0}}, "parameters"),
        ({"costs": (0.0, 1.0, 1.0)}, "costs"),
        ({"costs": (0.0, float("inf"), 1.0, 0.0)}, "costs"),
        ({"costs": (0.0,) * (257 * 257)}, "costs"),
    ],
)
def test_goals_that_make_no_sense_are_refused_and_name_the_field(changes: dict[str, object], field: str) -> None:
    with pytest.raises(MeshError) as caught:
        replace(GOALS, **changes)  # type: ignore[arg-type]
    assert caught.value.reason is Reason.FIELD_INVALID
    assert [name for name, _ in caught.value.fields] == [field]


def test_limits_of_classes_that_make_no_sense_are_refused() -> None:
    for label, missed, false_alarms in (
        ("", 0.1, 0),
        ("x" * 257, 0.1, 0),
        ("NG", 1.0, 0),
        ("NG", 0, -0.1),
        ("NG", 0, 0),
    ):
        with pytest.raises(MeshError, match="classes"):
            limit(label, missed, false_alarms)
    with pytest.raises(MeshError, match="257"):
        replace(GOALS, classes=tuple(limit(str(number)) for number in range(257)))
    with pytest.raises(MeshError, match="'NG' 2 times"):
        replace(GOALS, classes=(limit("NG"), limit("OK"), limit("NG")))


def test_goals_survive_the_store_and_what_was_stored_before_them_gets_the_defaults() -> None:
    full = Goals(0.1, 0.2, 0.3, (limit("NG", 0.01, 0.02),), "energy", {"temperature": 2.0}, (), False)
    assert Goals.from_json(full.to_json(), GOALS) == full
    dear = replace(GOALS, costs=(0.0, 1.0, 5.0, 0.0))
    assert Goals.from_json(dear.to_json(), GOALS) == dear
    assert replace(GOALS, score="auto") == GOALS
    old = Goals.from_json('{"max_disagreement": 0.1, "delta": 0.2, "later": 1}', GOALS)
    assert old == Goals(0.1, 0.2, GOALS.audit_share)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"max_disagreement": 2}', '{"max_disagreement": "x"}'])
def test_goals_that_cannot_be_read_are_an_error_and_never_the_defaults(text: str) -> None:
    with pytest.raises(MeshError) as caught:
        Goals.from_json(text, GOALS)
    assert caught.value.reason is Reason.SERVICE_UNAVAILABLE
