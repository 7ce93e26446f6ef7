"""Counts what became of each sample and tells the router, in reports that can be repeated but count once; and how crowded
the version's tails are by then.

Counts merge, so memory stays bounded while the router is away; a report is dropped only when it was acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from uuid import uuid4

from edge.head.active import ActiveModel
from splitmesh.client.registry import VersionInfo
from splitmesh.client.routing import Outcomes as Counts
from splitmesh.client.routing import RoutingClient, UplinkLoad
from splitmesh.errors import MeshError, Reason

log = logging.getLogger(__name__)

Key = tuple[str, int]
Loaded = Callable[[], Iterable[ActiveModel]]

LAST_REPORT_S = 2.0
"""For the report at a stop."""


@dataclass(slots=True)
class _Tally:
    edge_exit: int = 0
    edge_whole: int = 0
    cloud_tail: int = 0
    tail_disagreed: int = 0
    fallback: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    def counts(self) -> Counts:
        return Counts(
            edge_exit=self.edge_exit,
            edge_whole=self.edge_whole,
            cloud_tail=self.cloud_tail,
            edge_fallback=dict(self.fallback),
            tail_disagreed=self.tail_disagreed,
            refused=dict(self.refused),
        )


@dataclass(frozen=True, slots=True)
class _Report:
    sequence: int
    model: str
    version: int
    counts: Counts


class Outcomes:
    """The counts of this head since its start."""

    def __init__(self, routing: RoutingClient, node: str, interval_s: float, loaded: Loaded = tuple) -> None:
        """``loaded`` gives the versions in memory, whose links say how crowded their tails are."""
        self._loaded = loaded
        self._routing = routing
        self._node = node
        self._interval_s = interval_s
        self._boot_id = uuid4().hex
        self._sequence = 0
        self._tallies: dict[Key, _Tally] = {}
        self._unacknowledged: list[_Report] = []
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to report."""
        self._task = asyncio.create_task(self._loop())

    async def stop(self) -> None:
        """Report what is left, once."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            try:
                async with asyncio.timeout(LAST_REPORT_S):
                    await self._send()
            except TimeoutError:
                log.warning("the last outcomes were not reported: the router does not answer")

    def edge_exit(self, version: VersionInfo) -> None:
        """A confident exit answered."""
        self._tally(version).edge_exit += 1

    def edge_whole(self, version: VersionInfo) -> None:
        """The whole model answered at the edge."""
        self._tally(version).edge_whole += 1

    def cloud_tail(self, version: VersionInfo, *, disagreed: bool) -> None:
        """The tail answered, and named another class than the exit or not."""
        tally = self._tally(version)
        tally.cloud_tail += 1
        tally.tail_disagreed += disagreed

    def fallback(self, version: VersionInfo, reason: Reason) -> None:
        """The exit answered because the tail could not."""
        self._tally(version).fallback[reason.value] += 1

    def refused(self, version: VersionInfo, reason: Reason) -> None:
        """The frame got an error."""
        self._tally(version).refused[reason.value] += 1

    def _tally(self, version: VersionInfo) -> _Tally:
        return self._tallies.setdefault((version.model, version.version), _Tally())

    async def _loop(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self._send()
            except Exception:
                # The counts stay; a reporter that ended here would be missed by nobody but the operator.
                log.exception("reporting outcomes failed unexpectedly; trying again")

    async def _send(self) -> None:
        if not self._unacknowledged:
            # While reports are refused, new counts gather in the tallies: at most one report per version waits.
            tallies, self._tallies = self._tallies, {}
            for (model, version), tally in tallies.items():
                self._sequence += 1
                self._unacknowledged.append(_Report(self._sequence, model, version, tally.counts()))
        while self._unacknowledged:
            report = self._unacknowledged[0]
            try:
                await self._routing.report_outcomes(
                    report.model,
                    report.version,
                    report.counts,
                    node=self._node,
                    boot_id=self._boot_id,
                    sequence=report.sequence,
                    load=self._load(report.model, report.version),
                )
            except MeshError as error:
                log.warning("outcomes are kept until the router takes them: %s", error)
                return
            self._unacknowledged.pop(0)

    def _load(self, model: str, version: int) -> UplinkLoad | None:
        links = [
            active.link
            for active in self._loaded()
            if (active.info.model, active.info.version) == (model, version) and active.link is not None
        ]
        return UplinkLoad.of(links[0].load()) if links else None
