"""Drifts as the router knows them: what has drifted, how often exits disagree by the audits, and each event as it comes."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime

from splitmesh.api.routing.v1 import routing_pb2, routing_pb2_grpc
from splitmesh.client.routing import SERVICE
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels, mesh_errors

log = logging.getLogger(__name__)

BACKOFF_S = (0.1, 5.0)
"""First and largest wait before a watch is opened again."""
PERMANENT = frozenset({Reason.FIELD_INVALID, Reason.UNIMPLEMENTED})
"""Errors by which a watch ends: waiting does not heal them."""
MAX_KNOWN = 10_000
"""Events that a watch tells from new ones; of more, an old one may be told again after the watch broke."""

RESOLVED, TIGHTENED = "resolved", "tightened"


@dataclass(frozen=True, slots=True)
class DriftEvent:
    """One drift; see ``splitmesh.api.routing.v1.DriftEvent``."""

    number: int
    model: str
    version: int
    kind: str
    """``ease``, ``unusual`` or ``disagreement``."""
    camera: str
    """Empty: over all cameras and classes."""
    label: str
    """Empty: every class."""
    before: float
    """Mean ease, or share, of the samples before, or of calibration."""
    now: float
    samples: int
    """Behind ``now``."""
    time: datetime
    """When it was noticed, UTC."""
    state: str
    """``tightened``, ``recalibrated`` or ``resolved``."""
    collected: int
    """Samples collected since, towards another threshold."""
    needed: int
    """About so many are needed before one is looked for."""
    threshold: float
    """In force for what it is about; above 1 everything escalates."""
    why: str


@dataclass(frozen=True, slots=True)
class AuditEstimate:
    """Of one version, over all or of one camera."""

    version: int
    camera: str
    """Empty: all cameras."""
    rate: float | None
    """Share of the exit's answers that the tail would contradict; None: nothing was audited."""
    low: float
    """The rate is between them with 95 % confidence."""
    high: float
    accepted: int
    """The exit's answers."""
    audited: int


@dataclass(frozen=True, slots=True)
class Drifts:
    """Of one model."""

    events: tuple[DriftEvent, ...]
    """The newest first."""
    audits: tuple[AuditEstimate, ...]
    """Over all cameras first, then by camera."""
    sights: Mapping[int, int]
    """Samples that heads told of, by version."""


class DriftClient:
    """Calls RoutingService about drifts. Every method raises the service's MeshErrors, see its proto."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def get_drift(self, model: str, version: int = 0) -> Drifts:
        """Of one version, or of all with 0."""
        request = routing_pb2.GetDriftRequest(model=model, version=version)
        async with mesh_errors():
            response = await (await self._stub()).GetDrift(request)
        return Drifts(
            tuple(_event(one) for one in response.events),
            tuple(_audit(one) for one in response.audits),
            dict(response.sights),
        )

    async def resolve(self, number: int) -> DriftEvent:
        """End what a drift tightened; the event as it is then. DRIFT_NOT_FOUND."""
        async with mesh_errors():
            response = await (await self._stub()).ResolveDrift(routing_pb2.ResolveDriftRequest(number=number))
        return _event(response.event)

    async def watch_drift(self, model: str = "", *, after: int = 0) -> AsyncGenerator[DriftEvent]:
        """Events with a number above ``after``, then new ones and those whose state changes, for as long as the caller iterates.

        Of one model, or of all with "". A broken watch is opened again by itself, with a capped back-off; what changed meanwhile
        of the events above ``after`` that were told and are not resolved is told then, what did not change is not told again.
        Ends only by an error that waiting does not heal (``PERMANENT``).
        """
        told: dict[int, tuple[str, float]] = {}
        wait_s = BACKOFF_S[0]
        while True:
            still = [number for number, (state, _) in told.items() if state != RESOLVED and number > after]
            since = min([*(number - 1 for number in still), max([after, *told])])
            try:
                async with aclosing(self._events(model, since)) as events:
                    async for event in events:
                        wait_s = BACKOFF_S[0]
                        if told.get(event.number) != (event.state, event.threshold):
                            told[event.number] = (event.state, event.threshold)
                            while len(told) > MAX_KNOWN:
                                del told[min(told)]
                            yield event
            except MeshError as error:
                if error.reason in PERMANENT:
                    raise
                log.info("watching drifts broke, trying again: %s", error)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, BACKOFF_S[1])

    async def _events(self, model: str, after: int) -> AsyncGenerator[DriftEvent]:
        """One stream, until it breaks."""
        request = routing_pb2.WatchDriftRequest(model=model, after=after)
        async with mesh_errors():
            call = (await self._stub()).WatchDrift(request)
            try:
                async for response in call:
                    yield _event(response.event)
            finally:
                call.cancel()

    async def _stub(self) -> routing_pb2_grpc.RoutingServiceStub:
        return routing_pb2_grpc.RoutingServiceStub(await self._channels.to(SERVICE))


def _event(message: routing_pb2.DriftEvent) -> DriftEvent:
    return DriftEvent(
        number=message.number,
        model=message.model,
        version=message.version,
        kind=_word(routing_pb2.DriftKind.Name(message.kind), "DRIFT_KIND_"),
        camera=message.camera,
        label=message.label,
        before=message.before,
        now=message.now,
        samples=message.samples,
        time=message.time.ToDatetime(tzinfo=UTC),
        state=_word(routing_pb2.DriftState.Name(message.state), "DRIFT_STATE_"),
        collected=message.collected,
        needed=message.needed,
        threshold=message.threshold,
        why=message.why,
    )


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()


def _audit(message: routing_pb2.AuditEstimate) -> AuditEstimate:
    return AuditEstimate(
        version=message.version,
        camera=message.camera,
        rate=message.rate if message.HasField("rate") and not math.isnan(message.rate) else None,
        low=message.low,
        high=message.high,
        accepted=message.accepted,
        audited=message.audited,
    )
