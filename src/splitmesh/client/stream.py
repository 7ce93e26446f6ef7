"""One camera's stream as a program holds it: frames go in by ``send``, one outcome for each comes out.

Knows how frames are numbered, when a frame may come in, and when the stream is over. What becomes of a frame is the
ledger's, the talk with heads the conversation's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import Any, Literal

from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.client.answers import Answer, FrameFailure, StreamCounts
from splitmesh.client.conversation import Conversation
from splitmesh.client.heads import Heads
from splitmesh.client.ledger import Ledger, Pending
from splitmesh.client.requests import Prepared
from splitmesh.errors import MeshError, Reason, field_error

Order = Literal["as-ready", "in-order"]
"""Each outcome as soon as it is ready, or in the order in which frames were sent."""
Drop = Literal["none", "oldest"]
"""What gives way when frames come faster than they are answered: the camera, which waits, or the oldest frame that waits."""

MAX_WINDOW = 4096
_ORDERS = {"as-ready": pb.ANSWER_ORDER_UNSPECIFIED, "in-order": pb.ANSWER_ORDER_IN_ORDER}
_DROPS = {"none": pb.DROP_POLICY_UNSPECIFIED, "oldest": pb.DROP_POLICY_OLDEST}


class Stream:
    """Frames of one camera on their way; made by :meth:`Mesh.stream`, used as ``async with``.

    Leaving the block gives up what is unanswered, at the head and at the tail too.
    """

    def __init__(
        self,
        heads: Heads,
        prepare: Callable[[int, bytes], Prepared],
        *,
        order: Order,
        drop: Drop,
        window: int,
        max_waiting: int,
        give_up_s: float,
    ) -> None:
        options = _options(order, drop, window, max_waiting, give_up_s)
        self._prepare = prepare
        self._give_up_s = give_up_s
        self._ledger = Ledger(
            window=window, max_waiting=max_waiting if drop == "oldest" else None, in_order=order == "in-order"
        )
        self._conversation = Conversation(heads, self._ledger, options=options, window=window)
        self._numbers = 0
        self._ended = False
        self._failure: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Stream:
        """The stream itself; the head is called from now on."""
        self._start(self._conversation.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        await self.close()

    async def close(self) -> None:
        """Give up what is unanswered. Who still reads gets a MeshError, CANCELLED."""
        self._fail(MeshError(Reason.CANCELLED, "the stream is closed"))
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._ledger.drop_all()

    @property
    def counts(self) -> StreamCounts:
        """What became of the frames so far."""
        return self._ledger.counts

    async def send(self, picture: bytes) -> int:
        """Take one encoded picture; its number, from 0.

        With ``drop="none"`` it waits while ``window`` frames are sent and their outcomes not read, so that a slow head and a
        slow reader slow the camera; read in another task. With ``drop="oldest"`` it waits for the reader alone.

        A frame that cannot be answered, for its size too, is a FrameFailure among the outcomes. Raises MeshError CANCELLED
        once the stream is closed, RuntimeError after :meth:`end`.
        """
        while True:
            self._check_open()
            if self._ledger.has_room:
                return self._take(picture)
            await self._ledger.changed()

    def cancel(self, frame_id: int) -> bool:
        """Nobody waits for this frame any more: it is given up, at the head and at the tail too.

        Its outcome is a FrameFailure with CANCELLED, or the answer where that was on its way. False when it had an outcome
        already, or never was sent.
        """
        return self._ledger.cancel(frame_id)

    def end(self) -> None:
        """No more frames come: iteration ends when every outcome was read."""
        self._ended = True
        self._ledger.wake()

    def __aiter__(self) -> AsyncIterator[Answer | FrameFailure]:
        """The outcomes, one per frame."""
        return self

    async def __anext__(self) -> Answer | FrameFailure:
        """The next outcome; several tasks may read, each outcome goes to one of them."""
        while True:
            if (outcome := self._ledger.read()) is not None:
                return outcome
            if self._failure is not None:
                raise self._failure
            if self._ended and not self._ledger.open:
                raise StopAsyncIteration
            await self._ledger.changed()

    async def run(self, frames: AsyncIterable[bytes] | Iterable[bytes]) -> AsyncGenerator[Answer | FrameFailure]:
        """Send every frame of a source and give the outcomes: :meth:`send`, :meth:`end` and reading in one.

        What the source raises ends the stream and is raised here. A blocking source is read in a thread.
        """
        self._check_open()
        feeding = self._start(self._feed(frames))
        try:
            async for outcome in self:
                yield outcome
        finally:
            feeding.cancel()

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._ledger.wake()

    async def _feed(self, frames: AsyncIterable[bytes] | Iterable[bytes]) -> None:
        source = _as_async(frames)
        while True:
            # The camera is asked when there is room, so that what it gives is fresh.
            while not self._ledger.has_room:
                await self._ledger.changed()
            picture = await anext(source, None)
            if picture is None:
                break
            await self.send(picture)
        self.end()

    def _take(self, picture: bytes) -> int:
        frame_id, self._numbers = self._numbers, self._numbers + 1
        try:
            message, size_bytes, span = self._prepare(frame_id, picture)
        except MeshError as error:
            self._ledger.refuse(frame_id, error)
            return frame_id
        timer = asyncio.get_running_loop().call_later(self._give_up_s, self._ledger.give_up, frame_id, self._give_up_s)
        self._ledger.add(frame_id, Pending(message, size_bytes, span, timer))
        return frame_id

    def _check_open(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._ended:
            raise RuntimeError("the stream was ended: no frame can follow")
        if not self._tasks:
            raise RuntimeError("the stream is not open: use it as `async with mesh.stream(...) as stream`")

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)


def _options(order: Order, drop: Drop, window: int, max_waiting: int, give_up_s: float) -> pb.StreamOptions:
    if order not in _ORDERS:
        raise field_error("order", f"{order!r} is none of {', '.join(_ORDERS)}")
    if drop not in _DROPS:
        raise field_error("drop", f"{drop!r} is none of {', '.join(_DROPS)}")
    if not 1 <= window <= MAX_WINDOW:
        raise field_error("window", f"{window} is outside 1 to {MAX_WINDOW}")
    if not 1 <= max_waiting <= MAX_WINDOW:
        raise field_error("max_waiting", f"{max_waiting} is outside 1 to {MAX_WINDOW}")
    if not 0 < give_up_s < float("inf"):
        raise field_error("give_up_s", f"{give_up_s} s is not a time to wait")
    waiting = max_waiting if drop == "oldest" else 0
    return pb.StreamOptions(order=_ORDERS[order], drop=_DROPS[drop], max_waiting=waiting)


async def _as_async(frames: AsyncIterable[bytes] | Iterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(frames, AsyncIterable):
        async for frame in frames:
            yield frame
        return
    if isinstance(frames, Sequence):
        for frame in frames:
            yield frame
        return
    iterator = iter(frames)
    # In a thread: a directory or a video file blocks while it is read.
    while (picture := await asyncio.to_thread(next, iterator, None)) is not None:
        yield picture
