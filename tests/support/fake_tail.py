"""A tail that does what a test says, on a real server: its answers name it, so that who answered shows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from splitmesh.api.segment.v1 import segment_pb2 as pb
from splitmesh.api.segment.v1 import segment_pb2_grpc
from splitmesh.errors import MeshError
from splitmesh.kernel.channels import transport_options
from splitmesh.kernel.errors import to_status
from splitmesh.kernel.tensors import tensor_to_message

Answer = Callable[[pb.SegmentFrame], Awaitable[float]]
"""Returns the backlog that the tail reports; may wait, or raise MeshError."""


async def at_once(frame: pb.SegmentFrame) -> float:
    return 0.0


@dataclass
class FakeTail(segment_pb2_grpc.SegmentServiceServicer):
    """``answer`` decides what becomes of a frame."""

    name: str
    answer: Answer = at_once
    credit: int = 32
    seen: list[pb.SegmentFrame] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    opened: list[pb.Open] = field(default_factory=list)
    address: str = ""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def Run(self, requests: AsyncIterator[pb.RunRequest], context: Any) -> None:
        """Every frame by itself."""
        async for request in requests:
            kind = request.WhichOneof("message")
            if kind == "open":
                self.opened.append(request.open)
                await context.write(pb.RunResponse(accepted=pb.Accepted(node=self.name, credit=self.credit)))
            elif kind == "cancel":
                self.cancelled.append(request.cancel.frame_id)
            else:
                self.seen.append(request.frame)
                task = asyncio.create_task(self._respond(request.frame, context))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _respond(self, frame: pb.SegmentFrame, context: Any) -> None:
        response = await self._response(frame)
        with suppress(grpc.aio.BaseError):  # the stream is over: nobody reads it
            async with self._writing:
                await context.write(response)

    async def _response(self, frame: pb.SegmentFrame) -> pb.RunResponse:
        try:
            backlog_ms = await self.answer(frame)
        except MeshError as error:
            refusal = pb.FrameError(frame_id=frame.frame_id, status=to_status(error), backlog_ms=50.0)
            return pb.RunResponse(frame_error=refusal)
        output = tensor_to_message("who", np.frombuffer(self.name.encode(), np.uint8))
        return pb.RunResponse(result=pb.Result(frame_id=frame.frame_id, outputs=[output], backlog_ms=backlog_ms))


@asynccontextmanager
async def serving(tail: FakeTail) -> AsyncIterator[FakeTail]:
    """The tail on a port of its own."""
    pings = ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000)
    server = grpc.aio.server(options=[*transport_options(32 << 20), pings])
    segment_pb2_grpc.add_SegmentServiceServicer_to_server(tail, server)
    tail.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield tail
    finally:
        await server.stop(None)
