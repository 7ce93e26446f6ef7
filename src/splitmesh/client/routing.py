"""A head's and an operator's side of the router: states tolerances, follows policies, reports counts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from splitmesh.api.routing.v1 import routing_pb2, routing_pb2_grpc
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels, mesh_errors

log = logging.getLogger(__name__)

SERVICE = "router"
BACKOFF_S = (0.1, 5.0)
"""First and largest wait before a policy watch is opened again."""
PERMANENT = frozenset({Reason.MODEL_NOT_FOUND, Reason.VERSION_NOT_FOUND, Reason.FIELD_INVALID, Reason.UNIMPLEMENTED})
"""Errors by which a watch ends: waiting does not heal them."""


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """How a head decides; see ``splitmesh.api.routing.v1.Policy``."""

    model: str
    version: int
    revision: int
    threshold: float
    """Smallest accepted confidence of the exit; above 1 everything escalates."""
    max_disagreement: float
    delta: float
    disagreement_bound: float
    coverage: float
    calibration_samples: int
    why: str


@dataclass(frozen=True, slots=True)
class ToleranceInfo:
    """The tolerance in force."""

    max_disagreement: float
    delta: float


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Counts of decided samples."""

    edge_exit: int = 0
    cloud_tail: int = 0
    edge_fallback: Mapping[str, int] = field(default_factory=dict)
    """By reason code."""
    tail_disagreed: int = 0
    """Of ``cloud_tail``: the exit named another class."""
    refused: Mapping[str, int] = field(default_factory=dict)
    """By reason code."""
    edge_whole: int = 0
    """Answered by the whole model at the edge: the version is not split."""


@dataclass(frozen=True, slots=True)
class UplinkLoad:
    """How crowded the way to the tails is, as a head saw it; see ``splitmesh.api.routing.v1.UplinkLoad``."""

    backlog_ms: float
    """How long a frame would wait at the least crowded tail."""
    goodput_mbps: float
    """0: not known."""
    rtt_ms: float
    """0: not known."""
    loss: float
    """Share of TCP segments that were sent again, 0..1."""
    tails: int
    """That take frames now."""

    @classmethod
    def of(cls, message: routing_pb2.UplinkLoad) -> UplinkLoad:
        """A message as a value."""
        return cls(message.backlog_ms, message.goodput_mbps, message.rtt_ms, message.loss, message.tails)


@dataclass(frozen=True, slots=True)
class NodeOutcomes:
    """Sums of one version on one node."""

    node: str
    version: int
    outcomes: Outcomes
    last_report_time: datetime
    """UTC."""
    load: UplinkLoad | None = None
    """Of the last report; None for a version without tails."""


class RoutingClient:
    """Calls RoutingService. Every method raises the service's MeshErrors, see its proto."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def set_tolerance(self, model: str, max_disagreement: float, *, delta: float = 0.0) -> ToleranceInfo:
        """State the tolerated disagreement with the full model, 0..1 both excluded; a ``delta`` of 0 is the default."""
        request = routing_pb2.SetToleranceRequest(model=model, max_disagreement=max_disagreement, delta=delta)
        async with mesh_errors():
            response = await (await self._stub()).SetTolerance(request)
        return ToleranceInfo(response.max_disagreement, response.delta)

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
    ) -> None:
        """Add counts; on disk when it returns. Repeating it with the same node, boot and sequence adds nothing.

        Args:
            model: by name.
            version: its number.
            outcomes: what came since the last report.
            node: the head's name.
            boot_id: chosen anew at each start of the head.
            sequence: counts the reports of this boot from 1, over all models.
            load: how crowded the version's tails are now; None for one without.
        """
        request = routing_pb2.ReportOutcomesRequest(
            node=node,
            boot_id=boot_id,
            sequence=sequence,
            model=model,
            version=version,
            counts=routing_pb2.OutcomeCounts(
                edge_exit=outcomes.edge_exit,
                cloud_tail=outcomes.cloud_tail,
                edge_fallback=outcomes.edge_fallback,
                tail_disagreed=outcomes.tail_disagreed,
                refused=outcomes.refused,
                edge_whole=outcomes.edge_whole,
            ),
            load=routing_pb2.UplinkLoad(**asdict(load)) if load is not None else None,
        )
        async with mesh_errors():
            await (await self._stub()).ReportOutcomes(request)

    async def get_outcomes(self, model: str, version: int = 0) -> list[NodeOutcomes]:
        """Sums by node and version; of one version, or of all with 0."""
        request = routing_pb2.GetOutcomesRequest(model=model, version=version)
        async with mesh_errors():
            response = await (await self._stub()).GetOutcomes(request)
        return [_node(entry) for entry in response.nodes]

    async def _policies(self, model: str, version: int, node: str) -> AsyncGenerator[PolicyInfo]:
        """One stream, until it breaks."""
        request = routing_pb2.WatchPolicyRequest(model=model, version=version, node=node)
        async with mesh_errors():
            call = (await self._stub()).WatchPolicy(request)
            try:
                async for response in call:
                    yield _policy(response.policy)
            finally:
                call.cancel()

    async def _stub(self) -> routing_pb2_grpc.RoutingServiceStub:
        return routing_pb2_grpc.RoutingServiceStub(await self._channels.to(SERVICE))


def _policy(message: routing_pb2.Policy) -> PolicyInfo:
    return PolicyInfo(
        model=message.model,
        version=message.version,
        revision=message.revision,
        threshold=message.threshold,
        max_disagreement=message.max_disagreement,
        delta=message.delta,
        disagreement_bound=message.disagreement_bound,
        coverage=message.coverage,
        calibration_samples=message.calibration_samples,
        why=message.why,
    )


def _node(message: routing_pb2.NodeOutcomes) -> NodeOutcomes:
    counts = message.counts
    return NodeOutcomes(
        node=message.node,
        version=message.version,
        outcomes=Outcomes(
            edge_exit=counts.edge_exit,
            cloud_tail=counts.cloud_tail,
            edge_fallback=dict(counts.edge_fallback),
            tail_disagreed=counts.tail_disagreed,
            refused=dict(counts.refused),
            edge_whole=counts.edge_whole,
        ),
        last_report_time=message.last_report_time.ToDatetime(tzinfo=UTC),
        load=UplinkLoad.of(message.load) if message.HasField("load") else None,
    )
