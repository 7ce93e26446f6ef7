"""RoutingService on the wire: decode, call, encode. Rules are in the modules named `*_wire.py`, the boards and the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from datetime import datetime
from typing import Any

from services.router.decide import by_own_rule, by_policy
from services.router.decide_wire import Asked, asked_from, decided_to
from services.router.drift.board import DriftBoard
from services.router.drift.wire import drift_to, event_to, watch_from
from services.router.goals import Goals
from services.router.parts import PartsCache
from services.router.push import PolicyBoard
from services.router.report_wire import outcomes_to, report_from
from services.router.shares.board import ShareBoard
from services.router.shares.wire import serve_uplink, shares_to, site_from
from services.router.store import RouterStore
from services.router.wire import goals_from, goals_to, model_from, name_from, policy_to, version_from
from splitmesh.api.routing.v1 import routing_pb2 as pb
from splitmesh.api.routing.v1 import routing_pb2_grpc
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.streams import Drain
from splitmesh.routing.gate import Verdict

log = logging.getLogger(__name__)

MAX_REPORTS = 64
"""In progress at once; one more is refused, and its head tries again."""


class RoutingServicer(routing_pb2_grpc.RoutingServiceServicer):
    """Serves policies, decisions, shares, drifts and counts."""

    def __init__(
        self,
        board: PolicyBoard,
        parts: PartsCache,
        shares: ShareBoard,
        drift: DriftBoard,
        store: RouterStore,
        *,
        default: Goals,
        now: Callable[[], datetime],
        drain: Drain,
    ) -> None:
        self._board = board
        self._parts = parts
        self._shares = shares
        self._drift = drift
        self._store = store
        self._default = default
        self._now = now
        self._drain = drain
        self._reports = 0

    async def WatchPolicy(self, request: pb.WatchPolicyRequest, context: Any) -> AsyncIterator[pb.WatchPolicyResponse]:
        """The policy now, then each change."""
        model, version = model_from(request.model), version_from(request.version)
        log.info("%r watches the policy of %s v%d", name_from("node", request.node), model, version)
        async with aclosing(self._board.watch(model, version)) as policies:
            async for policy in policies:
                yield pb.WatchPolicyResponse(policy=policy_to(policy))

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: Any) -> pb.GetPolicyResponse:
        """The policy now."""
        policy = await self._board.get(model_from(request.model), version_from(request.version))
        return pb.GetPolicyResponse(policy=policy_to(policy))

    async def SetGoals(self, request: pb.SetGoalsRequest, context: Any) -> pb.SetGoalsResponse:
        """State what may go wrong."""
        model, goals = model_from(request.model), goals_from(request.goals, self._default)
        await self._board.set_goals(model, goals)
        return pb.SetGoalsResponse(goals=goals_to(goals))

    async def GetGoals(self, request: pb.GetGoalsRequest, context: Any) -> pb.GetGoalsResponse:
        """The goals in force."""
        stated = await self._board.stated_goals(model_from(request.model))
        return pb.GetGoalsResponse(goals=goals_to(stated or self._default), stated=stated is not None)

    async def Decide(self, request: pb.DecideRequest, context: Any) -> pb.DecideResponse:
        """Whether a gateway's sample is hard, and may cross."""
        asked = asked_from(request)
        verdict = await self._verdict(asked)
        refused = ""
        if asked.site and not verdict.sure:
            refused = self._shares.refuses(asked.site, asked.application, verdict.worth, asked.size_bytes)
        return decided_to(verdict, refused)

    async def SetSite(self, request: pb.SetSiteRequest, context: Any) -> pb.SetSiteResponse:
        """State a site's budget."""
        await self._shares.set_site(site_from(request))
        return pb.SetSiteResponse()

    async def GetShares(self, request: pb.GetSharesRequest, context: Any) -> pb.GetSharesResponse:
        """Budgets and shares now."""
        return shares_to(self._shares.shares(request.site))

    async def ShareUplink(
        self, request_iterator: AsyncIterator[pb.ShareUplinkRequest], context: Any
    ) -> AsyncIterator[pb.ShareUplinkResponse]:
        """A head's demand, and what it may use."""
        async with aclosing(serve_uplink(self._shares, request_iterator, self._drain)) as responses:
            async for response in responses:
                yield response

    async def ReportOutcomes(self, request: pb.ReportOutcomesRequest, context: Any) -> pb.ReportOutcomesResponse:
        """Add counts; answered when they are on disk."""
        # Once begun it is finished, whatever becomes of the caller: a report that is stored is not looked at when it comes again.
        await asyncio.shield(asyncio.create_task(self._add(request)))
        return pb.ReportOutcomesResponse()

    async def GetOutcomes(self, request: pb.GetOutcomesRequest, context: Any) -> pb.GetOutcomesResponse:
        """Sums."""
        entries = await self._store.outcomes(model_from(request.model), request.version or None)
        return pb.GetOutcomesResponse(nodes=[outcomes_to(entry) for entry in entries])

    async def GetDrift(self, request: pb.GetDriftRequest, context: Any) -> pb.GetDriftResponse:
        """What has drifted, and what the audits say."""
        model, version = model_from(request.model), request.version
        events, audits = await self._drift.events(model, version), await self._drift.audits(model, version)
        return drift_to(events, audits, await self._drift.sights(model, version))

    async def WatchDrift(self, request: pb.WatchDriftRequest, context: Any) -> AsyncIterator[pb.WatchDriftResponse]:
        """Drift events, those that come too."""
        async with aclosing(self._drift.watch(*watch_from(request))) as events:
            async for event in events:
                yield pb.WatchDriftResponse(event=event_to(event))

    async def ResolveDrift(self, request: pb.ResolveDriftRequest, context: Any) -> pb.ResolveDriftResponse:
        """A person ends a drift."""
        if request.number < 1:
            raise field_error("number", "is 0; events count from 1")
        return pb.ResolveDriftResponse(event=event_to(await self._drift.resolve(request.number)))

    async def _add(self, request: pb.ReportOutcomesRequest) -> None:
        with self._reporting():
            report = report_from(request)
            if await self._store.add(report, self._now()):
                await self._drift.saw(report)

    async def _verdict(self, asked: Asked) -> Verdict:
        if asked.own is not None:
            return by_own_rule(asked.own, asked.said)
        if asked.policy is None:
            raise AssertionError("a question has a policy or a rule of its own")
        policy = await self._board.get(*asked.policy)
        return by_policy(policy, await self._parts.of(*asked.policy), asked.said, asked.camera)

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        if self._reports >= MAX_REPORTS:
            raise MeshError(
                Reason.QUEUE_FULL, f"{MAX_REPORTS} reports are being written; report again", retry_after_s=1.0
            )
        self._reports += 1
        try:
            yield
        finally:
            self._reports -= 1
