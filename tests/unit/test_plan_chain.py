"""Plans over chains of tiers against brute force over every placement of small graphs."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitmesh.errors import MeshError, Reason
from splitmesh.model.plan import Constraints, Kind, Link, Objective, Plan, Workload, make_plan
from splitmesh.model.plan_chain import Tier, plan_chain
from tests.unit.plan_profiles import Op, graphs, picture, surveyed

LINKS = st.builds(Link, st.floats(0.05, 1000), st.floats(0, 100), st.floats(0, 5))
FACTORS = st.floats(0.1, 20)
FREE = Constraints()
CHAIN = [Op((-1,), 2, 2, 9_000), Op((0,), 3, 3, 4_000), Op((1,), 4, 4, 500, 8_000), Op((2,), 5, 5, 1)]


def _placements(ops: Sequence[Op], tiers: int) -> Iterator[tuple[int, ...]]:
    """What segments can run: nothing is shipped back, the picture goes to one tier, all ends are on the last used."""
    read = {source for op in ops for source in op.sources}
    for at in itertools.product(range(tiers), repeat=len(ops)):
        forward = all(at[source] <= at[index] for index, op in enumerate(ops) for source in op.sources if source >= 0)
        pictured = {at[index] for index, op in enumerate(ops) if -1 in op.sources} == {min(at)}
        ended = {at[index] for index in range(len(ops)) if index not in read} == {max(at)}
        if forward and pictured and ended:
            yield at


def _price(
    ops: Sequence[Op], at: Sequence[int], slow: Sequence[float], links: Sequence[Link], sent: int
) -> tuple[float, float]:
    """Latency and busiest time, written down again from the formulas; nothing is packed."""
    used = sorted(set(at))
    busy = [0.0] * len(slow)
    for index, op in enumerate(ops):
        ms = (
            op.head_ms
            if at[index] == used[0]
            else op.tail_ms
            if at[index] == used[-1]
            else (op.head_ms + op.tail_ms) / 2
        )
        if len(used) == 1:
            ms = op.head_ms
        busy[at[index]] += ms * slow[at[index]]
    carried, waiting = [], 0.0
    for hop, link in enumerate(links):
        if hop >= used[-1]:
            continue
        size = (
            sent
            if hop < used[0]
            else sum(
                op.size
                for index, op in enumerate(ops)
                if at[index] <= hop and any(index in other.sources and at[j] > hop for j, other in enumerate(ops))
            )
        )
        carried.append(link.message_overhead_ms + 8 * size / (link.uplink_mbps * 1e3))
        waiting += link.rtt_ms
    return sum(busy) + sum(carried) + waiting, max([*busy, *carried])


def _plan(
    ops: list[Op], slow: Sequence[float], links: Sequence[Link], sent: int, objective: Objective = Objective.LATENCY
) -> Plan:
    profile = surveyed(ops)
    tiers = [Tier(f"tier{index}", profile, factor) for index, factor in enumerate(slow)]
    return plan_chain(tiers, links, Workload({"as sent": sent}), FREE, objective)


@settings(deadline=None, max_examples=60)
@given(
    graphs(most=5),
    st.lists(FACTORS, min_size=3, max_size=3),
    st.lists(LINKS, min_size=2, max_size=2),
    st.integers(1, 10**5),
)
def test_three_tiers_are_as_good_as_brute_force(ops: list[Op], slow: list[float], links: list[Link], sent: int) -> None:
    prices = {at: _price(ops, at, slow, links, sent)[0] for at in _placements(ops, 3)}
    plan = _plan(ops, slow, links, sent)
    assert plan.best.latency_ms == pytest.approx(min(prices.values()), rel=1e-6)
    assert plan.certificate is not None
    assert plan.certificate.lower_bound_ms == pytest.approx(min(prices.values()), rel=1e-6)
    for option in plan.options:
        used = tuple(index for index, share in enumerate(option.tiers) if share.computes)
        rivals = [price for at, price in prices.items() if tuple(sorted(set(at))) == used]
        assert option.latency_ms == pytest.approx(min(rivals), rel=1e-6)
        assert option.latency_ms == pytest.approx(sum(share.compute_ms + share.link_ms for share in option.tiers))


@settings(deadline=None, max_examples=25)
@given(
    graphs(most=4),
    st.lists(FACTORS, min_size=3, max_size=3),
    st.lists(LINKS, min_size=2, max_size=2),
    st.integers(1, 10**5),
)
def test_throughput_over_three_tiers_lies_between_its_bound_and_brute_force(
    ops: list[Op], slow: list[float], links: list[Link], sent: int
) -> None:
    best = min(_price(ops, at, slow, links, sent)[1] for at in _placements(ops, 3))
    plan = _plan(ops, slow, links, sent, Objective.THROUGHPUT)
    assert plan.certificate is not None
    assert plan.certificate.lower_bound_ms <= best * (1 + 1e-6)
    assert 1e3 / plan.best.throughput_fps >= best * (1 - 1e-6)
    assert 1e3 / plan.best.throughput_fps - plan.certificate.lower_bound_ms == pytest.approx(plan.certificate.gap_ms)


@settings(deadline=None, max_examples=40)
@given(graphs(), LINKS, FACTORS, FACTORS)
def test_a_chain_of_two_is_a_plan_of_two(ops: list[Op], link: Link, slow: float, fast: float) -> None:
    load, profile = Workload({"as sent": 5000}), surveyed(ops)
    chain = plan_chain([Tier("edge", profile, slow), Tier("cloud", profile, 1 / fast)], [link], load, FREE)
    pair = make_plan(profile, link, load, FREE, edge_slowdown=slow, cloud_speedup=fast)
    assert chain.best.latency_ms == pytest.approx(pair.best.latency_ms, rel=1e-6)


def test_a_plan_over_three_tiers_names_what_runs_where() -> None:
    links = [Link(8, 1, 0), Link(80, 20, 0)]
    profile = surveyed(CHAIN)
    tiers = [Tier("camera", profile, 2), Tier("MEC", profile), Tier("cloud", profile, 0.1)]
    plan = plan_chain(tiers, links, Workload({"as sent": 30_000}), Constraints(picture_stays_on_site=True))
    by_name = {option.name: option for option in plan.options}
    through = by_name["camera > t0 > cloud (float32+zstd)"]
    assert [share.cut for share in through.tiers] == [("t0",), ("t0",), ()]
    assert [share.uplink_bytes for share in through.tiers] == [9000, 9000, 0]
    assert [share.link_ms for share in through.tiers] == pytest.approx([10, 20.9, 0])
    assert (through.kind, through.cut, through.uplink_bytes, through.agreement) == (Kind.SPLIT, ("t0",), 9000, 1.0)
    assert through.measured
    assert by_name["camera only"].kind is Kind.EDGE_ONLY
    refused = {name: option.refused_because for name, option in by_name.items() if not option.feasible}
    assert set(refused) == {"MEC only (as sent)", "cloud only (as sent)", "MEC > t0 > cloud (as sent, float32+zstd)"}
    assert set(refused.values()) == {"the picture may not leave the site"}
    assert plan.why.startswith(plan.best.name)


def test_sending_the_picture_counts_in_the_bound() -> None:
    profile = surveyed(CHAIN)
    tiers = [Tier("camera", profile, 5), Tier("MEC", profile, 0.01), Tier("cloud", profile, 0.001)]
    for objective in Objective:
        dear = [Link(0.01, 0), Link(1000, 0)]
        plan = plan_chain(tiers, dear, Workload({"as sent": 30_000}), FREE, objective)
        assert plan.best.name == "camera only"
        assert plan.certificate is not None
        assert plan.certificate.gap_ms == pytest.approx(0, abs=1e-6)


def test_without_a_picture_to_send_everything_begins_on_the_first_tier() -> None:
    profile = surveyed(CHAIN)
    tiers = [Tier("slow", profile, 1000), Tier("MEC", profile), Tier("cloud", profile)]
    plan = plan_chain(tiers, [Link(1000, 0), Link(1000, 0)], Workload(), FREE)
    assert all(option.tiers[0].computes for option in plan.options)
    assert plan.best.cut == ("t0",)


def test_a_small_host_between_holds_only_what_fits() -> None:
    profile = surveyed(CHAIN)
    links = [Link(100, 0, 0), Link(0.01, 50, 0)]

    def best(room: int | None) -> Plan:
        tiers = [Tier("camera", profile, 100), Tier("MEC", profile, 1, room), Tier("cloud", profile, 0.01)]
        return plan_chain(tiers, links, Workload(), FREE)

    assert best(None).best.name == "camera > t0 > MEC (float32+zstd)"
    plan = best(3000)
    # t2 weighs 8000: what reads it may run on the MEC host, what makes it may not
    assert plan.best.name == "camera > t2 > MEC (float32+zstd)"
    assert plan.best.latency_ms == pytest.approx(900 + 0.04 + 5)
    assert plan.certificate is not None
    assert plan.certificate.gap_ms <= plan.best.latency_ms * 1e-4
    with pytest.raises(MeshError, match="the MEC would hold") as caught:
        plan_chain(
            [Tier("camera", profile, 1, 500), Tier("MEC", profile, 1, 500), Tier("cloud", profile, 1, 500)],
            links,
            Workload(),
            FREE,
        )
    assert caught.value.reason is Reason.PLAN_INFEASIBLE


def test_the_picture_takes_the_codec_that_serves_the_plan() -> None:
    pictures = {
        "png": picture(20_000, encode_ms=0.1, agreement=1.0),
        "jpeg": picture(2_000, encode_ms=1.0, agreement=0.9),
    }
    profile = surveyed(CHAIN, pictures=pictures)
    tiers = [Tier("camera", profile, 50), Tier("MEC", profile), Tier("cloud", profile)]
    slow = plan_chain(tiers, [Link(1, 0), Link(1000, 0)], Workload(), FREE)
    fast = plan_chain(tiers, [Link(10_000, 0), Link(1000, 0)], Workload(), FREE)
    assert (slow.best.codec, slow.best.agreement) == ("jpeg", 0.9)
    assert (fast.best.codec, fast.best.agreement) == ("png", 1.0)


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda p: plan_chain([Tier("a", p)], [], Workload(), FREE), "1 tiers and 0 links"),
        (lambda p: plan_chain([Tier("a", p), Tier("b", p)], [], Workload(), FREE), "2 tiers and 0 links"),
        (lambda p: plan_chain([Tier("a", p), Tier("a", p)], [Link(1, 1)], Workload(), FREE), "same name"),
        (
            lambda p: plan_chain(
                [Tier("a", p), Tier("b", p.model_copy(update={"nodes": ()}))], [Link(1, 1)], Workload(), FREE
            ),
            "without a graph",
        ),
        (lambda p: Tier("a", p, 0), "slowdown"),
        (lambda p: Tier("a", p, 1, 0), "max_model_bytes"),
        (
            lambda p: plan_chain(
                [Tier("a", p), Tier("b", p)], [Link(1, 1)], Workload(), replace(FREE, kept_on_edge=("x",))
            ),
            "kept_on_edge|in no cut",
        ),
    ],
)
def test_tiers_that_do_not_fit_together_are_refused(build: object, complaint: str) -> None:
    with pytest.raises(MeshError, match=complaint) as caught:
        build(surveyed(CHAIN))  # type: ignore[operator]
    assert caught.value.reason is Reason.FIELD_INVALID
