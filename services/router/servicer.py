"""RoutingService on the wire: decode, call, encode. Rules are in `wire.py`, `policy.py` and the store."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import datetime
from typing import Any

from services.router.push import PolicyBoard
from services.router.store import RouterStore
from services.router.wire import (
    model_from,
    name_from,
    outcomes_to,
    policy_to,
    report_from,
    tolerance_from,
    version_from,
)
from splitmesh.api.routing.v1 import routing_pb2, routing_pb2_grpc

log = logging.getLogger(__name__)


class RoutingServicer(routing_pb2_grpc.RoutingServiceServicer):
    """Serves policies and counts."""

    def __init__(
        self, board: PolicyBoard, store: RouterStore, default_delta: float, now: Callable[[], datetime]
    ) -> None:
        self._board = board
        self._store = store
        self._default_delta = default_delta
        self._now = now

    async def WatchPolicy(
        self, request: routing_pb2.WatchPolicyRequest, context: Any
    ) -> AsyncIterator[routing_pb2.WatchPolicyResponse]:
        """The policy now, then each change."""
        model, version = model_from(request.model), version_from(request.version)
        log.info("%r watches the policy of %s v%d", name_from("node", request.node), model, version)
        async with aclosing(self._board.watch(model, version)) as policies:
            async for policy in policies:
                yield routing_pb2.WatchPolicyResponse(policy=policy_to(policy))

    async def SetTolerance(
        self, request: routing_pb2.SetToleranceRequest, context: Any
    ) -> routing_pb2.SetToleranceResponse:
        """State what is tolerated."""
        model, tolerance = model_from(request.model), tolerance_from(request, self._default_delta)
        await self._board.set_tolerance(model, tolerance)
        return routing_pb2.SetToleranceResponse(max_disagreement=tolerance.max_disagreement, delta=tolerance.delta)

    async def ReportOutcomes(
        self, request: routing_pb2.ReportOutcomesRequest, context: Any
    ) -> routing_pb2.ReportOutcomesResponse:
        """Add counts; answered when they are on disk."""
        await self._store.add(report_from(request), self._now())
        return routing_pb2.ReportOutcomesResponse()

    async def GetOutcomes(
        self, request: routing_pb2.GetOutcomesRequest, context: Any
    ) -> routing_pb2.GetOutcomesResponse:
        """Sums."""
        entries = await self._store.outcomes(model_from(request.model), request.version or None)
        return routing_pb2.GetOutcomesResponse(nodes=[outcomes_to(entry) for entry in entries])
