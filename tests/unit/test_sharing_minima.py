"""Minima of applications, limits of nothing, and applications that have nothing to send."""

from __future__ import annotations

import math

import numpy as np
import pytest

from splitmesh.routing.sharing import NONE_CROSSES, Allocation, Limits, allocate
from tests.unit.shared_demands import demand


def test_a_minimum_crosses_first_with_its_worthiest_samples() -> None:
    found = allocate([demand("low", weight=0.01, min_share=0.375), demand("high")], Limits(4000.0))
    low = found.of("low")
    assert low.samples_per_s == pytest.approx(1.5)
    assert (low.least_worth, low.share) == pytest.approx((0.5, 0.5))
    assert low.why.endswith("only the minimum of 37.5% crosses")
    assert found.of("high").samples_per_s == pytest.approx(2.5)
    without = allocate([demand("low", weight=0.01), demand("high")], Limits(4000.0))
    assert without.of("low").samples_per_s == 0
    assert without.of("low").least_worth == NONE_CROSSES


def test_a_minimum_that_is_worth_its_bytes_anyway_changes_nothing() -> None:
    found = allocate([demand("a", min_share=0.5), demand("b")], Limits(5000.0))
    assert [one.samples_per_s for one in found.shares] == pytest.approx([2.5, 2.5])
    assert "minimum" not in found.of("a").why


def test_minima_that_do_not_fit_are_scaled_down_together_and_say_so() -> None:
    found = allocate([demand("a", min_share=1.0), demand("b", min_share=0.5, weight=9.0)], Limits(3000.0))
    assert found.of("a").samples_per_s == pytest.approx(2)
    assert found.of("b").samples_per_s == pytest.approx(1)
    for one in found.shares:
        assert "the minima together ask for more and are scaled down, this one to 50.0% of" in one.why


def test_a_minimum_that_takes_nothing_of_the_scarce_limit_is_not_scaled() -> None:
    cheap, dear = demand("cheap", min_share=0.5, bytes=0.0), demand("dear", min_share=1.0, weight=0.001)
    found = allocate([cheap, dear], Limits(1000.0, 60.0))
    assert found.of("cheap").samples_per_s == 4
    assert found.of("dear").samples_per_s == pytest.approx(1)


def test_an_application_whose_answers_would_be_late_sends_nothing_and_leaves_its_share_to_others() -> None:
    found = allocate([demand("late", weight=9.0, min_share=1.0, deadline_ok=False), demand("b")], Limits(3000.0))
    late = found.of("late")
    assert (late.samples_per_s, late.least_worth, late.sure_worth) == (0, NONE_CROSSES, NONE_CROSSES)
    assert "deadline" in late.why
    assert not late.crosses(math.nan, 0.0)
    assert found.of("b").samples_per_s == pytest.approx(3)


def test_nobody_who_demands_gets_nothing_and_costs_nothing() -> None:
    assert allocate([], Limits(0.0, 0.0)) == Allocation(0.0, 0.0, ())


def test_an_application_without_samples_is_told_from_which_worth_on_one_would_cross() -> None:
    idle = demand("idle", rates=np.zeros(4))
    found = allocate([idle, demand("busy")], Limits(2500.0))
    assert found.of("idle").why == "no hard samples now"
    assert found.of("idle").samples_per_s == 0
    assert found.of("idle").least_worth == 0.5  # .375 is what a sample costs, and not more than that
    assert allocate([idle], Limits(2000.0)).of("idle").least_worth == 0


def test_bins_without_samples_between_those_that_cross_cross_too() -> None:
    gaps = demand(rates=np.array([1.0, 0.0, 1.0, 0.0]))
    one = allocate([gaps], Limits(1500.0)).of("solder")
    assert (one.least_worth, one.share, one.samples_per_s) == pytest.approx((0, 0.5, 1.5))
    assert one.crosses(0.3, 0.999)
    assert one.crosses(0.9, 0.999)


def test_bins_without_samples_below_those_that_cross_cross_where_their_worth_pays() -> None:
    gaps = demand("gaps", rates=np.array([1.0, 0.0, 0.0, 1.0]))
    found = allocate([gaps, demand("busy")], Limits(3500.0))
    assert found.price_per_byte * 1000 == pytest.approx(0.375)
    assert found.of("gaps").least_worth == 0.5
    assert allocate([gaps], Limits(1e9)).of("gaps").least_worth == 0


@pytest.mark.parametrize(
    ("limits", "word"), [(Limits(0.0), "uplink"), (Limits(math.inf, 0.0), "cloud"), (Limits(0.0, 0.0), "uplink")]
)
def test_a_limit_of_zero_lets_nothing_through_that_needs_it(limits: Limits, word: str) -> None:
    found = allocate([demand("a", min_share=1.0), demand("idle", rates=np.zeros(4))], limits)
    assert word in found.of("a").why
    for one in found.shares:
        assert (one.samples_per_s, one.least_worth, one.crosses(1.0, 0.0)) == (0, NONE_CROSSES, False)
    assert found.price_per_byte * 1000 + found.price_per_ms * 10 >= 1
    assert math.isfinite(found.price_per_byte + found.price_per_ms)


def test_what_needs_no_bytes_crosses_with_the_uplink_gone() -> None:
    found = allocate([demand("here", bytes=0.0), demand("there")], Limits(0.0, 100.0))
    assert found.of("here").samples_per_s == 4
    assert found.of("there").samples_per_s == 0
