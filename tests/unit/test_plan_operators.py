"""Plans for an edge that cannot run every operator: what is refused, what wins instead, and what bounds it."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitmesh.errors import MeshError, Reason
from splitmesh.model.plan import Constraints, Kind, Link, Objective, Plan, Workload, make_plan
from splitmesh.model.plan_chain import Tier, plan_chain
from splitmesh.model.profile_data import Profile
from tests.unit.plan_profiles import FLOAT, QUANTISED, Op, crossing, graphs, heads, surveyed

CHAIN = [
    Op((-1,), 2, 2, 9_000),
    Op((0,), 3, 3, 4_000, type="Relu"),
    Op((1,), 4, 4, 500, type="GridSample"),
    Op((2,), 5, 5, 1, type="Gemm"),
]
LINK = Link(8, 1)
STAYS = Constraints(picture_stays_on_site=True)


def _lacking(*operators: str) -> Constraints:
    return replace(STAYS, unsupported_on_edge=frozenset(operators))


def _plan(profile: Profile, limits: Constraints, workload: Workload | None = None) -> Plan:
    return make_plan(profile, LINK, workload or Workload(), limits, edge_slowdown=0.1, cloud_speedup=0.1)


def test_heads_with_such_an_operator_are_refused_and_so_is_edge_only() -> None:
    profile = surveyed(CHAIN)
    assert _plan(profile, STAYS).best.kind is Kind.EDGE_ONLY
    plan = _plan(profile, _lacking("GridSample", "LSTM"))
    assert plan.best.cut == ("t1",)
    refused = {option.cut: option.refused_because for option in plan.options}
    assert refused[()] == refused["t2",] == "the edge cannot run GridSample"
    assert refused["t0",] is None
    assert plan.certificate is not None
    assert plan.certificate.gap_ms == pytest.approx(0, abs=1e-6)


def test_an_edge_that_lacks_the_first_operator_can_only_send_pictures() -> None:
    free = replace(_lacking("Conv"), picture_stays_on_site=False)
    assert _plan(surveyed(CHAIN), free, Workload({"as sent": 10**6})).best.kind is Kind.CLOUD_ONLY
    with pytest.raises(MeshError, match="the edge cannot run Conv") as caught:
        _plan(surveyed(CHAIN), _lacking("Conv"))
    assert caught.value.reason is Reason.PLAN_INFEASIBLE


def test_rounding_and_exits_put_operators_of_their_own_on_the_edge() -> None:
    profile = surveyed(CHAIN)
    cuts = tuple(
        cut.model_copy(update={"wire_bytes": {FLOAT: size, QUANTISED: size // 4}, "escalation": 0.1})
        for cut in profile.cuts
        for size in cut.wire_bytes.values()
    )
    profile = profile.model_copy(update={"cuts": cuts})
    limits = _lacking("GridSample", "Gemm", "QuantizeLinear")
    options = {(option.kind, option.cut, option.codec): option for option in _plan(profile, limits).options}
    assert options[Kind.SPLIT, ("t0",), FLOAT].feasible
    assert options[Kind.SPLIT, ("t0",), QUANTISED].refused_because == "the edge cannot run QuantizeLinear"
    assert options[Kind.CASCADE, ("t0",), FLOAT].refused_because == "the edge cannot run Gemm"


@settings(deadline=None, max_examples=80)
@given(graphs(most=5), st.data(), st.floats(0.1, 10), st.floats(0.1, 10))
def test_the_winner_is_the_best_of_all_cuts_that_the_edge_can_run(
    ops: list[Op], data: st.DataObject, slow: float, fast: float
) -> None:
    types = data.draw(st.lists(st.sampled_from("ABC"), min_size=len(ops), max_size=len(ops)))
    ops = [replace(op, type=kind) for op, kind in zip(ops, types, strict=True)]
    lacking = data.draw(st.sets(st.sampled_from("ABC"), max_size=2))
    limits = replace(STAYS, unsupported_on_edge=frozenset(lacking))
    able = [head for head in heads(ops) if not lacking & {ops[index].type for index in head}]
    prices = [
        sum(ops[i].head_ms for i in head) * slow
        + LINK.transfer_ms(sum(ops[i].size for i in crossing(ops, head)))
        + LINK.rtt_ms
        + sum(op.tail_ms for i, op in enumerate(ops) if i not in head) / fast
        for head in able
    ]
    if not lacking & {op.type for op in ops}:
        prices.append(sum(op.head_ms for op in ops) * slow)
    profile = surveyed(ops)
    if not prices:
        with pytest.raises(MeshError) as caught:
            make_plan(profile, LINK, Workload(), limits, edge_slowdown=slow, cloud_speedup=fast)
        assert caught.value.reason is Reason.PLAN_INFEASIBLE
        return
    plan = make_plan(profile, LINK, Workload(), limits, edge_slowdown=slow, cloud_speedup=fast)
    assert plan.best.latency_ms == pytest.approx(min(prices))
    assert plan.certificate is not None
    assert plan.certificate.lower_bound_ms == pytest.approx(min(prices))


@pytest.mark.parametrize("objective", list(Objective))
def test_only_the_first_of_a_chain_is_limited(objective: Objective) -> None:
    profile = surveyed(CHAIN)
    tiers = [Tier("edge", profile, 0.1), Tier("MEC", profile, 0.5), Tier("cloud", profile, 10)]
    links = [Link(100, 0.1), Link(100, 1)]
    free = plan_chain(tiers, links, Workload(), STAYS, objective)
    limited = plan_chain(tiers, links, Workload(), _lacking("GridSample"), objective)
    assert limited.best.tiers[0].cut == ("t1",) != free.best.tiers[0].cut
    assert limited.best.tiers[1].computes
    alone = next(option for option in limited.options if option.kind is Kind.EDGE_ONLY)
    assert alone.refused_because == "the edge cannot run GridSample"
    with pytest.raises(MeshError, match="the edge cannot run Conv"):
        plan_chain(tiers, links, Workload(), _lacking("Conv"), objective)


def test_a_profile_that_does_not_name_its_operators_is_refused() -> None:
    named = surveyed(CHAIN)
    nameless = tuple(node.model_copy(update={"operator": ""}) for node in named.nodes)
    for nodes in ((), nameless):
        profile = named.model_copy(update={"nodes": nodes})
        assert _plan(profile, STAYS).best.kind is Kind.EDGE_ONLY
        with pytest.raises(MeshError, match="lists the model's operators") as caught:
            _plan(profile, _lacking("GridSample"))
        assert caught.value.reason is Reason.FIELD_INVALID
    hosts = [Tier(str(index), profile) for index in range(3)]
    with pytest.raises(MeshError, match="lists the model's operators"):
        plan_chain(hosts, [LINK] * 2, Workload(), _lacking("GridSample"))
