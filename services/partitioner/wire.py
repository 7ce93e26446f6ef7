"""Messages of the partition API to values and back. Knows no registry."""

from __future__ import annotations

from dataclasses import asdict

from services.partitioner.partition import PlanTask
from services.partitioner.profiles import StoredProfile
from splitmesh.api.partition.v1 import partition_pb2
from splitmesh.model.plan import Constraints, Link, Option, Plan, Workload


def task_from(message: partition_pb2.PlanPartitionRequest) -> PlanTask:
    """What a plan is asked for; FIELD_INVALID for values out of range."""
    return PlanTask(
        link=Link(message.uplink_mbps, message.rtt_ms),
        workload=Workload(escalation=message.escalation if message.HasField("escalation") else None),
        constraints=Constraints(
            picture_stays_on_site=message.picture_stays_on_site, max_head_bytes=message.max_head_bytes or None
        ),
        edge_slowdown=message.edge_slowdown or 1.0,
        cloud_speedup=message.cloud_speedup or 1.0,
        picture_bytes=message.picture_bytes,
    )


def profile_to(stored: StoredProfile) -> partition_pb2.ProfileModelResponse:
    """A profile as a message."""
    cuts = [
        partition_pb2.CutProfile(
            tensors=cut.tensors,
            position=cut.position,
            head_ms=cut.head_ms,
            tail_ms=cut.tail_ms,
            measured=cut.measured,
            raw_bytes=cut.raw_bytes,
            wire_bytes=cut.wire_bytes,
            escalation=cut.escalation,
        )
        for cut in stored.profile.cuts
    ]
    return partition_pb2.ProfileModelResponse(
        whole_ms=stored.profile.whole_ms, cuts=cuts, calibration=stored.profile.calibration
    )


def plan_to(plan: Plan) -> partition_pb2.PlanPartitionResponse:
    """A plan as a message."""
    return partition_pb2.PlanPartitionResponse(options=[_option_to(option) for option in plan.options], why=plan.why)


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
    )
