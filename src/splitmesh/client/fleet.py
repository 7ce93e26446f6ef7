"""Asks the fleet: which hosts there are, what they shall do, and how far they are. For operators; an agent's side is
``fleet_stream``.

Knows requests and watches that go on over outages; what a host or a deployment is stands in ``fleet_nodes``, ``fleet_tasks``
and ``fleet_deployments``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar
from uuid import uuid4

from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.fleet.v1 import fleet_pb2_grpc
from splitmesh.client.fleet_deployments import (
    DeploymentInfo,
    DeploymentNews,
    DeploymentNode,
    Strategy,
    deployment_node_of,
    deployment_of,
    strategy_message,
)
from splitmesh.client.fleet_nodes import (
    HostPolicy,
    NodeInfo,
    NodeState,
    Target,
    node_of,
    policy_message,
    target_message,
)
from splitmesh.client.fleet_tasks import (
    CollectWork,
    ProfileWork,
    TaskInfo,
    TaskKind,
    TaskState,
    kind_number,
    state_numbers,
    task_of,
)
from splitmesh.client.transfer import Patience
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels, mesh_errors

SERVICE = "fleet"
PAGE = 1000
ANSWER_S = 30.0
"""Of a call that may write for thousands of hosts."""
FIRST_TRIES = 5
"""Of a watch that never had an answer: an address may be wrong."""
PASSING = frozenset({Reason.SERVICE_UNAVAILABLE, Reason.NOT_READY, Reason.QUEUE_FULL, Reason.DEADLINE_EXPIRED})
"""Errors that a watch waits out."""

M = TypeVar("M")
Trouble = Callable[[MeshError], None]


class FleetClient:
    """Calls FleetService. Every method raises the service's MeshErrors, see its proto."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def nodes(
        self, target: Target | None = None, *, state: NodeState | None = None, limit: int | None = None
    ) -> list[NodeInfo]:
        """Hosts by name; those that a target means, or all."""
        request = pb.ListNodesRequest(
            page_size=min(limit or PAGE, PAGE),
            target=target_message(target) if target is not None else None,
            state=pb.NodeState.Value(f"NODE_STATE_{state.value}") if state is not None else pb.NODE_STATE_UNSPECIFIED,
        )
        return [node_of(one) async for one in self._pages("ListNodes", request, "nodes", limit)]

    async def node(self, name: str) -> NodeInfo:
        """One host. NODE_NOT_FOUND."""
        return node_of((await self._call("GetNode", pb.GetNodeRequest(node=name))).node)

    async def set_labels(self, name: str, labels: Mapping[str, str]) -> NodeInfo:
        """An operator's labels, beside those that the host itself says; one with an empty value goes. NODE_NOT_FOUND."""
        request = pb.SetNodeLabelsRequest(node=name, labels=dict(labels))
        return node_of((await self._call("SetNodeLabels", request)).node)

    async def remove_node(self, name: str) -> None:
        """Forget a host that is offline. NODE_NOT_FOUND, NODE_ONLINE."""
        await self._call("RemoveNode", pb.RemoveNodeRequest(node=name))

    async def set_policy(self, target: Target, policy: HostPolicy) -> list[str]:
        """What the applications of the hosts may use from now on; their names. NODE_NOT_FOUND."""
        request = pb.SetHostPolicyRequest(target=target_message(target), policy=policy_message(policy))
        return list((await self._call("SetHostPolicy", request)).nodes)

    async def submit(
        self,
        work: ProfileWork | CollectWork,
        *,
        node: str = "",
        target: Target | None = None,
        max_attempts: int = 0,
        created_by: str = "",
        request_id: str = "",
    ) -> TaskInfo:
        """Give a host, or one of several, something to do.

        Args:
            work: what.
            node: the host; empty: one of ``target``.
            target: hosts of which any may do it.
            max_attempts: 0: 3.
            created_by: for people.
            request_id: one value makes one task, ever; empty: every call makes one, however often it is sent.

        Raises:
            MeshError: FIELD_INVALID, NODE_NOT_FOUND, QUEUE_FULL.
        """
        request = pb.SubmitTaskRequest(
            node=node,
            target=target_message(target) if target is not None else None,
            max_attempts=max_attempts,
            created_by=created_by,
            request_id=request_id or uuid4().hex,
        )
        if isinstance(work, ProfileWork):
            request.profile.CopyFrom(pb.ProfileWork(model=work.model, version=work.version, budget_s=work.budget_s))
        else:
            request.collect.CopyFrom(
                pb.CollectWork(
                    dataset=work.dataset,
                    models=work.models,
                    unlabelled=work.unlabelled,
                    max_samples=work.max_samples,
                    description=work.description,
                )
            )
        return task_of((await self._call("SubmitTask", request)).task)

    async def tasks(
        self,
        *,
        node: str = "",
        states: Sequence[TaskState] = (),
        kind: TaskKind | None = None,
        deployment_id: str = "",
        limit: int | None = None,
    ) -> list[TaskInfo]:
        """Tasks, newest first."""
        request = pb.ListTasksRequest(
            page_size=min(limit or PAGE, PAGE),
            node=node,
            states=state_numbers(tuple(states)),
            kind=kind_number(kind),
            deployment_id=deployment_id,
        )
        return [task_of(one) async for one in self._pages("ListTasks", request, "tasks", limit)]

    async def task(self, task_id: str) -> TaskInfo:
        """One task as it is. TASK_NOT_FOUND."""
        async with aclosing(self.watch_task(task_id)) as states:
            return await anext(states)

    async def watch_task(self, task_id: str, on_trouble: Trouble | None = None) -> AsyncGenerator[TaskInfo]:
        """As it is, then after every change until it has ended; over restarts of the fleet. TASK_NOT_FOUND."""
        request = pb.WatchTaskRequest(task_id=task_id)
        async with aclosing(self._watch("WatchTask", request, _ended_task, on_trouble)) as messages:
            async for message in messages:
                yield task_of(message.task)

    async def cancel_task(self, task_id: str) -> TaskInfo:
        """End a task; fine for one that has ended. TASK_NOT_FOUND."""
        return task_of((await self._call("CancelTask", pb.CancelTaskRequest(task_id=task_id))).task)

    async def deploy(
        self,
        model: str,
        version: int,
        target: Target,
        strategy: Strategy | None = None,
        *,
        created_by: str = "",
        description: str = "",
        request_id: str = "",
    ) -> DeploymentInfo:
        """Bring a version to hosts; returns when that is decided and on disk, not when it is done.

        Raises:
            MeshError: FIELD_INVALID, MODEL_NOT_FOUND, VERSION_NOT_FOUND, NODE_NOT_FOUND, DEPLOYMENT_ACTIVE.
        """
        request = pb.DeployRequest(
            model=model,
            version=version,
            target=target_message(target),
            strategy=strategy_message(strategy) if strategy is not None else None,
            created_by=created_by,
            description=description,
            request_id=request_id or uuid4().hex,
        )
        return deployment_of((await self._call("Deploy", request)).deployment)

    async def deployments(self, model: str = "", *, limit: int | None = None) -> list[DeploymentInfo]:
        """Newest first, of one model or all."""
        request = pb.ListDeploymentsRequest(page_size=min(limit or PAGE, PAGE), model=model)
        return [deployment_of(one) async for one in self._pages("ListDeployments", request, "deployments", limit)]

    async def deployment(self, deployment_id: str) -> tuple[DeploymentInfo, list[DeploymentNode]]:
        """One with all its hosts, by wave and name. DEPLOYMENT_NOT_FOUND."""
        nodes: list[DeploymentNode] = []
        request = pb.GetDeploymentRequest(id=deployment_id, page_size=PAGE)
        while True:
            answer = await self._call("GetDeployment", request)
            nodes += [deployment_node_of(one) for one in answer.nodes]
            if not answer.next_page_token:
                return deployment_of(answer.deployment), nodes
            request.page_token = answer.next_page_token

    async def watch_deployment(
        self, deployment_id: str, on_trouble: Trouble | None = None
    ) -> AsyncGenerator[DeploymentNews]:
        """As it is with all its hosts, then after every change until it has ended; over restarts of the fleet, after which
        all hosts come again. DEPLOYMENT_NOT_FOUND."""
        request = pb.WatchDeploymentRequest(id=deployment_id)
        async with aclosing(self._watch("WatchDeployment", request, _ended_deployment, on_trouble)) as messages:
            async for message in messages:
                nodes = tuple(deployment_node_of(one) for one in message.nodes)
                yield DeploymentNews(deployment_of(message.deployment), nodes)

    async def pause(self, deployment_id: str, reason: str = "") -> DeploymentInfo:
        """Begin nothing more on any host. DEPLOYMENT_NOT_FOUND, DEPLOYMENT_ENDED."""
        request = pb.PauseDeploymentRequest(id=deployment_id, reason=reason)
        return deployment_of((await self._call("PauseDeployment", request)).deployment)

    async def resume(self, deployment_id: str, *, promote: bool = False) -> DeploymentInfo:
        """Go on; with ``promote`` as if the trial had shown that the version is good. DEPLOYMENT_NOT_FOUND, DEPLOYMENT_ENDED."""
        request = pb.ResumeDeploymentRequest(id=deployment_id, promote=promote)
        return deployment_of((await self._call("ResumeDeployment", request)).deployment)

    async def rollback(self, model: str = "", *, deployment_id: str = "", reason: str = "") -> DeploymentInfo:
        """Bring every host of a model's newest deployment, or of a named one, back to the version it had before.

        Raises:
            MeshError: DEPLOYMENT_NOT_FOUND, MODEL_NOT_FOUND, DEPLOYMENT_ACTIVE.
        """
        request = pb.RollbackRequest(id=deployment_id, model=model, reason=reason)
        return deployment_of((await self._call("Rollback", request)).deployment)

    async def _call(self, method: str, request: Any) -> Any:
        async with mesh_errors():
            return await getattr(await self._stub(), method)(request, timeout=ANSWER_S)

    async def _pages(self, method: str, request: Any, name: str, limit: int | None) -> AsyncIterator[Any]:
        """What a list holds, page by page, at most ``limit``."""
        left = limit
        while True:
            answer = await self._call(method, request)
            for one in getattr(answer, name):
                if left is not None and left <= 0:
                    return
                left = None if left is None else left - 1
                yield one
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def _watch(
        self, method: str, request: Any, is_over: Callable[[Any], bool], on_trouble: Trouble | None
    ) -> AsyncGenerator[Any]:
        """Messages of a watch over as many streams as it takes, until one says that it is over."""
        patience = Patience(tries=FIRST_TRIES)
        while True:
            over = answered = False
            ended = MeshError(Reason.SERVICE_UNAVAILABLE, "the fleet ended the watch")
            try:
                async with aclosing(self._stream(method, request)) as stream:
                    async for message in stream:
                        answered = True
                        patience = Patience(tries=None)
                        yield message
                        over = is_over(message)
                    if over:
                        return
                # As planned, where it had said something: a watch has a longest life, so that none is held for ever.
                raise ended
            except MeshError as error:
                if error.reason not in PASSING:
                    raise
                if on_trouble is not None and not (answered and error is ended):
                    on_trouble(error)
                await patience.after(error)

    async def _stream(self, method: str, request: Any) -> AsyncGenerator[Any]:
        call: Any = None
        try:
            async with mesh_errors():
                call = getattr(await self._stub(), method)(request)
                async for message in call:
                    yield message
        finally:
            if call is not None:
                call.cancel()

    async def _stub(self) -> fleet_pb2_grpc.FleetServiceStub:
        return fleet_pb2_grpc.FleetServiceStub(await self._channels.to(SERVICE))


def _ended_task(message: pb.WatchTaskResponse) -> bool:
    return task_of(message.task).ended


def _ended_deployment(message: pb.WatchDeploymentResponse) -> bool:
    return deployment_of(message.deployment).ended
