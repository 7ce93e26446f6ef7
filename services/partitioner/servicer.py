"""PartitionService on the wire: decode, call, encode."""

from __future__ import annotations

from typing import Any

from services.partitioner.partition import Partitioner
from services.partitioner.wire import plan_to, profile_to, task_from
from splitmesh.api.partition.v1 import partition_pb2, partition_pb2_grpc


class PartitionServicer(partition_pb2_grpc.PartitionServiceServicer):
    """Serves profiles, plans and splits."""

    def __init__(self, partitioner: Partitioner) -> None:
        self._partitioner = partitioner

    async def ProfileModel(
        self, request: partition_pb2.ProfileModelRequest, context: Any
    ) -> partition_pb2.ProfileModelResponse:
        """Times of a version's cuts."""
        return profile_to(await self._partitioner.profile(request.model, request.version, request.budget_s))

    async def PlanPartition(
        self, request: partition_pb2.PlanPartitionRequest, context: Any
    ) -> partition_pb2.PlanPartitionResponse:
        """The ways to run a version, ranked."""
        task = task_from(request)
        return plan_to(await self._partitioner.plan(request.model, request.version, task, request.budget_s))

    async def SplitModel(
        self, request: partition_pb2.SplitModelRequest, context: Any
    ) -> partition_pb2.SplitModelResponse:
        """A new version, cut in two."""
        version, error = await self._partitioner.split(request.model, request.version, list(request.cut))
        return partition_pb2.SplitModelResponse(version=version, max_abs_error=error)
