"""SegmentService on gRPC: decode, call, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from cloud.tail.run import RunStreams
from splitmesh.api.segment.v1 import segment_pb2, segment_pb2_grpc
from splitmesh.client.registry_trust import Withdrawn
from splitmesh.kernel.profiling import PieceTimer


class SegmentServicer(segment_pb2_grpc.SegmentServiceServicer):
    """Serves the loaded segments."""

    def __init__(self, streams: RunStreams, timer: PieceTimer, withdrawn: Withdrawn) -> None:
        self._streams = streams
        self._timer = timer
        self._withdrawn = withdrawn

    async def Run(self, request_iterator: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """One stream of frames for one model version; requests are lifted (``kernel/large_fields.py``)."""
        async with aclosing(self._streams.serve(aiter(request_iterator))) as responses:
            async for response in responses:
                yield response

    async def Describe(self, request: segment_pb2.DescribeRequest, context: Any) -> segment_pb2.DescribeResponse:
        """What this node has loaded."""
        return self._streams.describe(self._withdrawn)

    async def Profile(
        self, request_iterator: AsyncIterator[segment_pb2.ProfileRequest], context: Any
    ) -> segment_pb2.ProfileResponse:
        """Times one piece of a model on this node."""
        return await self._timer.serve(aiter(request_iterator))
