"""A frame on its way through the head, as plain values: what was asked, and what came of it.

Every protocol by which a frame may come in makes a :class:`FrameRequest` and turns a :class:`FrameAnswer` into messages of
its own; between the two nobody knows which protocol it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge.head.active import ActiveModel
from splitmesh.client.answers import AnsweredBy, Routing
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.tensor.spec import Array, Buffer, TensorSpec

MAX_CAMERA_ID = 128


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture."""

    data: Buffer

    @property
    def size_bytes(self) -> int:
        """Of the encoded picture."""
        return len(self.data)


@dataclass(frozen=True, slots=True)
class Tensors:
    """Inputs as they came: not checked against the model, their bytes not looked at."""

    items: tuple[tuple[TensorSpec, Buffer], ...]
    """A model with one input takes a tensor without a name."""
    field: str = "tensors"
    """The request's field, named in errors."""

    @property
    def size_bytes(self) -> int:
        """Of all data."""
        return sum(len(data) for _, data in self.items)


@dataclass(frozen=True, slots=True)
class FrameRequest:
    """One sample to be answered."""

    content: Picture | Tensors
    model: str = ""
    """Empty: the head's first one."""
    camera_id: str = ""
    stream: str = ""
    """Names the stream that it came in, among those of this process; empty: it came by itself."""
    frame_id: int = 0
    deadline_ms: int = 0
    """From arrival; 0: the head's default."""
    traceparent: str = ""
    waited_ms: float = 0.0
    """Since its arrival: the deadline and the times in the answer count from there."""
    outputs_needed: bool = False
    """The whole model's own outputs are asked for: where an exit cannot give them, it may not answer."""

    def check(self, max_frame_bytes: int) -> int:
        """Raise MeshError for what needs no decoding to be refused; returns the input's size in bytes."""
        if len(self.camera_id) > MAX_CAMERA_ID:
            raise field_error("camera_id", f"has {len(self.camera_id)} characters; at most {MAX_CAMERA_ID}")
        size = self.content.size_bytes
        if size > max_frame_bytes:
            raise MeshError(
                Reason.FRAME_TOO_LARGE,
                f"the frame has {size} bytes; at most {max_frame_bytes}",
                metadata={"size_bytes": str(size), "max_frame_bytes": str(max_frame_bytes)},
            )
        return size


@dataclass(slots=True)
class StageTimes:
    """Where a frame's time went, milliseconds; 0 for a stage it did not pass. Fields as in the contract's Timings."""

    queue_ms: float = 0.0
    decode_ms: float = 0.0
    head_ms: float = 0.0
    encode_ms: float = 0.0
    link_ms: float = 0.0
    tail_queue_ms: float = 0.0
    tail_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(slots=True)
class FrameAnswer:
    """What came of a frame; filled in on its way."""

    frame_id: int
    active: ActiveModel
    """The version that answered."""
    trace_id: str
    times: StageTimes = field(default_factory=StageTimes)
    answered_by: AnsweredBy = AnsweredBy.EDGE_WHOLE
    fallback_reason: Reason | None = None
    row: NDArray[np.float64] | None = None
    """Probabilities ``[classes]`` of the answer; None for a model without classes, unless its exit answered."""
    outputs: Mapping[str, Array] | None = None
    """The whole model's outputs by name, each of one sample; None when an exit answered."""
    cut: tuple[str, ...] = ()
    uplink_bytes: int = 0
    exit_confidence: float = 0.0
    rate: int | None = None
    """At which what crossed was coded."""
    exit: int | None = None
    """Which exit answered, counted from the input."""
    named: int | None = None
    """Class that an exit's answer names; None: the most probable one of ``row``. Another one where costs are stated."""
    routing: Routing | None = None
    """How it was decided; None for a version without an exit."""
    trace_context: bytes = b""
    """Of the head's span, 25 bytes, for what is done about the frame after its answer; empty: none was kept."""
