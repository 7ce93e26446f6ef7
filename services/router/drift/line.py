"""One version under watch: from what heads report of its samples to drifts, and from drifts to thresholds. No clock, no disk.

Every sample is watched at three places: its camera and class, its camera, and over all; a drift is of the narrowest that tells
it, but a camera's comes before those of its classes, and that of a camera's only class is the camera's. What each watch is fed is
said in ``feed.py``.

While a place is tightened its own watches see everything and say nothing, and the wider ones do not see it: what it has become is
known there already. When it is let go, or another place is tightened, the watches that this changes begin anew.

What is found is returned, not kept: events count once they are stored (``adopt``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from services.router.drift.collected import Collected, unit_of
from services.router.drift.events import EVERYWHERE, KIND_WORDS, DriftEvent, Place, State
from services.router.drift.feed import Feed
from services.router.drift.recalibrate import (
    basis,
    is_due,
    kept,
    kept_of_unit,
    limits_of,
    look_for,
    needed,
    waits_for,
)
from services.router.drift.watches import Drift, Levels
from services.router.goals import Goals
from services.router.store import Sight
from splitmesh.errors import MeshError
from splitmesh.routing.constraints import Constraint
from splitmesh.routing.gate import ESCALATE_ALL

MAX_OPEN = 200
"""Places with an event that is not resolved; the next drift is one of all cameras and classes."""
UNUSUAL_SHARE = 0.01
"""Of samples like the calibration's, at most so many are called unusual (``unusual_fit.fit``)."""
SETTLING = timedelta(seconds=2)
"""After a drift until its samples are collected: heads hear of it, and frames under way are decided by the old policy."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A sample and when it was decided, UTC."""

    at: datetime
    sight: Sight
    stands_for: float = 1.0
    """Samples, itself and those that its head had no room to tell; audits are all told."""


class Line:
    """Of one version. Not safe to call from several threads at once.

    Args:
        model: by name.
        version: its number.
        goals: in force.
    """

    def __init__(self, model: str, version: int, goals: Goals) -> None:
        self.model, self.version = model, version
        self.basis, self._audit_share = basis(goals), goals.audit_share
        self.levels = _levels(goals)
        self.feed = Feed(self.levels)
        self.open: dict[Place, DriftEvent] = {}
        """Events that are not resolved."""
        self.collected: dict[Place, Collected] = {}
        """Of the places that are tightened."""
        self._room = kept(goals), kept_of_unit(goals)
        self._estimates: dict[Place, tuple[int, int]] = {}
        self._changed: dict[int | Place, DriftEvent] = {}

    def fed(self, seen: Iterable[Seen], goals: Goals, labels: Sequence[str] | None, now: datetime) -> list[DriftEvent]:
        """Some samples in the order of time; events that are new (number 0) or other than before.

        Args:
            seen: samples.
            goals: in force now; where they are others than before, all that was learned under those is given up.
            labels: the version's classes; empty: they have no names; None: not known.
            now: UTC.
        """
        self._changed = {}
        stated, self._audit_share = basis(goals), goals.audit_share
        if any(stated != one for one in (self.basis, *(event.basis for event in self.open.values()))):
            self._new_goals(goals, stated, now)
        for one in seen:
            self._collect(one, goals)
            for drift in self._watched(one):
                if self._found(drift, labels, now):
                    break  # what the place is part of is watched anew from here on
        for place in list(self.collected):
            self._look(place, goals, labels)
        return list(self._changed.values())

    def adopt(self, events: Iterable[DriftEvent]) -> None:
        """They are stored, now or before a restart, and have numbers."""
        for event in events:
            if event.state is not State.RESOLVED:
                self.open[event.place] = event
            elif (standing := self.open.get(event.place)) is not None and standing.number == event.number:
                self._let_go(event.place)
                del self.open[event.place]
            if event.state is State.TIGHTENED:
                self.collected.setdefault(event.place, Collected(*self._room))

    def now(self, event: DriftEvent) -> DriftEvent:
        """With what was collected until now."""
        collected = self.collected.get(event.place)
        if collected is None or event.state is not State.TIGHTENED:
            return event
        _, needed_ = self._estimates.get(event.place, (0, event.needed))
        return replace(event, collected=collected.seen, needed=needed_)

    def _new_goals(self, goals: Goals, stated: str, now: datetime) -> None:
        self.basis = stated
        self.levels = _levels(goals)
        self.feed = Feed(self.levels)
        self._room = kept(goals), kept_of_unit(goals)
        for place, event in self.open.items():
            why = f"{event.words()}: everything escalates since other goals were stated; samples are collected under these"
            self._put(
                replace(
                    event,
                    state=State.TIGHTENED,
                    threshold=ESCALATE_ALL,
                    why=why,
                    since=now + SETTLING,
                    collected=0,
                    needed=needed(goals, 1),
                    looks=0,
                    looked_at=0,
                    basis=self.basis,
                )
            )
            self.collected[place] = Collected(*self._room)
            self._estimates.pop(place, None)

    def _tightened(self, place: Place) -> bool:
        event = self.open.get(place)
        return event is not None and event.state is State.TIGHTENED

    def _collect(self, seen: Seen, goals: Goals) -> None:
        sight = seen.sight
        own = Place(sight.camera, sight.exit_class)
        for place in (own, *own.wider) if sight.camera else (EVERYWHERE,):
            if self._tightened(place) and seen.at >= self.open[place].since:
                strange = bool(sight.unusual) and goals.escalate_unusual is not False
                collected = self.collected[place]
                collected.add(
                    math.nan if strange else sight.ease,
                    sight.exit_class,
                    sight.tail_class,
                    sight.exit,
                    unit_of(sight.camera, seen.at.timestamp()),
                )

    def _watched(self, seen: Seen) -> list[Drift]:
        sight = seen.sight
        known = self._tightened(Place(sight.camera, sight.exit_class))
        return self.feed.saw(
            sight,
            seen.at.timestamp(),
            audit_share=self._audit_share,
            stands_for=seen.stands_for,
            known=known,
            wide=not (known or self._tightened(Place(sight.camera))),
        )

    def _found(self, drift: Drift, labels: Sequence[str] | None, now: datetime) -> bool:
        """Whether it led to a new event."""
        # An override without a camera is for all of them, so samples that name none cannot be told apart by it.
        place = Place(drift.camera, int(drift.label) if drift.label else None) if drift.camera else EVERYWHERE
        if place.number is not None and labels is None:
            place = Place(place.camera)  # an override names a class as the head does, or it would not fit
        if len(self.open) >= MAX_OPEN and place not in self.open:
            place = EVERYWHERE
        if any(self._tightened(wider) for wider in place.wider):
            return False
        if self._tightened(place):
            self._again(self.open[place], drift)
            return False
        self._tighten(place, drift, labels, now)
        return True

    def _again(self, event: DriftEvent, drift: Drift) -> None:
        if drift.kind is event.kind:
            self._put(replace(event, now=drift.now, samples=drift.samples))
        elif (also := f"; {KIND_WORDS[drift.kind]} too") not in event.why:
            self._put(replace(event, why=event.why + also))

    def _tighten(self, place: Place, drift: Drift, labels: Sequence[str] | None, now: datetime) -> None:
        label = "" if place.number is None else _name(labels or (), place.number)
        event = DriftEvent(
            number=0,
            model=self.model,
            version=self.version,
            kind=drift.kind,
            place=place,
            label=label,
            before=drift.before,
            now=drift.now,
            samples=drift.samples,
            time=now,
            state=State.TIGHTENED,
            threshold=ESCALATE_ALL,
            why="",
            since=now + SETTLING,
            basis=self.basis,
        )
        what = f"{KIND_WORDS[drift.kind]} went from {drift.before:.3g} to {drift.now:.3g} in {drift.samples} values"
        event = replace(event, why=f"{event.words()}: {what}; everything escalates and is collected")
        before = self.open.get(place)
        if before is not None:
            self._put(before.resolved(f"{before.words()}: drifted again, a later event took over"))
        self._put(event)
        self.collected[place] = Collected(*self._room)
        self._estimates.pop(place, None)
        for wider in place.wider:
            self._begin_anew(wider)

    def _look(self, place: Place, goals: Goals, labels: Sequence[str] | None) -> None:
        event, collected = self.open[place], self.collected[place]
        if event.state is not State.TIGHTENED:
            return
        try:
            limits = limits_of(goals, labels, place)
        except MeshError as error:
            self._say(event, f"everything goes on escalating: {error.message}")
            return
        if not is_due(collected, goals, limits, event.looks, event.looked_at):
            self._wait(event, collected, goals, limits)
            return
        look = look_for(collected, goals, limits, event.looks + 1)
        event = replace(
            event,
            looks=event.looks + 1,
            looked_at=collected.seen,
            collected=collected.seen,
            why=f"{event.words()}: {look.why}",
        )
        event = replace(event, needed=needed(goals, event.looks + 1, collected, limits, event.looked_at))
        self._estimates[place] = collected.seen, event.needed
        if look.threshold is not None:
            event = replace(event, state=State.RECALIBRATED, threshold=look.threshold)
            self._let_go(place)
        self._put(event)

    def _wait(self, event: DriftEvent, collected: Collected, goals: Goals, limits: Sequence[Constraint]) -> None:
        """Says how long it may take: now and then, for samples are counted for it."""
        before, _ = self._estimates.get(event.place, (-1, 0))
        if collected.seen < 1.1 * before or collected.seen == before:
            return
        estimate = needed(goals, event.looks + 1, collected, limits, event.looked_at)
        self._estimates[event.place] = collected.seen, estimate
        if not event.needed:
            self._put(replace(event, needed=estimate))
        if what := waits_for(collected, goals, limits, event.looks + 1):
            self._say(replace(self.open[event.place], needed=estimate), what)

    def _say(self, event: DriftEvent, what: str) -> None:
        if what not in event.why:
            self._put(replace(event, why=f"{event.words()}: {what}"))

    def _put(self, event: DriftEvent) -> None:
        self._changed[event.number or event.place] = event
        if event.state is not State.RESOLVED:
            self.open[event.place] = event

    def _let_go(self, place: Place) -> None:
        """What is there is usual from now on, and what it is part of is watched with it."""
        self.collected.pop(place, None)
        self._estimates.pop(place, None)
        if place == EVERYWHERE:
            self.feed = Feed(self.levels)
            return
        self.feed.watches.begin_anew(place.camera, None if place.number is None else str(place.number))
        for wider in place.wider:
            self._begin_anew(wider)

    def _begin_anew(self, wider: Place) -> None:
        if wider.camera:
            self.feed.watches.begin_anew(wider.camera, "")
        else:
            self.feed.watches.begin_anew()


def _levels(goals: Goals) -> Levels:
    return Levels(unusual=UNUSUAL_SHARE, disagreement=goals.max_disagreement)


def _name(labels: Sequence[str], number: int) -> str:
    return labels[number] if number < len(labels) else str(number)
