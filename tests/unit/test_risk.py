"""Several constraints at once: the promise by simulation, the choice against a slow and plain one, and the reasons."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from splitmesh.routing.gate import ESCALATE_ALL
from splitmesh.routing.risk import (
    MAX_CONSTRAINTS,
    Choice,
    Constraint,
    Disagreement,
    FalseAlarm,
    Missed,
    choose,
    risk_bound,
    samples_needed,
)
from splitmesh.routing.threshold import GRID, answered_by, choose_threshold

DEFECT = 2
EVERY = (Disagreement(0.05), Missed(DEFECT, 0.1), FalseAlarm(DEFECT, 0.03))
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


def _population(seed: int, size: int, exits: int = 1) -> Rows:
    """Eases uniform on 0.3..1, answers right with that probability, defects (a tenth) with less; reference of 3 classes."""
    rng = np.random.default_rng(seed)
    reference = rng.choice(3, size, p=[0.6, 0.3, 0.1])
    eases = rng.uniform(0.3, 1.0, (size, exits))
    right = rng.uniform(size=(size, exits)) < eases ** np.where(reference == DEFECT, 2.0, 0.7)[:, None]
    other = (reference[:, None] + rng.integers(1, 3, (size, exits))) % 3
    return eases, np.where(right, reference[:, None], other), reference


def _share(constraint: Constraint, accepted: np.ndarray, said: np.ndarray, reference: np.ndarray) -> tuple[int, int]:
    """Events and samples, written down from the definition of each constraint."""
    if isinstance(constraint, Disagreement):
        return int((accepted & (said != reference)).sum()), len(reference)
    assert isinstance(constraint, Missed | FalseAlarm)
    is_label = reference == constraint.label
    if isinstance(constraint, Missed):
        return int((accepted & (said != constraint.label))[is_label].sum()), int(is_label.sum())
    return int((accepted & (said == constraint.label))[~is_label].sum()), int((~is_label).sum())


def _at(rows: Rows, threshold: float, constraint: Constraint) -> tuple[int, int]:
    eases, answers, reference = rows
    by = answered_by(eases, threshold)
    return _share(constraint, by >= 0, answers[np.arange(len(by)), by], reference)


def _broken(rows: Rows, threshold: float, constraints: Sequence[Constraint]) -> bool:
    shares = [(_at(rows, threshold, constraint), constraint.limit) for constraint in constraints]
    return any(events / n > limit for (events, n), limit in shares)


def _most(delta: float, draws: int) -> float:
    return delta + 3 * math.sqrt(delta * (1 - delta) / draws)


@pytest.mark.parametrize(
    ("constraints", "exits"),
    [(EVERY[:1], 1), (EVERY[1:2], 1), (EVERY[2:], 1), (EVERY, 1), (EVERY, 2)],
    ids=["disagreement", "missed", "false alarm", "together", "together, two exits"],
)
def test_a_constraint_is_broken_no_more_often_than_delta(constraints: tuple[Constraint, ...], exits: int) -> None:
    delta, draws, n = 0.1, 300, 600
    whole = _population(3, 4000, exits)
    rng = np.random.default_rng(11)
    broken, covered = 0, []
    for _ in range(draws):
        picked = rng.integers(0, 4000, n)
        choice = choose(*(part[picked] for part in whole), constraints, delta=delta)
        broken += _broken(whole, choice.threshold, constraints)
        covered.append(choice.coverage)
    assert broken / draws <= _most(delta, draws)
    assert np.median(covered) > 0.1


def test_pictures_of_one_unit_break_the_promise_unless_they_are_grouped() -> None:
    delta, draws, units, pictures = 0.1, 300, 200, 8
    whole = _population(5, 4000)
    rng = np.random.default_rng(12)
    group = np.repeat(np.arange(units), pictures)
    broken = {True: 0, False: 0}
    for seed in range(draws):
        picked = np.repeat(rng.integers(0, 4000, units), pictures)
        for grouped in broken:
            choice = choose(
                *(part[picked] for part in whole), EVERY[:1], delta=delta, groups=group if grouped else None, seed=seed
            )
            broken[grouped] += _broken(whole, choice.threshold, EVERY[:1])
    assert broken[True] / draws <= _most(delta, draws)
    assert broken[False] / draws > 2 * delta


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    exits=st.integers(1, 3),
    n=st.integers(0, 120),
    limits=st.tuples(*[st.sampled_from([0.04, 0.11, 0.23, 0.41])] * 3),
    kept=st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True),
)
def test_the_choice_is_the_last_of_the_grid_before_a_test_fails(
    seed: int, exits: int, n: int, limits: tuple[float, float, float], kept: list[int]
) -> None:
    eases, answers, reference = _population(seed, n, exits)
    eases = np.where(np.random.default_rng(seed).uniform(size=eases.shape) < 0.1, np.nan, eases.round(1))
    rows = (eases, answers, reference)
    constraints = [replace(EVERY[number], limit=limits[number]) for number in kept]
    accepted, events = 0, [0] * len(kept)
    # Eases are tenths: between two of them every threshold of the grid does the same.
    steps = np.searchsorted(np.arange(11) / 10, GRID)
    for threshold in GRID[np.sort(np.unique(steps, return_index=True)[1])]:
        counts = [_at(rows, float(threshold), constraint) for constraint in constraints]
        p = max(binom.cdf(k, m, one.limit) for (k, m), one in zip(counts, constraints, strict=True))
        if p > 0.1:
            break
        more = int((answered_by(eases, float(threshold)) >= 0).sum())
        if more > accepted:
            accepted, events = more, [k for k, _ in counts]
    choice = choose(*rows, constraints, delta=0.1)
    assert choice.n == n
    assert choice.coverage == (choice.accepted / n if n else 0.0)
    assert (choice.threshold == ESCALATE_ALL) == (choice.accepted == 0)
    assert [bound.events for bound in choice.bounds] == [_at(rows, choice.threshold, one)[0] for one in constraints]
    assert [bound.n for bound in choice.bounds] == [_at(rows, 0.0, one)[1] for one in constraints]
    assert all(bound.bound <= bound.constraint.limit for bound in choice.bounds)
    assert choice.accepted == accepted
    assert [bound.events for bound in choice.bounds] == events


@pytest.mark.parametrize("exits", [1, 2])
def test_missing_a_class_is_the_old_promise_on_the_samples_of_that_class_alone(exits: int) -> None:
    eases, answers, reference = _population(1, 4000, exits)
    choice = choose(eases, answers, reference, [Missed(DEFECT, 0.1)], delta=0.05)
    own = reference == DEFECT
    old = choose_threshold(eases[own], answers[own] == DEFECT, max_disagreement=0.1, delta=0.05)
    (bound,) = choice.bounds
    assert (bound.events, bound.n, bound.bound) == (old.disagreements, old.n, old.bound)
    assert _at((eases, answers, reference), choice.threshold, Disagreement(0.5))[1] == 4000
    assert int((answered_by(eases[own], choice.threshold) >= 0).sum()) == old.accepted > 0


def test_a_disagreement_alone_is_the_old_promise() -> None:
    eases, answers, reference = _population(2, 1000, 2)
    choice = choose(eases, answers, reference, [Disagreement(0.05)], delta=0.05)
    old = choose_threshold(eases, answers == reference[:, None], max_disagreement=0.05, delta=0.05)
    assert (choice.threshold, choice.coverage, choice.accepted) == (old.threshold, old.coverage, old.accepted)
    assert (choice.bounds[0].events, choice.bounds[0].bound) == (old.disagreements, old.bound)
    assert choice.bounds[0].bound == risk_bound(old.disagreements, 1000, 0.05)


def test_of_two_classes_a_missed_one_is_a_false_alarm_of_the_other() -> None:
    eases, answers, reference = (part % 2 if part.dtype.kind == "i" else part for part in _population(4, 2000))
    missed = choose(eases, answers, reference, [Missed(1, 0.1)], delta=0.05)
    alarm = choose(eases, answers, reference, [FalseAlarm(0, 0.1)], delta=0.05)
    assert missed.accepted > 0
    assert (missed.threshold, missed.bounds[0].events) == (alarm.threshold, alarm.bounds[0].events)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), exits=st.integers(1, 3), which=st.integers(0, 2), factor=st.floats(1.0, 5.0))
def test_a_looser_limit_never_accepts_less_and_a_further_constraint_never_more(
    seed: int, exits: int, which: int, factor: float
) -> None:
    rows = _population(seed, 400, exits)
    strict = choose(*rows, EVERY, delta=0.1)
    loose = [replace(one, limit=one.limit * factor) if one is EVERY[which] else one for one in EVERY]
    fewer = [one for one in EVERY if one is not EVERY[which]]
    for choice in (choose(*rows, loose, delta=0.1), choose(*rows, fewer, delta=0.1)):
        assert choice.accepted >= strict.accepted
        assert choice.threshold <= strict.threshold


# Too little data, and what stops the sequence


def _sure(reference: np.ndarray, answers: np.ndarray, constraints: Sequence[Constraint]) -> Choice:
    return choose(np.ones(len(reference)), answers, reference, constraints, delta=0.1)


def test_a_class_of_three_samples_escalates_everything_and_the_reason_says_what_is_lacking() -> None:
    reference = np.repeat([0, 1, DEFECT], [500, 200, 3])
    choice = _sure(reference, reference, EVERY)
    needed = samples_needed(0.1, 0.1)
    assert choice.threshold == ESCALATE_ALL
    assert (choice.coverage, choice.accepted, choice.n) == (0.0, 0, 703)
    assert "3 calibration samples of class 2 are too few" in choice.reason
    assert f"at least {needed}, {needed - 3} more" in choice.reason
    assert "other classes" not in choice.reason
    assert choice.binding == EVERY[1]
    assert [(bound.n, bound.bound) for bound in choice.bounds] == [(703, 0.0), (3, 0.0), (700, 0.0)]
    enough = np.append(reference, np.full(needed - 3, DEFECT))
    assert _sure(enough, enough, EVERY).coverage == 1.0


def test_of_several_that_lack_samples_the_reason_names_each_and_the_worst_is_binding() -> None:
    reference = np.repeat([0, 1], [100, 5])
    choice = _sure(reference, reference, [Missed(1, 0.1), Missed(7, 0.001), Disagreement(0.1)])
    assert "5 calibration samples of class 1 " in choice.reason
    assert "0 calibration samples of class 7 " in choice.reason
    assert choice.binding == Missed(7, 0.001)


def test_a_reason_stays_short_whatever_the_number_of_constraints() -> None:
    choice = _sure(np.array([0]), np.array([0]), [Missed(label, 0.1) for label in range(MAX_CONSTRAINTS)])
    assert "1020 more constraints" in choice.reason
    assert len(choice.reason) < 1000


def test_the_binding_constraint_is_the_one_that_stops_the_sequence() -> None:
    eases, answers, reference = _population(6, 3000)
    tight = Missed(DEFECT, 0.03)
    assert choose(eases, answers, reference, [Disagreement(0.4), tight], delta=0.1).binding == tight
    assert choose(eases, answers, reference, [Disagreement(0.01), Missed(DEFECT, 0.6)], delta=0.1).binding == (
        Disagreement(0.01)
    )
    assert _sure(reference, reference, EVERY).binding is None


def test_sure_and_wrong_answers_escalate_everything_and_the_reason_names_the_broken_constraint() -> None:
    reference = np.repeat([0, DEFECT], [500, 200])
    choice = _sure(reference, np.zeros(700, int), [FalseAlarm(DEFECT, 0.05), Missed(DEFECT, 0.05)])
    assert choice.threshold == ESCALATE_ALL
    assert choice.binding == Missed(DEFECT, 0.05)
    assert "confidence 1 say another class" in choice.reason
    assert "of the samples of class 2" in choice.reason


def test_the_reason_of_a_choice_states_limits_and_counts() -> None:
    reference = np.repeat([0, DEFECT], [500, 200])
    answers = np.where(np.arange(700) < 2, DEFECT, reference)
    reason = _sure(reference, answers, EVERY).reason
    assert "700 of 700 calibration samples exit; with probability 0.9" in reason
    assert "at most 0.03 of new samples of other classes than 2 exit and say class 2 (here 2 of 500)" in reason


# Which of the thresholds that keep the promise


def test_a_lower_threshold_that_would_pass_again_behind_a_failure_is_not_taken() -> None:
    # The second exit is sure and misses every defect, the first one, less sure, finds it: below 0.8 nothing is missed.
    eases, answers = np.tile([0.8, 0.99], (500, 1)), np.tile([DEFECT, 0], (500, 1))
    rows = (eases, answers, np.full(500, DEFECT))
    assert not _broken(rows, 0.7, EVERY[1:2])
    choice = choose(*rows, EVERY[1:2], delta=0.1)
    assert (choice.threshold, choice.binding) == (ESCALATE_ALL, EVERY[1])


def test_of_one_exit_it_is_the_least_ease_that_exits_and_of_several_the_strictest_of_the_grid_at_which_as_many_do() -> (
    None
):
    rows = _population(8, 2000)
    choice = choose(*rows, EVERY, delta=0.1)
    assert choice.threshold == rows[0][rows[0] >= choice.threshold].min()
    assert int((rows[0] >= choice.threshold).sum()) == choice.accepted > 0
    eases = np.where(rows[0] > 0.9, 0.95, np.nan)
    several = (np.hstack([eases, eases]), np.hstack([rows[1], rows[1]]), rows[2])
    assert choose(*several, EVERY, delta=0.1).threshold == GRID[GRID <= 0.95][0]
