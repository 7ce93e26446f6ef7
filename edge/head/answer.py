"""One frame's way through the head: perceive, gate, answer at the edge or escalate, fall back when nobody answers.

This is the place to read to know where a frame goes. Every frame ends in exactly one of: an answer, or a MeshError.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
from opentelemetry.trace import Span as OtelSpan

from edge.head.active import ActiveModel
from edge.head.config import HeadSettings
from edge.head.fill import disagrees, exit_gives_outputs, fill, fill_from_exit
from edge.head.follow import Models
from edge.head.frame import FrameAnswer, FrameRequest, StageTimes, Tensors
from edge.head.lateness import Lateness
from edge.head.line import BEHIND_ALL, Line
from edge.head.perceive import Perceived, perceive
from edge.head.report import Outcomes
from edge.head.ways import Ways
from splitmesh.client.answers import AnsweredBy
from splitmesh.client.segment import SegmentLink, SegmentResult
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.signals import Attr, Span
from splitmesh.kernel.telemetry import AttrValue, Telemetry, trace_context_of, trace_id_of
from splitmesh.model.gate import confidence
from splitmesh.tensor import TensorLimits

log = logging.getLogger(__name__)

MAX_DEADLINE_MS = 600_000
SHADOW_DEADLINE_S = 2.0
MOST_LATENESS = 0.25
"""Of a frame's deadline that is kept back at most because the host is late with things."""


@dataclass(frozen=True, slots=True)
class _Frame:
    """What stays the same on a frame's way."""

    request: FrameRequest
    ways: Ways
    active: ActiveModel
    span: OtelSpan
    arrived_ns: int
    expires: float
    """On the loop's clock."""
    deadline_s: float
    """From its arrival."""


class Answerer:
    """Answers frames with the active version of the model they ask for."""

    def __init__(self, models: Models, settings: HeadSettings, telemetry: Telemetry, outcomes: Outcomes) -> None:
        self._models = models
        self._settings = settings
        self._telemetry = telemetry
        self._outcomes = outcomes
        self._line = Line(settings.workers)
        self._lateness = Lateness()
        self._limits = TensorLimits(max_size_bytes=settings.max_frame_bytes)
        self._in_progress = 0
        self._shadows: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to watch how punctual this process is."""
        self._lateness.start()

    async def stop(self) -> None:
        """Let the worker threads go."""
        for task in self._shadows:
            task.cancel()
        await asyncio.gather(*self._shadows, return_exceptions=True)
        self._line.close()
        await self._lateness.stop()

    async def answer(self, request: FrameRequest) -> FrameAnswer:
        """The frame's answer.

        Raises MeshError for a bad frame, QUEUE_FULL when too many are in progress, DEADLINE_EXPIRED, and, for a version
        without an exit, what kept the tail from answering.
        """
        try:
            return await self._traced(request)
        except asyncio.CancelledError:
            self.refused(request.model, Reason.CANCELLED)
            raise
        except Exception as error:
            self.refused(request.model, error.reason if isinstance(error, MeshError) else Reason.INTERNAL)
            raise

    def refused(self, model: str, reason: Reason) -> None:
        """Count a frame that got no answer, at the version that would have given it."""
        with suppress(MeshError):  # nobody's, where the model is not here
            self._outcomes.refused(self._models.ways(model).current.info, reason)

    async def _traced(self, request: FrameRequest) -> FrameAnswer:
        arrived_ns = time.time_ns() - round(request.waited_ms * 1e6)
        attributes: dict[Attr, AttrValue] = {
            Attr.CAMERA_ID: request.camera_id[:128],
            Attr.FRAME_ID: request.frame_id,
            Attr.NODE: self._settings.node,
        }
        with self._telemetry.span(Span.HEAD_FRAME, traceparent=request.traceparent, attributes=attributes) as span:
            span.set_attribute(Attr.INPUT_BYTES, request.check(self._settings.max_frame_bytes))
            if self._in_progress >= self._settings.max_frames:
                raise MeshError(
                    Reason.QUEUE_FULL, f"{self._in_progress} frames are in progress already", retry_after_s=0.1
                )
            self._in_progress += 1
            try:
                ways = self._models.ways(request.model)
                with ways.current.use() as active:
                    span.set_attribute(Attr.MODEL, active.info.model)
                    span.set_attribute(Attr.VERSION, active.info.version)
                    return await self._answer(request, ways, active, span, arrived_ns)
            finally:
                self._in_progress -= 1

    async def _answer(
        self, request: FrameRequest, ways: Ways, active: ActiveModel, span: OtelSpan, arrived_ns: int
    ) -> FrameAnswer:
        deadline_ms = min(request.deadline_ms or self._settings.default_deadline_ms, MAX_DEADLINE_MS)
        if request.waited_ms >= deadline_ms:
            raise MeshError(Reason.DEADLINE_EXPIRED, f"it waited {request.waited_ms:.0f} ms for its turn")
        loop = asyncio.get_running_loop()
        frame = _Frame(
            request,
            ways,
            active,
            span,
            arrived_ns,
            loop.time() + (deadline_ms - request.waited_ms) / 1000,
            deadline_ms / 1000,
        )
        try:
            async with asyncio.timeout_at(frame.expires):
                escalate = request.outputs_needed and not exit_gives_outputs(active)
                seen = await self._perceive(active, request, frame.expires, escalate=escalate)
        except TimeoutError as error:
            raise MeshError(Reason.DEADLINE_EXPIRED, f"the head did not get to it in {deadline_ms} ms") from error
        self._telemetry.record(Span.HEAD_DECODE, seen.started_ns, seen.decoded_ns, parent=span)
        answer = FrameAnswer(
            frame_id=request.frame_id,
            active=active,
            trace_id=trace_id_of(span),
            times=StageTimes(
                queue_ms=(seen.started_ns - arrived_ns) / 1e6 + seen.waited_ms,
                decode_ms=(seen.decoded_ns - seen.started_ns) / 1e6,
                head_ms=seen.head_ms,
            ),
        )
        ways.saw_head(active, answer.times.head_ms)
        await self._decide(frame, seen, answer)
        crossing_bytes = 0 if seen.packed is None else len(seen.packed.payload)
        ways.saw_end(active, uplink_bytes=crossing_bytes, tail_ms=answer.times.tail_ms)
        if not self._shadows and (other := ways.shadow_due()) is not None:
            task = asyncio.create_task(self._shadow(request, other))
            self._shadows.add(task)
            task.add_done_callback(self._shadows.discard)
        answer.times.total_ms = (time.time_ns() - arrived_ns) / 1e6
        span.set_attribute(Attr.ANSWERED_BY, answer.answered_by.value)
        return answer

    async def _perceive(
        self,
        active: ActiveModel,
        request: FrameRequest,
        expires: float,
        *,
        escalate: bool = False,
        priority: int | None = None,
    ) -> Perceived:
        """When it is this frame's turn, as a rule in a worker thread; DEADLINE_EXPIRED when that would be too late."""
        settings = self._settings
        job = partial(
            perceive,
            active,
            request,
            max_pixels=settings.max_pixels,
            limits=self._limits,
            codec=settings.codec,
            escalate=escalate,
        )
        urgent = active.priority if priority is None else priority
        return await self._line.do(
            job,
            expires=expires,
            took=active.took,
            priority=urgent,
            company=active.company,
            steady=active.steady and isinstance(request.content, Tensors),  # a picture's time to decode varies
        )

    async def _shadow(self, request: FrameRequest, other: ActiveModel) -> None:
        """Send a frame that is answered already the other way, to learn what the link is like; nobody sees the answer."""
        with other.use():
            expires = asyncio.get_running_loop().time() + SHADOW_DEADLINE_S
            try:
                async with asyncio.timeout_at(expires):
                    seen = await self._perceive(other, request, expires, escalate=True, priority=BEHIND_ALL)
                if seen.packed is not None and other.link is not None:
                    await other.link.run(seen.packed, trace_context=b"", deadline_s=SHADOW_DEADLINE_S)
            except (MeshError, TimeoutError) as error:
                log.debug("a shadow frame got no answer: %r", error)

    async def _decide(self, frame: _Frame, seen: Perceived, answer: FrameAnswer) -> None:
        """Fill in the answer: from the whole model, the exit, the tail, or the exit as fallback."""
        manifest, link = frame.active.manifest, frame.active.link
        exit_row = seen.exit_row
        attributes: dict[Attr, AttrValue] = {}
        if exit_row is not None:
            answer.exit_confidence = float(np.nan_to_num(confidence(exit_row)[0]))
            attributes = {
                Attr.EXIT: seen.exit,
                Attr.EXIT_CONFIDENCE: answer.exit_confidence,
                Attr.THRESHOLD: frame.active.gate.threshold,
            }
        self._telemetry.record(
            Span.HEAD_SEGMENT, seen.begun_ns, seen.ended_ns, parent=frame.span, attributes=attributes
        )
        if manifest.split is None or link is None:
            fill(answer, frame.active, seen.outputs, classes=not frame.request.outputs_needed)
            answer.answered_by = AnsweredBy.EDGE_WHOLE
            self._outcomes.edge_whole(frame.active.info)
            return
        answer.cut = tuple(tensor.name for tensor in manifest.split.cut)
        if exit_row is not None and seen.packed is None:
            fill_from_exit(answer, seen)
            answer.answered_by = AnsweredBy.EDGE_EXIT
            self._outcomes.edge_exit(frame.active.info)
            return
        try:
            result = await self._escalate(frame, link, seen, answer)
            fill(answer, frame.active, result.outputs)
            # Only now: an answer that cannot be used crossed for nothing.
            answer.uplink_bytes = 0 if seen.packed is None else len(seen.packed.payload)
            answer.rate = seen.rate
        except MeshError as error:
            if await self._answer_whole(frame, answer, error.reason, exit_follows=exit_row is not None):
                return
            if exit_row is None or (frame.request.outputs_needed and not exit_gives_outputs(frame.active)):
                raise
            fill_from_exit(answer, seen)
            answer.answered_by = AnsweredBy.EDGE_FALLBACK
            answer.fallback_reason = error.reason
            frame.span.set_attribute(Attr.FALLBACK_REASON, error.reason.value)
            self._outcomes.fallback(frame.active.info, error.reason)
            return
        answer.answered_by = AnsweredBy.CLOUD_TAIL
        disagreed = exit_row is not None and disagrees(answer, result.outputs, exit_row)
        self._outcomes.cloud_tail(frame.active.info, disagreed=disagreed)

    async def _answer_whole(self, frame: _Frame, answer: FrameAnswer, reason: Reason, *, exit_follows: bool) -> bool:
        """Answer here with the whole model, where it is one of the ways and there is time left; whether that was so."""
        other = frame.ways.whole()
        if other is None:
            return False
        until = frame.expires - (self._margin_s(frame) if exit_follows else 0.0)
        with other.use():
            try:
                async with asyncio.timeout_at(until):
                    seen = await self._perceive(other, frame.request, until)
                fill(answer, other, seen.outputs)
            except (MeshError, TimeoutError) as error:
                log.warning("the whole model could not answer instead of the tail: %s", error)
                return False
        answer.active = other
        answer.times.head_ms += seen.head_ms
        answer.answered_by = AnsweredBy.EDGE_WHOLE
        answer.fallback_reason = reason
        answer.cut = ()
        frame.span.set_attribute(Attr.FALLBACK_REASON, reason.value)
        self._outcomes.edge_whole(other.info)
        return True

    async def _escalate(self, frame: _Frame, link: SegmentLink, seen: Perceived, answer: FrameAnswer) -> SegmentResult:
        if seen.packed is None:
            raise AssertionError("a frame escalates only when it was packed")
        answer.times.encode_ms = (seen.packed_ns - seen.ended_ns) / 1e6
        with self._telemetry.span(Span.HEAD_ESCALATE, parent=frame.span) as span:
            left_s = self._left_s(frame)
            if left_s <= 0:
                raise MeshError(Reason.DEADLINE_EXPIRED, "too little time is left to ask the tail")
            result = await link.run(seen.packed, trace_context=trace_context_of(span), deadline_s=left_s)
            if seen.rate is not None:
                span.set_attribute(Attr.RATE, seen.rate)
            span.set_attribute(Attr.UPLINK_BYTES, len(seen.packed.payload))
        answer.times.tail_queue_ms = result.later_queue_ms
        answer.times.tail_ms = result.later_compute_ms
        answer.times.link_ms = result.links_ms
        return result

    def _left_s(self, frame: _Frame) -> float:
        """How long a frame may wait for the tail: time for the whole model is kept back where it would be enough."""
        left_s = frame.expires - asyncio.get_running_loop().time() - self._margin_s(frame)
        whole_s = frame.ways.whole_ms() / 1000
        return left_s - whole_s if whole_s < left_s else left_s

    def _margin_s(self, frame: _Frame) -> float:
        """Kept back for the exit's answer: as set, and as much more as this host was late with things lately."""
        late_s = min(self._lateness.peak_s, frame.deadline_s * MOST_LATENESS)
        return self._settings.answer_margin_ms / 1000 + late_s
