"""ServingService's messages to values and back."""

from __future__ import annotations

from edge.head.chosen import backend_message
from edge.head.follow import ModelFollower
from edge.head.serving.assignments import Assignment, checked
from edge.head.serving.host_policy import HostPolicy, HostShare, policy_of
from edge.head.serving.progress import Phase, Progress
from edge.head.serving.slot import Slot
from edge.head.trial.trial import Counts
from splitmesh.api.serving.v1 import serving_pb2 as pb
from splitmesh.errors import field_error

_PHASES = {phase: pb.Phase.Value(f"PHASE_{phase.value}") for phase in Phase}
_REFERENCES = {
    pb.TRIAL_REFERENCE_UNSPECIFIED: "FULL_MODEL",
    pb.TRIAL_REFERENCE_FULL_MODEL: "FULL_MODEL",
    pb.TRIAL_REFERENCE_LABELS: "LABELS",
}
_SUMS = (
    "both_right",
    "only_serving_right",
    "only_candidate_right",
    "both_wrong",
    "candidate_failed",
    "serving_failed",
    "not_made",
    "answered_by_serving",
    "answered_by_candidate",
)


def assignment_from(message: pb.Assignment) -> Assignment:
    """MeshError FIELD_INVALID names what is wrong."""
    trial = None
    if message.HasField("trial"):
        asked = message.trial
        if asked.reference not in _REFERENCES:
            raise field_error("assignment.trial.reference", f"{asked.reference} is unknown")
        trial = {
            "trial_id": asked.trial_id,
            "candidate": asked.candidate,
            "answer_share": asked.answer_share,
            "pair_share": asked.pair_share,
            "reference": _REFERENCES[asked.reference],
        }
    return checked(
        model=message.model,
        version=message.version,
        generation=message.generation,
        require_tail=message.require_tail,
        trial=trial,
    )


def policy_from(message: pb.HostPolicy) -> HostPolicy:
    """MeshError FIELD_INVALID names what is wrong."""
    named = [share.model for share in message.shares]
    if len(set(named)) != len(named):
        raise field_error("policy.shares", "names a model twice")
    shares = {
        share.model: HostShare(
            priority=share.priority, cpu_weight=share.cpu_weight or 1.0, memory_bytes=share.memory_bytes
        )
        for share in message.shares
        if _is_possible(share)
    }
    return policy_of(generation=message.generation, shares=shares, memory_bytes=message.memory_bytes)


def _is_possible(share: pb.HostShare) -> bool:
    if share.priority > 9:
        raise field_error("policy.shares.priority", f"is {share.priority}, expected 0 to 9")
    if not 0 <= share.cpu_weight < 1e6:
        raise field_error("policy.shares.cpu_weight", f"is {share.cpu_weight}, expected 0 to 1,000,000")
    return True


def state_message(follower: ModelFollower, model: str, node: str, source: str) -> pb.ServingState:
    """What one model does here now."""
    held, loaded = follower.held, follower.serving.loaded
    assignment = follower.assignment
    active = 0 if loaded is None else loaded.info.version
    previous = 0
    if held is not None and assignment is not None:
        previous = held.active if held.active != active else held.previous
    state = pb.ServingState(
        model=model,
        generation=0 if assignment is None else assignment.generation,
        active_version=active,
        previous_version=previous,
        memory_bytes=sum(
            slot.loaded.memory_bytes for slot in (follower.serving, follower.candidate) if slot.loaded is not None
        ),
        node=node,
    )
    if follower.serving.wanted is not None:
        state.wanted.CopyFrom(_version_message(follower.serving.wanted, follower.serving))
    if assignment is not None and assignment.trial is not None:
        if follower.candidate.wanted is not None:
            state.candidate.CopyFrom(_version_message(follower.candidate.wanted, follower.candidate))
        if follower.tryout.counts is not None:
            state.counts.CopyFrom(counts_message(follower.tryout.counts, source))
    return state


def counts_message(counts: Counts, source: str) -> pb.TrialCounts:
    """``source`` names this life of this process."""
    sums = {name: getattr(counts, name) for name in _SUMS}
    return pb.TrialCounts(trial_id=counts.trial_id, source=source, **sums)


def _version_message(progress: Progress, slot: Slot) -> pb.VersionState:
    message = pb.VersionState(
        version=progress.version,
        phase=_PHASES[progress.phase],
        done_bytes=progress.done_bytes,
        total_bytes=progress.total_bytes,
    )
    if progress.error is not None:
        message.reason, message.message = progress.error.reason.value, progress.error.message
    loaded = slot.loaded
    if loaded is not None and loaded.info.version == progress.version:
        choice = loaded.ways.current.choice
        if choice is not None:
            message.backend.CopyFrom(backend_message(choice))
    return message
