"""Drifts as messages, and requests about them as values. Knows no board."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from services.router.drift.audits import AuditsNow
from services.router.drift.events import MAX_EVENTS, DriftEvent, State
from services.router.drift.watches import Kind
from services.router.wire import model_from
from splitmesh.api.routing.v1 import routing_pb2 as pb

KINDS = {
    Kind.EASE: pb.DRIFT_KIND_EASE,
    Kind.UNUSUAL: pb.DRIFT_KIND_UNUSUAL,
    Kind.DISAGREEMENT: pb.DRIFT_KIND_DISAGREEMENT,
}
STATES = {
    State.TIGHTENED: pb.DRIFT_STATE_TIGHTENED,
    State.RECALIBRATED: pb.DRIFT_STATE_RECALIBRATED,
    State.RESOLVED: pb.DRIFT_STATE_RESOLVED,
}


def event_to(event: DriftEvent) -> pb.DriftEvent:
    """An event as a message."""
    return pb.DriftEvent(
        number=event.number,
        model=event.model,
        version=event.version,
        kind=KINDS[event.kind],
        camera=event.camera,
        label=event.label,
        before=event.before,
        now=event.now,
        samples=event.samples,
        time=_time(event.time),
        state=STATES[event.state],
        collected=event.collected,
        needed=event.needed,
        threshold=event.threshold,
        why=event.why,
    )


def drift_to(
    events: Iterable[DriftEvent], audits: Iterable[AuditsNow], sights: Mapping[int, int]
) -> pb.GetDriftResponse:
    """What has drifted, the newest first, and what the audits say."""
    return pb.GetDriftResponse(
        events=[event_to(event) for event in list(events)[:MAX_EVENTS]],
        audits=[_audits_to(one) for one in audits],
        sights=sights,
    )


def watch_from(request: pb.WatchDriftRequest) -> tuple[str, int]:
    """The model, "" for every one, and the number that was seen last; FIELD_INVALID for a name that is none."""
    return model_from(request.model) if request.model else "", request.after


def _audits_to(one: AuditsNow) -> pb.AuditEstimate:
    found = one.estimate
    return pb.AuditEstimate(
        version=one.version,
        camera=one.camera,
        rate=None if math.isnan(found.rate) else found.rate,
        low=found.low,
        high=found.high,
        accepted=found.n_accepted,
        audited=found.n_audited,
    )


def _time(at: datetime) -> Timestamp:
    time = Timestamp()
    time.FromDatetime(at)
    return time
