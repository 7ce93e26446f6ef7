"""Tells the router what became of each sample, in reports that can be repeated but count once: counts, some of the samples in a
few numbers, what the audits say, and how crowded the version's tails are by then.

A report is on disk before it is sent, at the latest one interval after what it counts, and goes when it was acknowledged, or
when the router will never take it: a head that is killed tells in its next life what it had counted, once. While the router
is away counts merge and samples are drawn, so that one report of a version that nobody has tried to send yet waits, however
long that takes. Where the disk takes nothing, reports are kept in memory. What is counted and drawn is ``tally.py``'s and
``sights.py``'s, the disk ``spooling.py``'s."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime

import numpy as np

from edge.head.active import ActiveModel
from edge.head.audits import AUDIT_S, key_of
from edge.head.decided import Decided, TailSaid
from edge.head.sights import Seen
from edge.head.spooling import OUTCOMES, Delivery, Journal
from edge.head.tally import Report, Tally
from splitmesh.client.registry import VersionInfo
from splitmesh.client.routing import RoutingClient, UplinkLoad
from splitmesh.errors import MeshError, Reason
from splitmesh.routing.audit import Counts, Stratum
from splitmesh.routing.costs import NO_ANSWER
from splitmesh.spool.spool import Spool
from splitmesh.spool.values import Record

log = logging.getLogger(__name__)

Key = tuple[str, int]
NEVER = frozenset({Reason.FIELD_INVALID})
"""Why a router will never take a report."""
Loaded = Callable[[], Iterable[ActiveModel]]
Drain = Callable[[str, int], Mapping[Stratum, Counts]]

LAST_REPORT_S = 2.0
"""For the report at a stop."""
EARLY_S = 0.25
"""Between two looks at whether something has to be told at once."""
CROWDED, CROWDED_MS = 1.5, 10.0
"""A back-log that has grown by this factor, and by so much, since the router heard of it has to be."""
WAITS_S = (0.2, 2.0, 30.0)
"""Before a report that was not taken is sent again: at first, later, and at most where the router asks for more."""
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
        spools: where reports are kept until they are acknowledged; each one is asked where those before it take nothing.
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
        spools: Sequence[Spool],
        random_: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._loaded = loaded
        self._drain = drain
        self._routing = routing
        self._node = node
        self._interval_s = interval_s
        self._random = random_ or random.Random()
        self._clock = clock
        self._now = now
        self._journals = [Journal(spool, self._random, clock) for spool in spools]
        self._deliveries = [
            Delivery(journal.spool, OUTCOMES, self._hand_over(journal), NEVER, waits_s=WAITS_S, most=1)
            for journal in self._journals
        ]
        self._tallies: dict[Key, Tally] = {}
        self._backlog_told_ms: dict[Key, float] = {}
        self._urgent = False
        self._unkept: dict[Key, Report] = {}
        """Counted, and not kept yet."""
        self._stopping = asyncio.Event()
        self._reporting: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to report, first what was left by the life before."""
        self._stopping.clear()
        self._reporting = asyncio.create_task(self._loop())
        self._tasks = [asyncio.create_task(one.run()) for one in self._deliveries]

    async def stop(self) -> None:
        """Report what is left, once; what the router does not take is told in the next life."""
        reporting = self._reporting
        if reporting is not None:
            self._stopping.set()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            try:
                async with asyncio.timeout(LAST_REPORT_S):
                    # Never cancelled while the disk answers: what it has drained is nowhere else.
                    await asyncio.shield(reporting)
                    await asyncio.gather(*(one.turn() for one in self._deliveries))
            except TimeoutError:
                log.warning("the last outcomes were not reported: router or disk does not answer")
            except MeshError as error:
                log.warning("the last outcomes were not reported: %s", error)
            finally:
                reporting.cancel()
                await asyncio.gather(reporting, return_exceptions=True)

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
        is_last = False
        while not is_last:
            await self._until_due(self._interval_s)
            is_last = self._stopping.is_set()  # before it is noted: what was counted by now is
            try:
                await self._note()
            except Exception:
                # A reporter that ended here would be missed by nobody but the operator.
                log.exception("noting outcomes failed unexpectedly; trying again")

    async def _until_due(self, wait_s: float) -> None:
        """Wait, but not where something new has to be told at once; what the router does not take is nothing new."""
        loop = asyncio.get_running_loop()
        due = loop.time() + wait_s
        while (left_s := due - loop.time()) > 0 and not self._stopping.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, EARLY_S)):
                    await self._stopping.wait()
            if not any(one.behind for one in self._deliveries) and (self._urgent or self._crowded()):
                return

    def _crowded(self) -> bool:
        for active in self._loaded():
            if active.link is None:
                continue
            told_ms = self._backlog_told_ms.get((active.info.model, active.info.version), 0.0)
            if active.link.load().backlog_ms > max(CROWDED * told_ms, told_ms + CROWDED_MS):
                return True
        return False

    async def _note(self) -> None:
        """Everything that was counted since the last time is kept."""
        for report in self._gathered():
            key = (report.model, report.version)
            before = self._unkept.get(key)
            self._unkept[key] = report if before is None else before.plus(report, self._random)
        # Together: they share a sync, and none waits for the others' at a stop.
        await asyncio.gather(*(self._keep(key) for key in list(self._unkept)))

    async def _keep(self, key: Key) -> None:
        report = self._unkept.pop(
            key
        )  # first: one that is cancelled meanwhile may be kept, and must not be counted twice
        try:
            for journal, delivery in zip(self._journals, self._deliveries, strict=True):
                if await journal.keep(report):
                    delivery.wake()
                    return
        except Exception:
            log.exception("outcomes of %s v%d are lost: they cannot be written", *key)
            return
        self._unkept[key] = report
        log.error("outcomes of %s v%d wait: neither disk nor memory takes them", *key)

    def _gathered(self) -> list[Report]:
        self._urgent = False
        now, crowd = self._clock(), len(self._tallies) > MOST_VERSIONS
        found = []
        for (model, version), tally in list(self._tallies.items()):
            report = tally.drain(model, version, self._drain(model, version), now)
            if report is not None:
                found.append(report)
            elif crowd:
                del self._tallies[model, version]
                self._backlog_told_ms.pop((model, version), None)
        return found

    def _hand_over(self, journal: Journal) -> Callable[[Sequence[Record]], Awaitable[None]]:
        async def hand_over(records: Sequence[Record]) -> None:
            for record in records:
                await self._tell(record, record.boot_id == journal.spool.boot_id)
                journal.told(record)

        return hand_over

    async def _tell(self, record: Record, of_this_life: bool) -> None:
        waited_s = (self._now() - record.time).total_seconds()
        try:
            # Another life's clock says nothing; the host's may have been set.
            report = Report.from_json(record.body, None if of_this_life else self._clock() - max(0.0, waited_s))
        except ValueError as error:
            raise MeshError(Reason.FIELD_INVALID, str(error)) from error
        load = self._load(report.model, report.version)
        await self._routing.report_outcomes(
            report.model,
            report.version,
            report.counts,
            node=self._node,
            boot_id=record.boot_id,
            sequence=record.sequence,
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
