"""One Run stream: frames in, results out, each frame with its own trace, deadline and error."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from cloud.tail.assemble import Broken, Whole, assemble
from cloud.tail.config import TailSettings
from cloud.tail.forward import INLINE_BYTES, Onward, Relayed, onward
from cloud.tail.segments import Loaded, Segments
from splitmesh.api.segment.v1 import segment_pb2
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.batching import Computed
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.errors import to_status
from splitmesh.kernel.profiling import live_messages
from splitmesh.kernel.signals import Attr, Span
from splitmesh.kernel.streams import Drain, FrameStream
from splitmesh.kernel.telemetry import AttrValue, Telemetry
from splitmesh.kernel.tensors import spec_to_message, tensor_to_message
from splitmesh.runtime.ort import CPU
from splitmesh.tensor import TensorLimits, require_finite, unpack
from splitmesh.tensor.codecs import OF_A_VERSION
from splitmesh.tensor.spec import Array, total_bytes

log = logging.getLogger(__name__)

CODED_INLINE_BYTES = 8 * 1024
"""As ``INLINE_BYTES`` for entropy coded frames: their symbols are decoded one by one, 64 KiB take 2 ms."""

DEFAULT_DEADLINE_MS = 10_000
OPEN_TIMEOUT_S = 10.0
"""A stream that does not say what it wants holds a call for no longer than this."""

Requests = AsyncIterator[segment_pb2.RunRequest]
Responses = AsyncGenerator[segment_pb2.RunResponse]


class RunStreams:
    """Serves Run and Describe for the loaded segments."""

    def __init__(
        self, segments: Segments, settings: TailSettings, telemetry: Telemetry, drain: Drain, channels: Channels
    ) -> None:
        self._segments = segments
        self._channels = channels
        self._settings = settings
        self._telemetry = telemetry
        self._drain = drain
        self._limits = TensorLimits(max_size_bytes=settings.max_frame_bytes)

    async def serve(self, requests: Requests) -> Responses:
        """Read open, load the segment, reach the next one of a chain, then answer frames until the stream ends or the
        node drains."""
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                first = await anext(requests, None)
        except TimeoutError as error:
            raise MeshError(Reason.DEADLINE_EXPIRED, f"no open came within {OPEN_TIMEOUT_S:g} s") from error
        if first is None or first.WhichOneof("message") != "open":
            raise MeshError(Reason.PROTOCOL_VIOLATION, "the first message must be open")
        opening = first.open
        segment = opening.segment or 1
        log.info(
            "%r opens a stream for %s version %d segment %d", opening.node, opening.model, opening.version, segment
        )
        async with (
            self._segments.use(opening.model, opening.version, segment) as loaded,
            onward(loaded, self._channels, self._settings, self._telemetry) as following,
        ):
            yield segment_pb2.RunResponse(
                accepted=segment_pb2.Accepted(
                    node=self._settings.node,
                    credit=self._settings.credit,
                    max_frame_bytes=self._settings.max_frame_bytes,
                )
            )
            stream: FrameStream[Whole | Broken, segment_pb2.RunResponse] = FrameStream(
                lambda item: self._answer(item, loaded, following),
                _frame_error,
                credit=self._settings.credit,
                drain=self._drain,
            )
            async with aclosing(stream.serve(assemble(requests, self._limits))) as responses:
                async for response in responses:
                    yield response

    def describe(self) -> segment_pb2.DescribeResponse:
        """What is loaded now."""
        loaded = self._segments.loaded()
        return segment_pb2.DescribeResponse(
            node=self._settings.node,
            segments=[
                segment_pb2.LoadedSegment(
                    model=one.model,
                    version=one.version,
                    inputs=[spec_to_message(spec) for spec in one.session.inputs],
                    outputs=[spec_to_message(spec) for spec in one.session.outputs],
                    backend=one.session.providers[0],
                    segment=one.segment,
                    threads=self._settings.compute_threads,
                    live=live_messages(one.live.summary()),
                )
                for one in loaded
            ],
            queue_length=sum(len(one.batcher) for one in loaded),
            threads=self._settings.compute_threads,
            backend=CPU,
        )

    async def _answer(self, item: Whole | Broken, loaded: Loaded, following: Onward | None) -> segment_pb2.RunResponse:
        if isinstance(item, Broken):
            raise item.error
        deadline_s = (item.deadline_ms or DEFAULT_DEADLINE_MS) / 1000
        expires = asyncio.get_running_loop().time() + deadline_s
        attributes: dict[Attr, AttrValue] = {
            Attr.MODEL: loaded.model,
            Attr.VERSION: loaded.version,
            Attr.SEGMENT: loaded.segment,
            Attr.NODE: self._settings.node,
            Attr.FRAME_ID: item.frame_id,
        }
        with self._telemetry.span(Span.TAIL_FRAME, trace_context=item.trace_context, attributes=attributes) as span:
            # What is unpacked counts: an entropy coded payload is small and its symbols are not.
            inline_bytes = CODED_INLINE_BYTES if item.frame.header.codec in OF_A_VERSION else INLINE_BYTES
            if total_bytes(item.frame.header.tensors) > inline_bytes:
                feeds = await asyncio.to_thread(_feeds, item, loaded, self._limits)
            else:
                feeds = _feeds(item, loaded, self._limits)
            done = await loaded.batcher.submit(feeds, deadline_s)
            self._telemetry.record(Span.TAIL_QUEUE, done.enqueued_ns, done.started_ns, parent=span)
            batch = {Attr.BATCH_ID: done.batch_id, Attr.BATCH_SIZE: done.batch_size}
            self._telemetry.record(Span.TAIL_COMPUTE, done.started_ns, done.ended_ns, parent=span, attributes=batch)
            relayed = Relayed(done.outputs, ())
            if following is not None:
                relayed = await following.run(done.outputs, parent=span, expires=expires)
            return segment_pb2.RunResponse(result=_result(item.frame_id, done, relayed))


def _feeds(item: Whole, loaded: Loaded, limits: TensorLimits) -> dict[str, Array]:
    """The frame's arrays, after they were held against the signed shapes of the cut."""
    specs = item.frame.header.tensors
    if [spec.name for spec in specs] != [spec.name for spec in loaded.wire]:
        raise MeshError(
            Reason.TENSOR_SHAPE_MISMATCH,
            f"the frame carries {[spec.name for spec in specs]}, the cut is {[spec.name for spec in loaded.wire]}",
        )
    for expected, spec in zip(loaded.wire, specs, strict=True):
        expected.require_match(spec)
        if spec.shape[:1] != (1,):
            raise MeshError(
                Reason.TENSOR_SHAPE_MISMATCH, f"tensor {spec.name!r} must hold one sample (first dimension 1)"
            )
    feeds = dict(zip((spec.name for spec in specs), unpack(item.frame, limits, loaded.codecs), strict=True))
    for name, array in feeds.items():
        require_finite(name, array)
    return feeds


def _result(frame_id: int, done: Computed, relayed: Relayed) -> segment_pb2.Result:
    return segment_pb2.Result(
        frame_id=frame_id,
        outputs=[tensor_to_message(name, array) for name, array in relayed.outputs.items()],
        queue_ms=(done.started_ns - done.enqueued_ns) / 1e6,
        compute_ms=(done.ended_ns - done.started_ns) / 1e6,
        batch_size=done.batch_size,
        onward=relayed.hops,
    )


def _frame_error(item: Whole | Broken, error: MeshError) -> segment_pb2.RunResponse:
    return segment_pb2.RunResponse(frame_error=segment_pb2.FrameError(frame_id=item.frame_id, status=to_status(error)))
