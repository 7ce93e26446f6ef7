"""A picture or inputs as a request: size checked, span opened below the caller's own, large fields left beside the message."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from opentelemetry import trace
from opentelemetry.trace import Span as OtelSpan

from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.api.tensor.v1 import tensor_pb2
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.signals import Attr, Span
from splitmesh.kernel.telemetry import AttrValue, Telemetry, fail, trace_context_of, traceparent_of
from splitmesh.kernel.tensors import spec_to_message
from splitmesh.kernel.wire import Lifted
from splitmesh.tensor import as_bytes
from splitmesh.tensor.spec import Array, Buffer, spec_of

Frame = bytes | Array | Mapping[str, Array]
"""A picture, an input, or several inputs by name."""

Prepared = tuple[Lifted[pb.StreamInferRequest], int, OtelSpan]
"""A frame's message, its size in bytes and its span."""

MAX_LABELS = (1 << 32) - 1


class Requests:
    """Makes the requests of one mesh."""

    def __init__(self, telemetry: Telemetry, *, model: str, max_frame_bytes: int) -> None:
        self._telemetry = telemetry
        self._model = model
        self._max_frame_bytes = max_frame_bytes

    def call(self, content: Frame, *, camera: str, max_labels: int) -> tuple[Lifted[pb.InferRequest], OtelSpan]:
        """A request without a deadline, and its open span. MeshError as :meth:`Mesh.infer` raises it."""
        request = pb.InferRequest()
        _, span = self._opened(0, content, camera)
        return Lifted(request, self._fill(request, content, span, camera, max_labels)), span

    def frame(self, frame_id: int, picture: bytes, *, camera: str, deadline_ms: int, max_labels: int) -> Prepared:
        """A frame of a stream, and its open span. FRAME_TOO_LARGE, FIELD_INVALID."""
        if not isinstance(picture, bytes):
            raise field_error(
                "image", f"a stream takes encoded pictures as bytes, and this is {type(picture).__name__}"
            )
        message = pb.StreamInferRequest()
        size, span = self._opened(frame_id, picture, camera)
        message.frame.frame_id = frame_id
        message.frame.deadline_ms = deadline_ms
        return Lifted(message, self._fill(message.frame, picture, span, camera, max_labels)), size, span

    def _opened(self, frame_id: int, content: Frame, camera: str) -> tuple[int, OtelSpan]:
        size = _size(content)
        if size > self._max_frame_bytes:
            raise MeshError(Reason.FRAME_TOO_LARGE, f"the frame has {size} bytes; at most {self._max_frame_bytes}")
        attributes: dict[Attr, AttrValue] = {Attr.CAMERA_ID: camera, Attr.FRAME_ID: frame_id, Attr.INPUT_BYTES: size}
        caller = trace.get_current_span()
        # Its ids and not the span itself: that one is the caller's to end.
        above = trace_context_of(caller) if caller.get_span_context().is_valid else b""
        return size, self._telemetry.start(Span.GATEWAY_FRAME, trace_context=above, attributes=attributes)

    def _fill(
        self, request: pb.InferRequest, content: Frame, span: OtelSpan, camera: str, max_labels: int
    ) -> tuple[Buffer, ...]:
        """What every request says; the content of its large fields is given back."""
        try:
            request.model = self._model
            request.camera_id = camera
            request.traceparent = traceparent_of(span)
            request.max_labels = max_labels
            return _put(request, content)
        except BaseException as error:
            fail(span, error)
            span.end()
            raise


def check_max_labels(max_labels: int) -> None:
    """FIELD_INVALID for a number that no request can carry."""
    if not 0 <= max_labels <= MAX_LABELS:
        raise field_error("max_labels", f"{max_labels} is outside 0 to {MAX_LABELS}")


def _put(request: pb.InferRequest, content: Frame) -> tuple[Buffer, ...]:
    match content:
        case bytes():
            request.image = b""
            return (content,)
        case np.ndarray():
            request.tensor.CopyFrom(_without_data("", content))
            return (as_bytes(content),)
        case _:
            request.tensors.tensors.extend(_without_data(name, array) for name, array in content.items())
            return tuple(as_bytes(array) for array in content.values())


def _without_data(name: str, array: Array) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(spec=spec_to_message(spec_of(name, array)))


def _size(content: Frame) -> int:
    match content:
        case bytes():
            return len(content)
        case np.ndarray():
            return content.nbytes
        case _:
            return sum(array.nbytes for array in content.values())
