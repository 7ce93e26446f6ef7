"""The record of a plan: what it keeps, what it refuses to be read from, and which cut a split follows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.model.plan import Constraints, Kind, Link, Workload, make_plan
from splitmesh.model.plan_chain import Tier, plan_chain
from splitmesh.model.plan_record import MAX_OPTIONS, MAX_PLAN_BYTES, Plan, PlannedTier, PlanRecord
from tests.unit.plan_profiles import Op, picture, surveyed

CHAIN = [Op((-1,), 2, 2, 9_000), Op((0,), 3, 3, 4_000), Op((1,), 4, 4, 500, 8_000), Op((2,), 5, 5, 1)]
PROFILE = surveyed(CHAIN)
LINK = Link(8, 1)
FREE = Constraints()


def recorded(plan: Plan, tiers: int = 2) -> PlanRecord:
    return PlanRecord.of(
        plan,
        tiers=[PlannedTier.of(f"tier {index}", PROFILE, 2.0) for index in range(tiers)],
        model="joints:3",
        whole_sha256="a" * 64,
        plan_time=datetime(2026, 3, 1, tzinfo=UTC),
        code_version="splitmesh 1",
    )


def over_a_link(constraints: Constraints = FREE, **changes: Any) -> Plan:
    workload = Workload({"as sent": 50_000}, escalation=0.5)
    return make_plan(PROFILE, LINK, workload, constraints, edge_slowdown=10.0, cloud_speedup=10.0, **changes)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(MeshError) as caught:
        call()
    assert caught.value.reason is Reason.FIELD_INVALID
    assert caught.value.fields[0][0] == "plan"
    return caught.value.message


def test_a_record_comes_back_from_json_with_all_that_was_asked_and_found() -> None:
    plan = over_a_link(Constraints(kept_on_edge=("t0",), unsupported_on_edge=frozenset({"LSTM", "GRU"})))
    record = recorded(plan)
    again = PlanRecord.from_json(record.to_json())
    assert again == record
    assert (again.plan.objective, again.plan.links, again.plan.why) == (plan.objective, plan.links, plan.why)
    assert (again.plan.constraints, again.plan.workload) == (plan.constraints, plan.workload)
    assert again.plan.certificate == plan.certificate
    assert again.plan.options[0] == plan.options[0]
    assert again.options_ranked == len(plan.options)
    assert again.chosen is None


def test_a_tier_names_its_profile_by_digest_so_that_a_later_one_is_another() -> None:
    tier = PlannedTier.of("edge", PROFILE, 2.0, 1000)
    assert (tier.name, tier.profile, tier.slowdown, tier.max_model_bytes) == ("edge", PROFILE.key, 2.0, 1000)
    later = PROFILE.model_copy(update={"whole_ms": PROFILE.whole_ms + 1})
    assert PlannedTier.of("edge", later).profile_sha256 != tier.profile_sha256


def test_of_hundreds_of_options_the_best_are_kept_each_cut_with_its_best_codec_and_every_kind() -> None:
    plan = over_a_link()
    split = next(option for option in plan.options if option.kind is Kind.SPLIT)
    many = [replace(split, cut=(f"t{number}",), codec=codec) for number in range(100) for codec in ("good", "bad")]
    cloud = next(option for option in plan.options if option.kind is Kind.CLOUD_ONLY)
    kept = recorded(replace(plan, options=(*many, cloud))).plan.options
    assert len(kept) <= MAX_OPTIONS
    assert [option.cut for option in kept[:5]] == [(f"t{number}",) for number in range(5)]
    assert {option.codec for option in kept if option.cut} == {"good"}
    assert kept[-1] == cloud


def test_a_record_with_long_names_keeps_fewer_options_rather_than_growing() -> None:
    plan = over_a_link()
    split = next(option for option in plan.options if option.cut)
    long = [replace(split, cut=(f"{number}" + "x" * 40_000,)) for number in range(20)]
    record = recorded(replace(plan, options=tuple(long)))
    assert len(record.to_json()) <= MAX_PLAN_BYTES
    assert 1 <= len(record.plan.options) < 20
    refused(lambda: recorded(replace(plan, options=(replace(split, cut=("x" * MAX_PLAN_BYTES,)),))))


def test_what_is_larger_than_a_record_may_be_is_neither_read_nor_written_however_it_is_encoded() -> None:
    content = json.loads(recorded(over_a_link()).to_json())
    longer = {**content, "plan": {**content["plan"], "why": "é" * (MAX_PLAN_BYTES // 2)}}
    assert "bytes, more than" in refused(lambda: PlanRecord.from_json(json.dumps(longer, ensure_ascii=False)))
    content["plan"]["why"] = "é" * (MAX_PLAN_BYTES // 3)
    read = PlanRecord.from_json(json.dumps(content, ensure_ascii=False))
    assert "bytes, more than" in refused(lambda: read.follow()[0].to_json())  # six bytes each
    assert "Unicode" in refused(lambda: PlanRecord.from_json("\ud800"))


def test_what_a_newer_program_says_beside_is_passed_over() -> None:
    record = recorded(over_a_link())
    content = json.loads(record.to_json())
    plan, (edge, cloud) = content["plan"], content["tiers"]
    options = [{**option, "energy_mj": 1.0} for option in plan["options"]]
    newer = {**content, "note": "x", "tiers": [{**edge, "watts": 9}, cloud], "plan": {**plan, "options": options}}
    assert PlanRecord.from_json(json.dumps(newer)) == record


def test_a_split_follows_the_best_feasible_option_that_cuts_or_the_one_named() -> None:
    record = recorded(over_a_link())
    best = next(option for option in record.plan.options if option.cuts and option.feasible)
    followed, cuts = record.follow()
    assert cuts == best.cuts
    assert followed.choice == best
    other = next(option for option in record.plan.options if option.feasible and option.cuts not in ((), cuts))
    named, cuts = followed.follow([list(reversed(other.cut))])
    assert (named.choice, cuts) == (other, other.cuts)
    assert PlanRecord.from_json(named.to_json()).follow() == (named, cuts)
    assert "no option that cuts at elsewhere" in refused(lambda: record.follow([["elsewhere"]]))


def test_a_cut_that_the_plan_refuses_is_not_followed() -> None:
    plan = over_a_link(Constraints(kept_on_edge=("t1",)))
    assert "refuses" in refused(lambda: recorded(plan).follow([["t1"]]))
    whole = tuple(option for option in plan.options if not option.cuts)
    assert "no option that cuts" in refused(lambda: recorded(replace(plan, options=whole)).follow())


def test_a_plan_over_a_chain_cuts_where_a_tier_that_computes_begins() -> None:
    profile = surveyed(CHAIN, pictures={"raw": picture(50_000)})
    tiers = [Tier("edge", profile, 20.0), Tier("MEC", profile, 1.0), Tier("cloud", profile, 0.1)]
    plan = plan_chain(tiers, [Link(20, 1), Link(5, 1)], Workload(), FREE)
    three = next(option for option in plan.options if all(share.computes for share in option.tiers))
    assert three.cuts == tuple(share.cut for share in three.tiers[:2])
    passed_on = next(
        option for option in plan.options if [share.computes for share in option.tiers] == [True, False, True]
    )
    assert passed_on.cuts == (passed_on.tiers[0].cut,)
    sent = next(option for option in plan.options if [share.computes for share in option.tiers] == [False, True, True])
    assert sent.cuts == ()
    record, cuts = recorded(plan, tiers=3).follow(three.cuts)
    assert (cuts, record.choice) == (three.cuts, three)


def broken(**changes: object) -> str:
    return json.dumps({**json.loads(recorded(over_a_link()).to_json()), **changes})


def in_plan(**changes: object) -> str:
    plan = json.loads(recorded(over_a_link()).to_json())["plan"]
    return broken(plan={**plan, **changes})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        b"\xff\xfe",
        " " * (MAX_PLAN_BYTES + 1),
        broken(schema_version=2),
        broken(whole_sha256="A" * 64),
        broken(plan=[]),
        broken(plan={}),
        broken(plan={"options": [[]]}),
        broken(chosen=999),
        broken(chosen=-1),
        broken(tiers=[]),
        broken(plan_time="2026-03-01T00:00:00"),
        in_plan(links=[]),
        in_plan(options=[]),
        in_plan(options=[{"throughput_fps": None}]),
        in_plan(workload={"escalation": math.nan, "picture_bytes": {}, "picture_encode_ms": 0.0}),
        in_plan(certificate={"lower_bound_ms": math.inf, "gap_ms": 0.0, "method": "min-cut"}),
    ],
)
def test_what_is_no_record_is_refused_with_what_is_wrong(text: str | bytes) -> None:
    with pytest.raises(MeshError) as caught:
        PlanRecord.from_json(text)
    assert caught.value.reason is Reason.FIELD_INVALID
