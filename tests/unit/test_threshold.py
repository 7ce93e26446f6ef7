"""The threshold's promise, in closed form and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from splitmesh.errors import MeshError, Reason
from splitmesh.routing.gate import ESCALATE_ALL
from splitmesh.routing.threshold import (
    GRID,
    answered_by,
    choose_threshold,
    risk_bound,
    samples_needed,
    tolerated_threshold,
)


def _draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Confidences uniform on 0.3..1 that are right about themselves: P(agrees | c) = c."""
    scores = rng.uniform(0.3, 1.0, n)
    return scores, rng.uniform(size=n) < scores


def _true_risk(threshold: float) -> float:
    """P(c >= threshold and disagrees) for ``_draw``."""
    return (1 - max(0.3, threshold)) ** 2 / 2 / 0.7 if threshold <= 1 else 0.0


def test_the_promise_is_broken_no_more_often_than_delta() -> None:
    alpha, delta, draws = 0.05, 0.1, 400
    rng = np.random.default_rng(7)
    choices = [choose_threshold(*_draw(rng, 400), max_disagreement=alpha, delta=delta) for _ in range(draws)]
    violations = sum(_true_risk(choice.threshold) > alpha for choice in choices)
    noise = 3 * math.sqrt(delta * (1 - delta) / draws)
    assert violations / draws <= delta + noise
    # and not by refusing everything: the exact coverage at risk 0.05 is 0.38
    assert np.median([choice.coverage for choice in choices]) > 0.25


def test_the_chosen_threshold_is_the_least_confidence_that_exits_within_the_bound() -> None:
    scores, agrees = _draw(np.random.default_rng(1), 1000)
    choice = choose_threshold(scores, agrees, max_disagreement=0.05, delta=0.05)
    assert choice.threshold in scores
    allowed = GRID[choice.threshold >= GRID][0]
    below = GRID[np.flatnonzero(allowed == GRID)[0] + 1]
    assert choice.bound <= 0.05
    assert risk_bound(int(((scores >= below) & ~agrees).sum()), 1000, 0.05) > 0.05
    assert choice.accepted == int((scores >= choice.threshold).sum())
    assert choice.disagreements == int(((scores >= choice.threshold) & ~agrees).sum())
    assert choice.coverage == choice.accepted / 1000


def test_when_everything_agrees_everything_exits() -> None:
    choice = choose_threshold(np.linspace(0.1, 1, 500), np.ones(500, bool), max_disagreement=0.01, delta=0.05)
    assert (choice.coverage, choice.disagreements) == (1.0, 0)


def test_a_sample_less_sure_than_all_of_the_calibration_does_not_exit() -> None:
    choice = choose_threshold(np.linspace(0.6, 1, 500), np.ones(500, bool), max_disagreement=0.01, delta=0.05)
    assert choice.threshold == 0.6


@pytest.mark.parametrize(("alpha", "delta"), [(0.01, 0.05), (0.005, 0.1), (0.2, 0.5)])
def test_too_few_samples_escalate_everything_and_the_reason_says_how_many_it_takes(alpha: float, delta: float) -> None:
    needed = samples_needed(alpha, delta)
    few = choose_threshold(np.ones(needed - 1), np.ones(needed - 1), max_disagreement=alpha, delta=delta)
    assert few.threshold == ESCALATE_ALL
    assert f"at least {needed}" in few.reason
    assert choose_threshold(np.ones(needed), np.ones(needed), max_disagreement=alpha, delta=delta).coverage == 1.0


def test_no_samples_escalate_everything() -> None:
    assert choose_threshold([], [], max_disagreement=0.05, delta=0.05).threshold == ESCALATE_ALL


def test_a_model_that_is_sure_and_wrong_escalates_everything() -> None:
    choice = choose_threshold(np.ones(1000), np.arange(1000) % 2 == 0, max_disagreement=0.05, delta=0.05)
    assert choice.threshold == ESCALATE_ALL
    assert "confidence 1 disagree" in choice.reason
    assert choice.bound == 0.0


def test_nothing_that_could_exit_escalates_everything() -> None:
    choice = choose_threshold(np.full(1000, 0.4), np.zeros(1000), max_disagreement=0.05, delta=0.05)
    assert choice.threshold == ESCALATE_ALL
    assert "no calibration sample exits" in choice.reason


def test_samples_without_a_confidence_are_never_accepted_but_count() -> None:
    scores = np.concatenate([np.full(500, 0.9), np.full(500, math.nan)])
    choice = choose_threshold(scores, np.arange(1000) < 500, max_disagreement=0.01, delta=0.05)
    assert (choice.accepted, choice.n, choice.disagreements) == (500, 1000, 0)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 2.0, math.nan])
def test_tolerances_outside_zero_and_one_are_refused(value: float) -> None:
    for arguments in ({"max_disagreement": value, "delta": 0.1}, {"max_disagreement": 0.1, "delta": value}):
        with pytest.raises(MeshError) as caught:
            choose_threshold([0.5], [True], **arguments)
        assert caught.value.reason is Reason.FIELD_INVALID


def test_confidences_and_agreements_of_different_length_are_refused() -> None:
    with pytest.raises(MeshError) as caught:
        choose_threshold([0.5, 0.6], [True], max_disagreement=0.1, delta=0.1)
    assert caught.value.fields[0][0] == "agrees"


@given(st.integers(0, 60), st.integers(1, 60), st.floats(0.01, 0.5))
def test_the_bound_is_where_the_binomial_tail_falls_to_delta(wrong: int, more: int, delta: float) -> None:
    n = wrong + more
    bound = risk_bound(wrong, n, delta)
    assert binom.cdf(wrong, n, bound) == pytest.approx(delta, rel=1e-6)


def test_the_bound_of_nothing_seen_or_everything_wrong_is_one() -> None:
    assert risk_bound(0, 0, 0.1) == risk_bound(5, 5, 0.1) == 1.0


@given(st.integers(0, 2**32 - 1), st.floats(0.02, 0.3))
def test_tolerating_more_never_accepts_less(seed: int, alpha: float) -> None:
    scores, agrees = _draw(np.random.default_rng(seed), 300)
    strict = choose_threshold(scores, agrees, max_disagreement=alpha, delta=0.1)
    loose = choose_threshold(scores, agrees, max_disagreement=min(0.9, 2 * alpha), delta=0.1)
    assert loose.threshold <= strict.threshold
    assert loose.coverage >= strict.coverage


# Several exits


def _population(stretches: int = 15, share: float = 0.053, size: int = 50_000) -> tuple[np.ndarray, np.ndarray]:
    """Two exits that are too often wrong at every threshold but the strictest, each time on other samples.

    A sample of a stretch of thresholds gets its first exit's confidence, which is right, from below the stretch and the
    second exit's, which is wrong, from its top: it is wrong within the stretch only. The remaining samples are wrong below
    all stretches.
    """
    rng = np.random.default_rng(3)
    stretch = rng.choice(stretches + 1, size, p=[*[share] * stretches, 1 - stretches * share])
    top = 1 - stretch * 0.5 / stretches
    scores = np.stack([np.where(stretch < stretches, top - 0.5 / stretches, 0.5), top], axis=1)
    agrees = np.stack([stretch < stretches, stretch == 0], axis=1)
    return scores, agrees


def _risk(scores: np.ndarray, agrees: np.ndarray, threshold: float) -> float:
    by = answered_by(scores, threshold)
    return float(((by >= 0) & ~agrees[np.arange(len(by)), by]).mean())


def test_with_several_exits_the_promise_is_broken_no_more_often_than_delta() -> None:
    alpha, delta, draws = 0.05, 0.1, 300
    scores, agrees = _population()
    rng = np.random.default_rng(11)
    violations, covered = 0, []
    for _ in range(draws):
        rows = rng.integers(0, len(scores), 300)
        choice = choose_threshold(scores[rows], agrees[rows], max_disagreement=alpha, delta=delta)
        violations += _risk(scores, agrees, choice.threshold) > alpha
        covered.append(choice.coverage)
    assert violations / draws <= delta + 3 * math.sqrt(delta * (1 - delta) / draws)
    assert np.median(covered) > 0.03


def test_with_several_exits_that_are_right_about_themselves_the_promise_is_kept_and_much_is_covered() -> None:
    alpha, delta, draws = 0.05, 0.1, 200
    rng = np.random.default_rng(5)
    first, second = rng.uniform(0.3, 1, 50_000), rng.uniform(0.3, 1, 50_000)
    scores = np.stack([first, second], axis=1)
    agrees = np.stack([rng.uniform(size=50_000) < first, rng.uniform(size=50_000) < second], axis=1)
    choices = []
    for _ in range(draws):
        rows = rng.integers(0, len(scores), 500)
        choices.append(choose_threshold(scores[rows], agrees[rows], max_disagreement=alpha, delta=delta))
    broken = np.mean([_risk(scores, agrees, choice.threshold) > alpha for choice in choices])
    assert broken <= delta + 3 * math.sqrt(delta * (1 - delta) / draws)
    # one such exit alone covers 0.25 to 0.38
    assert np.median([choice.coverage for choice in choices]) > 0.38


def test_a_lower_threshold_that_would_pass_again_behind_a_failure_is_not_taken() -> None:
    n = 500
    # The second exit is wrong and sure, the first one right and less sure: only above .8 anything goes wrong.
    scores = np.tile([0.8, 0.99], (n, 1))
    agrees = np.tile([True, False], (n, 1))
    assert _risk(scores, agrees, 0.7) == 0
    choice = choose_threshold(scores, agrees, max_disagreement=0.05, delta=0.05)
    assert choice.coverage == 0
    assert choice.threshold == ESCALATE_ALL
    assert tolerated_threshold(scores, agrees, 0.05) == ESCALATE_ALL


def test_with_several_exits_the_threshold_is_one_that_was_tested_and_so_were_all_stricter_ones() -> None:
    rng = np.random.default_rng(2)
    scores = rng.uniform(0.3, 1, (800, 3))
    agrees = rng.uniform(size=scores.shape) < scores**0.5
    choice = choose_threshold(scores, agrees, max_disagreement=0.05, delta=0.05)
    position = int(np.flatnonzero(choice.threshold == GRID)[0])
    for threshold in GRID[: position + 1]:
        wrong = round(_risk(scores, agrees, float(threshold)) * 800)
        assert risk_bound(wrong, 800, 0.05) <= 0.05
    by = answered_by(scores, choice.threshold)
    assert choice.accepted == (by >= 0).sum()
    assert choice.disagreements == round(_risk(scores, agrees, choice.threshold) * 800)
    assert choice.bound == risk_bound(choice.disagreements, 800, 0.05)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_disagreements_are_counted_as_a_head_would_make_them(seed: int, exits: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0, 1, (40, exits)).round(2)
    scores[rng.uniform(size=scores.shape) < 0.2] = np.nan
    agrees = rng.uniform(size=scores.shape) < 0.7
    tolerated = float(rng.uniform(0, 0.4))
    threshold = tolerated_threshold(scores, agrees, tolerated)
    risks = [_risk(scores, agrees, float(value)) for value in GRID]
    kept = next((number for number, risk in enumerate(risks) if risk > tolerated), len(GRID))
    lowest = GRID[kept - 1] if kept else ESCALATE_ALL
    assert (answered_by(scores, threshold) >= 0).sum() == (answered_by(scores, lowest) >= 0).sum()
    assert _risk(scores, agrees, threshold) <= tolerated


def test_one_column_is_the_same_as_none() -> None:
    scores, agrees = _draw(np.random.default_rng(1), 1000)
    plain = choose_threshold(scores, agrees, max_disagreement=0.05, delta=0.05)
    assert choose_threshold(scores[:, None], agrees[:, None], max_disagreement=0.05, delta=0.05) == plain


def test_an_exit_that_is_never_sure_changes_nothing_but_the_grid() -> None:
    scores, agrees = _draw(np.random.default_rng(1), 1000)
    plain = choose_threshold(scores, agrees, max_disagreement=0.05, delta=0.05)
    silent = np.stack([np.full(1000, np.nan), scores], axis=1)
    both = choose_threshold(silent, np.stack([agrees, agrees], axis=1), max_disagreement=0.05, delta=0.05)
    assert (both.accepted, both.disagreements) == (plain.accepted, plain.disagreements)


@pytest.mark.parametrize("shape", [(3, 0), (3, 2, 2)])
def test_tables_without_exits_or_of_more_dimensions_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MeshError) as caught:
        choose_threshold(np.zeros(shape), np.zeros(shape), max_disagreement=0.1, delta=0.1)
    assert caught.value.reason is Reason.FIELD_INVALID
