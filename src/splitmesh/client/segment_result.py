"""What a tail made of one frame, with the times that it and the nodes behind it took."""

from __future__ import annotations

from dataclasses import dataclass

from splitmesh.api.segment.v1 import segment_pb2
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.tensors import spec_from_message
from splitmesh.kernel.wire import Lifted
from splitmesh.tensor import from_bytes
from splitmesh.tensor.spec import ANSWER_LIMITS, Array


@dataclass(frozen=True, slots=True)
class SegmentResult:
    """What a tail made of one frame."""

    outputs: dict[str, Array]
    node: str
    queue_ms: float
    compute_ms: float
    batch_size: int
    round_trip_ms: float
    onward: tuple[segment_pb2.Hop, ...] = ()
    """What later segments of a chain did, the next one first."""

    @property
    def later_queue_ms(self) -> float:
        """Waiting before compute, over this and all later segments."""
        return self.queue_ms + sum(hop.queue_ms for hop in self.onward)

    @property
    def later_compute_ms(self) -> float:
        """Compute, over this and all later segments."""
        return self.compute_ms + sum(hop.compute_ms for hop in self.onward)

    @property
    def taken_ms(self) -> float:
        """Of the tails' time by this frame alone: of a batch its part."""
        return self.compute_ms / max(1, self.batch_size) + sum(hop.compute_ms for hop in self.onward)

    @property
    def links_ms(self) -> float:
        """The link to this segment and those between later ones."""
        return max(0.0, self.round_trip_ms - self.later_queue_ms - self.later_compute_ms)


def result_of(answer: Lifted[segment_pb2.RunResponse], node: str, round_trip_ms: float) -> SegmentResult:
    """A tail's message as a result; TENSOR_* where an output's dtype, shape and bytes do not fit together."""
    result = answer.message.result
    if len(answer.blobs) != len(result.outputs):
        raise MeshError(Reason.PROTOCOL_VIOLATION, "the answer's tensors and their contents are not as many")
    specs = [spec_from_message(output.spec) for output in result.outputs]
    return SegmentResult(
        outputs={
            spec.name: from_bytes(spec, blob, ANSWER_LIMITS) for spec, blob in zip(specs, answer.blobs, strict=True)
        },
        node=node,
        queue_ms=result.queue_ms,
        compute_ms=result.compute_ms,
        batch_size=result.batch_size,
        round_trip_ms=round_trip_ms,
        onward=tuple(result.onward),
    )
