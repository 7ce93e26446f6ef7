"""One frame's way through the head: perceive, gate, answer at the edge or escalate, fall back when nobody answers.

This is the place to read to know where a frame goes. Every frame ends in exactly one of: an answer, or a MeshError. One that
passed an exit is then told to the observers, and some that a sure exit answered are audited: neither changes an answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from opentelemetry.trace import Span as OtelSpan

from edge.head.active import ActiveModel
from edge.head.audits import Audits
from edge.head.config import HeadSettings
from edge.head.deadline import Deadline, Margins
from edge.head.decided import Decided, Observer, TailSaid
from edge.head.fill import (
    add_routing,
    begun,
    exit_gives_outputs,
    fill,
    fill_from_exit,
    tail_said,
)
from edge.head.frame import FrameAnswer, FrameRequest, StageTimes
from edge.head.models import Models
from edge.head.observers import Observers
from edge.head.perceive import Perceived
from edge.head.report import Outcomes
from edge.head.shadows import Shadows
from edge.head.shares import CpuShares
from edge.head.trial.others import Others
from edge.head.trial.trials import Trials
from edge.head.turns import Turns
from edge.head.uplink.budget import Budget
from edge.head.ways import Ways
from splitmesh.client.answers import AnsweredBy
from splitmesh.client.segment import SegmentLink, SegmentResult
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.signals import Attr, Span
from splitmesh.kernel.telemetry import AttrValue, Telemetry, trace_context_of
from splitmesh.tensor import Frame

log = logging.getLogger(__name__)

BUDGET_RETRY_S = 1.0
"""After which a frame that found no budget and nobody else to answer it may be tried again."""


@dataclass(frozen=True, slots=True)
class _Frame:
    """What stays the same on a frame's way."""

    request: FrameRequest
    ways: Ways
    active: ActiveModel
    span: OtelSpan
    arrived_ns: int
    deadline: Deadline
    aside: bool = False
    """The version is only tried: it keeps no other frame waiting."""


class Answerer:
    """Answers frames with the active version of the model they ask for.

    Args:
        models: what is loaded.
        settings: of this head.
        telemetry: a span per frame.
        outcomes: counts every frame.
        budget: asked before a frame crosses.
        audits: shown every answer of a sure exit.
        observers: told every frame that passed an exit, once, when it is answered.
        shares: what each model has of the workers' time; None: all the same.
    """

    def __init__(
        self,
        models: Models,
        settings: HeadSettings,
        telemetry: Telemetry,
        outcomes: Outcomes,
        *,
        budget: Budget,
        audits: Audits,
        observers: Sequence[Observer],
        shares: CpuShares | None = None,
    ) -> None:
        self._models = models
        self._settings = settings
        self._telemetry = telemetry
        self._outcomes = outcomes
        self._budget = budget
        self._audits = audits
        self._observers = Observers(observers)
        self._turns = Turns(settings, shares)
        self._margins = Margins(settings.answer_margin_ms)
        self._shadows = Shadows(self._turns, budget)
        self.others = Others(self._turns, budget)
        """What versions say of frames that nobody waits for."""
        self._trials = Trials(self.others, outcomes.refused)
        self._in_progress = 0

    async def start(self) -> None:
        """Begin to watch how punctual this process is."""
        self._margins.start()

    async def stop(self) -> None:
        """Let the worker threads go."""
        await self._trials.stop()
        await self._shadows.stop()
        self._turns.close()
        await self._margins.stop()

    async def answer(self, request: FrameRequest) -> FrameAnswer:
        """The frame's answer.

        Raises MeshError for a bad frame, QUEUE_FULL when too many are in progress, DEADLINE_EXPIRED, and, for a version
        without an exit, what kept the tail from answering, BUDGET_SPENT too.
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
                ways, trial = self._models.ways(request.model), self._models.trial(request.model)
                deadline = Deadline.of(request, self._settings.default_deadline_ms)
                by = partial(self._by, request, span, arrived_ns)
                # Where another version is tried, it answers some frames, and of some both answers are compared afterwards.
                return await (self._trials.answer(trial, by, request, ways, deadline) if trial else by(ways, deadline))
            finally:
                self._in_progress -= 1

    async def _by(
        self,
        request: FrameRequest,
        span: OtelSpan,
        arrived_ns: int,
        ways: Ways,
        deadline: Deadline,
        *,
        aside: bool = False,
    ) -> FrameAnswer:
        """By one version, whatever is switched to meanwhile."""
        with ways.current.use() as active:
            span.set_attribute(Attr.MODEL, active.info.model)
            span.set_attribute(Attr.VERSION, active.info.version)
            return await self._answer(_Frame(request, ways, active, span, arrived_ns, deadline, aside))

    async def _answer(self, frame: _Frame) -> FrameAnswer:
        request, ways, active = frame.request, frame.ways, frame.active
        ways.asked()
        escalate = request.outputs_needed and not exit_gives_outputs(active)
        try:
            async with asyncio.timeout_at(frame.deadline.expires):
                seen = await self._turns.perceive(
                    active, request, frame.deadline.expires, escalate=escalate, aside=frame.aside
                )
        except TimeoutError as error:
            late = f"the head did not get to it in {frame.deadline.total_s * 1e3:.0f} ms"
            raise MeshError(Reason.DEADLINE_EXPIRED, late) from error
        answer = begun(request, active, seen, frame.span, frame.arrived_ns)
        self._record(frame, seen, answer)
        ways.saw_head(active, answer.times.head_ms)
        tail = await self._decide(frame, seen, answer)
        refused = answer.fallback_reason is Reason.BUDGET_SPENT
        crossing_bytes = 0 if seen.packed is None or refused else len(seen.packed.payload)
        ways.saw_end(active, uplink_bytes=crossing_bytes, tail_ms=answer.times.tail_ms)
        self._shadows.follow(request, ways)
        answer.times.total_ms = (time.time_ns() - frame.arrived_ns) / 1e6
        frame.span.set_attribute(Attr.ANSWERED_BY, answer.answered_by.value)
        self._tell(frame, seen, answer, tail)
        return answer

    def _record(self, frame: _Frame, seen: Perceived, answer: FrameAnswer) -> None:
        """Into the frame's trace, what the head saw."""
        self._telemetry.record(Span.HEAD_DECODE, seen.started_ns, seen.decoded_ns, parent=frame.span)
        attributes: dict[Attr, AttrValue] = {}
        if seen.verdict is not None:
            attributes = {
                Attr.EXIT: seen.exit,
                Attr.EXIT_CONFIDENCE: answer.exit_confidence,
                Attr.THRESHOLD: seen.verdict.threshold,
            }
        self._telemetry.record(
            Span.HEAD_SEGMENT, seen.begun_ns, seen.ended_ns, parent=frame.span, attributes=attributes
        )

    async def _decide(self, frame: _Frame, seen: Perceived, answer: FrameAnswer) -> TailSaid | None:
        """Fill in the answer: from the whole model, the exit, the tail, or whoever stands in for it. What the tail said."""
        active, link = frame.active, frame.active.link
        if active.manifest.split is None or link is None:
            fill(answer, active, seen.outputs, classes=not frame.request.outputs_needed)
            answer.answered_by = AnsweredBy.EDGE_WHOLE
            self._outcomes.edge_whole(active.info)
            return None
        answer.cut = tuple(tensor.name for tensor in active.manifest.split.cut)
        if seen.packed is None:
            fill_from_exit(answer, seen)
            answer.answered_by = AnsweredBy.EDGE_EXIT
            self._outcomes.edge_exit(active.info)
            return None
        try:
            left_s = self._require_way(frame, link, seen, seen.packed)
            result = await self._escalate(frame, link, seen, seen.packed, left_s, answer.times)
            fill(answer, active, result.outputs)
            said = None if seen.verdict is None else tail_said(active, result.outputs, seen.verdict)
        except MeshError as error:
            await self._answer_without_tail(frame, seen, answer, error)
            return None
        # Only now: an answer that cannot be used crossed for nothing.
        answer.uplink_bytes, answer.rate = len(seen.packed.payload), seen.rate
        answer.answered_by = AnsweredBy.CLOUD_TAIL
        self._outcomes.cloud_tail(active.info, disagreed=said is not None and said.disagreed)
        return said

    async def _answer_without_tail(self, frame: _Frame, seen: Perceived, answer: FrameAnswer, error: MeshError) -> None:
        """Fill in the answer of a hard frame that no tail answers: by the whole model, else by the exit; else raise why."""
        reason, active = error.reason, frame.active
        if reason is Reason.BUDGET_SPENT:
            add_routing(answer, refused=error.message)
        if await self._answer_whole(frame, answer, reason, exit_follows=seen.exit_row is not None):
            return
        if seen.exit_row is None or (frame.request.outputs_needed and not exit_gives_outputs(active)):
            raise error
        try:
            fill_from_exit(answer, seen)
        except MeshError as unusable:  # the exit says nothing: why the tail did not answer is what counts
            raise error from unusable
        answer.answered_by = AnsweredBy.EDGE_FALLBACK
        answer.fallback_reason = reason
        frame.span.set_attribute(Attr.FALLBACK_REASON, reason.value)
        self._outcomes.fallback(active.info, reason)

    async def _answer_whole(self, frame: _Frame, answer: FrameAnswer, reason: Reason, *, exit_follows: bool) -> bool:
        """Answer here with the whole model, where it is one of the ways and there is time left; whether that was so."""
        other = frame.ways.whole()
        if other is None:
            return False
        until = frame.deadline.expires - (self._margins.margin_s(frame.deadline) if exit_follows else 0.0)
        with other.use():
            try:
                async with asyncio.timeout_at(until):
                    seen = await self._turns.perceive(other, frame.request, until)
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

    def _require_way(self, frame: _Frame, link: SegmentLink, seen: Perceived, packed: Frame) -> float:
        """Take what the frame needs to cross and return how long it may wait for the tail. Without an exit any is worth all.

        Raises MeshError DEADLINE_EXPIRED, SERVICE_UNAVAILABLE or QUEUE_FULL, for which nothing is taken, or BUDGET_SPENT.
        """
        left_s = self._margins.left_s(frame.deadline, frame.ways)
        if left_s <= 0:
            raise MeshError(Reason.DEADLINE_EXPIRED, "too little time is left to ask the tail")
        link.require()
        worth = 1.0 if seen.verdict is None else seen.verdict.worth
        if refused := self._budget.refuses(frame.active.info.model, worth, len(packed.payload), left_s=left_s):
            raise MeshError(Reason.BUDGET_SPENT, refused, retry_after_s=BUDGET_RETRY_S)
        return left_s

    async def _escalate(
        self, frame: _Frame, link: SegmentLink, seen: Perceived, packed: Frame, left_s: float, times: StageTimes
    ) -> SegmentResult:
        with self._telemetry.span(Span.HEAD_ESCALATE, parent=frame.span) as span:
            result = await link.run(packed, trace_context=trace_context_of(span), deadline_s=left_s)
            if seen.rate is not None:
                span.set_attribute(Attr.RATE, seen.rate)
            span.set_attribute(Attr.UPLINK_BYTES, len(packed.payload))
        times.tail_queue_ms = result.later_queue_ms
        times.tail_ms = result.later_compute_ms
        times.link_ms = result.links_ms
        self._budget.crossed(frame.active.info.model, cloud_ms=result.taken_ms)
        return result

    def _tell(self, frame: _Frame, seen: Perceived, answer: FrameAnswer, tail: TailSaid | None) -> None:
        """Those who look at decided frames, of one that passed an exit."""
        if seen.verdict is None:
            return
        arrived = datetime.fromtimestamp(frame.arrived_ns / 1e9, UTC)
        decided = Decided(frame.request, frame.active, seen, seen.verdict, answer, arrived, tail)
        if answer.answered_by is AnsweredBy.EDGE_EXIT and self._audits.take(decided):
            add_routing(answer, audited=True)
        self._observers.decided(decided)
