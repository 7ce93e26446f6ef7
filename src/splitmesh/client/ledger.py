"""What became of every frame of one camera: waiting, at the head, or ended; one outcome each, in the order asked for.

Knows no network. Everything is bounded: frames and unread outcomes by the window, waiting frames by the policy.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from opentelemetry.trace import Span as OtelSpan

from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.client.answers import Answer, FrameFailure, StreamCounts
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.telemetry import fail
from splitmesh.kernel.wire import Lifted

Outcome = Answer | FrameFailure


@dataclass(slots=True)
class Pending:
    """A frame without an outcome."""

    message: Lifted[pb.StreamInferRequest]
    size_bytes: int
    span: OtelSpan
    timer: asyncio.TimerHandle
    not_before: float = 0.0
    """Loop time before which it is not sent: the head asked for that."""
    sent: bool = False
    cancelled: bool = False
    last_error: MeshError | None = None


class Ledger:
    """The frames of one stream."""

    def __init__(self, *, window: int, max_waiting: int | None, in_order: bool) -> None:
        """``max_waiting``: frames not at the head above which the oldest is superseded; None: nothing is dropped."""
        self.counts = StreamCounts()
        self.to_send = asyncio.Event()
        """Set when the sender may have something to do."""
        self.abandoned: Callable[[int], None] = lambda _: None
        """Told of a frame that may be at the head and that nobody waits for any more."""
        self._window = window
        self._max_waiting = max_waiting
        self._in_order = in_order
        self._pending: dict[int, Pending] = {}
        self._waiting: list[int] = []
        self._ready: deque[Outcome] = deque()
        self._early: dict[int, Outcome] = {}
        self._turn = 0
        self._changed = asyncio.Event()

    @property
    def open(self) -> int:
        """Frames without an outcome."""
        return len(self._pending)

    @property
    def has_room(self) -> bool:
        """Whether one more frame may come: a slow reader slows the camera, and so does a slow head unless frames give way."""
        unread = len(self._ready) + len(self._early)
        return unread + (len(self._pending) if self._max_waiting is None else 0) < self._window

    async def changed(self) -> None:
        """Until a frame came or ended, or an outcome was read."""
        await self._changed.wait()

    def wake(self) -> None:
        """Let all who wait for a change look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def add(self, frame_id: int, frame: Pending) -> None:
        """A frame that waits to be sent."""
        self._count(sent=1)
        self._pending[frame_id] = frame
        self._wait(frame_id)

    def refuse(self, frame_id: int, error: MeshError) -> None:
        """A frame that never was fit to be sent."""
        self._count(sent=1)
        self._end(frame_id, FrameFailure(frame_id, error))

    def following(self, now: float) -> tuple[int, Pending] | None:
        """The oldest frame to be sent now; it waits no longer."""
        for place, frame_id in enumerate(self._waiting):
            frame = self._pending[frame_id]
            if frame.not_before <= now:
                del self._waiting[place]
                self._count(resent=int(frame.sent))
                frame.sent = True
                return frame_id, frame
        return None

    def again(self, frame_id: int, error: MeshError, *, not_before: float = 0.0) -> None:
        """Send it again, in its old place; a frame that was cancelled ends here."""
        frame = self._pending.get(frame_id)
        if frame is None:
            return
        frame.last_error, frame.not_before = error, not_before
        if frame.cancelled:
            self.settle(frame_id, FrameFailure(frame_id, cancelled()))
            return
        self._wait(frame_id)

    def blame(self, error: MeshError) -> None:
        """Why nothing is answered at the moment: what a frame that is given up says."""
        for frame in self._pending.values():
            frame.last_error = error

    def cancel(self, frame_id: int) -> bool:
        """Whether the frame was without an outcome; one that is not at the head ends at once."""
        frame = self._pending.get(frame_id)
        if frame is None:
            return False
        frame.cancelled = True
        if self._is_waiting(frame_id):
            self.settle(frame_id, FrameFailure(frame_id, cancelled()))
        else:
            self.abandoned(frame_id)
        return True

    def give_up(self, frame_id: int, after_s: float) -> None:
        """Its time is over."""
        error = self._pending[frame_id].last_error or MeshError(
            Reason.SERVICE_UNAVAILABLE, f"no answer from the head in {after_s} s"
        )
        at_head = not self._is_waiting(frame_id)
        self.settle(frame_id, FrameFailure(frame_id, error))
        if at_head:
            self.abandoned(frame_id)

    def settle(self, frame_id: int, outcome: Outcome) -> None:
        """The frame's outcome; nothing when it has one already: a frame that was sent again may be answered twice."""
        frame = self._pending.pop(frame_id, None)
        if frame is None:
            return
        if self._is_waiting(frame_id):
            del self._waiting[bisect_left(self._waiting, frame_id)]
        frame.timer.cancel()
        if isinstance(outcome, FrameFailure):
            if frame.cancelled:
                outcome = FrameFailure(frame_id, cancelled())
            fail(frame.span, outcome.error)
        frame.span.end()
        self._end(frame_id, outcome)
        self.to_send.set()

    def read(self) -> Outcome | None:
        """The next outcome, if one is ready."""
        if not self._ready:
            return None
        outcome = self._ready.popleft()
        self.wake()
        return outcome

    def drop_all(self) -> None:
        """Forget what is open: the stream is closed."""
        for frame in self._pending.values():
            frame.timer.cancel()
            frame.span.end()
        self._pending.clear()
        self._waiting.clear()

    def _wait(self, frame_id: int) -> None:
        insort(self._waiting, frame_id)
        while self._max_waiting is not None and len(self._waiting) > self._max_waiting:
            error = MeshError(Reason.FRAME_SUPERSEDED, "a newer frame came before this one could be sent")
            self.settle(self._waiting[0], FrameFailure(self._waiting[0], error))
        self.to_send.set()

    def _is_waiting(self, frame_id: int) -> bool:
        place = bisect_left(self._waiting, frame_id)
        return place < len(self._waiting) and self._waiting[place] == frame_id

    def _end(self, frame_id: int, outcome: Outcome) -> None:
        self._count(**{_kind(outcome): 1})
        if self._in_order:
            self._early[frame_id] = outcome
            while (first := self._early.pop(self._turn, None)) is not None:
                self._ready.append(first)
                self._turn += 1
        else:
            self._ready.append(outcome)
        self.wake()

    def _count(self, **more: int) -> None:
        self.counts = replace(self.counts, **{name: getattr(self.counts, name) + n for name, n in more.items()})


def cancelled() -> MeshError:
    """What a frame says that its sender gave up."""
    return MeshError(Reason.CANCELLED, "the frame was cancelled by its sender")


def _kind(outcome: Outcome) -> str:
    if isinstance(outcome, Answer):
        return "answered"
    return {Reason.FRAME_SUPERSEDED: "superseded", Reason.CANCELLED: "cancelled"}.get(outcome.error.reason, "failed")
