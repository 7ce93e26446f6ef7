"""Applications that share an uplink and a cloud: who gets what, and why."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from splitmesh.errors import MeshError, Reason
from splitmesh.routing.demand import Demand
from splitmesh.routing.sharing import Allocation, Limits, Share, allocate
from tests.unit.shared_demands import demand, random_demands, totals


def crossing(one: Share, asked: Demand) -> float:
    """Samples a second when worths are spread evenly in their bins' middles and ``Share.crosses`` decides."""
    draws = (np.arange(400) + 0.5) / 400
    parts = [np.mean([one.crosses(float(worth), float(draw)) for draw in draws]) for worth in asked.worths]
    return float(np.dot(asked.rates, parts))


def reference(demands: list[Demand], limits: Limits) -> float | None:
    """The linear program with minima as constraints; None where they do not fit."""
    owner = np.repeat(np.arange(len(demands)), [len(one.rates) for one in demands])
    rates = np.concatenate([one.rates for one in demands])
    gains = np.concatenate([one.weight * one.worths for one in demands])
    rows = [rates * np.array([getattr(one, name) for one in demands])[owner] for name in ("bytes", "cloud_ms")]
    minima = [-rates * (owner == index) for index in range(len(demands))]
    least = [-one.min_share * one.rates.sum() for one in demands]
    found = linprog(
        -gains * rates,
        A_ub=np.stack([*rows, *minima]),
        b_ub=[limits.bytes_per_s, limits.cloud_ms_per_s, *least],
        bounds=(0, 1),
    )
    return -float(found.fun) if found.success else None


def value(found: Allocation) -> float:
    return sum(one.value_per_s for one in found.shares)


def test_the_value_with_minima_is_that_of_a_linear_program() -> None:
    rng = np.random.default_rng(11)
    compared = 0
    for _ in range(200):
        demands = random_demands(rng, int(rng.integers(1, 8)))
        limits = Limits(*(float(total * rng.uniform(0.05, 1.2)) for total in totals(demands)))
        expected = reference(demands, limits)
        if expected is not None:
            assert value(allocate(demands, limits)) == pytest.approx(expected, rel=1e-6, abs=1e-9)
            compared += 1
    assert compared >= 150


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.floats(0, 2), st.floats(0, 2), st.floats(0, 1))
def test_no_limit_is_ever_exceeded(seed: int, count: int, of_bytes: float, of_ms: float, least: float) -> None:
    rng = np.random.default_rng(seed)
    demands = [
        Demand(one.application, one.weight, least, one.rates, one.edges, one.bytes, one.cloud_ms)
        for one in random_demands(rng, count)
    ]
    all_bytes, all_ms = totals(demands)
    limits = Limits(of_bytes * all_bytes, of_ms * all_ms)
    found = allocate(demands, limits)
    assert sum(one.bytes_per_s for one in found.shares) <= limits.bytes_per_s
    assert sum(one.cloud_ms_per_s for one in found.shares) <= limits.cloud_ms_per_s
    for one, asked in zip(found.shares, demands, strict=True):
        assert 0 <= one.samples_per_s <= asked.rates.sum() * (1 + 1e-12)
        assert one.bytes_per_s == one.samples_per_s * asked.bytes
        assert one.cloud_ms_per_s == one.samples_per_s * asked.cloud_ms


def test_the_thresholds_let_through_what_was_allotted() -> None:
    rng = np.random.default_rng(12)
    for _ in range(20):
        demands = random_demands(rng, 4)
        limits = Limits(*(float(total * rng.uniform(0.1, 0.9)) for total in totals(demands)))
        for one, asked in zip(allocate(demands, limits).shares, demands, strict=True):
            assert crossing(one, asked) == pytest.approx(one.samples_per_s, abs=asked.rates.max() / 200 + 1e-9)


def test_one_application_gets_all_it_asks_for_where_there_is_room() -> None:
    asked = demand()
    for limits in (Limits(), Limits(5000.0), Limits(4001.0, 41.0)):
        found = allocate([asked], limits)
        one = found.of("solder")
        assert (found.price_per_byte, found.price_per_ms) == (0, 0)
        assert (one.least_worth, one.share, one.samples_per_s) == (0, 1, 4)
        assert one.value_per_s == pytest.approx(2.0)
        assert one.why == "all of 4 hard samples a second cross"


def test_one_application_over_its_limit_sends_the_worthiest_and_names_the_limit() -> None:
    one = allocate([demand()], Limits(1500.0, 1000.0)).of("solder")
    assert (one.least_worth, one.sure_worth, one.share) == pytest.approx((0.5, 0.75, 0.5))
    assert "1500 bytes/s of uplink" in one.why
    assert "cloud" not in one.why
    one = allocate([demand()], Limits(5000.0, 25.0)).of("solder")
    assert (one.least_worth, one.sure_worth, one.share) == pytest.approx((0.25, 0.5, 0.5))
    assert "25 ms/s of cloud time" in one.why
    assert "uplink" not in one.why


def test_where_both_limits_bind_both_have_a_price_and_are_named() -> None:
    wide, slow = demand("wide", bytes=2000.0, cloud_ms=1.0), demand("slow", bytes=100.0, cloud_ms=50.0)
    found = allocate([wide, slow], Limits(4500.0, 110.0))
    assert found.price_per_byte > 0
    assert found.price_per_ms > 0
    assert sum(one.bytes_per_s for one in found.shares) == pytest.approx(4500)
    assert sum(one.cloud_ms_per_s for one in found.shares) == pytest.approx(110)
    assert "bytes/s of uplink and 110 ms/s of cloud time" in found.of("slow").why


def test_small_samples_cross_before_large_ones_of_the_same_worth() -> None:
    found = allocate([demand("small", bytes=100.0), demand("large", bytes=1000.0)], Limits(1000.0))
    assert found.of("small").samples_per_s == 4
    assert found.of("large").samples_per_s == pytest.approx(0.6)


def test_a_higher_weight_gets_more_and_equal_ones_the_same() -> None:
    equal = allocate([demand("a"), demand("b")], Limits(3000.0))
    assert equal.of("a").samples_per_s == pytest.approx(1.5)
    assert equal.of("b").samples_per_s == pytest.approx(1.5)
    urgent = allocate([demand("a", weight=3.0), demand("b")], Limits(3000.0))
    assert urgent.of("a").samples_per_s > 1.9
    assert urgent.of("a").samples_per_s + urgent.of("b").samples_per_s == pytest.approx(3)


def test_the_order_of_the_demands_does_not_matter() -> None:
    demands = random_demands(np.random.default_rng(13), 7)
    limits = Limits(*(total * 0.3 for total in totals(demands)))
    there, back = allocate(demands, limits), allocate(demands[::-1], limits)
    for one in demands:
        assert there.of(one.application).samples_per_s == pytest.approx(back.of(one.application).samples_per_s)


def test_a_limit_halved_lowers_shares_at_once() -> None:
    demands = [demand("a"), demand("b", weight=2.0)]
    before, after = allocate(demands, Limits(6000.0)), allocate(demands, Limits(3000.0))
    assert sum(one.bytes_per_s for one in before.shares) == pytest.approx(6000)
    assert sum(one.bytes_per_s for one in after.shares) == pytest.approx(3000)
    assert after.price_per_byte > before.price_per_byte


def test_a_worth_that_is_not_known_crosses_like_the_worthiest() -> None:
    one = Share("a", 0.5, 0.75, 0.25, 1, 1, 1, 1, "")
    assert one.crosses(math.nan, 0.999)
    assert one.crosses(0.75, 0.999)
    assert one.crosses(0.6, 0.2)
    assert not one.crosses(0.6, 0.25)
    assert not one.crosses(0.49, 0.0)
    only_some = allocate([demand()], Limits(250.0)).of("solder")
    assert only_some.crosses(math.nan, 0.2)
    assert not only_some.crosses(1.0, 0.3)


def refused(call: Any) -> str:
    with pytest.raises(MeshError) as caught:
        call()
    assert caught.value.reason is Reason.FIELD_INVALID
    return str(caught.value.fields[0][0])


def test_limits_and_demands_out_of_range_are_refused() -> None:
    assert refused(lambda: Limits(-1.0)) == "bytes_per_s"
    assert refused(lambda: Limits(math.inf, math.nan)) == "cloud_ms_per_s"
    assert refused(lambda: allocate([demand("a"), demand("a")], Limits())) == "demands"
    assert refused(lambda: allocate([demand(str(index)) for index in range(1001)], Limits())) == "demands"
    assert refused(lambda: allocate([demand("a")], Limits()).of("b")) == "application"
