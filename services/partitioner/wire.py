"""Messages of the partition API to values and back. Knows no registry."""

from __future__ import annotations

import math
from dataclasses import asdict

from services.partitioner.measure import Where
from services.partitioner.planning import Host, PlanTask
from splitmesh.api.partition.v1 import partition_pb2
from splitmesh.errors import field_error
from splitmesh.model.plan import Constraints, Link, Objective, Option, Plan, Workload
from splitmesh.model.plan_chain import MAX_TIERS
from splitmesh.model.plan_record import PlanRecord

_OBJECTIVES = {
    partition_pb2.OBJECTIVE_UNSPECIFIED: Objective.LATENCY,
    partition_pb2.OBJECTIVE_LATENCY: Objective.LATENCY,
    partition_pb2.OBJECTIVE_THROUGHPUT: Objective.THROUGHPUT,
}


def task_from(message: partition_pb2.PlanPartitionRequest) -> PlanTask:
    """What a plan is asked for; FIELD_INVALID for values out of range."""
    if len(message.between) > MAX_TIERS - 2:
        raise field_error("between", f"{len(message.between)} tiers; at most {MAX_TIERS - 2} between edge and cloud")
    between = [
        Host(tier.name or f"tier {index}", tier.node, tier.slowdown or 1.0, tier.max_model_bytes or None)
        for index, tier in enumerate(message.between, start=2)
    ]
    if message.objective not in _OBJECTIVES:
        raise field_error("objective", f"is {message.objective}, which this service does not know")
    if not (math.isfinite(message.cloud_speedup) and message.cloud_speedup >= 0):
        raise field_error("cloud_speedup", f"is {message.cloud_speedup}, expected a number greater than 0")
    return PlanTask(
        hosts=(
            Host("edge", message.edge_node, message.edge_slowdown or 1.0),
            *between,
            Host("cloud", message.cloud_node, 1 / (message.cloud_speedup or 1.0)),
        ),
        links=(
            Link(message.uplink_mbps, message.rtt_ms),
            *(Link(tier.uplink_mbps, tier.rtt_ms) for tier in message.between),
        ),
        workload=Workload(escalation=message.escalation if message.HasField("escalation") else None),
        constraints=Constraints(
            picture_stays_on_site=message.picture_stays_on_site,
            max_head_bytes=message.max_head_bytes or None,
            uplink_budget_bytes_per_s=message.uplink_budget_bytes_per_s or None,
            frames_per_s=message.frames_per_s or None,
            max_leakage=message.max_leakage if message.HasField("max_leakage") else None,
            kept_on_edge=tuple(message.kept_on_edge),
            unsupported_on_edge=frozenset(message.unsupported_on_edge),
        ),
        objective=_OBJECTIVES[message.objective],
        picture_bytes=message.picture_bytes,
    )


def where_from(message: partition_pb2.ProfileModelRequest) -> Where:
    """On what a profile is to be made."""
    return Where(message.node, message.batch or 1, message.threads, message.backend)


def plan_to(plan: Plan, record: PlanRecord) -> partition_pb2.PlanPartitionResponse:
    """A plan as a message, with its record."""
    sure = plan.certificate
    return partition_pb2.PlanPartitionResponse(
        options=[_option_to(option) for option in plan.options],
        why=plan.why,
        certificate=partition_pb2.Certificate(
            lower_bound_ms=sure.lower_bound_ms, gap_ms=sure.gap_ms, method=sure.method
        )
        if sure is not None
        else None,
        plan_json=record.to_json(),
    )


def _option_to(option: Option) -> partition_pb2.PlanOption:
    return partition_pb2.PlanOption(
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
        tiers=[partition_pb2.TierShare(**asdict(share)) for share in option.tiers],
    )
