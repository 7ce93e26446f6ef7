"""ServingService: what this head is told to serve, and what becomes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from edge.head.models import Models
from edge.head.serving.host_policy import HostPolicyHolder
from edge.head.serving.messages import assignment_from, counts_message, policy_from, state_message
from edge.head.serving.states import States
from edge.head.trial.compare import Asked, Comparer
from splitmesh.api.serving.v1 import serving_pb2 as pb
from splitmesh.api.serving.v1 import serving_pb2_grpc
from splitmesh.errors import field_error
from splitmesh.kernel.server import Binding

SERVICE = pb.DESCRIPTOR.services_by_name["ServingService"].full_name


class ServingServicer(serving_pb2_grpc.ServingServiceServicer):
    """Of one head process; ``node`` and ``source`` name it and this life of it."""

    def __init__(
        self,
        models: Models,
        states: States,
        policies: HostPolicyHolder,
        comparer: Comparer,
        *,
        node: str,
        source: str,
    ) -> None:
        self._models = models
        self._states = states
        self._policies = policies
        self._comparer = comparer
        self._node = node
        self._source = source

    async def Assign(self, request: pb.AssignRequest, context: Any) -> pb.AssignResponse:
        """On disk when it returns."""
        assignment = assignment_from(request.assignment)
        await self._models.assign(assignment)
        states = self._messages([assignment.model])
        return pb.AssignResponse(state=states[0] if states else pb.ServingState(model=assignment.model))

    async def Withdraw(self, request: pb.WithdrawRequest, context: Any) -> pb.WithdrawResponse:
        """Fine when there is none."""
        if request.generation < 1:
            raise field_error("generation", "is 0, expected at least 1")
        await self._models.withdraw(request.model, request.generation)
        return pb.WithdrawResponse()

    async def SetHostPolicy(self, request: pb.SetHostPolicyRequest, context: Any) -> pb.SetHostPolicyResponse:
        """On disk when it returns."""
        return pb.SetHostPolicyResponse(generation=await self._policies.set(policy_from(request.policy)))

    async def WatchServing(
        self, request: pb.WatchServingRequest, context: Any
    ) -> AsyncIterator[pb.WatchServingResponse]:
        """All, then what changed."""
        async with aclosing(self._states.watch()) as watch:
            async for news in watch:
                yield pb.WatchServingResponse(
                    states=self._messages(news.changed),
                    gone=news.gone,
                    policy_generation=self._policies.policy.generation,
                )

    async def Compare(self, request: pb.CompareRequest, context: Any) -> AsyncIterator[pb.CompareResponse]:
        """One at a time."""
        asked = Asked.of(request)
        async with aclosing(self._comparer.compare(asked)) as steps:
            async for step in steps:
                counts = counts_message(step.counts, self._source)
                yield pb.CompareResponse(counts=counts, done=step.done, total=step.total)

    def _messages(self, models: list[str] | tuple[str, ...]) -> list[pb.ServingState]:
        here = [(model, self._models.follower(model)) for model in models]
        return [
            state_message(follower, model, self._node, self._source) for model, follower in here if follower is not None
        ]


def binding(servicer: ServingServicer) -> Binding:
    """The service for a server."""
    return Binding(SERVICE, lambda server: serving_pb2_grpc.add_ServingServiceServicer_to_server(servicer, server))
