"""CompressionService on the wire: decode, call, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from services.compressor.apply import Compressor
from services.compressor.reports import Reports
from services.compressor.runs import Runs
from services.compressor.wire import page_size, page_to, place_from, status_to
from splitmesh.api.compression.v1 import compression_pb2, compression_pb2_grpc
from splitmesh.client.recipes import recipe_from_message


class CompressionServicer(compression_pb2_grpc.CompressionServiceServicer):
    """Starts compressions, stops them and tells how they go."""

    def __init__(self, compressor: Compressor, runs: Runs, reports: Reports) -> None:
        self._compressor = compressor
        self._runs = runs
        self._reports = reports

    async def CompressModel(
        self, request: compression_pb2.CompressModelRequest, context: Any
    ) -> compression_pb2.CompressModelResponse:
        """Start a recipe."""
        recipe = recipe_from_message(request.recipe)
        wanted = await self._compressor.check(request.model, request.version, recipe, request.calibration_folder)
        return compression_pb2.CompressModelResponse(compression=status_to(await self._runs.submit(wanted)))

    async def ListCompressions(
        self, request: compression_pb2.ListCompressionsRequest, context: Any
    ) -> compression_pb2.ListCompressionsResponse:
        """A page, newest first."""
        size = page_size(request.page_size)
        return page_to(self._runs.page(request.model, place_from(request.page_token), size + 1), size)

    async def WatchCompression(
        self, request: compression_pb2.WatchCompressionRequest, context: Any
    ) -> AsyncIterator[compression_pb2.WatchCompressionResponse]:
        """The state now, then each change, ending after the last."""
        async with aclosing(self._runs.follow(request.compression_id)) as states:
            async for status in states:
                yield compression_pb2.WatchCompressionResponse(compression=status_to(status))

    async def CancelCompression(
        self, request: compression_pb2.CancelCompressionRequest, context: Any
    ) -> compression_pb2.CancelCompressionResponse:
        """Stop one."""
        status = await self._runs.cancel(request.compression_id)
        return compression_pb2.CancelCompressionResponse(compression=status_to(status))

    async def ResumeCompression(
        self, request: compression_pb2.ResumeCompressionRequest, context: Any
    ) -> compression_pb2.ResumeCompressionResponse:
        """Go on with one."""
        status = await self._runs.resume(request.compression_id)
        return compression_pb2.ResumeCompressionResponse(compression=status_to(status))

    async def GetReport(
        self, request: compression_pb2.GetReportRequest, context: Any
    ) -> compression_pb2.GetReportResponse:
        """What a compression did."""
        status = self._runs.done(request.compression_id)
        text, html = await self._reports.read(request.compression_id, with_html=request.with_html)
        return compression_pb2.GetReportResponse(version=status.result_version, report_json=text, html=html)
