"""InferenceService's messages to frames and back."""

from __future__ import annotations

import numpy as np

from edge.head.frame import FrameAnswer, FrameRequest, Picture, Tensors
from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.client.answers import AnsweredBy
from splitmesh.errors import field_error
from splitmesh.kernel.tensors import spec_from_message, tensor_to_message
from splitmesh.model.finding import FINDINGS

MAX_LABELS = 1000

_ANSWERED_BY = {who: pb.AnsweredBy.Value(f"ANSWERED_BY_{who.value}") for who in AnsweredBy}


def frame_from_message(request: pb.InferRequest) -> FrameRequest:
    """The request as a frame; MeshError for one without an input or with a tensor of an unknown type."""
    match request.WhichOneof("input"):
        case "image":
            content: Picture | Tensors = Picture(request.image)
        case "tensor":
            content = Tensors(((spec_from_message(request.tensor.spec), request.tensor.data),), "tensor")
        case "tensors":
            tensors = request.tensors.tensors
            content = Tensors(tuple((spec_from_message(tensor.spec), tensor.data) for tensor in tensors))
        case _:
            raise field_error("input", "is missing: set image, tensor or tensors")
    return FrameRequest(
        content=content,
        model=request.model,
        camera_id=request.camera_id,
        frame_id=request.frame_id,
        deadline_ms=request.deadline_ms,
        traceparent=request.traceparent,
    )


def answer_to_message(answer: FrameAnswer) -> pb.InferResponse:
    """The answer with its classes, or with the outputs of a model without classes."""
    times = answer.times
    response = pb.InferResponse(
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
    )
    if answer.row is not None:
        _add_labels(response, answer)
    elif answer.outputs is not None:
        response.outputs.extend(tensor_to_message(name, array) for name, array in answer.outputs.items())
    return response


def _add_labels(response: pb.InferResponse, answer: FrameAnswer) -> None:
    row, names = answer.row, answer.active.manifest.labels
    if row is None:
        raise AssertionError("only an answer with classes has labels")
    if not names and answer.outputs is None:
        names = FINDINGS  # of a detector's exit
    order = np.argsort(-row, kind="stable")[:MAX_LABELS]
    for index, score in zip(order.tolist(), row[order].tolist(), strict=True):
        response.labels.add(index=index, name=names[index] if index < len(names) else "", score=score)
