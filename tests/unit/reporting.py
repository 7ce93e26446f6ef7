"""A head's reporter with a router that notes what it is told, a link whose back-log is set, and a clock that stands."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from edge.head.active import ActiveModel
from edge.head.report import Outcomes
from splitmesh.client.routing import Outcomes as Told
from splitmesh.client.routing import RoutingClient, Sight
from splitmesh.errors import MeshError, Reason
from splitmesh.routing.audit import Counts, Stratum
from splitmesh.spool.spool import Spool
from tests.unit.decided_frames import Link, decided, loaded

WAIT_S = 10.0
NEVER_S = 3600.0
AWAY = MeshError(Reason.SERVICE_UNAVAILABLE, "the router is away")


@dataclass
class Call:
    """One report as it was sent."""

    version: int
    counts: Told
    sequence: int
    boot_id: str
    load_ms: float | None
    sights: list[Sight]
    left_out: int
    audits: dict[Stratum, Counts]


@dataclass
class Router:
    """Stands for :class:`RoutingClient`; fails as it is told."""

    failures: list[MeshError] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    called: asyncio.Queue[Call] = field(default_factory=asyncio.Queue)

    async def report_outcomes(self, model: str, version: int, counts: Told, **given: Any) -> None:
        """As the client's."""
        assert (model, given["node"]) == ("parts", "head-1")
        load = None if given["load"] is None else given["load"].backlog_ms
        call = Call(
            version,
            counts,
            given["sequence"],
            given["boot_id"],
            load,
            list(given["sights"]),
            given["sights_left_out"],
            dict(given["audits"]),
        )
        self.calls.append(call)
        self.called.put_nowait(call)
        if self.failures:
            raise self.failures.pop(0)


class Reporting:
    """Outcomes of one version, a router and a clock that stands."""

    def __init__(self, interval_s: float = NEVER_S, *, spools: Sequence[Spool] = ()) -> None:
        self.spools = spools or (Spool(None),)
        for spool in self.spools:
            spool.start()
        self.router, self.link, self.now, self.held_s = Router(), Link(), 100.0, 0.0
        self.active: ActiveModel = loaded(self.link)
        self.audits: dict[tuple[str, int], dict[Stratum, Counts]] = {}
        self.outcomes = Outcomes(
            cast(RoutingClient, self.router),
            "head-1",
            interval_s,
            lambda: [self.active],
            lambda model, version: self.audits.pop((model, version), {}),
            spools=self.spools,
            random_=random.Random(1),
            clock=lambda: self.now,
        )

    async def send(self) -> list[Call]:
        """What is told now."""
        before = len(self.router.calls)
        await self.outcomes._note()
        self.held_s = max([await delivery.turn() for delivery in self.outcomes._deliveries])
        return self.router.calls[before:]

    async def next_call(self) -> Call:
        """What is told next."""
        async with asyncio.timeout(WAIT_S):
            return await self.router.called.get()

    async def close(self) -> None:
        """Let go of the model and the spools."""
        self.active.session.close()
        for spool in self.spools:
            await asyncio.to_thread(spool.stop)

    def decide(self, frame_id: int = 1, **differing: Any) -> None:
        """A frame was decided."""
        self.outcomes.decided(decided(self.active, frame_id, **differing))
