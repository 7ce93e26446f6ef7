"""A head's, a gateway's and an operator's side of the router: states goals, follows policies, decides, reports outcomes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict

from splitmesh.api.routing.v1 import routing_pb2, routing_pb2_grpc
from splitmesh.client.routing_messages import (
    audits_to,
    classes_to,
    counts_to,
    decision_from,
    goals_from,
    goals_to,
    node_from,
    policy_from,
    sight_to,
)
from splitmesh.client.routing_values import (
    BoundInfo,
    ClassLimit,
    Decision,
    Goals,
    GoalsInForce,
    NodeOutcomes,
    Outcomes,
    OverrideInfo,
    PolicyInfo,
    Sight,
    UplinkLoad,
)
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.channels import Channels, mesh_errors
from splitmesh.routing.audit import Counts, Stratum

__all__ = [
    "BoundInfo",
    "ClassLimit",
    "Decision",
    "Goals",
    "GoalsInForce",
    "NodeOutcomes",
    "Outcomes",
    "OverrideInfo",
    "PolicyInfo",
    "RoutingClient",
    "Sight",
    "UplinkLoad",
]

log = logging.getLogger(__name__)

SERVICE = "router"
BACKOFF_S = (0.1, 5.0)
"""First and largest wait before a policy watch is opened again."""
PERMANENT = frozenset({Reason.MODEL_NOT_FOUND, Reason.VERSION_NOT_FOUND, Reason.FIELD_INVALID, Reason.UNIMPLEMENTED})
"""Errors by which a watch ends: waiting does not heal them."""


class RoutingClient:
    """Calls RoutingService. Every method raises the service's MeshErrors, see its proto."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def set_goals(self, model: str, goals: Goals) -> Goals:
        """State what may go wrong; every head that follows the model has the new policy soon.

        All of the goals: what is left out is back at its default. Returns them with the defaults filled in.
        """
        request = routing_pb2.SetGoalsRequest(model=model, goals=goals_to(goals))
        async with mesh_errors():
            response = await (await self._stub()).SetGoals(request)
        return goals_from(response.goals)

    async def get_goals(self, model: str) -> GoalsInForce:
        """The goals in force."""
        async with mesh_errors():
            response = await (await self._stub()).GetGoals(routing_pb2.GetGoalsRequest(model=model))
        return GoalsInForce(goals_from(response.goals), response.stated)

    async def get_policy(self, model: str, version: int) -> PolicyInfo:
        """The policy of a version now. MODEL_NOT_FOUND, VERSION_NOT_FOUND."""
        async with mesh_errors():
            response = await (await self._stub()).GetPolicy(routing_pb2.GetPolicyRequest(model=model, version=version))
        return policy_from(response.policy)

    async def watch_policy(self, model: str, version: int, node: str) -> AsyncGenerator[PolicyInfo]:
        """The policy of a version now, then each change, for as long as the caller iterates.

        A broken watch is opened again by itself, with a capped back-off; a policy that did not change meanwhile is not
        repeated. Ends only by an error that waiting does not heal (``PERMANENT``).
        """
        last: PolicyInfo | None = None
        wait_s = BACKOFF_S[0]
        while True:
            try:
                async with aclosing(self._policies(model, version, node)) as policies:
                    async for policy in policies:
                        wait_s = BACKOFF_S[0]
                        if policy != last:
                            last = policy
                            yield policy
            except MeshError as error:
                if error.reason in PERMANENT:
                    raise
                log.info("watching the policy of %s v%d broke, trying again: %s", model, version, error)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, BACKOFF_S[1])

    async def report_outcomes(
        self,
        model: str,
        version: int,
        outcomes: Outcomes,
        *,
        node: str,
        boot_id: str,
        sequence: int,
        load: UplinkLoad | None = None,
        sights: Sequence[Sight] = (),
        sights_left_out: int = 0,
        audits: Mapping[Stratum, Counts] | None = None,
    ) -> None:
        """Add counts, and tell some samples; on disk when it returns.

        Repeating it with the same node, boot and sequence adds nothing.

        Args:
            model: by name.
            version: its number.
            outcomes: what came since the last report.
            node: the head's name.
            boot_id: chosen anew at each start of the head.
            sequence: counts the reports of this boot from 1, over all models.
            load: how crowded the version's tails are now; None for one without.
            sights: some of the samples, in the order of time, at most 1,000.
            sights_left_out: samples that there was no room to tell.
            audits: what the audits that came since the last report say, at most 256 strata.
        """
        request = routing_pb2.ReportOutcomesRequest(
            node=node,
            boot_id=boot_id,
            sequence=sequence,
            model=model,
            version=version,
            counts=counts_to(outcomes),
            load=routing_pb2.UplinkLoad(**asdict(load)) if load is not None else None,
            sights=[sight_to(sight) for sight in sights],
            sights_left_out=sights_left_out,
            audits=audits_to(audits or {}),
        )
        async with mesh_errors():
            await (await self._stub()).ReportOutcomes(request)

    async def decide_by_policy(
        self,
        model: str,
        version: int,
        probabilities: Sequence[float],
        *,
        logits: Sequence[float] | None = None,
        features: Sequence[float] | None = None,
        camera_id: str = "",
        site: str = "",
        application: str = "",
        size_bytes: int = 0,
    ) -> Decision:
        """Whether a sample of a gateway's own model is hard by a version's policy, and may cross.

        Args:
            model: by name.
            version: its number.
            probabilities: one per class, summing to 1; what is no distribution is hard.
            logits: for scores that read them.
            features: pooled, for scores that read them, and to tell unusual samples.
            camera_id: which camera took it.
            site: where it would cross, to see whether the site's budget lets it; empty: not looked at.
            application: within the site; empty: the model.
            size_bytes: that would cross, at most 64 MiB.
        """
        request = routing_pb2.DecideRequest(
            policy=routing_pb2.ModelVersion(model=model, version=version),
            classes=classes_to(probabilities, logits, features),
            camera_id=camera_id,
            site=site,
            application=application,
            size_bytes=size_bytes,
        )
        return await self._decide(request)

    async def decide(
        self,
        score: str,
        threshold: float,
        *,
        probabilities: Sequence[float] | None = None,
        logits: Sequence[float] | None = None,
        boxes: Sequence[float] | None = None,
        parameters: Mapping[str, float] | None = None,
        camera_id: str = "",
        site: str = "",
        application: str = "",
        size_bytes: int = 0,
    ) -> Decision:
        """Whether a sample is hard by a rule of the caller's own, and may cross; exactly one of probabilities and boxes is given.

        Args:
            score: also by the name of a miner of KubeEdge Sedna (CrossEntropy, Threshold, IBT).
            threshold: easy from here on, 0..1.
            probabilities: a classifier's row.
            logits: for scores that read them, beside probabilities.
            boxes: a detector's scores; none is nothing found, which is hard.
            parameters: of the score.
            camera_id: see :meth:`decide_by_policy`, as the others.
            site: where it would cross.
            application: within the site; must be given with one.
            size_bytes: that would cross, at most 64 MiB.
        """
        if probabilities is not None and boxes is not None:
            raise field_error("scores", "are of boxes and of probabilities; give one of them")
        request = routing_pb2.DecideRequest(
            own=routing_pb2.OwnRule(score=score, threshold=threshold, parameters=parameters or {}),
            classes=None if probabilities is None else classes_to(probabilities, logits, None),
            boxes=None if boxes is None else routing_pb2.BoxScores(scores=boxes),
            camera_id=camera_id,
            site=site,
            application=application,
            size_bytes=size_bytes,
        )
        return await self._decide(request)

    async def get_outcomes(self, model: str, version: int = 0) -> list[NodeOutcomes]:
        """Sums by node and version; of one version, or of all with 0."""
        request = routing_pb2.GetOutcomesRequest(model=model, version=version)
        async with mesh_errors():
            response = await (await self._stub()).GetOutcomes(request)
        return [node_from(entry) for entry in response.nodes]

    async def _decide(self, request: routing_pb2.DecideRequest) -> Decision:
        async with mesh_errors():
            return decision_from(await (await self._stub()).Decide(request))

    async def _policies(self, model: str, version: int, node: str) -> AsyncGenerator[PolicyInfo]:
        """One stream, until it breaks."""
        request = routing_pb2.WatchPolicyRequest(model=model, version=version, node=node)
        async with mesh_errors():
            call = (await self._stub()).WatchPolicy(request)
            try:
                async for response in call:
                    yield policy_from(response.policy)
            finally:
                call.cancel()

    async def _stub(self) -> routing_pb2_grpc.RoutingServiceStub:
        return routing_pb2_grpc.RoutingServiceStub(await self._channels.to(SERVICE))
