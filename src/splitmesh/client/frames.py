"""One camera's stream of frames: credit, resending after a break, exactly one outcome for every frame.

A frame stays with us until its answer came; when the stream breaks or the head drains, what is unanswered is sent again
on a new stream until the frame's own time is over. So a frame is never lost, and never answered twice.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.trace import Span as OtelSpan

from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.client.answers import Answer, FrameFailure, answer_from_message
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.errors import ended_stream_error, from_rpc_error, from_status
from splitmesh.kernel.telemetry import fail
from splitmesh.kernel.tensors import input_bytes

log = logging.getLogger(__name__)

BACKOFF_S = (0.1, 1.0)
"""First and largest wait before a broken stream is opened again."""
RESEND = frozenset({Reason.SERVICE_UNAVAILABLE, Reason.NOT_READY, Reason.QUEUE_FULL})
"""Errors of one frame after which sending it again can succeed."""

Outcome = Answer | FrameFailure


@dataclass(slots=True)
class _Pending:
    request: pb.InferRequest
    span: OtelSpan
    timer: asyncio.TimerHandle
    last_error: MeshError | None = None


class CameraStream:
    """Sends the frames of one source and yields what became of each."""

    def __init__(
        self,
        stub: Any,
        prepare: Callable[[int, bytes], tuple[pb.InferRequest, OtelSpan]],
        *,
        window: int,
        give_up_s: float,
    ) -> None:
        self._stub = stub
        self._prepare = prepare
        self._window = window
        self._give_up_s = give_up_s
        self._pending: dict[int, _Pending] = {}
        self._unsent: deque[int] = deque()
        self._sent: set[int] = set()
        self._credit = 0
        self._max_frame_bytes = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Semaphore(window)
        self._source_done = False
        # Bounded by the window: a frame takes room before it is pending and gives it back when its outcome was yielded.
        self._out: asyncio.Queue[Outcome | BaseException | None] = asyncio.Queue()

    async def run(self, frames: AsyncIterable[bytes] | Iterable[bytes]) -> AsyncGenerator[Outcome]:
        """Outcomes as they become ready: one per frame, numbered from 0 in the order of the source.

        At most ``window`` frames are taken from the source and not yet yielded, so a slow reader slows the source. An
        exception of the source ends the stream and is raised here.
        """
        tasks = [asyncio.create_task(self._read_source(frames)), asyncio.create_task(self._talk())]
        for task in tasks:
            task.add_done_callback(self._report_crash)
        try:
            while (outcome := await self._out.get()) is not None:
                if isinstance(outcome, BaseException):
                    raise outcome
                self._room.release()
                yield outcome
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for pending in self._pending.values():
                pending.timer.cancel()
                pending.span.end()

    def _report_crash(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._out.put_nowait(error)

    async def _read_source(self, frames: AsyncIterable[bytes] | Iterable[bytes]) -> None:
        loop = asyncio.get_running_loop()
        numbers = itertools.count()
        source = _as_async(frames)
        while True:
            await self._room.acquire()
            image = await anext(source, None)
            if image is None:
                break
            frame_id = next(numbers)
            try:
                request, span = self._prepare(frame_id, image)
            except MeshError as error:
                self._out.put_nowait(FrameFailure(frame_id, error))
                continue
            timer = loop.call_later(self._give_up_s, self._give_up, frame_id)
            self._pending[frame_id] = _Pending(request, span, timer)
            self._unsent.append(frame_id)
            self._wake.set()
        self._source_done = True
        self._finish_if_done()

    def _give_up(self, frame_id: int) -> None:
        error = self._pending[frame_id].last_error or MeshError(
            Reason.SERVICE_UNAVAILABLE, f"no answer from the head in {self._give_up_s} s"
        )
        self._settle(frame_id, FrameFailure(frame_id, error))

    def _settle(self, frame_id: int, outcome: Outcome) -> None:
        pending = self._pending.pop(frame_id, None)
        if pending is None:
            return  # answered before: a resent frame may have two answers under way
        pending.timer.cancel()
        if isinstance(outcome, FrameFailure):
            fail(pending.span, outcome.error)
        pending.span.end()
        self._sent.discard(frame_id)
        self._out.put_nowait(outcome)
        self._wake.set()
        self._finish_if_done()

    def _finish_if_done(self) -> None:
        if self._source_done and not self._pending:
            self._out.put_nowait(None)

    async def _talk(self) -> None:
        """Keep a stream open; cancelled when every frame has its outcome."""
        wait_s, longest_s = BACKOFF_S
        while True:
            self._sent.clear()
            self._unsent = deque(sorted(self._pending))
            try:
                await self._converse()
                error = MeshError(Reason.SERVICE_UNAVAILABLE, "the head ended the stream")
            except grpc.RpcError as failure:
                error = from_rpc_error(failure)
            except MeshError as failure:
                error = failure
            for pending in self._pending.values():
                pending.last_error = error
            wait_s = BACKOFF_S[0] if self._credit else min(2 * wait_s, longest_s)
            self._credit = 0
            log.warning("no stream to the head: %s; %d frames wait", error, len(self._pending))
            await asyncio.sleep(wait_s)

    async def _converse(self) -> None:
        call = self._stub.StreamInfer()
        writing = asyncio.create_task(self._write(call))
        try:
            while (message := await call.read()) is not grpc.aio.EOF:
                self._receive(message)
            raise await ended_stream_error(call, "the head")
        finally:
            writing.cancel()
            call.cancel()

    async def _write(self, call: Any) -> None:
        with suppress(grpc.RpcError, asyncio.InvalidStateError):  # the reader reports how the stream ended
            while True:
                self._wake.clear()
                while self._unsent and len(self._sent) < self._credit:
                    frame_id = self._unsent.popleft()
                    pending = self._pending.get(frame_id)
                    if pending is not None and self._fits(frame_id, pending.request):
                        self._sent.add(frame_id)
                        await call.write(pb.StreamInferRequest(frame=pending.request))
                await self._wake.wait()

    def _fits(self, frame_id: int, request: pb.InferRequest) -> bool:
        """False, and the frame has failed, when the head would not take it: far too large a message ends the stream."""
        size = input_bytes(request)
        if size <= self._max_frame_bytes:
            return True
        problem = f"the frame has {size} bytes; the head takes at most {self._max_frame_bytes}"
        self._settle(frame_id, FrameFailure(frame_id, MeshError(Reason.FRAME_TOO_LARGE, problem)))
        return False

    def _receive(self, message: pb.StreamInferResponse) -> None:
        kind = message.WhichOneof("message")
        if kind == "accepted":
            self._credit = min(self._window, message.accepted.credit)
            self._max_frame_bytes = message.accepted.max_frame_bytes
            self._wake.set()
        elif kind == "result":
            self._settle(message.result.frame_id, answer_from_message(message.result))
        elif kind == "error":
            self._refused(message.error.frame_id, from_status(message.error.status))

    def _refused(self, frame_id: int, error: MeshError) -> None:
        pending = self._pending.get(frame_id)
        if pending is None:
            return
        if error.reason not in RESEND:
            self._settle(frame_id, FrameFailure(frame_id, error))
            return
        pending.last_error = error
        asyncio.get_running_loop().call_later(error.retry_after_s or BACKOFF_S[0], self._send_again, frame_id)

    def _send_again(self, frame_id: int) -> None:
        if frame_id in self._pending and frame_id in self._sent:
            self._sent.discard(frame_id)
            self._unsent.append(frame_id)
            self._wake.set()


async def _as_async(frames: AsyncIterable[bytes] | Iterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(frames, AsyncIterable):
        async for frame in frames:
            yield frame
        return
    iterator: Iterator[bytes] = iter(frames)

    def following() -> bytes | None:
        return next(iterator, None)

    # In a thread: a directory or a video file blocks while it is read.
    while (picture := await asyncio.to_thread(following)) is not None:
        yield picture
