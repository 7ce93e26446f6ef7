"""PartitionService on the wire: decode, call, encode."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from services.partitioner.adapt import Adapter
from services.partitioner.partition import Partitioner
from services.partitioner.wire import plan_to, task_from, where_from
from splitmesh.api.partition.v1 import partition_pb2, partition_pb2_grpc
from splitmesh.client.profiles import profile_to_message
from splitmesh.model.plan_options import Link


class PartitionServicer(partition_pb2_grpc.PartitionServiceServicer):
    """Serves profiles, plans and splits."""

    def __init__(self, partitioner: Partitioner, adapter: Adapter) -> None:
        self._partitioner = partitioner
        self._adapter = adapter

    async def ProfileModel(
        self, request: partition_pb2.ProfileModelRequest, context: Any
    ) -> AsyncIterator[partition_pb2.ProfileModelResponse]:
        """Times of a version's cuts: what begins, as it begins, then the profile."""
        steps: asyncio.Queue[partition_pb2.Progress | None] = asyncio.Queue()

        def told(step: str, share: float) -> None:
            steps.put_nowait(partition_pb2.Progress(step=step, share=share))

        work = asyncio.create_task(
            self._partitioner.profile(
                request.model,
                request.version,
                request.budget_s,
                where_from(request),
                restart=request.restart,
                on_progress=told,
            )
        )
        work.add_done_callback(lambda _: steps.put_nowait(None))
        try:
            while (progress := await steps.get()) is not None:
                yield partition_pb2.ProfileModelResponse(progress=progress)
            yield partition_pb2.ProfileModelResponse(profile=profile_to_message(await work))
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def PlanPartition(
        self, request: partition_pb2.PlanPartitionRequest, context: Any
    ) -> partition_pb2.PlanPartitionResponse:
        """The ways to run a version, ranked."""
        task = task_from(request)
        return plan_to(*await self._partitioner.plan(request.model, request.version, task, request.budget_s))

    async def SplitModel(
        self, request: partition_pb2.SplitModelRequest, context: Any
    ) -> partition_pb2.SplitModelResponse:
        """A new version, cut in two or into a chain."""
        named = [list(request.cut), *(list(point.tensors) for point in request.further)]
        asked = [] if request.plan_json and named == [[]] else named
        version, cuts, error = await self._partitioner.split(request.model, request.version, asked, request.plan_json)
        points = [partition_pb2.CutPoint(tensors=cut) for cut in cuts]
        return partition_pb2.SplitModelResponse(version=version, max_abs_error=error, cuts=points)

    async def AdaptModel(
        self, request: partition_pb2.AdaptModelRequest, context: Any
    ) -> partition_pb2.AdaptModelResponse:
        """A version that heads run in several ways."""
        link = Link(request.uplink_mbps, request.rtt_ms)
        made = await self._adapter.adapt(request.model, list(request.versions), link)
        return partition_pb2.AdaptModelResponse(version=made)
