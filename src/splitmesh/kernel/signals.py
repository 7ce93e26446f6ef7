"""Every span and attribute the product emits, declared before use in one table.

Attributes are sizes, counts, ids and timings; never tensors, pictures, file names or paths (the trace UI has no users).
A test drives frames through the mesh and fails on a span or attribute that is not declared here.
"""

from __future__ import annotations

from enum import StrEnum


class Span(StrEnum):
    """Names of spans."""

    GATEWAY_FRAME = "gateway.frame"
    HEAD_FRAME = "head.frame"
    HEAD_DECODE = "head.decode"
    HEAD_SEGMENT = "head.segment"
    HEAD_ESCALATE = "head.escalate"
    TAIL_FRAME = "tail.frame"
    TAIL_REQUEST = "tail.request"
    TAIL_QUEUE = "tail.queue"
    TAIL_COMPUTE = "tail.compute"
    TAIL_FORWARD = "tail.forward"
    RPC_SERVER = "rpc.server"


class Attr(StrEnum):
    """Names of span attributes; semantic conventions of OpenTelemetry where they have one."""

    RPC_METHOD = "rpc.method"
    ERROR_TYPE = "error.type"
    MODEL = "splitmesh.model"
    VERSION = "splitmesh.model.version"
    SEGMENT = "splitmesh.model.segment"
    CAMERA_ID = "splitmesh.camera.id"
    FRAME_ID = "splitmesh.frame.id"
    NODE = "splitmesh.node"
    ANSWERED_BY = "splitmesh.answered_by"
    FALLBACK_REASON = "splitmesh.fallback.reason"
    EXIT = "splitmesh.exit"
    EXIT_CONFIDENCE = "splitmesh.exit.confidence"
    THRESHOLD = "splitmesh.exit.threshold"
    INPUT_BYTES = "splitmesh.input.size_bytes"
    UPLINK_BYTES = "splitmesh.uplink.size_bytes"
    RATE = "splitmesh.uplink.rate"
    BATCH_ID = "splitmesh.batch.id"
    BATCH_SIZE = "splitmesh.batch.size"


PARENTS: dict[Span, frozenset[Span]] = {
    Span.GATEWAY_FRAME: frozenset(),
    Span.HEAD_FRAME: frozenset({Span.GATEWAY_FRAME}),
    Span.HEAD_DECODE: frozenset({Span.HEAD_FRAME}),
    Span.HEAD_SEGMENT: frozenset({Span.HEAD_FRAME}),
    Span.HEAD_ESCALATE: frozenset({Span.HEAD_FRAME}),
    Span.TAIL_FRAME: frozenset({Span.HEAD_ESCALATE, Span.TAIL_FORWARD}),
    Span.TAIL_REQUEST: frozenset(),
    Span.TAIL_QUEUE: frozenset({Span.TAIL_FRAME, Span.TAIL_REQUEST}),
    Span.TAIL_COMPUTE: frozenset({Span.TAIL_FRAME, Span.TAIL_REQUEST}),
    Span.TAIL_FORWARD: frozenset({Span.TAIL_FRAME}),
    Span.RPC_SERVER: frozenset(),
}
"""Which span may be whose parent; a span with an empty set starts its trace or continues an outside caller's."""

ATTRIBUTES: dict[Span, frozenset[Attr]] = {
    Span.GATEWAY_FRAME: frozenset({Attr.CAMERA_ID, Attr.FRAME_ID, Attr.INPUT_BYTES, Attr.ERROR_TYPE}),
    Span.HEAD_FRAME: frozenset(
        {
            Attr.MODEL,
            Attr.VERSION,
            Attr.CAMERA_ID,
            Attr.FRAME_ID,
            Attr.NODE,
            Attr.ANSWERED_BY,
            Attr.FALLBACK_REASON,
            Attr.INPUT_BYTES,
            Attr.ERROR_TYPE,
        }
    ),
    Span.HEAD_DECODE: frozenset(),
    Span.HEAD_SEGMENT: frozenset({Attr.EXIT, Attr.EXIT_CONFIDENCE, Attr.THRESHOLD}),
    Span.HEAD_ESCALATE: frozenset({Attr.UPLINK_BYTES, Attr.RATE, Attr.ERROR_TYPE}),
    Span.TAIL_FRAME: frozenset({Attr.MODEL, Attr.VERSION, Attr.SEGMENT, Attr.NODE, Attr.FRAME_ID, Attr.ERROR_TYPE}),
    Span.TAIL_REQUEST: frozenset({Attr.MODEL, Attr.VERSION, Attr.NODE, Attr.ERROR_TYPE}),
    Span.TAIL_QUEUE: frozenset(),
    Span.TAIL_COMPUTE: frozenset({Attr.BATCH_ID, Attr.BATCH_SIZE}),
    Span.TAIL_FORWARD: frozenset({Attr.UPLINK_BYTES, Attr.ERROR_TYPE}),
    Span.RPC_SERVER: frozenset({Attr.RPC_METHOD, Attr.ERROR_TYPE}),
}
"""Which attributes a span may carry."""
