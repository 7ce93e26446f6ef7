"""Messages of the routing API to values and back; what a caller may send is checked here. Knows no store."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict

from google.protobuf.timestamp_pb2 import Timestamp

from services.router.policy import Policy
from services.router.store import Counts, Load, NodeOutcomes, Report, Tolerance
from splitmesh.api.routing.v1 import routing_pb2
from splitmesh.errors import field_error

MAX_NAME = 128
MAX_COUNT = 10**12
"""Most samples of one kind in one report: 30,000 frames a second for a year."""
MAX_REASONS_PER_REPORT = 64
MAX_LOAD = 1e9
"""Largest figure of a load: a backlog of eleven days, a petabit per second."""

_MODEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


def model_from(name: str) -> str:
    """A model's name; FIELD_INVALID when it cannot be one."""
    if not _MODEL.fullmatch(name):
        raise field_error("model", f"{name[:80]!r} is no model's name: a-z, 0-9, '.', '_', '-', at most 64 characters")
    return name


def version_from(version: int) -> int:
    """A version's number; FIELD_INVALID for 0."""
    if version < 1:
        raise field_error("version", "is 0; versions count from 1")
    return version


def name_from(field: str, value: str) -> str:
    """A node's name or a boot's id; FIELD_INVALID when empty or too long."""
    if not 1 <= len(value) <= MAX_NAME:
        raise field_error(field, f"has {len(value)} characters, expected 1..{MAX_NAME}")
    return value


def tolerance_from(message: routing_pb2.SetToleranceRequest, default_delta: float) -> Tolerance:
    """A tolerance; FIELD_INVALID outside 0..1 (both excluded; a delta of 0 means the default)."""
    delta = message.delta or default_delta
    for field, value in (("max_disagreement", message.max_disagreement), ("delta", delta)):
        if not (math.isfinite(value) and 0 < value < 1):
            raise field_error(field, f"is {value}, expected a number between 0 and 1, both excluded")
    return Tolerance(message.max_disagreement, delta)


def report_from(message: routing_pb2.ReportOutcomesRequest) -> Report:
    """A report; FIELD_INVALID names what is wrong."""
    if not 1 <= message.sequence < 1 << 63:
        raise field_error("sequence", f"is {message.sequence}; reports of a boot count from 1")
    return Report(
        node=name_from("node", message.node),
        boot_id=name_from("boot_id", message.boot_id),
        sequence=message.sequence,
        model=model_from(message.model),
        version=version_from(message.version),
        counts=_counts_from(message.counts),
        load=_load_from(message.load) if message.HasField("load") else None,
    )


def _counts_from(message: routing_pb2.OutcomeCounts) -> Counts:
    counts = Counts(
        edge_exit=message.edge_exit,
        cloud_tail=message.cloud_tail,
        tail_disagreed=message.tail_disagreed,
        edge_fallback=_by_reason("counts.edge_fallback", message.edge_fallback),
        refused=_by_reason("counts.refused", message.refused),
        edge_whole=message.edge_whole,
    )
    plain = (counts.edge_exit, counts.cloud_tail, counts.edge_whole)
    values = [*plain, *counts.edge_fallback.values(), *counts.refused.values()]
    if max(values) > MAX_COUNT:
        raise field_error("counts", f"hold {max(values)} samples of one kind; at most {MAX_COUNT} in one report")
    if counts.tail_disagreed > counts.cloud_tail:
        raise field_error(
            "counts.tail_disagreed", f"is {counts.tail_disagreed}, more than the {counts.cloud_tail} the tail answered"
        )
    return counts


def _load_from(message: routing_pb2.UplinkLoad) -> Load:
    load = Load(message.backlog_ms, message.goodput_mbps, message.rtt_ms, message.loss, message.tails)
    for field, value in asdict(load).items():
        most = 1.0 if field == "loss" else MAX_LOAD
        if not 0 <= value <= most:
            raise field_error(f"load.{field}", f"is {value}, expected 0..{most:g}")
    return load


def _by_reason(field: str, reasons: Mapping[str, int]) -> dict[str, int]:
    if len(reasons) > MAX_REASONS_PER_REPORT:
        raise field_error(field, f"has {len(reasons)} reasons; at most {MAX_REASONS_PER_REPORT} in one report")
    for reason in reasons:
        if not _REASON.fullmatch(reason):
            raise field_error(field, f"{reason[:80]!r} is not a reason code, such as DEADLINE_EXPIRED")
    return dict(reasons)


def policy_to(policy: Policy) -> routing_pb2.Policy:
    """A policy as a message."""
    return routing_pb2.Policy(**asdict(policy))


def outcomes_to(entry: NodeOutcomes) -> routing_pb2.NodeOutcomes:
    """Sums as a message."""
    time = Timestamp()
    time.FromDatetime(entry.last_report_time)
    counts = routing_pb2.OutcomeCounts(**asdict(entry.counts))
    return routing_pb2.NodeOutcomes(
        node=entry.node,
        version=entry.version,
        counts=counts,
        last_report_time=time,
        load=routing_pb2.UplinkLoad(**asdict(entry.load)) if entry.load is not None else None,
    )
