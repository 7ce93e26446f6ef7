"""The threshold's promise, in closed form and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from splitmesh.errors import MeshError, Reason
from splitmesh.model.gate import ESCALATE_ALL
from splitmesh.model.threshold import GRID, choose_threshold, risk_bound, samples_needed


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
