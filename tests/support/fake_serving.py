"""Heads that take assignments and serve nothing, on real servers: what becomes of a version is what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from splitmesh.api.segment.v1 import segment_pb2
from splitmesh.api.serving.v1 import serving_pb2 as pb
from splitmesh.errors import MeshError
from splitmesh.kernel.channels import transport_options
from splitmesh.kernel.errors import to_grpc
from splitmesh.kernel.server import MIN_PING_INTERVAL_MS

SERVICE = pb.DESCRIPTOR.services_by_name["ServingService"].full_name
SEGMENT_SERVICE = segment_pb2.DESCRIPTOR.services_by_name["SegmentService"].full_name
WAIT_S = 20.0


def serving(assignment: pb.Assignment) -> pb.ServingState:
    """What a head does that has nothing to wait for."""
    version = pb.VersionState(version=assignment.version, phase=pb.PHASE_SERVING)
    state = pb.ServingState(
        model=assignment.model, generation=assignment.generation, active_version=assignment.version, wanted=version
    )
    if assignment.HasField("trial"):
        state.candidate.CopyFrom(pb.VersionState(version=assignment.trial.candidate, phase=pb.PHASE_SERVING))
    return state


def at_phase(assignment: pb.Assignment, phase: pb.Phase.ValueType, **more: Any) -> pb.ServingState:
    """On the way to an assignment, with nothing that answers yet."""
    version = pb.VersionState(version=assignment.version, phase=phase, **more)
    return pb.ServingState(model=assignment.model, generation=assignment.generation, wanted=version)


@dataclass
class FakeServing:
    """One head process."""

    node: str
    become: Callable[[pb.Assignment], pb.ServingState] = serving
    """The state that an assignment leads to at once."""
    refusal: MeshError | None = None
    """Of every assignment."""
    assigned: list[pb.Assignment] = field(default_factory=list)
    withdrawn: list[pb.WithdrawRequest] = field(default_factory=list)
    policies: list[pb.HostPolicy] = field(default_factory=list)
    states: dict[str, pb.ServingState] = field(default_factory=dict)
    policy_generation: int = 0
    address: str = ""
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _news: list[pb.WatchServingResponse] = field(default_factory=list)

    async def say(self, state: pb.ServingState) -> None:
        """A state as if it had come about here."""
        self.states[state.model] = state
        await self._tell(pb.WatchServingResponse(states=[state], policy_generation=self.policy_generation))

    async def until(self, true: Callable[[], bool]) -> None:
        """Waits for something that the agent tells."""
        async with asyncio.timeout(WAIT_S), self._changed:
            await self._changed.wait_for(true)

    async def Describe(self, request: segment_pb2.DescribeRequest, context: Any) -> segment_pb2.DescribeResponse:
        return segment_pb2.DescribeResponse(node=self.node, threads=1, backend="CPUExecutionProvider")

    async def Assign(self, request: pb.AssignRequest, context: Any) -> pb.AssignResponse:
        self.assigned.append(request.assignment)
        if self.refusal is not None:
            await self._tell()
            await context.abort_with_status(to_grpc(self.refusal))
        held = self.states.get(request.assignment.model)
        if held is None or held.generation <= request.assignment.generation:
            await self.say(self.become(request.assignment))
        return pb.AssignResponse(state=self.states[request.assignment.model])

    async def Withdraw(self, request: pb.WithdrawRequest, context: Any) -> pb.WithdrawResponse:
        self.withdrawn.append(request)
        self.states.pop(request.model, None)
        await self._tell(pb.WatchServingResponse(gone=[request.model], policy_generation=self.policy_generation))
        return pb.WithdrawResponse()

    async def SetHostPolicy(self, request: pb.SetHostPolicyRequest, context: Any) -> pb.SetHostPolicyResponse:
        self.policies.append(request.policy)
        self.policy_generation = request.policy.generation
        await self._tell(pb.WatchServingResponse(policy_generation=self.policy_generation))
        return pb.SetHostPolicyResponse(generation=self.policy_generation)

    async def WatchServing(
        self, request: pb.WatchServingRequest, context: Any
    ) -> AsyncIterator[pb.WatchServingResponse]:
        told = len(self._news)
        yield pb.WatchServingResponse(states=list(self.states.values()), policy_generation=self.policy_generation)
        while True:
            async with self._changed:
                while len(self._news) == told:
                    await self._changed.wait()
            while told < len(self._news):
                yield self._news[told]
                told += 1

    async def _tell(self, *news: pb.WatchServingResponse) -> None:
        async with self._changed:
            self._news += news
            self._changed.notify_all()


def add(server: Any, head: FakeServing) -> None:
    """Only what it serves, to a server that has the rest."""
    unary: dict[str, tuple[Any, Any, Any]] = {
        "Assign": (head.Assign, pb.AssignRequest, pb.AssignResponse),
        "Withdraw": (head.Withdraw, pb.WithdrawRequest, pb.WithdrawResponse),
        "SetHostPolicy": (head.SetHostPolicy, pb.SetHostPolicyRequest, pb.SetHostPolicyResponse),
    }
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            method, request_deserializer=request.FromString, response_serializer=response.SerializeToString
        )
        for name, (method, request, response) in unary.items()
    }
    handlers["WatchServing"] = grpc.unary_stream_rpc_method_handler(
        head.WatchServing,
        request_deserializer=pb.WatchServingRequest.FromString,
        response_serializer=pb.WatchServingResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


@asynccontextmanager
async def served(head: FakeServing, port: int = 0) -> AsyncIterator[FakeServing]:
    """The head on a port."""
    # As the real ones: a client's keepalive would be taken for an attack otherwise.
    names = ("grpc.http2.min_recv_ping_interval_without_data_ms", "grpc.http2.min_ping_interval_without_data_ms")
    pings = [(name, MIN_PING_INTERVAL_MS) for name in names]
    server = grpc.aio.server(options=[*transport_options(8 << 20), ("grpc.so_reuseport", 0), *pings])
    add(server, head)
    describe = grpc.unary_unary_rpc_method_handler(
        head.Describe,
        request_deserializer=segment_pb2.DescribeRequest.FromString,
        response_serializer=segment_pb2.DescribeResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SEGMENT_SERVICE, {"Describe": describe}),))
    head.address = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    await server.start()
    try:
        yield head
    finally:
        await server.stop(None)
