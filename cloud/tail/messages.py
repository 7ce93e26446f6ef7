"""What the tail says, as messages: results, refusals, and what is loaded."""

from __future__ import annotations

from cloud.tail.config import TailSettings
from cloud.tail.forward import Relayed
from cloud.tail.segments import Loaded, Segments
from splitmesh.api.segment.v1 import segment_pb2
from splitmesh.client.registry_trust import Withdrawn
from splitmesh.errors import MeshError
from splitmesh.kernel.batching import Computed
from splitmesh.kernel.errors import to_status
from splitmesh.kernel.profiling import live_messages
from splitmesh.kernel.tensors import spec_to_message, with_tensors
from splitmesh.kernel.wire import Lifted
from splitmesh.runtime.providers import preferred

Response = segment_pb2.RunResponse | Lifted[segment_pb2.RunResponse]
"""A message, or one beside its large outputs."""


def accepted_message(settings: TailSettings) -> segment_pb2.RunResponse:
    """The answer to open."""
    accepted = segment_pb2.Accepted(
        node=settings.node, credit=settings.credit, max_frame_bytes=settings.max_frame_bytes
    )
    return segment_pb2.RunResponse(accepted=accepted)


def result_message(frame_id: int, done: Computed, relayed: Relayed, backlog_ms: float) -> Response:
    """A frame's answer."""
    message = segment_pb2.RunResponse(
        result=segment_pb2.Result(
            frame_id=frame_id,
            queue_ms=(done.started_ns - done.enqueued_ns) / 1e6,
            compute_ms=(done.ended_ns - done.started_ns) / 1e6,
            batch_size=done.batch_size,
            onward=relayed.hops,
            backlog_ms=backlog_ms,
        )
    )
    return with_tensors(message, message.result.outputs, relayed.outputs)


def refusal_message(frame_id: int, error: MeshError, backlog_ms: float) -> segment_pb2.RunResponse:
    """A frame's error."""
    refusal = segment_pb2.FrameError(frame_id=frame_id, status=to_status(error), backlog_ms=backlog_ms)
    return segment_pb2.RunResponse(frame_error=refusal)


def description(segments: Segments, settings: TailSettings, withdrawn: Withdrawn) -> segment_pb2.DescribeResponse:
    """What is loaded now, and how busy it is."""
    loaded = segments.loaded()
    backlog_ms = segments.backlog_ms()
    return segment_pb2.DescribeResponse(
        node=settings.node,
        segments=[_segment_message(one, settings.compute_threads, backlog_ms, withdrawn) for one in loaded],
        queue_length=sum(len(one.batcher) for one in loaded),
        threads=settings.compute_threads,
        backend=preferred(settings.providers),
    )


def _segment_message(
    loaded: Loaded, threads: int, backlog_ms: float, withdrawn: Withdrawn
) -> segment_pb2.LoadedSegment:
    tally = loaded.batcher.tally
    return segment_pb2.LoadedSegment(
        model=loaded.model,
        version=loaded.version,
        inputs=[spec_to_message(spec) for spec in loaded.session.inputs],
        outputs=[spec_to_message(spec) for spec in loaded.session.outputs],
        backend=loaded.session.providers[0],
        segment=0 if loaded.whole else loaded.segment,
        whole=loaded.whole,
        threads=threads,
        live=live_messages(loaded.live.summary()),
        waiting=len(loaded.batcher),
        backlog_ms=backlog_ms,
        computed=tally.computed,
        refused=tally.refused,
        expired=tally.expired,
        cancelled=tally.cancelled,
        withdrawn=withdrawn(loaded.model, loaded.version) or "",
    )
