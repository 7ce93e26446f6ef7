"""Asks the tail, after the answer was given, whether it would have said what a sure exit said.

Which frames are asked about is the choice of ``splitmesh.routing.audit``; here they are packed, sent if the budget has bytes
to spare, and compared. Nothing waits for an audit: packing is done in a thread of its own, at most ``MOST_AT_ONCE`` audits are
under way, each ends after ``AUDIT_S``, and one that cannot be made, or fails, says nothing of the exit: its sample counts as
accepted, not as audited, as ``audit_estimate.py`` expects it. A frame that an exit before the cut answered is computed to the
cut for its audit, so that no exit's answers go unchecked. Knows no router: who is to know what the tail said is told.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from enum import StrEnum
from typing import Protocol

from edge.head.config import HeadSettings
from edge.head.decided import Decided, TailSaid
from edge.head.fill import tail_said
from edge.head.perceive import packed_for_tail, perceive
from splitmesh.client.segment import SegmentLink
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.signals import Attr, Span
from splitmesh.kernel.telemetry import Telemetry, trace_context_of
from splitmesh.routing.audit import MAX_NAME, Auditor, Counts, Stratum
from splitmesh.routing.finding import FINDINGS
from splitmesh.tensor import Frame, TensorLimits

log = logging.getLogger(__name__)

AUDIT_S = 2.0
"""Longest time from an answer to the end of its audit."""
MOST_AT_ONCE = 8
MOST_VERSIONS = 64
"""Whose counts are kept; the one that was longest without a frame and a new share goes."""

Told = Callable[[Decided, TailSaid], None]


class Spare(Protocol):
    """What audits need of ``budget.Budget``."""

    def allows_audit(self, model: str, size_bytes: int) -> bool:
        """Whether an audit's bytes may cross now; they are taken then."""

    def crossed(self, model: str, *, cloud_ms: float) -> None:
        """The answer came; so long did a tail compute for it."""


class NotMade(StrEnum):
    """Why a sample that was chosen tells nothing."""

    BUSY = "busy"
    """As many audits as may be were under way."""
    NO_TAIL = "no_tail"
    """None takes frames."""
    NO_BUDGET = "no_budget"
    FAILED = "failed"
    """No answer in time, or none that can be used."""


class Audits:
    """Of all versions of this head.

    Args:
        settings: how frames are decoded and packed; the node's name makes heads choose other samples.
        telemetry: an audit is a span of its frame's trace.
        budget: is asked for every audit's bytes.
        told: called on the event loop when the tail has answered.
    """

    def __init__(self, settings: HeadSettings, telemetry: Telemetry, budget: Spare, told: Told) -> None:
        self._settings = settings
        self._telemetry = telemetry
        self._budget = budget
        self._told = told
        self._limits = TensorLimits(max_size_bytes=settings.max_frame_bytes)
        self._auditors: OrderedDict[tuple[str, int], Auditor] = OrderedDict()
        self._running: set[asyncio.Task[None]] = set()
        self._thread: ThreadPoolExecutor | None = None
        self.not_made: Counter[NotMade] = Counter()
        """Of the samples that were chosen since the start."""

    async def start(self) -> None:
        """From now on audits are made."""
        self._thread = ThreadPoolExecutor(1, "audit")

    async def stop(self) -> None:
        """Let go what is under way; nothing more is audited."""
        thread, self._thread = self._thread, None
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        if thread is not None:
            thread.shutdown(wait=False, cancel_futures=True)
        if self.not_made:
            log.info("audits that were not made: %s", ", ".join(f"{n} {why}" for why, n in self.not_made.items()))

    def set_share(self, model: str, version: int, share: float) -> None:
        """Of a version's sure answers, from the next frame on. MeshError FIELD_INVALID unless it is in 0..0.5."""
        if not 0 <= share <= 0.5:
            raise field_error("audit_share", f"is {share}, expected 0 to 0.5")
        self._auditor(model, version).set_share(share)

    def drain(self, model: str, version: int) -> dict[Stratum, Counts]:
        """A version's counts since the last time they were asked for."""
        auditor = self._auditors.get((model, version))
        return {} if auditor is None else auditor.drain()

    def take(self, frame: Decided) -> bool:
        """Whether a frame that a sure exit answered is audited, which begins then in the background; counts it.

        For every such frame, on the event loop, while its version is in use. Never raises.
        """
        active, verdict = frame.active, frame.verdict
        auditor = self._auditor(active.info.model, active.info.version)
        try:
            chosen = auditor.take(frame.request.camera_id, exit_label(frame), verdict.ease, key_of(frame))
        except MeshError as error:
            log.debug("an answer of the exit is not counted: %s", error)
            return False
        if not chosen or self._thread is None:
            return False
        if active.link is None or not active.link.available:
            self.not_made[NotMade.NO_TAIL] += 1
            return False
        if len(self._running) >= MOST_AT_ONCE:
            self.not_made[NotMade.BUSY] += 1
            return False
        using = ExitStack()
        using.enter_context(active.use())  # here: the task begins later, and the frame's own use may have ended by then

        def ended(task: asyncio.Task[None]) -> None:
            self._running.discard(task)
            using.close()

        task = asyncio.create_task(self._audit(frame, active.link, self._thread))
        self._running.add(task)
        task.add_done_callback(ended)
        return True

    def _auditor(self, model: str, version: int) -> Auditor:
        key = (model, version)
        auditor = self._auditors.get(key)
        if auditor is None:
            if len(self._auditors) >= MOST_VERSIONS:
                self._auditors.popitem(last=False)
            seed = zlib.crc32(f"{self._settings.node}/{model}/{version}".encode())
            auditor = self._auditors[key] = Auditor(0.0, seed)
        else:
            self._auditors.move_to_end(key)
        return auditor

    async def _audit(self, frame: Decided, link: SegmentLink, thread: ThreadPoolExecutor) -> None:
        try:
            async with asyncio.timeout(AUDIT_S):
                said = await self._ask(frame, link, thread)
            if said is None:
                self.not_made[NotMade.NO_BUDGET] += 1
                return
            info, verdict = frame.active.info, frame.verdict
            self._auditor(info.model, info.version).answered(
                frame.request.camera_id, exit_label(frame), verdict.ease, disagreed=said.disagreed
            )
            self._told(frame, said)
        except (MeshError, TimeoutError) as error:
            log.debug("an audit failed: %r", error)
            self.not_made[NotMade.FAILED] += 1
        except Exception:
            log.exception("an audit failed unexpectedly")
            self.not_made[NotMade.FAILED] += 1

    async def _ask(self, frame: Decided, link: SegmentLink, thread: ThreadPoolExecutor) -> TailSaid | None:
        """What the tail says; None where there is no budget for it."""
        loop = asyncio.get_running_loop()
        expires = loop.time() + AUDIT_S
        packed, rate = await loop.run_in_executor(thread, self._packed, frame)
        link.require()  # what cannot be sent takes nothing
        if not self._budget.allows_audit(frame.active.info.model, len(packed.payload)):
            return None
        with self._telemetry.span(Span.HEAD_ESCALATE, trace_context=frame.answer.trace_context) as span:
            span.set_attribute(Attr.UPLINK_BYTES, len(packed.payload))
            if rate is not None:
                span.set_attribute(Attr.RATE, rate)
            left_s = expires - loop.time()
            result = await link.run(packed, trace_context=trace_context_of(span), deadline_s=left_s)
        self._budget.crossed(frame.active.info.model, cloud_ms=result.taken_ms)
        said = tail_said(frame.active, result.outputs, frame.verdict)
        if said is None:
            raise MeshError(Reason.TENSOR_NOT_FINITE, "the tail's answer names no class")
        return said

    def _packed(self, frame: Decided) -> tuple[Frame, int | None]:
        """In the thread: as a hard frame would cross."""
        active, settings = frame.active, self._settings
        if frame.seen.complete:
            return packed_for_tail(active, frame.seen.outputs, settings.codec)
        seen = perceive(
            active,
            frame.request,
            max_pixels=settings.max_pixels,
            limits=self._limits,
            codec=settings.codec,
            escalate=True,
        )
        if seen.packed is None:
            raise MeshError(Reason.NOT_READY, "the version has no cut")
        return seen.packed, seen.rate


def exit_label(frame: Decided) -> str:
    """The class that the exit named, as the router and a person know it: its name, or its number where it has none."""
    exit_, answer = frame.active.manifest.exit, frame.verdict.answer
    names = FINDINGS if exit_ is not None and exit_.finding is not None else frame.active.manifest.labels
    return names[answer][:MAX_NAME] if 0 <= answer < len(names) else str(answer)


def key_of(frame: Decided) -> str:
    """Another one for every frame, also where a caller's trace or a camera's numbers come again."""
    request = frame.request
    return f"{frame.answer.trace_id}/{request.camera_id}/{request.frame_id}/{frame.arrived.timestamp()}"
