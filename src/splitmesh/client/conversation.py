"""One camera's talk with the heads: credit, sending again after a break, moving to another head without losing a frame.

A frame stays in the ledger until its outcome came. When the stream breaks, when the head drains or when another one should
be used, what is unanswered is sent again on a new stream, until the frame's own time is over. Answering twice is harmless.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import Any

import grpc

from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.client.answers import Answer, FrameFailure, answer_from_message
from splitmesh.client.heads import Head, Heads
from splitmesh.client.ledger import Ledger, Pending
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.errors import ended_stream_error, from_rpc_error, from_status

log = logging.getLogger(__name__)

BACKOFF_S = (0.1, 1.0)
"""First and largest wait before a stream to the only head is opened again."""
LEAVE_S = 2.0
"""Longest wait for answers of a head that is left for another one; what is unanswered then is sent to the other."""
OVERLOADED = frozenset({Reason.QUEUE_FULL, Reason.DEADLINE_EXPIRED})
"""Errors of one frame by which a head with too much to do says, with a time, when to come again: further frames would only
take its time and the link's to be refused, so they wait here, where newer ones may take their place."""
LONGEST_PAUSE_S = 1.0
"""Whatever a head asks for."""
RESEND = frozenset({Reason.SERVICE_UNAVAILABLE, Reason.NOT_READY, Reason.QUEUE_FULL})
"""Errors of one frame after which sending it again can succeed."""


class Conversation:
    """Sends what the ledger holds and settles it there."""

    def __init__(self, heads: Heads, ledger: Ledger, *, options: pb.StreamOptions, window: int) -> None:
        self._heads = heads
        self._ledger = ledger
        self._options = options
        self._window = window
        self._owed: set[int] = set()
        """Frames that the head has taken and not answered, also those whose outcome is settled: they use its credit."""
        self._cancels: deque[int] = deque()
        self._credit = 0
        self._paused_until = 0.0
        self._max_frame_bytes = 0
        self._streams = 0
        self._leaving = False
        self._answered_all = asyncio.Event()
        ledger.abandoned = self._cancel

    async def run(self) -> None:
        """Keep a stream open until cancelled."""
        wait_s, longest_s = BACKOFF_S
        while True:
            head = await self._heads.pick()
            with self._heads.use(head):
                error = await self._with(head)
            accepted = self._credit > 0
            self._hand_back(error)
            if self._heads.rival(head) is None:
                wait_s = BACKOFF_S[0] if accepted else min(2 * wait_s, longest_s)
                log.warning("no stream to %s: %s; %d frames wait", head.address, error, self._ledger.open)
                await asyncio.sleep(wait_s)

    async def _with(self, head: Head) -> MeshError:
        """One stream to one head, and why it ended."""
        self._leaving = False
        call = head.stream_infer()
        reading = asyncio.create_task(self._read(call, head))
        writing = asyncio.create_task(self._write(call))
        leaving = asyncio.create_task(self._leave_when_better(head))
        tasks = (reading, writing, leaving)
        try:
            await asyncio.wait({reading, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                return MeshError(Reason.SERVICE_UNAVAILABLE, f"{head.address} was left for another head")
            error = _why(reading)
            self._heads.failed(head, error)
            return error
        finally:
            for task in tasks:
                task.cancel()
            call.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _hand_back(self, error: MeshError) -> None:
        self._ledger.blame(error)
        for frame_id in sorted(self._owed):
            self._ledger.again(frame_id, error)
        self._owed.clear()
        self._cancels.clear()
        self._credit, self._paused_until = 0, 0.0

    async def _leave_when_better(self, head: Head) -> None:
        """Ends once another head should be used and this one has answered what it took, or had time to."""
        while self._heads.rival(head) is None:
            await self._heads.changed()
        self._leaving = True
        self._answered_all.clear()
        if self._owed:
            with suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    await self._answered_all.wait()

    async def _write(self, call: Any) -> None:
        with suppress(grpc.RpcError, asyncio.InvalidStateError):  # the reader reports how the stream ended
            if self._options.ByteSize():
                await call.write(pb.StreamInferRequest(options=self._options))
            while True:
                self._ledger.to_send.clear()
                await self._write_what_is_due(call)
                await self._ledger.to_send.wait()

    async def _write_what_is_due(self, call: Any) -> None:
        now = asyncio.get_running_loop().time
        while True:
            while self._cancels:
                frame_id = self._cancels.popleft()
                await call.write(pb.StreamInferRequest(cancel=pb.CancelFrame(frame_id=frame_id)))
            if self._leaving or len(self._owed) >= self._credit or now() < self._paused_until:
                return
            if (due := self._ledger.following(now())) is None:
                return
            frame_id, frame = due
            if self._fits(frame_id, frame):
                self._owed.add(frame_id)
                await call.write(frame.message)

    def _fits(self, frame_id: int, frame: Pending) -> bool:
        """False, and the frame has failed, when the head would not take it: far too large a message ends the stream."""
        if frame.size_bytes <= self._max_frame_bytes:
            return True
        problem = f"the frame has {frame.size_bytes} bytes; the head takes at most {self._max_frame_bytes}"
        self._ledger.settle(frame_id, FrameFailure(frame_id, MeshError(Reason.FRAME_TOO_LARGE, problem)))
        return False

    async def _read(self, call: Any, head: Head) -> None:
        while (message := await call.read()) is not grpc.aio.EOF:
            self._receive(message, head)
        raise await ended_stream_error(call, "the head")

    def _receive(self, message: pb.StreamInferResponse, head: Head) -> None:
        match message.WhichOneof("message"):
            case "accepted":
                if not self._credit:
                    self._streams += 1
                    self._ledger.counts = replace(self._ledger.counts, reconnected=self._streams - 1)
                self._credit = min(self._window, message.accepted.credit)
                self._max_frame_bytes = message.accepted.max_frame_bytes
            case "result":
                self._heads.worked(head)
                self._owed.discard(message.result.frame_id)
                self._ledger.settle(message.result.frame_id, _outcome(message.result))
            case "error":
                self._refused(message.error.frame_id, from_status(message.error.status), head)
        self._ledger.to_send.set()
        if not self._owed:
            self._answered_all.set()

    def _refused(self, frame_id: int, error: MeshError, head: Head) -> None:
        if frame_id not in self._owed:
            return
        self._owed.discard(frame_id)
        if error.reason in OVERLOADED and error.retry_after_s:
            self._pause(min(error.retry_after_s, LONGEST_PAUSE_S))
        if error.reason not in RESEND:
            self._ledger.settle(frame_id, FrameFailure(frame_id, error))
            return
        if error.reason is Reason.NOT_READY:
            self._heads.failed(head, error)
        wait_s = error.retry_after_s or BACKOFF_S[0]
        loop = asyncio.get_running_loop()
        self._ledger.again(frame_id, error, not_before=0.0 if self._heads.rival(head) else loop.time() + wait_s)
        loop.call_later(wait_s, self._ledger.to_send.set)

    def _pause(self, pause_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._paused_until = max(self._paused_until, loop.time() + pause_s)
        loop.call_at(self._paused_until, self._ledger.to_send.set)

    def _cancel(self, frame_id: int) -> None:
        if frame_id in self._owed:
            self._cancels.append(frame_id)
            self._ledger.to_send.set()


def _outcome(result: pb.InferResponse) -> Answer | FrameFailure:
    """The answer; one that cannot be read fails its frame and no other."""
    try:
        return answer_from_message(result)
    except (MeshError, ValueError) as error:
        problem = f"the head's answer cannot be read: {error}"
        return FrameFailure(result.frame_id, MeshError(Reason.PROTOCOL_VIOLATION, problem))


def _why(reading: asyncio.Task[None]) -> MeshError:
    """Why a conversation ended."""
    if reading.cancelled():
        return MeshError(Reason.SERVICE_UNAVAILABLE, "the connection was closed")
    error = reading.exception()
    if isinstance(error, grpc.RpcError):
        return from_rpc_error(error)
    if isinstance(error, MeshError):
        return error
    assert error is not None, "a reader ends by an error alone"
    raise error
