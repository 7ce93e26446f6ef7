"""The smallest service the kernel can host: SegmentService whose methods a test replaces."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from splitmesh.api.segment.v1 import segment_pb2, segment_pb2_grpc
from splitmesh.kernel.config import ServiceSettings
from splitmesh.kernel.lifecycle import App, Kernel
from splitmesh.kernel.server import Binding
from splitmesh.kernel.streams import Drain

SERVICE = "splitmesh.api.segment.v1.SegmentService"


async def describe_nothing(context: Any) -> segment_pb2.DescribeResponse:
    return segment_pb2.DescribeResponse(node="small")


async def echo(requests: AsyncIterator[segment_pb2.RunRequest]) -> AsyncIterator[segment_pb2.RunResponse]:
    async for request in requests:
        yield segment_pb2.RunResponse(result=segment_pb2.Result(frame_id=request.frame.frame_id))


@dataclass
class SmallService(segment_pb2_grpc.SegmentServiceServicer):
    """``Build`` for a host: ``Host("small", settings, SmallService())``."""

    describe: Callable[[Any], Awaitable[segment_pb2.DescribeResponse]] = describe_nothing
    run: Callable[[AsyncIterator[segment_pb2.RunRequest]], AsyncIterator[segment_pb2.RunResponse]] = echo
    parts: Sequence[Any] = ()
    serving_at_start: bool = True
    drain: Drain = field(default_factory=Drain)

    def __call__(self, settings: ServiceSettings, kernel: Kernel) -> App:
        def add(server: Any) -> None:
            segment_pb2_grpc.add_SegmentServiceServicer_to_server(self, server)

        return App("small", [Binding(SERVICE, add, self.serving_at_start)], self.parts, self.drain)

    async def Describe(self, request: segment_pb2.DescribeRequest, context: Any) -> segment_pb2.DescribeResponse:
        return await self.describe(context)

    async def Run(
        self, request_iterator: AsyncIterator[segment_pb2.RunRequest], context: Any
    ) -> AsyncIterator[segment_pb2.RunResponse]:
        async for response in self.run(aiter(request_iterator)):
            yield response
