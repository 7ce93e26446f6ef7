"""FleetService on the wire: decode, call, encode. The rules are in ``sessions``, ``nodes``, ``tasks``, ``rollout``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from services.fleet.messages import check_page_size, draft_from, filter_from
from services.fleet.nodes.desk import NodeDesk
from services.fleet.policies.policies import HostPolicies
from services.fleet.records.records import Records
from services.fleet.rollout.controller import Rollouts
from services.fleet.sessions import Sessions
from services.fleet.tasks.board import TaskBoard
from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.fleet.v1 import fleet_pb2_grpc


@dataclass(frozen=True)
class Parts:
    """Everything that answers for one fleet."""

    sessions: Sessions
    nodes: NodeDesk
    tasks: TaskBoard
    records: Records
    policies: HostPolicies
    rollouts: Rollouts


class FleetServicer(fleet_pb2_grpc.FleetServiceServicer):
    """One fleet."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    # A coroutine that writes by itself and no generator: what an agent is told does not follow from what it said last.
    async def Connect(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        """See the contract."""
        await self._parts.sessions.serve(context)

    async def CommitRecords(self, request: pb.CommitRecordsRequest, context: Any) -> pb.CommitRecordsResponse:
        """See the contract."""
        return await self._parts.records.commit(request)

    async def ListRecords(self, request: pb.ListRecordsRequest, context: Any) -> pb.ListRecordsResponse:
        """See the contract."""
        return await self._parts.records.list(request)

    async def ListNodes(self, request: pb.ListNodesRequest, context: Any) -> pb.ListNodesResponse:
        """See the contract."""
        return await self._parts.nodes.list(request)

    async def GetNode(self, request: pb.GetNodeRequest, context: Any) -> pb.GetNodeResponse:
        """See the contract."""
        return await self._parts.nodes.get(request)

    async def SetNodeLabels(self, request: pb.SetNodeLabelsRequest, context: Any) -> pb.SetNodeLabelsResponse:
        """See the contract."""
        return await self._parts.nodes.set_labels(request)

    async def RemoveNode(self, request: pb.RemoveNodeRequest, context: Any) -> pb.RemoveNodeResponse:
        """See the contract."""
        return await self._parts.nodes.remove(request)

    async def SetHostPolicy(self, request: pb.SetHostPolicyRequest, context: Any) -> pb.SetHostPolicyResponse:
        """See the contract."""
        return await self._parts.policies.set(request)

    async def SubmitTask(self, request: pb.SubmitTaskRequest, context: Any) -> pb.SubmitTaskResponse:
        """See the contract."""
        return pb.SubmitTaskResponse(task=await self._parts.tasks.submit(draft_from(request)))

    async def ListTasks(self, request: pb.ListTasksRequest, context: Any) -> pb.ListTasksResponse:
        """See the contract."""
        check_page_size(request.page_size)
        found, token = await self._parts.tasks.page(filter_from(request), request.page_size, request.page_token)
        return pb.ListTasksResponse(tasks=found, next_page_token=token)

    async def WatchTask(self, request: pb.WatchTaskRequest, context: Any) -> AsyncIterator[pb.WatchTaskResponse]:
        """See the contract."""
        async with aclosing(self._parts.tasks.follow(request.task_id)) as states:
            async for task in states:
                yield pb.WatchTaskResponse(task=task)

    async def CancelTask(self, request: pb.CancelTaskRequest, context: Any) -> pb.CancelTaskResponse:
        """See the contract."""
        return pb.CancelTaskResponse(task=await self._parts.tasks.end(request.task_id))

    async def Deploy(self, request: pb.DeployRequest, context: Any) -> pb.DeployResponse:
        """See the contract."""
        return await self._parts.rollouts.deploy(request)

    async def GetDeployment(self, request: pb.GetDeploymentRequest, context: Any) -> pb.GetDeploymentResponse:
        """See the contract."""
        return await self._parts.rollouts.get(request)

    async def ListDeployments(self, request: pb.ListDeploymentsRequest, context: Any) -> pb.ListDeploymentsResponse:
        """See the contract."""
        return await self._parts.rollouts.list(request)

    async def WatchDeployment(
        self, request: pb.WatchDeploymentRequest, context: Any
    ) -> AsyncIterator[pb.WatchDeploymentResponse]:
        """See the contract."""
        async with aclosing(self._parts.rollouts.watch(request)) as states:
            async for state in states:
                yield state

    async def PauseDeployment(self, request: pb.PauseDeploymentRequest, context: Any) -> pb.PauseDeploymentResponse:
        """See the contract."""
        return await self._parts.rollouts.pause(request)

    async def ResumeDeployment(self, request: pb.ResumeDeploymentRequest, context: Any) -> pb.ResumeDeploymentResponse:
        """See the contract."""
        return await self._parts.rollouts.resume(request)

    async def Rollback(self, request: pb.RollbackRequest, context: Any) -> pb.RollbackResponse:
        """See the contract."""
        return await self._parts.rollouts.rollback(request)
