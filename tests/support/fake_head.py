"""A head that does what a test says: answers carry the frame's own bytes as their label, so that mixing up shows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.api.inference.v1 import inference_pb2_grpc
from splitmesh.client.heads import SERVICE
from splitmesh.errors import MeshError, Reason
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
    """Set with every frame of a stream, and with every one that is cancelled."""
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    """Set with the first stream."""
    options: list[pb.StreamOptions] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    takes_cancels: bool = True
    distance_s: float = 0.0
    """How long its health service takes to answer."""
    asked: int = 0
    """Times that its health service was asked."""
    health: health_aio.HealthServicer = field(init=False)
    server: Any = None
    _unanswered: int = 0
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.health = _Far(self)

    async def stop(self) -> None:
        """At once, with what is under way unanswered."""
        await self.server.stop(None)

    async def serving(self, does: bool = True) -> None:
        """What its health service says from now on."""
        status = health_pb2.HealthCheckResponse.SERVING if does else health_pb2.HealthCheckResponse.NOT_SERVING
        await self.health.set(SERVICE, status)

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
        self.opened.set()
        under_way: dict[int, asyncio.Task[None]] = {}
        try:
            async with asyncio.TaskGroup() as tasks:
                async for request in requests:
                    match request.WhichOneof("message"):
                        case "options":
                            self.options.append(request.options)
                        case "cancel":
                            self.cancelled.append(request.cancel.frame_id)
                            self.arrived.set()
                            if self.takes_cancels:
                                under_way[request.cancel.frame_id].cancel()
                        case _:
                            self._arrived(request.frame)
                            answering = tasks.create_task(self._one(request.frame, context))
                            under_way[request.frame.frame_id] = answering
        except* Break as broken:
            await context.abort_with_status(to_grpc(broken.exceptions[0].error))  # type: ignore[union-attr]

    def _arrived(self, frame: pb.InferRequest) -> None:
        self.seen.append(frame)
        self.arrived.set()
        self._unanswered += 1
        self.most_unanswered = max(self.most_unanswered, self._unanswered)

    async def _one(self, request: pb.InferRequest, context: Any) -> None:
        response = await self._response(request)
        self._unanswered -= 1
        async with self._writing:
            await context.write(response)

    async def _response(self, request: pb.InferRequest) -> pb.StreamInferResponse:
        try:
            return pb.StreamInferResponse(result=await self.answer(request))
        except MeshError as error:
            status = to_status(error)
        except asyncio.CancelledError:
            if request.frame_id not in self.cancelled:
                raise
            status = to_status(MeshError(Reason.CANCELLED, "cancelled by the gateway"))
        return pb.StreamInferResponse(error=pb.FrameError(frame_id=request.frame_id, status=status))


class _Far(health_aio.HealthServicer):
    """A health service that is as far away as its head."""

    def __init__(self, head: FakeHead) -> None:
        super().__init__()
        self._head = head

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        await asyncio.sleep(self._head.distance_s)
        self._head.asked += 1
        return await super().Check(request, context)


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
    health_pb2_grpc.add_HealthServicer_to_server(head.health, server)
    await head.serving()
    head.address = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    await server.start()
    head.server = server
    try:
        yield head
    finally:
        await server.stop(None)
