"""Tells the router what became of each sample, in reports that can be repeated but count once: counts, some of the samples in a
few numbers, what the audits say, and how crowded the version's tails are by then.

Counts merge and samples are drawn, so memory stays bounded while the router is away; a report is dropped only when it was
acknowledged, or when the router will never take it. What is counted and drawn is ``tally.py``'s and ``sights.py``'s.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from uuid import uuid4

import numpy as np

from edge.head.active import ActiveModel
from edge.head.audits import AUDIT_S, key_of
from edge.head.decided import Decided, TailSaid
from edge.head.sights import Seen
from edge.head.tally import Report, Tally
from splitmesh.client.registry import VersionInfo
from splitmesh.client.routing import RoutingClient, UplinkLoad
from splitmesh.errors import MeshError, Reason
from splitmesh.routing.audit import Counts, Stratum
from splitmesh.routing.costs import NO_ANSWER

log = logging.getLogger(__name__)

Key = tuple[str, int]
Loaded = Callable[[], Iterable[ActiveModel]]
Drain = Callable[[str, int], Mapping[Stratum, Counts]]

LAST_REPORT_S = 2.0
"""For the report at a stop."""
EARLY_S = 0.25
"""Between two looks at whether something has to be told at once."""
CROWDED, CROWDED_MS = 1.5, 10.0
"""A back-log that has grown by this factor, and by so much, since the router heard of it has to be."""
LONGEST_WAIT_S = 30.0
"""Most that a router which takes no report may ask for."""
AWAIT_S = AUDIT_S + 0.5
"""How long what an audit says of a frame may still come."""
MOST_VERSIONS = 64
"""Beyond so many, those that have nothing to tell are forgotten."""
LONGEST_AGE_S = 600.0
"""Of a frame when it is answered; by the host's clock, which may jump."""


def no_audits(model: str, version: int) -> Mapping[Stratum, Counts]:
    """Of a head that makes none."""
    return {}


class Outcomes:
    """What came of this head's frames since its start; an :class:`~edge.head.decided.Observer`.

    Args:
        routing: takes the reports.
        node: the head's name.
        interval_s: between two reports of a version.
        loaded: gives the versions in memory, whose links say how crowded their tails are.
        drain: gives a version's audits since it was last asked.
        random_: draws which frames are told.
        clock: seconds, never set back.
    """

    def __init__(
        self,
        routing: RoutingClient,
        node: str,
        interval_s: float,
        loaded: Loaded = tuple,
        drain: Drain = no_audits,
        *,
        random_: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loaded = loaded
        self._drain = drain
        self._routing = routing
        self._node = node
        self._interval_s = interval_s
        self._random = random_ or random.Random()
        self._clock = clock
        self._boot_id = uuid4().hex
        self._sequence = 0
        self._tallies: dict[Key, Tally] = {}
        self._unacknowledged: list[Report] = []
        self._backlog_told_ms: dict[Key, float] = {}
        self._urgent = False
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
        self._tally(version).numbers.edge_exit += 1

    def edge_whole(self, version: VersionInfo) -> None:
        """The whole model answered at the edge."""
        self._tally(version).numbers.edge_whole += 1

    def cloud_tail(self, version: VersionInfo, *, disagreed: bool) -> None:
        """The tail answered, and named another class than the exit or not."""
        numbers = self._tally(version).numbers
        numbers.cloud_tail += 1
        numbers.tail_disagreed += disagreed

    def fallback(self, version: VersionInfo, reason: Reason) -> None:
        """The exit answered because the tail could not."""
        tally = self._tally(version)
        tally.numbers.fallback[reason.value] += 1
        self._heed(tally, reason)

    def refused(self, version: VersionInfo, reason: Reason) -> None:
        """The frame got an error."""
        tally = self._tally(version)
        tally.numbers.refused[reason.value] += 1
        self._heed(tally, reason)

    def decided(self, frame: Decided) -> None:
        """Why it was hard, and what is told of it: once, so one that is audited waits for what the tail says."""
        tally, routing = self._tally(frame.active.info), frame.answer.routing
        if not frame.verdict.sure:
            tally.numbers.hard[frame.verdict.why.value] += 1
        if routing is not None and routing.refused:
            self._heed(tally, Reason.BUDGET_SPENT)
        seen = self._seen(frame, frame.tail)
        if routing is not None and routing.audited:
            tally.sights.expect(key_of(frame), seen, self._clock() + AWAIT_S)
        else:
            tally.sights.add(seen)

    def audited(self, frame: Decided, tail: TailSaid) -> None:
        """The frame is told with what the tail says."""
        self._tally(frame.active.info).sights.heard(key_of(frame), self._seen(frame, tail, audited=True))

    def _tally(self, version: VersionInfo) -> Tally:
        key = (version.model, version.version)
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = Tally(self._random, self._clock())
        return tally

    def _heed(self, tally: Tally, reason: Reason) -> None:
        if reason is Reason.BUDGET_SPENT and tally.short_of_budget():
            self._urgent = True

    def _seen(self, frame: Decided, tail: TailSaid | None, *, audited: bool = False) -> Seen:
        age_s = (datetime.now(UTC) - frame.arrived).total_seconds()
        return Seen(
            at=self._clock() - min(max(0.0, age_s), LONGEST_AGE_S),
            camera=frame.request.camera_id,
            exit_class=_exit_class(frame),
            ease=frame.verdict.ease,
            unusual=frame.verdict.unusual,
            exit=frame.seen.exit,
            tail_class=None if tail is None else tail.label,
            audited=audited,
        )

    async def _loop(self) -> None:
        asked_s = 0.0
        while True:
            await self._until_due(max(self._interval_s, asked_s))
            try:
                asked_s = await self._send()
            except Exception:
                # The counts stay; a reporter that ended here would be missed by nobody but the operator.
                log.exception("reporting outcomes failed unexpectedly; trying again")

    async def _until_due(self, wait_s: float) -> None:
        """Wait, but not where something new has to be told at once; what the router does not take is nothing new."""
        loop = asyncio.get_running_loop()
        due = loop.time() + wait_s
        while (left_s := due - loop.time()) > 0:
            await asyncio.sleep(min(left_s, EARLY_S))
            if not self._unacknowledged and (self._urgent or self._crowded()):
                return

    def _crowded(self) -> bool:
        for active in self._loaded():
            if active.link is None:
                continue
            told_ms = self._backlog_told_ms.get((active.info.model, active.info.version), 0.0)
            if active.link.load().backlog_ms > max(CROWDED * told_ms, told_ms + CROWDED_MS):
                return True
        return False

    async def _send(self) -> float:
        """Everything there is to tell, as far as the router takes it; for how many seconds it asks not to be told more."""
        if not self._unacknowledged:
            # While reports are refused, what is new gathers in the tallies: at most one report per version waits.
            self._gather()
        while self._unacknowledged:
            report = self._unacknowledged[0]
            try:
                await self._tell(report)
            except MeshError as error:
                if error.reason is not Reason.FIELD_INVALID:
                    log.warning("outcomes are kept until the router takes them: %s", error)
                    return min(error.retry_after_s or 0.0, LONGEST_WAIT_S)
                log.error("outcomes of %s v%d are dropped: %s", report.model, report.version, error)
            self._unacknowledged.pop(0)
        return 0.0

    def _gather(self) -> None:
        self._urgent = False
        now, crowd = self._clock(), len(self._tallies) > MOST_VERSIONS
        for (model, version), tally in list(self._tallies.items()):
            report = tally.drain(self._sequence + 1, model, version, self._drain(model, version), now)
            if report is not None:
                self._sequence += 1
                self._unacknowledged.append(report)
            elif crowd:
                del self._tallies[model, version]
                self._backlog_told_ms.pop((model, version), None)

    async def _tell(self, report: Report) -> None:
        load = self._load(report.model, report.version)
        await self._routing.report_outcomes(
            report.model,
            report.version,
            report.counts,
            node=self._node,
            boot_id=self._boot_id,
            sequence=report.sequence,
            load=load,
            sights=report.sights(self._clock()),
            sights_left_out=report.left_out,
            audits=report.audits,
        )
        if load is not None:
            self._backlog_told_ms[report.model, report.version] = load.backlog_ms

    def _load(self, model: str, version: int) -> UplinkLoad | None:
        links = [
            active.link
            for active in self._loaded()
            if (active.info.model, active.info.version) == (model, version) and active.link is not None
        ]
        return UplinkLoad.of(links[0].load()) if links else None


def _exit_class(frame: Decided) -> int:
    """The exit's answer; where it has none, what it is nearest to, for its ease counts all the same."""
    if frame.verdict.answer != NO_ANSWER or frame.seen.exit_row is None:
        return max(0, frame.verdict.answer)
    return int(np.nan_to_num(frame.seen.exit_row[0]).argmax())
