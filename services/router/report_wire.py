"""Reports of heads as messages, to values and back; what a caller may send is checked here. Knows no store."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from google.protobuf.timestamp_pb2 import Timestamp

from services.router.store import Counts, Load, NodeOutcomes, Report, Sight
from services.router.wire import MAX_NAME, model_from, name_from, version_from
from splitmesh.api.routing.v1 import routing_pb2
from splitmesh.errors import field_error
from splitmesh.routing import audit

MAX_COUNT = 10**12
"""Most samples of one kind in one report: 30,000 frames a second for a year."""
MAX_REASONS_PER_REPORT = 64
MAX_LOAD = 1e9
"""Largest figure of a load: a backlog of eleven days, a petabit per second."""
MAX_SIGHTS = 1000
MAX_AUDITS = 256
MAX_AGE_MS = 30 * 24 * 3600e3
"""Of a sight, thirty days: a head that was cut off for longer tells nothing of use."""

_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


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
        sights=_sights_from(message.sights),
        audits=_audits_from(message.audits),
        sights_left_out=_count_from("sights_left_out", message.sights_left_out),
    )


def _counts_from(message: routing_pb2.OutcomeCounts) -> Counts:
    counts = Counts(
        edge_exit=message.edge_exit,
        cloud_tail=message.cloud_tail,
        tail_disagreed=message.tail_disagreed,
        edge_fallback=_by_reason("counts.edge_fallback", message.edge_fallback),
        refused=_by_reason("counts.refused", message.refused),
        edge_whole=message.edge_whole,
        hard=_by_reason("counts.hard", message.hard),
    )
    plain = (counts.edge_exit, counts.cloud_tail, counts.edge_whole)
    values = [*plain, *counts.edge_fallback.values(), *counts.refused.values(), *counts.hard.values()]
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


def _sights_from(messages: Sequence[routing_pb2.Sight]) -> tuple[Sight, ...]:
    if len(messages) > MAX_SIGHTS:
        raise field_error("sights", f"are {len(messages)}; at most {MAX_SIGHTS} in one report")
    return tuple(_sight_from(message) for message in messages)


def _sight_from(message: routing_pb2.Sight) -> Sight:
    if len(message.camera) > MAX_NAME:
        raise field_error("sights.camera", f"has {len(message.camera)} characters, at most {MAX_NAME} are allowed")
    if message.HasField("ease") and not 0 <= message.ease <= 1:
        raise field_error("sights.ease", f"is {message.ease}, expected 0 to 1, or unset")
    if not 0 <= message.age_ms <= MAX_AGE_MS:
        raise field_error("sights.age_ms", f"is {message.age_ms}, expected 0 to {MAX_AGE_MS:g}")
    return Sight(
        camera=message.camera,
        exit_class=message.exit_class,
        ease=message.ease if message.HasField("ease") else math.nan,
        unusual=message.unusual if message.HasField("unusual") else None,
        tail_class=message.tail_class if message.HasField("tail_class") else None,
        audited=message.audited,
        exit=message.exit,
        age_ms=message.age_ms,
    )


def _audits_from(messages: Sequence[routing_pb2.AuditCount]) -> dict[audit.Stratum, audit.Counts]:
    if len(messages) > MAX_AUDITS:
        raise field_error("audits", f"are {len(messages)}; at most {MAX_AUDITS} in one report")
    found: dict[audit.Stratum, audit.Counts] = {}
    for message in messages:
        stratum = audit.Stratum(message.camera, message.label, message.ease_bin)
        if stratum != audit.REST and not 0 <= stratum.ease_bin < audit.EASE_BINS:
            raise field_error("audits.ease_bin", f"is {stratum.ease_bin}, expected 0..{audit.EASE_BINS - 1}")
        for field, name in (("camera", stratum.camera), ("label", stratum.label)):
            if len(name) > audit.MAX_NAME:
                raise field_error(
                    f"audits.{field}", f"has {len(name)} characters, at most {audit.MAX_NAME} are allowed"
                )
        counts = audit.Counts(
            _count_from("audits.accepted", message.accepted),
            _count_from("audits.audited", message.audited),
            _count_from("audits.disagreed", message.disagreed),
        )
        found[stratum] = found.get(stratum, audit.Counts()).plus(counts)
    return found


def _count_from(field: str, value: int) -> int:
    if value > MAX_COUNT:
        raise field_error(field, f"is {value}; at most {MAX_COUNT} in one report")
    return value


def _by_reason(field: str, reasons: Mapping[str, int]) -> dict[str, int]:
    if len(reasons) > MAX_REASONS_PER_REPORT:
        raise field_error(field, f"has {len(reasons)} reasons; at most {MAX_REASONS_PER_REPORT} in one report")
    for reason in reasons:
        if not _REASON.fullmatch(reason):
            raise field_error(field, f"{reason[:80]!r} is not a reason code, such as DEADLINE_EXPIRED")
    return dict(reasons)


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
