"""Plans over graphs: the certificate against brute force, cuts that the table lacks, and two profiles."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitmesh.errors import MeshError, Reason
from splitmesh.model.plan import Constraints, Kind, Link, Objective, Plan, Workload, make_plan
from splitmesh.model.plan_costing import Costing
from splitmesh.model.plan_graph import before, crossing_nodes, summed_cut
from splitmesh.model.profile_data import Profile
from tests.unit.plan_profiles import FLOAT, QUANTISED, Op, crossing, graphs, heads, picture, surveyed

LINKS = st.builds(Link, st.floats(0.05, 1000), st.floats(0, 100), st.floats(0, 5))
FACTORS = st.floats(0.1, 20)
FREE = Constraints()

TWO_BRANCHES = [
    Op((-1,), 1, 1, 50_000),
    Op((0,), 5, 5, 40_000),
    Op((1,), 5, 5, 100),  # ends the left branch: small
    Op((0,), 5, 5, 40_000),
    Op((3,), 5, 5, 100),  # ends the right branch: small
    Op((2, 4), 10, 10, 1),
    Op((5,), 10, 10, 1),
]


def _latency(ops: list[Op], head: frozenset[int], link: Link, slow: float, fast: float, pack: float) -> float:
    """Written down again from the formulas."""
    size = sum(ops[index].size for index in crossing(ops, head))
    edge = slow * (sum(ops[index].head_ms for index in head) + pack * size)
    cloud = (sum(op.tail_ms for index, op in enumerate(ops) if index not in head) + pack * size) / fast
    return edge + link.message_overhead_ms + 8 * size / (link.uplink_mbps * 1e3) + link.rtt_ms + cloud


@settings(deadline=None)
@given(graphs(), LINKS, FACTORS, FACTORS, st.floats(0, 1e-4))
def test_the_bound_is_the_best_of_all_cuts_whatever_the_table_holds(
    ops: list[Op], link: Link, slow: float, fast: float, pack: float
) -> None:
    every = list(heads(ops))
    profile = surveyed(ops, pack_ms_per_byte=pack, left_out=every[::2])
    plan = make_plan(profile, link, Workload(), FREE, edge_slowdown=slow, cloud_speedup=fast)
    if len(profile.cuts) < len(every) and not profile.cuts:
        pack = 0.0  # no cut is known, and with it no time of packing
    best = min([profile.whole_ms * slow, *(_latency(ops, head, link, slow, fast, pack) for head in every)])
    assert plan.certificate is not None
    assert plan.certificate.lower_bound_ms == pytest.approx(best, rel=1e-6)
    assert best * (1 - 1e-6) <= plan.best.latency_ms <= best * 1.0204
    assert plan.certificate.gap_ms == pytest.approx(plan.best.latency_ms - plan.certificate.lower_bound_ms)


@settings(deadline=None)
@given(graphs(), LINKS, FACTORS, FACTORS)
def test_throughput_is_at_most_what_the_bound_allows_and_ranks_by_it(
    ops: list[Op], link: Link, slow: float, fast: float
) -> None:
    plan = make_plan(
        surveyed(ops),
        link,
        Workload({"as sent": 20_000}),
        FREE,
        edge_slowdown=slow,
        cloud_speedup=fast,
        objective=Objective.THROUGHPUT,
    )
    rates = [option.throughput_fps for option in plan.options]
    assert rates == sorted(rates, reverse=True)
    assert plan.certificate is not None
    # packing takes no time here, so that nothing is left out of the bound
    assert plan.certificate.lower_bound_ms == pytest.approx(1e3 / rates[0], rel=1e-4)


@settings(deadline=None)
@given(graphs())
def test_operators_add_up_to_the_fused_times_of_every_cut(ops: list[Op]) -> None:
    profile = surveyed(ops, pack_ms_per_byte=1e-5)
    for cut, head in zip(profile.cuts, heads(ops), strict=True):
        found = summed_cut(
            profile, sorted(head), crossing_nodes(profile.nodes, [i not in head for i in range(len(ops))], 0)
        )
        assert found is not None
        assert found.tensors == cut.tensors
        assert (found.head_ms, found.tail_ms) == pytest.approx((cut.head_ms, cut.tail_ms))
        assert found.wire_bytes == cut.wire_bytes
        assert found.encode_ms[FLOAT] == pytest.approx(cut.encode_ms[FLOAT])


def test_a_cut_through_two_branches_that_the_table_lacks_is_offered_and_marked() -> None:
    neck = frozenset({0, 1, 2, 3, 4})
    profile = surveyed(TWO_BRANCHES, left_out=[neck, neck | {5}])
    link = Link(1, 5)
    plan = make_plan(profile, link, Workload(), FREE, edge_slowdown=1, cloud_speedup=20)
    assert (plan.best.kind, plan.best.cut, plan.best.measured) == (Kind.SPLIT, ("t2", "t4"), False)
    assert plan.best.latency_ms == pytest.approx(_latency(TWO_BRANCHES, neck, link, 1, 20, 0))
    assert plan.best.head_bytes == 5000
    assert "interpolated" in plan.why
    assert "no cut of the graph can beat it, by these times (min-cut)" in plan.why
    cascade = next(
        option for option in make_plan(profile, link, Workload(escalation=0.1), FREE, cloud_speedup=20).options
    )
    assert (cascade.kind, cascade.cut) == (Kind.CASCADE, ("t2", "t4"))


def test_without_a_graph_nothing_is_certified() -> None:
    plan = make_plan(surveyed(TWO_BRANCHES, nodes=()), Link(1, 5), Workload(), FREE)
    assert plan.certificate is None
    assert "no cut of the graph" not in plan.why
    other = surveyed(TWO_BRANCHES[:-1])
    assert make_plan(surveyed(TWO_BRANCHES), Link(1, 5), Workload(), FREE, cloud=other).certificate is None


@settings(deadline=None)
@given(graphs(), LINKS, FACTORS, st.floats(0, 1), st.data())
def test_behind_an_exit_everything_weighs_by_the_share_that_goes_on(
    ops: list[Op], link: Link, fast: float, share: float, data: st.DataObject
) -> None:
    every = list(heads(ops))
    if not every:
        return
    head = data.draw(st.sampled_from(every))
    keep = crossing(ops, head)
    profile = surveyed(ops)
    cuts = tuple(
        cut.model_copy(update={"escalation": share} if cut.tensors == tuple(f"t{i}" for i in keep) else {})
        for cut in profile.cuts
    )
    plan = make_plan(profile.model_copy(update={"cuts": cuts}), link, Workload(), FREE, cloud_speedup=fast)
    ungated = [profile.whole_ms, *(_latency(ops, other, link, 1, fast, 0) for other in every)]
    if plan.best.kind is not Kind.CASCADE:
        return
    first = before(profile.nodes, plan.best.cut)
    assert first is not None
    always = sum(ops[index].head_ms for index in first)
    gated = [always + share * (_latency(ops, other, link, 1, fast, 0) - always) for other in every if first <= other]
    assert plan.certificate is not None
    assert plan.certificate.lower_bound_ms == pytest.approx(min(*ungated, *gated), rel=1e-6)


def test_a_later_cut_behind_the_same_exit_counts_in_the_bound() -> None:
    profile = surveyed(CHAIN)
    first, *others = profile.cuts
    cuts = (first.model_copy(update={"escalation": 0.5}), *others)
    plan = make_plan(profile.model_copy(update={"cuts": cuts}), Link(8, 1, 0.5), Workload(), FREE, cloud_speedup=100)
    assert (plan.best.kind, plan.best.cut) == (Kind.CASCADE, ("t0",))
    assert plan.best.latency_ms == pytest.approx(2 + 0.5 * (0.5 + 9 + 1 + 12 / 100))
    assert plan.certificate is not None
    # the exit after t0, and for the half that goes on t1 on the edge too: no head of today does that
    assert plan.certificate.lower_bound_ms == pytest.approx(2 + 0.5 * (3 + 0.5 + 4 + 1 + 9 / 100))
    assert "no cut of the graph can beat it by more than 1.02 ms" in plan.why


CHAIN = [Op((-1,), 2, 2, 9_000), Op((0,), 3, 3, 4_000), Op((1,), 4, 4, 500, 8_000), Op((2,), 5, 5, 1)]


def _best(profile: Profile, limits: Constraints) -> Plan:
    load = Workload({"as sent": 3_000})
    return make_plan(profile, Link(8, 1), load, limits, edge_slowdown=10, cloud_speedup=10)


def test_a_pin_a_ceiling_and_a_budget_move_the_winner_and_the_bound_with_it() -> None:
    profile = surveyed(CHAIN)
    cuts = tuple(
        cut.model_copy(update={"leakage": leak}) for cut, leak in zip(profile.cuts, (0.9, 0.4, None), strict=True)
    )
    profile = profile.model_copy(update={"cuts": cuts})
    assert _best(profile, FREE).best.kind is Kind.CLOUD_ONLY
    stays = Constraints(picture_stays_on_site=True)
    assert _best(profile, stays).best.cut == ("t0",)
    for limits, winner, refused in (
        (replace(stays, kept_on_edge=("t0",)), ("t1",), "t0 may not leave the edge"),
        (Constraints(max_leakage=0.5), ("t1",), "0.9 of the picture can be told from it (SSIM), at most 0.5 may"),
        (Constraints(max_leakage=0.5, kept_on_edge=("t1",)), (), "how much of the picture it leaks is not known"),
        (
            Constraints(picture_stays_on_site=True, frames_per_s=10, uplink_budget_bytes_per_s=50_000),
            ("t1",),
            "it uses 90000 bytes/s of the uplink, the budget is 50000",
        ),
        (replace(stays, kept_on_edge=("t0", "t1"), max_head_bytes=10_500), ("t2",), "at most 10500 fit"),
    ):
        plan = _best(profile, limits)
        assert plan.best.cut == winner
        assert any(refused in (option.refused_because or "") for option in plan.options)
        assert plan.certificate is not None
        # the graph's optimum under the same limits is the winner itself: no slack but the solver's rounding
        assert plan.certificate.gap_ms <= plan.best.latency_ms * 1e-4


def test_the_picture_itself_leaks_all_of_it() -> None:
    plan = _best(surveyed(CHAIN), Constraints(max_leakage=0.99))
    cloud = next(option for option in plan.options if option.kind is Kind.CLOUD_ONLY)
    assert cloud.refused_because == "the picture itself would cross, features may leak at most 0.99 of it"
    assert _best(surveyed(CHAIN), Constraints(max_leakage=1.0)).best.kind is Kind.CLOUD_ONLY


def test_a_wrong_name_of_a_tensor_to_keep_is_refused_rather_than_ignored() -> None:
    with pytest.raises(MeshError, match="'t00' is in no cut of this model; did you mean 't0'") as caught:
        _best(surveyed(CHAIN), Constraints(kept_on_edge=("t00",)))
    assert caught.value.reason is Reason.FIELD_INVALID


def test_the_cloud_has_a_profile_of_its_own() -> None:
    edge = surveyed(CHAIN, pictures={"jpeg q90": picture(900, encode_ms=2, decode_ms=7, agreement=0.9)})
    fast = surveyed(
        [replace(op, head_ms=op.head_ms / 2, tail_ms=op.tail_ms / 4) for op in CHAIN],
        pictures={"jpeg q90": picture(900, encode_ms=1, decode_ms=0.5, agreement=0.9)},
    )
    plan = make_plan(edge, Link(8, 1, 0), Workload(), FREE, cloud=fast, edge_slowdown=2, cloud_speedup=5)
    cloud = next(option for option in plan.options if option.kind is Kind.CLOUD_ONLY)
    assert cloud.stages.encode_ms == pytest.approx(4)
    assert cloud.stages.cloud_ms == pytest.approx((0.5 + 7) / 5)
    assert cloud.agreement == 0.9
    split = next(option for option in plan.options if option.cut == ("t1",))
    assert split.stages.edge_ms == pytest.approx(2 * 5)
    assert split.stages.cloud_ms == pytest.approx((4 + 5) / 4 / 5)
    assert split.measured
    lacking = fast.model_copy(update={"cuts": tuple(cut for cut in fast.cuts if cut.tensors != ("t1",))})
    plan = make_plan(edge, Link(8, 1, 0), Workload(), FREE, cloud=lacking, cloud_speedup=5)
    split = next(option for option in plan.options if option.cut == ("t1",))
    # half way between the tails of the cuts before and after it
    assert split.stages.cloud_ms == pytest.approx((12 / 4 + 5 / 4) / 2 / 5)
    assert not split.measured


def test_agreement_is_told_where_it_is_known() -> None:
    profile = surveyed(CHAIN)
    cut = profile.cuts[0].model_copy(
        update={
            "wire_bytes": {FLOAT: 9000, QUANTISED: 1000, "other": 900},
            "agreement": {QUANTISED: 0.98},
            "escalation": 0.25,
        }
    )
    profile = profile.model_copy(update={"cuts": (cut,), "nodes": ()})
    load = Workload({"as sent": 500, "jpeg q10": 100}, exit_disagreement=0.02)
    told = {
        (option.kind, option.codec): option.agreement for option in make_plan(profile, Link(8, 1), load, FREE).options
    }
    assert told == {
        (Kind.EDGE_ONLY, ""): 1.0,
        (Kind.CLOUD_ONLY, "as sent"): 1.0,
        (Kind.CLOUD_ONLY, "jpeg q10"): None,
        (Kind.SPLIT, FLOAT): 1.0,
        (Kind.SPLIT, QUANTISED): 0.98,
        (Kind.SPLIT, "other"): None,
        (Kind.CASCADE, FLOAT): pytest.approx(0.98),
        (Kind.CASCADE, QUANTISED): pytest.approx(1 - 0.02 - 0.25 * 0.02),
        (Kind.CASCADE, "other"): None,
    }
    plan = make_plan(profile, Link(8, 1), replace(load, exit_disagreement=None), FREE)
    assert {option.agreement for option in plan.options if option.kind is Kind.CASCADE} == {None}


def test_a_plan_comes_back_from_json_as_it_was() -> None:
    for objective in Objective:
        plan = make_plan(
            surveyed(CHAIN, whole_ms=0.0),
            Link(8, 1),
            Workload({"as sent": 500}, escalation=0.5),
            Constraints(
                kept_on_edge=("t0",), max_leakage=1.0, frames_per_s=0.1, unsupported_on_edge=frozenset({"LSTM", "GRU"})
            ),
            objective=objective,
        )
        assert math.isinf(max(option.throughput_fps for option in plan.options))
        assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"options": 3}', '{"options": [{}]}', '{"options": []}'])
def test_json_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(MeshError) as caught:
        Plan.from_json(text)
    assert caught.value.reason is Reason.FIELD_INVALID


def test_a_costing_with_factors_out_of_range_is_refused() -> None:
    profile = surveyed(CHAIN)
    with pytest.raises(MeshError, match="cloud_speedup"):
        Costing(profile, profile, Link(1, 1), Workload(), FREE, 1.0, math.inf)
