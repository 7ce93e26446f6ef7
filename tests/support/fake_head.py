"""A head that does what a test says: answers carry the frame's own bytes as their label, so that mixing up shows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.api.inference.v1 import inference_pb2_grpc
from splitmesh.errors import MeshError
from splitmesh.kernel.channels import transport_options
from splitmesh.kernel.errors import to_grpc, to_status

Answer = Callable[[pb.InferRequest], Awaitable[pb.InferResponse]]


def answer_to(request: pb.InferRequest) -> pb.InferResponse:
    """Names the frame's content."""
    label = pb.Label(index=0, name=request.image.decode(), score=1.0)
    return pb.InferResponse(
        frame_id=request.frame_id, labels=[label], answered_by=pb.ANSWERED_BY_EDGE_EXIT, model=request.model
    )


async def answer_at_once(request: pb.InferRequest) -> pb.InferResponse:
    return answer_to(request)


@dataclass
class FakeHead(inference_pb2_grpc.InferenceServiceServicer):
    """``answer`` may wait, raise MeshError (one frame fails) or :class:`Break` (the stream ends)."""

    answer: Answer = answer_at_once
    credit: int = 8
    max_frame_bytes: int = 1 << 20
    seen: list[pb.InferRequest] = field(default_factory=list)
    """Every request, in order of arrival; one that is sent twice stands twice."""
    most_unanswered: int = 0
    streams: int = 0
    address: str = ""
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    """Set with every frame of a stream."""
    _unanswered: int = 0
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def Infer(self, request: pb.InferRequest, context: Any) -> pb.InferResponse:
        self.seen.append(request)
        try:
            return await self.answer(request)
        except MeshError as error:
            await context.abort_with_status(to_grpc(error))
            raise

    async def StreamInfer(self, requests: AsyncIterator[pb.StreamInferRequest], context: Any) -> None:
        self.streams += 1
        self._unanswered = 0
        accepted = pb.StreamAccepted(credit=self.credit, max_frame_bytes=self.max_frame_bytes)
        await context.write(pb.StreamInferResponse(accepted=accepted))
        try:
            async with asyncio.TaskGroup() as tasks:
                async for request in requests:
                    self.seen.append(request.frame)
                    self.arrived.set()
                    self._unanswered += 1
                    self.most_unanswered = max(self.most_unanswered, self._unanswered)
                    tasks.create_task(self._one(request.frame, context))
        except* Break as broken:
            await context.abort_with_status(to_grpc(broken.exceptions[0].error))  # type: ignore[union-attr]

    async def _one(self, request: pb.InferRequest, context: Any) -> None:
        try:
            response = pb.StreamInferResponse(result=await self.answer(request))
        except MeshError as error:
            response = pb.StreamInferResponse(error=pb.FrameError(frame_id=request.frame_id, status=to_status(error)))
        self._unanswered -= 1
        async with self._writing:
            await context.write(response)


class Break(Exception):  # noqa: N818  an order, not a mistake
    """Ends the stream with an error."""

    def __init__(self, error: MeshError) -> None:
        super().__init__(str(error))
        self.error = error


@asynccontextmanager
async def served(head: FakeHead, port: int = 0) -> AsyncIterator[FakeHead]:
    """The head on a port."""
    server = grpc.aio.server(options=[*transport_options(head.max_frame_bytes), ("grpc.so_reuseport", 0)])
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(head, server)
    head.address = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    await server.start()
    try:
        yield head
    finally:
        await server.stop(None)
