"""Answering the frames of one bidirectional stream: concurrently, bounded, and without one bad frame ending the stream.

Knows no message: callers hand in how a frame is answered and how a refusal looks. Back-pressure is end to end: with
`credit` frames unanswered, or answers the client does not read, nothing more is read from it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.frame_line import FrameLine, Item, Place, Response

log = logging.getLogger(__name__)

LAST_READ_S = 0.5
"""How long a stream is read after its client was told of the drain: what is under way is refused, not lost."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Beside the frames of a stream: nobody waits for one of them any more."""

    frame_id: int


class Drain:
    """Tells open streams that the server is about to stop, and waits until they have answered what they took."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self._told: set[Callable[[], None]] = set()
        self._open = 0
        self._none_open = asyncio.Event()
        self._none_open.set()

    def enter(self, tell: Callable[[], None] | None = None) -> None:
        """A stream opens; NOT_READY while draining. ``tell`` is called when draining begins."""
        if self.begun.is_set():
            raise _shutting_down()
        if tell is not None:
            self._told.add(tell)
        self._open += 1
        self._none_open.clear()

    def leave(self, tell: Callable[[], None] | None = None) -> None:
        """A stream has ended."""
        if tell is not None:
            self._told.discard(tell)
        self._open -= 1
        if not self._open:
            self._none_open.set()

    async def drain(self, timeout_s: float) -> None:
        """Begin, and wait for open streams to end, at most ``timeout_s`` seconds."""
        self.begun.set()
        while self._told:
            self._told.pop()()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._none_open.wait()


class FrameStream(Generic[Item, Response]):
    """One stream being answered."""

    def __init__(
        self,
        answer: Callable[[Item], Coroutine[Any, Any, Response]],
        refuse: Callable[[Item, MeshError], Response],
        *,
        frame_id: Callable[[Item], int],
        credit: int,
        drain: Drain,
        in_order: bool = False,
        max_waiting: int | None = None,
        concurrency: int | None = None,
        draining: Response | None = None,
    ) -> None:
        """``refuse`` is asked once for each frame that ``answer`` gives no response to, also when the client has left and
        nobody takes the refusal; ``draining`` is sent once when a drain begins; for the others see :meth:`arrange`."""
        self._answer = answer
        self._refuse = refuse
        self._frame_id = frame_id
        self._credit = credit
        self._drain = drain
        self._draining = draining
        self._line: FrameLine[Item, Response] = FrameLine()
        self._tasks: set[asyncio.Task[Response]] = set()
        self._reading: asyncio.Task[None] | None = None
        self._responses, self._room = asyncio.Event(), asyncio.Event()
        self._closed = False
        self.arrange(in_order=in_order, max_waiting=max_waiting, concurrency=concurrency)

    def arrange(
        self, *, in_order: bool = False, max_waiting: int | None = None, concurrency: int | None = None
    ) -> None:
        """How frames are answered; to be called before the first one comes.

        ``in_order``: responses, errors too, go out in the order of the frames; otherwise as they become ready. At most
        ``concurrency`` frames are worked on at once, where not given ``credit``. With ``max_waiting`` the newest of those
        that wait is taken first, and above so many the oldest is refused with FRAME_SUPERSEDED.
        """
        self._line.in_order, self._line.max_waiting = in_order, max_waiting
        self._concurrency = concurrency or self._credit

    async def serve(self, items: AsyncIterator[Item | Cancel]) -> AsyncGenerator[Response]:
        """Responses, until ``items`` has ended, or a drain has begun, and everything taken is answered.

        A frame above the credit is refused with QUEUE_FULL, one with the number of an unanswered one with FIELD_INVALID, a
        cancelled one with CANCELLED unless its response is ready. After a drain NOT_READY is raised, so that the client
        sends elsewhere what was not answered; likewise what ``items`` raised.
        """
        self._drain.enter(self._begin_drain)
        reading = self._reading = asyncio.create_task(self._read(items))
        reading.add_done_callback(lambda _: self._responses.set())
        try:
            while True:
                while (response := self._line.take()) is not None:
                    self._room.set()
                    yield response
                if reading.done() and not self._line.untaken:
                    break
                self._responses.clear()
                await self._responses.wait()
            if not reading.cancelled():
                reading.result()
        finally:
            # Also on the client's cancellation: nobody waits for these answers any more.
            self._closed = True
            self._drain.leave(self._begin_drain)
            for task in [reading, *self._tasks]:
                task.cancel()
            for item in self._line.unanswered():
                self._refuse(item, MeshError(Reason.CANCELLED, "the client has left"))
            # A second cancellation may come here (grpc's own, at a broken connection): nothing may depend on what follows.
            await asyncio.gather(reading, *self._tasks, return_exceptions=True)
        if self._drain.begun.is_set():
            raise _shutting_down()

    def _begin_drain(self) -> None:
        if self._reading is None:
            raise AssertionError("only a stream that is served is told of the drain")
        if self._draining is None:
            self._reading.cancel()
            return
        self._line.announce(self._draining)
        self._responses.set()
        asyncio.get_running_loop().call_later(LAST_READ_S, self._reading.cancel)

    async def _read(self, items: AsyncIterator[Item | Cancel]) -> None:
        async for item in items:
            if isinstance(item, Cancel):
                self._cancel(item.frame_id)
            else:
                self._take(item)
            del item  # large: not to be kept until the next one comes
            while self._line.untaken >= 2 * self._credit:
                self._room.clear()
                await self._room.wait()

    def _take(self, item: Item) -> None:
        frame_id = self._frame_id(item)
        if (error := self._objection(frame_id)) is not None:
            self._line.turn_away(frame_id, item, self._refuse(item, error))
            self._responses.set()
            return
        place = self._line.enter(frame_id, item)
        if len(self._tasks) < self._concurrency:
            self._start(place)
        elif (superseded := self._line.wait(place)) is not None:
            self._settle_refused(superseded, MeshError(Reason.FRAME_SUPERSEDED, "a newer frame took its turn"))

    def _objection(self, frame_id: int) -> MeshError | None:
        if self._drain.begun.is_set():
            return _shutting_down()
        if self._line.find(frame_id) is not None:
            return field_error("frame_id", f"frame {frame_id} has no answer yet; numbers must differ")
        if len(self._line) >= self._credit:
            return MeshError(
                Reason.QUEUE_FULL,
                f"{self._credit} frames are unanswered already; wait for an answer before the next frame",
                retry_after_s=0.05,
            )
        return None

    def _start(self, place: Place[Item, Response]) -> None:
        place.task = asyncio.create_task(self._answer(place.unanswered()))
        self._tasks.add(place.task)
        place.task.add_done_callback(partial(self._ended, place))

    def _ended(self, place: Place[Item, Response], task: asyncio.Task[Response]) -> None:
        self._tasks.discard(task)
        if self._closed:
            return
        error = None if task.cancelled() else task.exception()
        if task.cancelled():
            self._settle_refused(place, MeshError(Reason.CANCELLED, "the frame was given up"))
        elif error is None:
            self._settle(place, task.result())
        elif isinstance(error, MeshError):
            self._settle_refused(place, error)
        else:
            # The text may hold paths or data: it goes to the log; the frame still gets its answer.
            log.error("a frame failed unexpectedly", exc_info=error)
            self._settle_refused(place, MeshError(Reason.INTERNAL, "unexpected failure; see the server's log"))
        if (following := self._line.next_turn()) is not None:
            self._start(following)

    def _cancel(self, frame_id: int) -> None:
        place = self._line.find(frame_id)
        if place is None or place.response is not None or place.given_up:
            return
        place.given_up = True
        if place.task is not None:
            place.task.cancel()
            return
        self._line.stop_waiting(place)
        self._settle_refused(place, MeshError(Reason.CANCELLED, "the frame was given up before its turn"))

    def _settle_refused(self, place: Place[Item, Response], error: MeshError) -> None:
        self._settle(place, self._refuse(place.unanswered(), error))

    def _settle(self, place: Place[Item, Response], response: Response) -> None:
        self._line.settle(place, response)
        self._responses.set()


def _shutting_down() -> MeshError:
    return MeshError(Reason.NOT_READY, "this node is shutting down", retry_after_s=0.5)
