"""The client of ServingService: tells one head what to serve, and follows what becomes of it. Knows one address and no fleet."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from splitmesh.api.segment.v1 import segment_pb2, segment_pb2_grpc
from splitmesh.api.serving.v1 import serving_pb2 as pb
from splitmesh.api.serving.v1 import serving_pb2_grpc
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels, mesh_errors

CALL_S = 10.0
"""Deadline of a call: the head writes a small file before it answers."""
NAME_S = 3.0


class ServingClient:
    """Of the head at one address. Every method raises the service's MeshErrors, see its proto, and SERVICE_UNAVAILABLE."""

    def __init__(self, channels: Channels, address: str) -> None:
        self._channels = channels
        self._address = address

    async def name(self) -> str:
        """The head's node name."""
        async with mesh_errors():
            stub = segment_pb2_grpc.SegmentServiceStub(self._channels.at(self._address))
            answer = await stub.Describe(segment_pb2.DescribeRequest(), timeout=NAME_S)
        return str(answer.node)

    async def assign(self, assignment: pb.Assignment) -> pb.ServingState:
        """Orders for one model, on the head's disk when it returns; the state of the model as it is held now."""
        async with mesh_errors():
            response = await self._stub().Assign(pb.AssignRequest(assignment=assignment), timeout=CALL_S)
        state: pb.ServingState = response.state
        return state

    async def withdraw(self, model: str, generation: int) -> None:
        """Ends a model's assignment; fine when there is none."""
        async with mesh_errors():
            await self._stub().Withdraw(pb.WithdrawRequest(model=model, generation=generation), timeout=CALL_S)

    async def set_host_policy(self, policy: pb.HostPolicy) -> int:
        """What the models of the host may use; the generation that holds now."""
        async with mesh_errors():
            response = await self._stub().SetHostPolicy(pb.SetHostPolicyRequest(policy=policy), timeout=CALL_S)
        return int(response.generation)

    async def watch(self) -> AsyncGenerator[pb.WatchServingResponse]:
        """All states, then what changes, over one stream; it ends with the error that ended the stream."""
        async with mesh_errors():
            call = self._stub().WatchServing(pb.WatchServingRequest())
            try:
                async for response in call:
                    yield response
            finally:
                call.cancel()
        raise MeshError(Reason.SERVICE_UNAVAILABLE, f"the head at {self._address} ended the watch", retry_after_s=0.5)

    def _stub(self) -> serving_pb2_grpc.ServingServiceStub:
        return serving_pb2_grpc.ServingServiceStub(self._channels.at(self._address))
