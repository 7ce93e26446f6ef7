"""What the SDK returns: answers as plain values, made from messages in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.api.routing.v1 import routing_pb2
from splitmesh.errors import MeshError
from splitmesh.kernel.tensors import tensors_from_messages
from splitmesh.routing.gate import Why
from splitmesh.tensor.spec import ANSWER_LIMITS, Array

_WHY = {routing_pb2.RouteReason.Value(f"ROUTE_REASON_{why.value}"): why for why in Why}


class AnsweredBy(StrEnum):
    """Who answered a frame."""

    EDGE_EXIT = "EDGE_EXIT"
    """The exit at the edge was confident."""
    CLOUD_TAIL = "CLOUD_TAIL"
    """The tail in the cloud."""
    EDGE_FALLBACK = "EDGE_FALLBACK"
    """The exit, not confident, because the tail could not answer in time; `fallback_reason` says why."""
    EDGE_WHOLE = "EDGE_WHOLE"
    """The whole model runs at the edge."""


@dataclass(frozen=True, slots=True)
class Label:
    """One class with its probability, 0..1."""

    name: str
    index: int
    score: float


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds by stage; 0 for a stage the frame did not pass."""

    queue_ms: float
    decode_ms: float
    head_ms: float
    encode_ms: float
    link_ms: float
    tail_queue_ms: float
    tail_ms: float
    total_ms: float


@dataclass(frozen=True, slots=True)
class Routing:
    """How it was decided whether the edge answers."""

    why: Why
    """Why the sample is easy or hard."""
    score: str
    """Name of the score; see ``splitmesh.routing``."""
    ease: float | None
    """How easy the sample looks by that score, 0..1; None where that is undefined."""
    threshold: float
    """What the ease was compared with; above 1 everything escalates."""
    worth: float
    """Expected gain of asking the tail, 0..1."""
    refused: str = ""
    """One sentence where a hard sample was not sent for want of budget, else empty."""
    audited: bool = False
    """The tail is asked all the same, to see whether it agrees; what it says comes too late for this answer."""
    policy_revision: int = 0
    """Of the router's policy; 0: none was heard of yet."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one frame."""

    frame_id: int
    labels: tuple[Label, ...]
    """The answer first, then by descending score; empty for a model without labels, but for a detector's exit: nothing,
    something. The answer has the largest score, unless an exit answered where mistakes cost different amounts."""
    answered_by: AnsweredBy
    fallback_reason: str
    """Reason code when `answered_by` is EDGE_FALLBACK, or EDGE_WHOLE in the tail's place; else empty."""
    model: str
    version: int
    cut: tuple[str, ...]
    uplink_bytes: int
    """Bytes of the features that a tail answered; 0 when none did."""
    exit_confidence: float
    """0..1; 0 when the model has no exit."""
    timings: Timings
    trace_id: str
    outputs: Mapping[str, Array]
    """Output tensors of a model without labels."""
    rate: int | None = None
    """At which the features were coded, 0: the best; None when none crossed or the version has no rates."""
    exit: int | None = None
    """Which exit answered, counted from the input; None when none did."""
    routing: Routing | None = None
    """None for a version without an exit, and of a head that does not tell."""

    @property
    def label(self) -> Label:
        """The class that is the answer. IndexError for a model without labels."""
        return self.labels[0]


@dataclass(frozen=True, slots=True)
class FrameFailure:
    """A frame of a stream that could not be answered."""

    frame_id: int
    error: MeshError


@dataclass(frozen=True, slots=True)
class StreamCounts:
    """What became of a stream's frames so far; ``sent`` is the sum of the next four and of the frames without an outcome."""

    sent: int = 0
    """Frames taken from the camera."""
    answered: int = 0
    superseded: int = 0
    """Gave way to newer ones, here or at the head (FRAME_SUPERSEDED)."""
    cancelled: int = 0
    """Given up by :meth:`Stream.cancel` before they were answered."""
    failed: int = 0
    """Ended with any other reason."""
    resent: int = 0
    """Times that a frame was sent again; not more outcomes."""
    reconnected: int = 0
    """Times that another conversation with a head was begun after the first."""


def answer_from_message(message: pb.InferResponse) -> Answer:
    """The message as values."""
    name = pb.AnsweredBy.Name(message.answered_by).removeprefix("ANSWERED_BY_")
    timings = message.timings
    return Answer(
        frame_id=message.frame_id,
        labels=tuple(Label(label.name, label.index, label.score) for label in message.labels),
        answered_by=AnsweredBy(name),
        fallback_reason=message.fallback_reason,
        model=message.model,
        version=message.version,
        cut=tuple(message.cut),
        uplink_bytes=message.uplink_bytes,
        exit_confidence=message.exit_confidence,
        timings=Timings(
            **{field: getattr(timings, field) for field in Timings.__dataclass_fields__}  # one name on both sides
        ),
        trace_id=message.trace_id,
        outputs=tensors_from_messages(message.outputs, ANSWER_LIMITS),
        rate=message.rate if message.HasField("rate") else None,
        exit=message.exit if message.HasField("exit") else None,
        routing=_routing(message.routing) if message.HasField("routing") else None,
    )


def _routing(message: pb.Routing) -> Routing | None:
    """None where a newer head has a reason that this client does not know: the answer is as good without."""
    why = _WHY.get(message.why)
    if why is None:
        return None
    return Routing(
        why=why,
        score=message.score,
        ease=message.ease if message.HasField("ease") else None,
        threshold=message.threshold,
        worth=message.worth,
        refused=message.refused,
        audited=message.audited,
        policy_revision=message.policy_revision,
    )
