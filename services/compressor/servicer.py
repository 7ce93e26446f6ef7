"""CompressionService on the wire: decode, call, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any

from services.compressor.apply import Compressor, compression_id
from services.compressor.runs import Runs
from services.compressor.wire import recipe_from, report_to, status_to
from splitmesh.api.compression.v1 import compression_pb2, compression_pb2_grpc


class CompressionServicer(compression_pb2_grpc.CompressionServiceServicer):
    """Starts compressions and tells how they go."""

    def __init__(self, compressor: Compressor, runs: Runs) -> None:
        self._compressor = compressor
        self._runs = runs

    async def CompressModel(
        self, request: compression_pb2.CompressModelRequest, context: Any
    ) -> compression_pb2.CompressModelResponse:
        """Start a recipe."""
        recipe = recipe_from(request.recipe)
        info = await self._compressor.check(request.model, request.version, recipe)
        identifier = compression_id(info.model, info.version, recipe)
        status = self._runs.submit(identifier, partial(self._compressor.apply, info, recipe))
        return compression_pb2.CompressModelResponse(compression=status_to(status))

    async def WatchCompression(
        self, request: compression_pb2.WatchCompressionRequest, context: Any
    ) -> AsyncIterator[compression_pb2.WatchCompressionResponse]:
        """The state now, then each change, ending after the last."""
        async with aclosing(self._runs.follow(request.compression_id)) as states:
            async for status in states:
                yield compression_pb2.WatchCompressionResponse(compression=status_to(status))

    async def GetReport(
        self, request: compression_pb2.GetReportRequest, context: Any
    ) -> compression_pb2.GetReportResponse:
        """What a compression did."""
        return report_to(*self._runs.finished(request.compression_id))
