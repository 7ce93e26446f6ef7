"""One Run stream: frames in, results out, each frame with its own trace, deadline and error."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from cloud.tail.assemble import Broken, Requests, Whole, assemble
from cloud.tail.config import TailSettings
from cloud.tail.feeds import feeds_of, stated
from cloud.tail.forward import Onward, Relayed, onward
from cloud.tail.messages import Response, accepted_message, description, refusal_message, result_message
from cloud.tail.segments import Loaded, Segments
from splitmesh.api.segment.v1 import segment_pb2
from splitmesh.client.registry_trust import Withdrawn
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.signals import Attr, Span
from splitmesh.kernel.streams import Drain, FrameStream
from splitmesh.kernel.telemetry import AttrValue, Telemetry
from splitmesh.tensor import TensorLimits
from splitmesh.tensor.spec import total_bytes

log = logging.getLogger(__name__)

DEFAULT_DEADLINE_MS = 10_000
MAX_PRIORITY = 9
OPEN_TIMEOUT_S = 10.0
"""A stream that does not say what it wants holds a call for no longer than this."""


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

    async def serve(self, requests: Requests) -> AsyncGenerator[Response]:
        """Read open, load the segment, reach the next one of a chain, then answer frames until the stream ends or the
        node drains."""
        opening = await _opening(requests)
        segment = opening.segment or 1
        log.info(
            "%r opens a stream for %s version %d segment %d", opening.node, opening.model, opening.version, segment
        )
        async with (
            self._segments.use(opening.model, opening.version, segment) as loaded,
            onward(loaded, self._channels, self._settings, self._telemetry, priority=opening.priority) as following,
        ):
            yield accepted_message(self._settings)
            stream: FrameStream[Whole | Broken, Response] = FrameStream(
                lambda item: self._answer(item, loaded, following, opening.priority),
                lambda item, error: refusal_message(item.frame_id, error, self._segments.backlog_ms()),
                frame_id=lambda item: item.frame_id,
                credit=self._settings.credit,
                drain=self._drain,
                draining=segment_pb2.RunResponse(draining=segment_pb2.Draining()),
            )
            async with aclosing(stream.serve(assemble(requests, self._limits))) as responses:
                async for response in responses:
                    yield response

    def describe(self, withdrawn: Withdrawn) -> segment_pb2.DescribeResponse:
        """What is loaded now, and what of it would not be again."""
        return description(self._segments, self._settings, withdrawn)

    async def _answer(self, item: Whole | Broken, loaded: Loaded, following: Onward | None, priority: int) -> Response:
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
            frame = stated(item.frame, loaded)
            # Refused before it is unpacked, which may cost as much as computing it.
            with loaded.batcher.place(total_bytes(frame.header.tensors), deadline_s, priority) as place:
                done = await place.computed(await feeds_of(frame, loaded, self._limits))
            self._telemetry.record(Span.TAIL_QUEUE, done.enqueued_ns, done.started_ns, parent=span)
            batch = {Attr.BATCH_ID: done.batch_id, Attr.BATCH_SIZE: done.batch_size}
            self._telemetry.record(Span.TAIL_COMPUTE, done.started_ns, done.ended_ns, parent=span, attributes=batch)
            relayed = Relayed(done.outputs, ())
            if following is not None:
                relayed = await following.run(done.outputs, parent=span, expires=expires)
            return result_message(item.frame_id, done, relayed, self._segments.backlog_ms())


async def _opening(requests: Requests) -> segment_pb2.Open:
    """The first message of a stream."""
    try:
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            first = await anext(requests, None)
    except TimeoutError as error:
        raise MeshError(Reason.DEADLINE_EXPIRED, f"no open came within {OPEN_TIMEOUT_S:g} s") from error
    if first is None or first.message.WhichOneof("message") != "open":
        raise MeshError(Reason.PROTOCOL_VIOLATION, "the first message must be open")
    opening = first.message.open
    if opening.priority > MAX_PRIORITY:
        raise field_error("priority", f"is {opening.priority}, expected 0..{MAX_PRIORITY}")
    return opening
