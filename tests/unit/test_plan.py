"""Plans against hand-made profiles: arithmetic that can be checked on paper."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitmesh.errors import MeshError, Reason
from splitmesh.model.plan import Constraints, Kind, Link, Plan, Workload, best_split, make_plan
from splitmesh.model.profile_data import CutProfile, Profile, ProfileKey

FREE = Constraints()
FLOAT, QUANTISED = "float32+zstd", "uint8+zstd"


def _cut(name: str, head_ms: float, tail_ms: float, size: int, **changes: Any) -> CutProfile:
    values: dict[str, Any] = {
        "tensors": (name,),
        "position": head_ms,
        "head_ms": head_ms,
        "head_p90_ms": head_ms,
        "tail_ms": tail_ms,
        "tail_p90_ms": tail_ms,
        "measured": True,
        "head_bytes": max(1, int(head_ms * 1000)),
        "raw_bytes": 4 * size,
        "wire_bytes": {FLOAT: 4 * size, QUANTISED: size},
        "encode_ms": {FLOAT: 0.2, QUANTISED: 0.1},
        "decode_ms": {FLOAT: 0.1, QUANTISED: 0.05},
    }
    return CutProfile(**values | changes)


def _profile(*cuts: CutProfile, whole_ms: float = 20.0) -> Profile:
    return Profile(
        key=ProfileKey(node="test", backend="CPUExecutionProvider", threads=1),
        whole_ms=whole_ms,
        whole_p90_ms=whole_ms,
        whole_bytes=20_000,
        cuts=cuts,
        repeats=5,
        samples=1,
        calibration="random",
        host="test",
    )


TWO = _profile(_cut("early", 4.0, 16.0, 40_000), _cut("late", 15.0, 5.0, 1_000))


def test_stages_follow_the_formulas() -> None:
    plan = make_plan(
        TWO,
        Link(uplink_mbps=8, rtt_ms=10, message_overhead_ms=1),
        Workload({"jpeg q90": 3000}, picture_encode_ms=2.0),
        FREE,
        edge_slowdown=3.0,
        cloud_speedup=4.0,
    )
    split = next(o for o in plan.options if o.kind is Kind.SPLIT and o.cut == ("late",) and o.codec == QUANTISED)
    assert split.stages.edge_ms == pytest.approx(45.0)
    assert split.stages.encode_ms == pytest.approx(0.3)
    assert split.stages.link_ms == pytest.approx(1 + 8 * 1000 / 8e6 * 1e3)
    assert split.stages.rtt_ms == 10
    assert split.stages.cloud_ms == pytest.approx((5.0 + 0.05) / 4)
    assert split.latency_ms == pytest.approx(45 + 0.3 + 2 + 10 + 5.05 / 4)
    assert split.throughput_fps == pytest.approx(1000 / 45.3)
    cloud = next(o for o in plan.options if o.kind is Kind.CLOUD_ONLY)
    assert cloud.latency_ms == pytest.approx(2 + (1 + 3.0) + 10 + 5)
    assert cloud.throughput_fps == pytest.approx(1000 / 5)
    edge = next(o for o in plan.options if o.kind is Kind.EDGE_ONLY)
    assert (edge.latency_ms, edge.uplink_bytes, edge.codec) == (60.0, 0, "")


def test_a_cascade_weighs_what_follows_the_head_by_the_share_of_hard_samples() -> None:
    plan = make_plan(TWO, Link(8, 10, 1), Workload(escalation=0.25), FREE)
    pick = {o.kind: o for o in plan.options if o.cut == ("late",) and o.codec == QUANTISED}
    cascade, split = pick[Kind.CASCADE], pick[Kind.SPLIT]
    assert cascade.hard_latency_ms == pytest.approx(split.latency_ms)
    assert cascade.latency_ms == pytest.approx(15 + 0.25 * (split.latency_ms - 15))
    assert cascade.uplink_bytes == pytest.approx(250)
    assert split.hard_latency_ms == pytest.approx(split.latency_ms)


def test_without_an_escalation_share_there_is_no_cascade() -> None:
    assert all(o.kind is not Kind.CASCADE for o in make_plan(TWO, Link(8, 10), Workload(), FREE).options)


def test_a_slow_link_keeps_the_model_on_the_edge_and_says_so() -> None:
    plan = make_plan(TWO, Link(uplink_mbps=0.1, rtt_ms=50), Workload({"jpeg": 3000}), FREE)
    assert plan.best.kind is Kind.EDGE_ONLY
    assert plan.why.startswith("edge only takes 20.00 ms per sample (edge 20.00; nothing sent); the runner-up, ")
    assert "the winner saves" in plan.why


def test_a_weak_edge_and_a_small_cut_split_the_model() -> None:
    plan = make_plan(TWO, Link(50, 5), Workload(), FREE, edge_slowdown=2.0, cloud_speedup=10.0)
    assert (plan.best.kind, plan.best.cut, plan.best.codec) == (Kind.SPLIT, ("early",), QUANTISED)


def test_a_fast_link_and_a_fast_cloud_take_the_picture() -> None:
    plan = make_plan(TWO, Link(1000, 1), Workload({"jpeg q90": 2670}), FREE, edge_slowdown=10, cloud_speedup=10)
    assert plan.best.name == "cloud only (jpeg q90)"


def test_a_picture_that_stays_on_site_forbids_cloud_only_and_the_sentence_says_what_that_costs() -> None:
    plan = make_plan(
        TWO,
        Link(1000, 1),
        Workload({"jpeg q90": 2670}),
        Constraints(picture_stays_on_site=True),
        edge_slowdown=10,
        cloud_speedup=10,
    )
    assert plan.best.kind is not Kind.CLOUD_ONLY
    refused = [o for o in plan.options if not o.feasible]
    assert [o.refused_because for o in refused] == ["the picture may not leave the site"]
    assert plan.options[-1] is refused[0]
    assert "cloud only (jpeg q90) would take" in plan.why
    assert "the picture may not leave the site" in plan.why


def test_edge_memory_refuses_large_heads_and_the_whole_model() -> None:
    plan = make_plan(TWO, Link(50, 5), Workload(), Constraints(max_head_bytes=5000))
    assert {o.cut for o in plan.options if o.feasible} == {("early",)}
    assert all("at most 5000 fit" in (o.refused_because or "") for o in plan.options if not o.feasible)


def test_an_uplink_budget_refuses_options_by_their_mean_bytes() -> None:
    limits = Constraints(uplink_budget_bytes_per_s=20_000, frames_per_s=10)
    plan = make_plan(TWO, Link(50, 5), Workload({"jpeg": 3000}, escalation=0.2), limits)
    feasible = {(o.kind, o.cut, o.codec) for o in plan.options if o.feasible}
    assert feasible == {
        (Kind.EDGE_ONLY, (), ""),
        (Kind.SPLIT, ("late",), QUANTISED),
        (Kind.CASCADE, ("late",), QUANTISED),
        (Kind.CASCADE, ("late",), FLOAT),
    }


def test_an_option_that_cannot_keep_up_with_the_line_is_refused() -> None:
    plan = make_plan(TWO, Link(50, 5), Workload(), Constraints(frames_per_s=60))
    edge = next(o for o in plan.options if o.kind is Kind.EDGE_ONLY)
    assert edge.refused_because == "it carries 50.0 frames/s, the line delivers 60"


def test_a_cut_that_must_not_be_rounded_crosses_as_float() -> None:
    plan = make_plan(TWO, Link(50, 5), Workload(), Constraints(allow_quantised=False))
    assert all(o.codec != QUANTISED for o in plan.options if o.feasible)


def test_when_everything_is_refused_the_error_names_the_reasons_of_every_kind() -> None:
    limits = Constraints(picture_stays_on_site=True, max_head_bytes=10, allow_quantised=False)
    with pytest.raises(MeshError) as caught:
        make_plan(TWO, Link(50, 5), Workload({"jpeg": 3000}, escalation=0.1), limits)
    assert caught.value.reason is Reason.PLAN_INFEASIBLE
    for expected in (
        "edge only: the edge would hold 20000 bytes",
        "cloud only (jpeg): the picture may not",
        "split at",
        "cascade at",
        "quantised cuts are not allowed; the edge would hold",
    ):
        assert expected in caught.value.message


def test_the_best_split_is_found_even_where_splitting_does_not_win() -> None:
    plan = make_plan(TWO, Link(0.1, 50), Workload(), FREE)
    assert best_split(plan).cut == ("late",)


def test_no_best_split_without_a_feasible_cut() -> None:
    alone = make_plan(_profile(), Link(8, 10), Workload(), FREE)
    assert "no other option is feasible" in alone.why
    refused = make_plan(TWO, Link(8, 10), Workload({"jpeg": 3000}), Constraints(max_head_bytes=10))
    for plan, expected in ((alone, "the profile holds no cut"), (refused, "the edge would hold 15000 bytes")):
        with pytest.raises(MeshError) as caught:
            best_split(plan)
        assert caught.value.reason is Reason.PLAN_INFEASIBLE
        assert expected in caught.value.message


def test_equal_latency_is_decided_by_bytes() -> None:
    same = {"encode_ms": {}, "decode_ms": {}, "wire_bytes": {"a": 500}}
    profile = _profile(_cut("big", 5, 1, 1, **same | {"wire_bytes": {"a": 1000}}), _cut("small", 5, 1.5, 1, **same))
    plan = make_plan(profile, Link(8, 0), Workload(), FREE)
    assert plan.options[0].latency_ms == plan.options[1].latency_ms
    assert plan.best.cut == ("small",)


def test_interpolated_times_are_marked_in_the_option_and_in_the_sentence() -> None:
    plan = make_plan(_profile(_cut("x", 1, 1, 100, measured=False)), Link(50, 1), Workload(), FREE)
    assert not plan.best.measured
    assert "interpolated" in plan.why


@pytest.mark.parametrize(
    "build",
    [
        lambda: Link(0, 1),
        lambda: Link(math.nan, 1),
        lambda: Link(math.inf, 1),
        lambda: Link(1, -1),
        lambda: Link(1, 1, message_overhead_ms=-1),
        lambda: Link(1e-320, 1),
        lambda: Link(1, 1e308),
        lambda: Workload({"jpeg": 0}),
        lambda: Workload(picture_encode_ms=-1),
        lambda: Workload(escalation=1.5),
        lambda: Workload(escalation=math.nan),
        lambda: Constraints(max_head_bytes=0),
        lambda: Constraints(uplink_budget_bytes_per_s=100),
        lambda: Constraints(frames_per_s=-1),
        lambda: make_plan(TWO, Link(1, 1), Workload(), FREE, edge_slowdown=0),
        lambda: make_plan(TWO, Link(1, 1), Workload(), FREE, cloud_speedup=math.nan),
    ],
)
def test_values_out_of_range_are_refused(build: Any) -> None:
    with pytest.raises(MeshError) as caught:
        build()
    assert caught.value.reason is Reason.FIELD_INVALID


def test_a_plan_is_json_with_names_and_latencies() -> None:
    plan = make_plan(_profile(whole_ms=0.0), Link(8, 10), Workload({"jpeg": 3000}, escalation=0.1), FREE)
    content = json.loads(plan.to_json())
    assert content["options"][0]["name"] == "edge only"
    assert content["options"][0]["throughput_fps"] is None
    assert content["options"][1]["latency_ms"] == pytest.approx(plan.options[1].latency_ms)
    assert content["workload"]["picture_bytes"] == {"jpeg": 3000}


_MS = st.floats(0.01, 100)
_PROFILES = st.builds(
    lambda whole, cuts: _profile(*(_cut(f"t{i}", h, t, s) for i, (h, t, s) in enumerate(cuts)), whole_ms=whole),
    _MS,
    st.lists(st.tuples(_MS, _MS, st.integers(1, 10**6)), max_size=6),
)
_LINKS = st.builds(Link, st.floats(0.05, 1000), st.floats(0, 200), st.floats(0, 5))
_WORKLOADS = st.builds(
    Workload,
    st.dictionaries(st.sampled_from(["jpeg", "webp", "png"]), st.integers(1, 10**6)),
    st.floats(0, 10),
    st.none() | st.floats(0, 1),
)
_CONSTRAINTS = st.builds(
    Constraints,
    picture_stays_on_site=st.booleans(),
    max_head_bytes=st.none() | st.integers(20_000, 100_000),
    allow_quantised=st.booleans(),
)
_FACTORS = st.floats(0.1, 20)


def _by_hand(profile: Profile, link: Link, load: Workload, limits: Constraints, slow: float, fast: float) -> float:
    """The least mean latency, written down again from the formulas."""
    found = [profile.whole_ms * slow]
    for size in load.picture_bytes.values():
        if not limits.picture_stays_on_site:
            sent = link.message_overhead_ms + size * 8 / (link.uplink_mbps * 1e6) * 1e3
            found.append(load.picture_encode_ms + sent + link.rtt_ms + profile.whole_ms / fast)
    for cut in profile.cuts:
        if limits.max_head_bytes is not None and cut.head_bytes > limits.max_head_bytes:
            continue
        for codec, size in cut.wire_bytes.items():
            if codec == QUANTISED and not limits.allow_quantised:
                continue
            sent = link.message_overhead_ms + size * 8 / (link.uplink_mbps * 1e6) * 1e3
            coding = cut.encode_ms[codec] * slow + cut.decode_ms[codec] / fast
            after = coding + sent + link.rtt_ms + cut.tail_ms / fast
            found += [cut.head_ms * slow + share * after for share in (1.0, load.escalation) if share is not None]
    return min(found)


@given(_PROFILES, _LINKS, _WORKLOADS, _CONSTRAINTS, _FACTORS, _FACTORS)
def test_the_first_option_is_as_fast_as_a_recomputation_by_hand(
    profile: Profile, link: Link, load: Workload, limits: Constraints, slow: float, fast: float
) -> None:
    plan = make_plan(profile, link, load, limits, edge_slowdown=slow, cloud_speedup=fast)
    assert plan.best.feasible
    assert plan.best.latency_ms == pytest.approx(_by_hand(profile, link, load, limits, slow, fast))
    _check_order(plan)


def _check_order(plan: Plan) -> None:
    feasible = [o for o in plan.options if o.feasible]
    assert list(plan.options[: len(feasible)]) == feasible
    assert [o.latency_ms for o in feasible] == sorted(o.latency_ms for o in feasible)


@given(_PROFILES, _LINKS, _WORKLOADS, st.floats(1, 100), st.floats(1, 200))
def test_more_bandwidth_never_raises_the_best_latency(
    profile: Profile, link: Link, load: Workload, factor: float, frames_per_s: float
) -> None:
    limits = Constraints(frames_per_s=frames_per_s)
    wider = replace(link, uplink_mbps=link.uplink_mbps * factor)
    try:
        narrow = make_plan(profile, link, load, limits).best.latency_ms
    except MeshError:
        return
    assert make_plan(profile, wider, load, limits).best.latency_ms <= narrow * (1 + 1e-12)


@given(_PROFILES, _LINKS, _WORKLOADS, _FACTORS, _FACTORS)
def test_a_cascade_lies_between_its_head_and_its_split(
    profile: Profile, link: Link, load: Workload, slow: float, fast: float
) -> None:
    plan = make_plan(profile, link, load, FREE, edge_slowdown=slow, cloud_speedup=fast)
    splits = {(o.cut, o.codec): o for o in plan.options if o.kind is Kind.SPLIT}
    for option in plan.options:
        if option.kind is Kind.CASCADE:
            split = splits[option.cut, option.codec]
            assert option.stages.edge_ms <= option.latency_ms * (1 + 1e-12)
            assert option.latency_ms <= split.latency_ms * (1 + 1e-12)
            assert option.uplink_bytes <= split.uplink_bytes
            assert option.throughput_fps >= split.throughput_fps * (1 - 1e-12)
