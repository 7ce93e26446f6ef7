"""Values of the router's clients to messages and back. Knows no channel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC

from splitmesh.api.routing.v1 import routing_pb2 as pb
from splitmesh.client.routing_values import (
    BoundInfo,
    ClassLimit,
    Decision,
    Goals,
    NodeOutcomes,
    Outcomes,
    OverrideInfo,
    PolicyInfo,
    Sight,
    UplinkLoad,
)
from splitmesh.routing.audit import Counts, Stratum

_REASON = "ROUTE_REASON_"


def goals_to(goals: Goals) -> pb.Goals:
    """Goals as a message."""
    return pb.Goals(
        max_disagreement=goals.max_disagreement,
        delta=goals.delta,
        classes=[pb.ClassLimit(**asdict(limit)) for limit in goals.classes],
        score=goals.score,
        parameters=goals.parameters,
        costs=goals.costs,
        audit_share=goals.audit_share,
        escalate_unusual=goals.escalate_unusual,
    )


def goals_from(message: pb.Goals) -> Goals:
    """A message as goals."""
    return Goals(
        max_disagreement=message.max_disagreement,
        delta=message.delta,
        classes=tuple(ClassLimit(limit.label, limit.max_missed, limit.max_false_alarms) for limit in message.classes),
        score=message.score,
        parameters=dict(message.parameters),
        costs=tuple(message.costs),
        audit_share=message.audit_share if message.HasField("audit_share") else None,
        escalate_unusual=message.escalate_unusual if message.HasField("escalate_unusual") else None,
    )


def policy_from(message: pb.Policy) -> PolicyInfo:
    """A message as a policy."""
    return PolicyInfo(
        model=message.model,
        version=message.version,
        revision=message.revision,
        threshold=message.threshold,
        max_disagreement=message.max_disagreement,
        delta=message.delta,
        disagreement_bound=message.disagreement_bound,
        coverage=message.coverage,
        calibration_samples=message.calibration_samples,
        why=message.why,
        score=message.score,
        parameters=dict(message.parameters),
        costs=tuple(message.costs),
        bounds=tuple(BoundInfo(one.constraint, one.limit, one.bound, one.events, one.n) for one in message.bounds),
        audit_share=message.audit_share,
        escalate_unusual=message.escalate_unusual,
        overrides=tuple(OverrideInfo(one.camera, one.label, one.threshold, one.why) for one in message.overrides),
    )


def counts_to(outcomes: Outcomes) -> pb.OutcomeCounts:
    """Counts as a message."""
    return pb.OutcomeCounts(
        edge_exit=outcomes.edge_exit,
        cloud_tail=outcomes.cloud_tail,
        edge_fallback=outcomes.edge_fallback,
        tail_disagreed=outcomes.tail_disagreed,
        refused=outcomes.refused,
        edge_whole=outcomes.edge_whole,
        hard=outcomes.hard,
    )


def node_from(message: pb.NodeOutcomes) -> NodeOutcomes:
    """A message as sums."""
    counts = message.counts
    return NodeOutcomes(
        node=message.node,
        version=message.version,
        outcomes=Outcomes(
            edge_exit=counts.edge_exit,
            cloud_tail=counts.cloud_tail,
            edge_fallback=dict(counts.edge_fallback),
            tail_disagreed=counts.tail_disagreed,
            refused=dict(counts.refused),
            edge_whole=counts.edge_whole,
            hard=dict(counts.hard),
        ),
        last_report_time=message.last_report_time.ToDatetime(tzinfo=UTC),
        load=UplinkLoad.of(message.load) if message.HasField("load") else None,
    )


def sight_to(sight: Sight) -> pb.Sight:
    """A sight as a message; an undefined ease is left out."""
    return pb.Sight(
        camera=sight.camera,
        exit_class=sight.exit_class,
        ease=None if math.isnan(sight.ease) else sight.ease,
        unusual=sight.unusual,
        tail_class=sight.tail_class,
        audited=sight.audited,
        exit=sight.exit,
        age_ms=sight.age_ms,
    )


def audits_to(audits: Mapping[Stratum, Counts]) -> list[pb.AuditCount]:
    """Audits as messages."""
    return [
        pb.AuditCount(
            camera=stratum.camera,
            label=stratum.label,
            ease_bin=stratum.ease_bin,
            accepted=counts.accepted,
            audited=counts.audited,
            disagreed=counts.disagreed,
        )
        for stratum, counts in audits.items()
    ]


def classes_to(
    probabilities: Sequence[float], logits: Sequence[float] | None, features: Sequence[float] | None
) -> pb.ClassScores:
    """What a classifier said, as a message."""
    return pb.ClassScores(probabilities=probabilities, logits=logits or (), features=features or ())


def decision_from(message: pb.DecideResponse) -> Decision:
    """A message as a decision."""
    return Decision(
        escalate=message.escalate,
        hard=message.hard,
        why=pb.RouteReason.Name(message.why).removeprefix(_REASON),
        ease=message.ease if message.HasField("ease") else None,
        threshold=message.threshold,
        worth=message.worth,
        refused=message.refused,
        label=message.label if message.HasField("label") else None,
    )
