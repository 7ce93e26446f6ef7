"""The winner at every uplink rate, against a dense scan."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitmesh.model.plan import Constraints, Link, Objective, Workload, make_plan
from splitmesh.model.plan_sweep import Curve, Region, winners
from tests.unit.plan_profiles import Op, surveyed

CURVES = st.lists(
    st.builds(Curve, st.floats(1, 100), st.floats(0, 1e5), st.floats(0, 5), st.floats(0, 50)), min_size=1, max_size=8
)


@given(CURVES, st.sampled_from(list(Objective)), st.floats(1, 200) | st.just(math.inf))
def test_no_rate_has_a_better_option_than_its_region_says(
    curves: list[Curve], objective: Objective, max_link_ms: float
) -> None:
    regions = winners(curves, 0.1, 1000.0, objective, max_link_ms)
    assert (regions[0].low_mbps, regions[-1].high_mbps) == (0.1, 1000.0)
    assert all(one.high_mbps == other.low_mbps for one, other in itertools.pairwise(regions))
    for rate in np.geomspace(0.1001, 999, 300):
        at = np.array([rate])
        region = next(entry for entry in regions if entry.low_mbps <= rate <= entry.high_mbps)
        values = [
            float((curve.latency_ms if objective is Objective.LATENCY else curve.busiest_ms)(at)[0])
            if rate >= curve.least_mbps(max_link_ms)
            else math.inf
            for curve in curves
        ]
        if region.winner is None:
            assert min(values) == math.inf
        else:
            assert values[region.winner] == pytest.approx(min(values), rel=1e-6)


def test_the_rate_at_which_splitting_begins_to_pay_is_exact() -> None:
    edge, split = Curve(10.0, 0.0), Curve(4.0, 750.0)
    # 8 * 750 / rate = 6000 / rate kbit/s = 6 ms at 1 Mbit/s
    slow, fast = winners([edge, split], 0.1, 1000)
    assert (slow.winner, fast.winner) == (0, 1)
    assert slow.high_mbps == fast.low_mbps == pytest.approx(1.0)


def test_an_option_ends_where_the_uplink_no_longer_carries_the_line() -> None:
    sends = Curve(4.0, 750.0, link_base_ms=0.5)
    (none, carries) = winners([sends], 0.1, 1000, max_link_ms=2.5)
    assert (none.winner, carries.winner) == (None, 0)
    assert carries.low_mbps == pytest.approx(3.0)
    assert winners([], 0.1, 10) == [Region(0.1, 10, None)]


def test_curves_follow_the_planner() -> None:
    """A curve taken from a plan at one rate gives the plan's latency at another."""
    profile = surveyed([Op((-1,), 2, 2, 9_000), Op((0,), 3, 3, 400), Op((1,), 5, 5, 1)])
    load = Workload({"as sent": 3000}, escalation=0.3)

    def latencies(rate: float) -> dict[str, float]:
        plan = make_plan(profile, Link(rate, 5), load, Constraints())
        return {option.name: option.latency_ms for option in plan.options}

    plan = make_plan(profile, Link(7, 5), load, Constraints())
    there = latencies(40)
    for option in plan.options:
        base = option.latency_ms - 8 * option.uplink_bytes / 7e3
        assert Curve(base, option.uplink_bytes).latency_ms(np.array([40.0]))[0] == pytest.approx(there[option.name])
