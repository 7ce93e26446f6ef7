"""What a constraint is about, samples of one unit, and arguments that are refused."""

import math
from typing import Any

import numpy as np
import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.routing.constraint_tests import Samples, samples_needed
from splitmesh.routing.constraints import Constraint, Disagreement, FalseAlarm, Missed
from splitmesh.routing.gate import ESCALATE_ALL
from splitmesh.routing.risk import choose

KINDS = (Disagreement(0.2), Missed(1, 0.2), FalseAlarm(1, 0.2))


def _counts(constraint: Constraint, **changed: Any) -> tuple[int, int]:
    """Events where everything is accepted, and samples."""
    given: dict[str, Any] = {
        "eases": [0.9, 0.9, 0.9, 0.9, 0.9, math.nan],
        "answers": [0, 1, 2, 1, 0, -1],
        "reference": [0, 0, 0, 1, 1, 1],
        "groups": None,
        "seed": 0,
    }
    test = Samples.of(**given | changed).test(constraint, 0.1)
    return int(test.events[-1]), test.n


def test_each_constraint_counts_its_own_events_among_its_own_samples() -> None:
    assert [_counts(constraint) for constraint in KINDS] == [(3, 6), (1, 3), (1, 3)]


def test_an_answer_counts_only_where_its_exit_is_the_first_that_is_sure() -> None:
    two = {"eases": [[0.9, 0.5], [0.2, 0.9]], "answers": [[1, 0], [0, 1]], "reference": [1, 1]}
    test = Samples.of(**two, groups=None, seed=0).test(Missed(1, 0.2), 0.1)
    from_strict = [int(events) for events in test.events]
    # the second sample is answered by its second exit, rightly, until the first is sure at 0.2
    assert set(from_strict) == {0, 1}
    assert from_strict == sorted(from_strict)


# Units


def test_a_unit_counts_once_for_each_constraint_that_is_about_one_of_its_pictures() -> None:
    groups = ["a", "a", "b", "b", "c", "c"]
    assert [_counts(constraint, groups=groups)[1] for constraint in KINDS] == [3, 2, 2]
    assert [_counts(constraint, groups=[7] * 6)[1] for constraint in KINDS] == [1, 1, 1]


def test_units_of_one_picture_are_as_good_as_none() -> None:
    for constraint in KINDS:
        assert _counts(constraint, groups=[5, 3, 4, 0, 9, 8], seed=3) == _counts(constraint)


@pytest.mark.parametrize("copies", [2, 5])
def test_a_picture_that_is_there_several_times_says_no_more_than_once(copies: int) -> None:
    rng = np.random.default_rng(4)
    eases, reference = rng.uniform(0.3, 1, 500), rng.integers(0, 2, 500)
    answers = np.where(rng.uniform(size=500) < eases**0.3, reference, 1 - reference)
    once = choose(eases, answers, reference, KINDS, delta=0.1)
    where = rng.permutation(np.repeat(np.arange(500), copies))
    often = choose(eases[where], answers[where], reference[where], KINDS, delta=0.1, groups=where)
    assert once.accepted > 0
    assert (often.threshold, often.coverage, often.bounds) == (once.threshold, once.coverage, once.bounds)
    assert (often.accepted, often.n) == (once.accepted * copies, 500 * copies)


def test_the_picture_of_a_unit_is_drawn_by_seed_and_each_as_often() -> None:
    groups, answers = np.repeat(np.arange(100), 4), np.tile([0, 1, 1, 1], 100)
    rows: dict[str, Any] = {"eases": np.ones(400), "answers": answers, "reference": np.ones(400, int), "groups": groups}
    events = [_counts(Missed(1, 0.5), **rows, seed=seed)[0] for seed in range(30)]
    assert events == [_counts(Missed(1, 0.5), **rows, seed=seed)[0] for seed in range(30)]
    assert len(set(events)) > 5
    assert np.mean(events) == pytest.approx(25, abs=4)


def test_pictures_of_few_units_are_too_few_and_the_reason_counts_units() -> None:
    choice = choose(np.ones(1000), np.ones(1000, int), np.ones(1000, int), KINDS[:1], delta=0.1, groups=[1, 2] * 500)
    assert choice.threshold == ESCALATE_ALL
    assert "2 units with calibration samples are too few" in choice.reason
    assert choice.bounds[0].n == 2


# What is refused


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"eases": [0.5, 1.1]}, "eases"),
        ({"eases": [0.5, -0.1]}, "eases"),
        ({"eases": [0.5, math.inf]}, "eases"),
        ({"eases": ["a", "b"]}, "eases"),
        ({"eases": [[0.5], [0.5, 0.6]]}, "eases"),
        ({"eases": np.zeros((2, 0)), "answers": np.zeros((2, 0), int)}, "eases"),
        ({"eases": np.zeros((2, 1, 1)), "answers": np.zeros((2, 1, 1), int)}, "eases"),
        ({"answers": [1]}, "answers"),
        ({"answers": [[1], [1]]}, "answers"),
        ({"answers": [1.0, 1.0]}, "answers"),
        ({"answers": [1, -1]}, "answers"),
        ({"answers": [[1], [1, 2]]}, "answers"),
        ({"reference": [1]}, "reference"),
        ({"reference": [[1], [1]]}, "reference"),
        ({"reference": [1, -1]}, "reference"),
        ({"reference": ["a", "b"]}, "reference"),
        ({"groups": [1]}, "groups"),
        ({"groups": [1, {}]}, "groups"),
        ({"seed": -1}, "seed"),
        ({"constraints": []}, "constraints"),
        ({"constraints": [0.05]}, "constraints"),
        ({"constraints": [Disagreement(0.1)] * 1025}, "constraints"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"delta": math.nan}, "delta"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(changed: dict[str, Any], field: str) -> None:
    given: dict[str, Any] = {
        "eases": [0.5, 0.6],
        "answers": [1, 1],
        "reference": [1, 1],
        "constraints": [Disagreement(0.1)],
        "delta": 0.1,
    }
    assert choose(**given).n == 2
    with pytest.raises(MeshError) as caught:
        choose(**given | changed)
    assert caught.value.reason is Reason.FIELD_INVALID
    assert caught.value.fields[0][0] == field


@pytest.mark.parametrize("limit", [0.0, 1.0, -0.1, math.nan])
def test_a_constraint_without_a_share_as_its_limit_is_refused(limit: float) -> None:
    for make in (Disagreement, lambda given: Missed(1, given), lambda given: FalseAlarm(1, given)):
        with pytest.raises(MeshError) as caught:
            make(limit)
        assert caught.value.fields[0][0] == "limit"


@pytest.mark.parametrize("label", [-1, True, 1.0, "defect"])
@pytest.mark.parametrize("kind", [Missed, FalseAlarm])
def test_a_label_that_is_no_class_number_is_refused(kind: type[Missed], label: Any) -> None:
    with pytest.raises(MeshError) as caught:
        kind(label, 0.1)
    assert caught.value.fields[0][0] == "label"


def test_a_label_may_be_a_number_of_numpy() -> None:
    assert Missed(np.argmax([0, 1]), 0.1).label == 1


def test_no_samples_at_all_escalate_everything() -> None:
    choice = choose([], [], [], KINDS, delta=0.1)
    assert (choice.threshold, choice.coverage, choice.n) == (ESCALATE_ALL, 0.0, 0)


def test_a_limit_next_to_zero_takes_many_samples_and_no_infinite_number() -> None:
    assert samples_needed(1e-320, 0.05) == 10**18
    assert "0 calibration samples are too few" in choose([], [], [], [Disagreement(1e-320)], delta=0.1).reason
