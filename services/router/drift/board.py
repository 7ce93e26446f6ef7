"""Watches the samples that heads tell of, keeps the events that follow, and says which thresholds hold while they last.

A report is taken in at once and looked at soon after, in a thread, a thousand samples at a time and one version after another.
What is found is stored, then holds, then is pushed: after a crash nothing holds that nobody knows, and nothing is forgotten that
held. Knows no gRPC; the statistics are `line.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime

from services.router.drift.audits import AuditsNow, audits_now
from services.router.drift.events import DriftEvent, State, overrides, too_many
from services.router.drift.inbox import Inbox
from services.router.drift.line import Line
from services.router.drift.log import EventLog
from services.router.drift.names import ClassNames, LabelsOf
from services.router.drift.recalibrate import basis
from services.router.drift.room import Room, Version
from services.router.drift.saved import NOTHING, restored_inbox, restored_line, sums_of, with_line
from services.router.drift.store import MAX_LINES, DriftStore, SavedLine
from services.router.drift.teller import Changed, Teller
from services.router.goals import Goals, PolicyOverride
from services.router.store import Report
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.streams import Drain

log = logging.getLogger(__name__)

SAVE_S = 60.0
"""How often what watches have learned is saved, seconds."""
STEP_S = 10.0
"""Longest wait for goals, names of classes or the disk, seconds; then it is tried again."""
RETRY_S = 1.0
STOP_S = 10.0
"""Longest that a stop looks at samples that wait, seconds."""


class DriftBoard:
    """Of every version that heads report about.

    Args:
        store: started and stopped with the board.
        goals_of: a model's goals in force.
        changed: told that the overrides of a version are others now.
        now: UTC.
        max_watchers: that may follow events at once.
        watch_stream_s: longest life of one who follows, seconds.
        drain: ends those who follow.
        labels_of: names of classes; without, a drift of one class is taken for one of its camera.
    """

    def __init__(
        self,
        store: DriftStore,
        goals_of: Callable[[str], Awaitable[Goals]],
        changed: Changed,
        *,
        now: Callable[[], datetime],
        max_watchers: int,
        watch_stream_s: float,
        drain: Drain,
        labels_of: LabelsOf | None = None,
    ) -> None:
        self._store, self._goals_of, self._now = store, goals_of, now
        self._names = ClassNames(labels_of)
        self._teller = Teller(changed)
        self._log = EventLog(max_watchers=max_watchers, watch_stream_s=watch_stream_s, drain=drain)
        self._inboxes: OrderedDict[Version, Inbox] = OrderedDict()
        self._lines: dict[Version, Line] = {}
        self._saved: dict[Version, SavedLine] = {}
        self._found: dict[Version, list[DriftEvent]] = {}
        self._due: dict[Version, None] = {}
        self._room = Room()
        self._unsaved: set[Version] = set()
        self._wake, self._idle = asyncio.Event(), asyncio.Event()
        self._step = asyncio.Lock()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the store; what it remembers holds when this returns."""
        await self._store.start()
        remembered = await self._store.remembered()
        self._log.restore(remembered.events, remembered.last)
        self._saved = dict(remembered.lines)
        self._inboxes.update({version: restored_inbox(one) for version, one in self._saved.items()})
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Looks at what waits, saves all that was learned and closes the store."""
        self._stopping = True
        self._wake.set()
        try:
            if self._task is not None:
                async with asyncio.timeout(STOP_S):
                    await self._task
                await self._save()
        except TimeoutError:
            log.warning("samples that wait are left out: there was no time to look at them")
        finally:
            self._task = None
            await self._teller.stop()
            await self._store.stop()

    async def saw(self, report: Report) -> None:
        """A report that was not added before. Its samples are looked at soon; those that there is no room for are counted.

        Nothing is kept of a version that there is no room for.
        """
        version, now = (report.model, report.version), self._now()
        full = version not in self._inboxes and len(self._inboxes) >= MAX_LINES
        if full and not self._make_room(version, now):
            return
        inbox = self._inboxes.setdefault(version, Inbox())
        self._inboxes.move_to_end(version)
        self._room.taken(version, now)
        inbox.take(report, now)
        self._unsaved.add(version)
        if len(inbox):
            self._due[version] = None
            self._idle.clear()
            self._wake.set()

    async def seen(self, model: str, version: int) -> None:
        """Returns when no sample waits to be looked at, and what was found of the version has been told."""
        await self._idle.wait()
        await self._teller.told(model, version)

    def overrides(self, model: str, version: int, goals: Goals | None = None) -> tuple[PolicyOverride, ...]:
        """In force for a version; with its ``goals``, thresholds that were found for others let nothing pass."""
        events = self._open_events((model, version))
        return overrides(events, basis(goals)) if events and goals is not None else overrides(events)

    async def events(self, model: str, version: int = 0) -> list[DriftEvent]:
        """Of a version or, with 0, of all; the newest first."""
        found = [event for event in self._log.of(model) if version in (0, event.version)]
        lines = self._lines
        return [lines[one.model, one.version].now(one) if (one.model, one.version) in lines else one for one in found]

    async def audits(self, model: str, version: int = 0) -> list[AuditsNow]:
        """Of a version or, with 0, of all: over all cameras, then by camera."""
        found = {
            number: inbox.audits()
            for (name, number), inbox in sorted(self._inboxes.items())
            if name == model and version in (0, number)
        }
        return await asyncio.to_thread(audits_now, found)

    async def sights(self, model: str, version: int = 0) -> dict[int, int]:
        """Samples that were told, by version."""
        return {
            number: inbox.sights
            for (name, number), inbox in sorted(self._inboxes.items())
            if name == model and version in (0, number)
        }

    def watch(self, model: str, after: int) -> AsyncGenerator[DriftEvent]:
        """Events of a model, or with "" of all, with a number above ``after``; then those that are new or change their state.

        Of one that changes often, who is slow sees the latest. Raises QUEUE_FULL when too many watch, NOT_READY when the server
        stops.
        """
        return self._log.watch(model, after)

    async def resolve(self, number: int) -> DriftEvent:
        """End what it tightened; an event that is resolved stays as it is. DRIFT_NOT_FOUND; STORAGE_FULL: nothing changed."""
        # Once begun it is finished, whatever becomes of the caller: memory and disk say the same.
        event = await asyncio.shield(asyncio.create_task(self._resolve(number)))
        await self._teller.told(event.model, event.version)
        return event

    async def _resolve(self, number: int) -> DriftEvent:
        async with self._step:
            event = self._log.get(number)
            if event is None:
                raise MeshError(Reason.DRIFT_NOT_FOUND, f"there is no drift with number {number}, or it is forgotten")
            if event.state is not State.RESOLVED:
                event = event.resolved(f"{event.words()}: resolved by a person")
                await self._keep([event])
        return event

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        save_at = loop.time() + SAVE_S
        while self._due or not self._stopping:
            if not self._due:
                self._idle.set()
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(save_at):
                        await self._wake.wait()
            self._wake.clear()
            if loop.time() >= save_at:
                await self._save()
                save_at = loop.time() + SAVE_S
            for version in list(self._due):
                await self._look(version)

    async def _look(self, version: Version) -> None:
        try:
            async with self._step:
                if await self._take_step(version):
                    self._due.pop(version, None)
            return
        except (MeshError, TimeoutError) as error:
            log.warning("drift of %s v%d is looked at again later: %s", *version, error)
        except Exception:
            log.exception("drift of %s v%d is looked at again later", *version)
        if self._stopping:
            self._due.pop(version, None)
        else:
            await asyncio.sleep(RETRY_S)

    async def _take_step(self, version: Version) -> bool:
        """Whether nothing is left to do. What could not be stored is stored before anything else is looked at."""
        inbox = self._inboxes.get(version)
        if inbox is None:
            return True
        if version not in self._found:
            async with asyncio.timeout(STEP_S):
                goals, labels = await self._goals_of(version[0]), await self._names.of(*version)
            line = self._lines.get(version)
            if line is None:
                before = self._saved.pop(version, NOTHING)
                line = self._lines[version] = restored_line(*version, goals, before, self._open_events(version))
            self._unsaved.add(version)
            try:
                self._found[version] = await asyncio.to_thread(line.fed, inbox.next(), goals, labels, self._now())
            except Exception:
                log.exception("samples of %s v%d could not be looked at and are left out", *version)
                self._found[version] = []
                del self._lines[version]  # it may hold what will never be stored
        # Where the disk was full, somebody may have resolved some of them meanwhile.
        if changed := [event for event in self._found[version] if not self._is_over(event)]:
            await self._keep(changed)
        del self._found[version]
        return not len(inbox)

    async def _keep(self, changed: Sequence[DriftEvent]) -> None:
        """Stores, then puts in force, then tells. They are of one version."""
        events = self._log.numbered(changed)
        version = (events[0].model, events[0].version)
        new = [event for event in events if self._log.get(event.number) is None]
        forget = too_many([*self._log.of(version[0]), *new])
        await self._store.put(events, forget)
        before = self.overrides(*version)
        self._log.put(events, forget)
        self._unsaved.add(version)
        if (line := self._lines.get(version)) is not None:
            line.adopt(events)
        if self.overrides(*version) != before:
            self._teller.tell(*version)

    def _open_events(self, version: Version) -> list[DriftEvent]:
        return [
            event
            for event in self._log.of(version[0])
            if event.version == version[1] and event.state is not State.RESOLVED
        ]

    def _is_over(self, event: DriftEvent) -> bool:
        known = self._log.get(event.number)
        return known is not None and known.state is State.RESOLVED

    def _make_room(self, version: Version, now: datetime) -> bool:
        """Forgets what the watches of a silent version have learned; its events go on holding."""
        if (old := self._room.oldest(self._inboxes, self._due, version, now)) is None:
            return False
        for known in (self._inboxes, self._lines, self._saved):
            known.pop(old, None)
        return True

    async def _save(self) -> None:
        async with self._step:
            for version in list(self._unsaved):
                try:
                    await self._save_one(version)
                except MeshError as error:
                    log.warning("what is known of drift is not saved: %s", error)
                    return
                except Exception:
                    log.exception("what is known of drift is not saved")
                    return

    async def _save_one(self, version: Version) -> None:
        self._unsaved.discard(version)  # what comes meanwhile is saved the next time
        if (inbox := self._inboxes.get(version)) is None:
            return
        try:
            one, line = sums_of(inbox, self._saved.get(version, NOTHING)), self._lines.get(version)
            if line is not None:
                one = await asyncio.to_thread(with_line, one, line)
            await self._store.save(*version, one)
        except Exception:
            self._unsaved.add(version)
            raise
