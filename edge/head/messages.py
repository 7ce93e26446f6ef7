"""InferenceService's messages to frames and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.message import Message

from edge.head.frame import FrameAnswer, FrameRequest, Picture, Tensors
from edge.head.labels import add_labels
from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.api.routing.v1 import routing_pb2
from splitmesh.client.answers import AnsweredBy, Routing
from splitmesh.errors import field_error
from splitmesh.kernel.tensors import spec_from_message, with_tensors
from splitmesh.kernel.wire import Lifted
from splitmesh.routing.finding import FINDINGS
from splitmesh.routing.gate import Why
from splitmesh.tensor.spec import Buffer

M = TypeVar("M", bound=Message)

_ANSWERED_BY = {who: pb.AnsweredBy.Value(f"ANSWERED_BY_{who.value}") for who in AnsweredBy}
_WHY = {why: routing_pb2.RouteReason.Value(f"ROUTE_REASON_{why.value}") for why in Why}


def frame_from_message(
    request: pb.InferRequest, blobs: Sequence[Buffer], *, waited_ms: float = 0.0, stream: str = ""
) -> FrameRequest:
    """The request as a frame; MeshError for one without an input or with a tensor of an unknown type.

    ``blobs`` are its large fields; ``waited_ms`` is how long ago it came; ``stream`` names what it came in.
    """
    match request.WhichOneof("input"):
        case "image":
            content: Picture | Tensors = Picture(blobs[0])
        case "tensor":
            content = Tensors(((spec_from_message(request.tensor.spec), blobs[0]),), "tensor")
        case "tensors":
            specs = [spec_from_message(tensor.spec) for tensor in request.tensors.tensors]
            content = Tensors(tuple(zip(specs, blobs, strict=True)))
        case _:
            raise field_error("input", "is missing: set image, tensor or tensors")
    return FrameRequest(
        content=content,
        model=request.model,
        camera_id=request.camera_id,
        stream=stream,
        frame_id=request.frame_id,
        deadline_ms=request.deadline_ms,
        traceparent=request.traceparent,
        waited_ms=waited_ms,
    )


def answer_to_message(answer: FrameAnswer, max_labels: int = 0) -> pb.InferResponse | Lifted[pb.InferResponse]:
    """The answer with its classes, at most ``max_labels`` (0: 1,000), or with the outputs of a model without classes."""
    response = _facts(answer)
    return _with_content(response, response, answer, max_labels)


def answer_to_stream_message(
    answer: FrameAnswer, max_labels: int = 0
) -> pb.StreamInferResponse | Lifted[pb.StreamInferResponse]:
    """As :func:`answer_to_message`, on a stream."""
    message = pb.StreamInferResponse(result=_facts(answer))
    return _with_content(message, message.result, answer, max_labels)


def _facts(answer: FrameAnswer) -> pb.InferResponse:
    """Everything but classes and outputs."""
    times = answer.times
    return pb.InferResponse(
        frame_id=answer.frame_id,
        answered_by=_ANSWERED_BY[answer.answered_by],
        fallback_reason=answer.fallback_reason.value if answer.fallback_reason else "",
        model=answer.active.info.model,
        version=answer.active.info.version,
        cut=answer.cut,
        uplink_bytes=answer.uplink_bytes,
        trace_id=answer.trace_id,
        exit_confidence=answer.exit_confidence,
        rate=answer.rate,
        exit=answer.exit,
        timings=pb.Timings(
            queue_ms=times.queue_ms,
            decode_ms=times.decode_ms,
            head_ms=times.head_ms,
            encode_ms=times.encode_ms,
            link_ms=times.link_ms,
            tail_queue_ms=times.tail_queue_ms,
            tail_ms=times.tail_ms,
            total_ms=times.total_ms,
        ),
        routing=None if answer.routing is None else _routing(answer.routing),
    )


def _routing(routing: Routing) -> pb.Routing:
    return pb.Routing(
        why=_WHY[routing.why],
        score=routing.score,
        ease=routing.ease,
        threshold=routing.threshold,
        worth=routing.worth,
        refused=routing.refused,
        audited=routing.audited,
        policy_revision=routing.policy_revision,
    )


def _with_content(message: M, response: pb.InferResponse, answer: FrameAnswer, max_labels: int) -> M | Lifted[M]:
    """``message`` after ``response``, a part of it or itself, was given classes or outputs."""
    if answer.row is not None:
        names = answer.active.manifest.labels
        if not names and answer.outputs is None:
            names = FINDINGS  # of a detector's exit
        add_labels(response, answer.row, names, max_labels, answer.named)
    elif answer.outputs is not None:
        return with_tensors(message, response.outputs, answer.outputs)
    return message
