"""The always-valid test on pairs: how often it is wrong, how many pairs it needs, and that looking costs nothing."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.routing import paired_test
from splitmesh.routing.paired_test import PairedTest, Pairs, Verdict

TEST = PairedTest(margin=0.02, alpha=0.05)
RUNS = 200
MOST_PAIRS = 6_000


def pairs_of(differences: np.ndarray) -> Pairs:
    worse, better = int((differences == 1).sum()), int((differences == -1).sum())
    return Pairs(len(differences) - worse - better, worse, better, 0)


def runs(disagree: float, mean: float, batch: int, seed: int) -> tuple[Counter[Verdict], dict[Verdict, float]]:
    """Many trials, each looked at after every batch until something is shown: what was, after how many pairs in the median."""
    rng = np.random.default_rng(seed)
    share_worse, share_better = disagree / 2 + max(mean, 0), disagree / 2 + max(-mean, 0)
    shown: Counter[Verdict] = Counter()
    needed: dict[Verdict, list[int]] = {verdict: [] for verdict in Verdict}
    for _ in range(RUNS):
        drawn = rng.random(MOST_PAIRS)
        differences = np.where(drawn < share_worse, 1, np.where(drawn < share_worse + share_better, -1, 0))
        total, end, verdict = Pairs(), 0, Verdict.OPEN
        while verdict is Verdict.OPEN and end < MOST_PAIRS:
            total += pairs_of(differences[end : end + batch])
            end += batch
            verdict = TEST.verdict(total)
        shown[verdict] += 1
        needed[verdict].append(end)
    return shown, {verdict: float(np.median(ends)) for verdict, ends in needed.items() if ends}


@pytest.mark.parametrize("batch", [8, 32, 500])
def test_a_candidate_as_good_as_what_serves_is_promoted_nearly_always(batch: int) -> None:
    shown, pairs = runs(disagree=0.01, mean=0.0, batch=batch, seed=1)
    assert shown[Verdict.NOT_WORSE] >= 0.98 * RUNS
    assert pairs[Verdict.NOT_WORSE] <= max(450, batch)


@pytest.mark.parametrize("batch", [8, 32, 500])
def test_a_candidate_that_is_wrong_five_points_more_often_is_rolled_back_every_time(batch: int) -> None:
    shown, pairs = runs(disagree=0.01, mean=0.05, batch=batch, seed=2)
    assert shown[Verdict.WORSE] == RUNS
    assert pairs[Verdict.WORSE] <= max(250, batch)


@pytest.mark.parametrize(("disagree", "batch"), [(0.01, 8), (0.05, 32), (0.15, 32)])
def test_one_that_is_worse_by_the_whole_margin_is_promoted_at_most_as_often_as_allowed(
    disagree: float, batch: int
) -> None:
    shown, _ = runs(disagree=disagree, mean=TEST.margin, batch=batch, seed=3)
    assert shown[Verdict.NOT_WORSE] <= TEST.alpha * RUNS


@pytest.mark.parametrize(("disagree", "batch"), [(0.02, 8), (0.1, 32), (0.3, 32)])
def test_one_that_is_not_worse_is_rolled_back_at_most_as_often_as_allowed(disagree: float, batch: int) -> None:
    shown, _ = runs(disagree=disagree, mean=0.0, batch=batch, seed=4)
    assert shown[Verdict.WORSE] <= TEST.alpha * RUNS


@pytest.mark.parametrize("bet", [TEST.worse, TEST.not_worse], ids=["worse", "not worse"])
def test_nobody_can_expect_to_gain_while_the_claim_holds(bet) -> None:  # type: ignore[no-untyped-def]
    # On the claim's edge the expected wealth stays 1: summed over every sequence of three pairs, weighted by its probability.
    mean = TEST.margin if bet == TEST.not_worse else 0.0
    share = {1: 0.1 + mean, -1: 0.1, 0: 0.8 - mean}
    expected = 0.0
    for first in share:
        for second in share:
            for third in share:
                found = pairs_of(np.array([first, second, third]))
                expected += share[first] * share[second] * share[third] * bet(found)
    assert expected == pytest.approx(1.0, abs=1e-12)


def test_wealth_is_the_same_in_whatever_batches_and_order_pairs_came() -> None:
    whole = Pairs(500, 7, 9, 21)
    parts = Pairs(0, 7, 0, 20) + Pairs(499, 0, 4, 0) + Pairs(1, 0, 5, 1)
    assert parts == whole
    assert TEST.worse(parts) == TEST.worse(whole)


def test_pairs_on_which_both_are_wrong_say_as_little_as_those_on_which_both_are_right() -> None:
    assert TEST.worse(Pairs(10, 3, 1, 90)) == TEST.worse(Pairs(90, 3, 1, 10))


def test_before_the_first_pair_nothing_is_shown() -> None:
    assert TEST.worse(Pairs()) == TEST.not_worse(Pairs()) == pytest.approx(1.0)
    assert TEST.verdict(Pairs()) is Verdict.OPEN
    assert math.isnan(Pairs().serving_loss)


def test_a_candidate_that_is_worse_by_less_than_the_margin_passes_where_both_are_shown() -> None:
    both = Pairs(1_000_000, 40_000, 30_000, 0)
    assert min(TEST.worse(both), TEST.not_worse(both)) > TEST.needed
    assert TEST.verdict(both) is Verdict.NOT_WORSE


def test_millions_of_pairs_overflow_nothing() -> None:
    assert TEST.worse(Pairs(0, 10**9, 0, 0)) == paired_test.MAX_WEALTH
    assert 0 <= TEST.not_worse(Pairs(0, 10**9, 0, 0)) < 1e-9


def test_losses_are_the_shares_of_wrong_answers() -> None:
    pairs = Pairs(both_right=80, only_serving_right=10, only_candidate_right=6, both_wrong=4)
    assert (pairs.serving_loss, pairs.candidate_loss) == (0.1, 0.14)


@pytest.mark.parametrize(("margin", "alpha", "field"), [(0, 0.05, "margin"), (1, 0.05, "margin"), (0.02, 1, "alpha")])
def test_a_margin_or_a_probability_out_of_range_is_refused(margin: float, alpha: float, field: str) -> None:
    with pytest.raises(MeshError) as caught:
        PairedTest(margin, alpha)
    assert caught.value.reason is Reason.FIELD_INVALID
    assert caught.value.fields[0][0] == field
