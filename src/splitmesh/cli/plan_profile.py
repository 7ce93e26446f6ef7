"""A plan of one profile, with no service: what the partitioner does for registered versions."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from splitmesh.client.partition import PlanInfo, PlanRow
from splitmesh.model.plan import Constraints, Link, Option, Workload, make_plan
from splitmesh.model.plan_chain import Tier, plan_chain
from splitmesh.model.plan_options import AS_SENT
from splitmesh.model.profile_data import Profile

if TYPE_CHECKING:
    from splitmesh.cli.planning import Question


def plan_profile(profile: Profile, asked: Question) -> PlanInfo:
    """Every option ranked. Raises as ``make_plan`` and ``plan_chain``."""
    workload = Workload({AS_SENT: asked.picture_bytes} if asked.picture_bytes else {}, escalation=asked.escalation)
    link = Link(asked.uplink_mbps, asked.rtt_ms)
    constraints = Constraints(
        picture_stays_on_site=asked.picture_stays_on_site,
        max_head_bytes=asked.max_head_bytes or None,
        uplink_budget_bytes_per_s=asked.uplink_budget_bytes_per_s or None,
        frames_per_s=asked.frames_per_s or None,
        max_leakage=asked.max_leakage,
        kept_on_edge=asked.kept_on_edge,
        unsupported_on_edge=frozenset(asked.unsupported_on_edge),
    )
    slow, fast = asked.edge_slowdown, asked.cloud_speedup
    if asked.between:
        middle = [Tier(entry.name, profile, entry.slowdown, entry.max_model_bytes or None) for entry in asked.between]
        tiers = [Tier("edge", profile, slow), *middle, Tier("cloud", profile, 1 / fast if fast else 0.0)]
        links = [link, *(Link(entry.uplink_mbps, entry.rtt_ms) for entry in asked.between)]
        made = plan_chain(tiers, links, workload, constraints, asked.objective)
    else:
        made = make_plan(
            profile,
            link,
            workload,
            constraints,
            edge_slowdown=slow,
            cloud_speedup=fast,
            objective=asked.objective,
        )
    return PlanInfo(tuple(_row(option) for option in made.options), made.why, made.certificate)


def _row(option: Option) -> PlanRow:
    return PlanRow(
        kind=option.kind.value,
        cut=option.cut,
        codec=option.codec,
        latency_ms=option.latency_ms,
        stages=asdict(option.stages),
        uplink_bytes=option.uplink_bytes,
        throughput_fps=option.throughput_fps,
        feasible=option.feasible,
        refused_because=option.refused_because or "",
        agreement=option.agreement,
        head_bytes=option.head_bytes,
        measured=option.measured,
        tiers=option.tiers,
    )
