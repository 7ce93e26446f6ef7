"""Answering the frames of one bidirectional stream: concurrently, bounded, and without one bad frame ending the stream.

Knows no message: callers hand in how a frame is answered and how a refusal looks. Back-pressure is end to end: with
`credit` frames unanswered, or answers the client does not read, nothing more is read from it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Generic, TypeVar

from splitmesh.errors import MeshError, Reason

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Response = TypeVar("Response")


class Drain:
    """Tells open streams that the server is about to stop, and waits until they have answered what they took."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self._open = 0
        self._none_open = asyncio.Event()
        self._none_open.set()

    def enter(self) -> None:
        """A stream opens; NOT_READY while draining."""
        if self.begun.is_set():
            raise MeshError(Reason.NOT_READY, "this node is shutting down", retry_after_s=0.5)
        self._open += 1
        self._none_open.clear()

    def leave(self) -> None:
        """A stream has ended."""
        self._open -= 1
        if not self._open:
            self._none_open.set()

    async def drain(self, timeout_s: float) -> None:
        """Begin, and wait for open streams to end, at most ``timeout_s`` seconds."""
        self.begun.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._none_open.wait(), timeout_s)


class FrameStream(Generic[Item, Response]):
    """One stream being answered."""

    def __init__(
        self,
        answer: Callable[[Item], Awaitable[Response]],
        refuse: Callable[[Item, MeshError], Response],
        *,
        credit: int,
        drain: Drain,
    ) -> None:
        self._answer = answer
        self._refuse = refuse
        self._credit = credit
        self._drain = drain
        self._out: asyncio.Queue[Response | None] = asyncio.Queue(maxsize=2 * credit)
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, items: AsyncIterator[Item]) -> AsyncGenerator[Response]:
        """Responses as they become ready; ends with ``items``, or at a drain, after everything taken was answered.

        A frame above the credit is refused with QUEUE_FULL. At a drain NOT_READY is raised at the end, so that the
        client sends what was not answered elsewhere; likewise what ``items`` raised.
        """
        self._drain.enter()
        reading = asyncio.create_task(self._read(items))
        try:
            while (response := await self._out.get()) is not None:
                yield response
            await reading
        finally:
            # Also on the client's cancellation: nobody waits for these answers any more.
            self._drain.leave()
            for task in [reading, *self._tasks]:
                task.cancel()
            # A second cancellation may come here (grpc's own, at a broken connection): nothing may depend on what follows.
            await asyncio.gather(reading, *self._tasks, return_exceptions=True)
        if self._drain.begun.is_set():
            raise MeshError(Reason.NOT_READY, "this node is shutting down", retry_after_s=0.5)

    async def _read(self, items: AsyncIterator[Item]) -> None:
        failure: Exception | None = None
        try:
            await self._take(items)
        except Exception as error:
            failure = error
        # Not reached when cancelled: nobody takes from the queue then, and a full one would hold us for ever.
        await asyncio.gather(*self._tasks)
        await self._out.put(None)
        if failure is not None:
            raise failure

    async def _take(self, items: AsyncIterator[Item]) -> None:
        draining = asyncio.create_task(self._drain.begun.wait())
        try:
            while (item := await _next_or_none(items, draining)) is not None:
                if len(self._tasks) >= self._credit:
                    error = MeshError(
                        Reason.QUEUE_FULL,
                        f"{self._credit} frames are unanswered already; wait for an answer before the next frame",
                        retry_after_s=0.05,
                    )
                    await self._out.put(self._refuse(item, error))
                    continue
                task = asyncio.create_task(self._run(item))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        finally:
            draining.cancel()

    async def _run(self, item: Item) -> None:
        try:
            response = await self._answer(item)
        except MeshError as error:
            response = self._refuse(item, error)
        except Exception:
            # The text may hold paths or data: it goes to the log; the frame still gets its answer.
            log.exception("a frame failed unexpectedly")
            response = self._refuse(item, MeshError(Reason.INTERNAL, "unexpected failure; see the server's log"))
        await self._out.put(response)


async def _next_or_none(items: AsyncIterator[Item], draining: asyncio.Task[bool]) -> Item | None:
    """The next item; None at the end of the stream or when draining begins."""
    following = asyncio.ensure_future(anext(items, None))
    try:
        await asyncio.wait({following, draining}, return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            return following.result()
        return None
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
