"""What becomes of a drift: a numbered event about one place, and the thresholds that hold while it lasts. Pure.

A place is a camera with a class, a camera, or everything. Of each place at most one event is not resolved.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from services.router.drift.watches import Kind
from services.router.goals import PolicyOverride
from splitmesh.routing.gate import ESCALATE_ALL

MAX_EVENTS = 1_000
"""Of one model; resolved ones are forgotten first, the oldest first."""


KIND_WORDS = {
    Kind.EASE: "the mean ease",
    Kind.UNUSUAL: "the share of unusual samples",
    Kind.DISAGREEMENT: "by the audits, the share of samples that exit and disagree",
}


class State(StrEnum):
    """How far a drift has been dealt with."""

    TIGHTENED = "tightened"
    """Everything that it is about escalates, and is collected."""
    RECALIBRATED = "recalibrated"
    """A threshold from the samples since then is in force."""
    RESOLVED = "resolved"
    """A person ended it, or another event of its place took over."""


class Place(NamedTuple):
    """What a drift is about."""

    camera: str = ""
    """Empty: every camera."""
    number: int | None = None
    """Class that the exit names; None: every class."""

    @property
    def wider(self) -> tuple[Place, ...]:
        """The places that hold this one, the narrowest first."""
        if self.number is not None:
            return Place(self.camera), EVERYWHERE
        return (EVERYWHERE,) if self.camera else ()


EVERYWHERE = Place()


@dataclass(frozen=True, slots=True)
class DriftEvent:
    """One drift."""

    number: int
    """Counts the events of the router from 1; 0 until it is stored."""
    model: str
    version: int
    kind: Kind
    place: Place
    label: str
    """Name of the place's class, or its number as text where classes have no names; empty for every class."""
    before: float
    """Mean ease, or share, of the samples before, or of calibration."""
    now: float
    """Of those since the change."""
    samples: int
    """Behind ``now``."""
    time: datetime
    """When it was noticed, UTC."""
    state: State
    threshold: float
    """In force for the place; above 1 everything escalates."""
    why: str
    """One sentence."""
    since: datetime
    """Samples from then on are collected."""
    collected: int = 0
    """Samples since then."""
    needed: int = 0
    """About so many must be collected before a threshold is looked for, see ``recalibrate.needed``."""
    looks: int = 0
    """How often one was looked for."""
    looked_at: int = 0
    """``collected`` at the last look."""
    basis: str = ""
    """The goals that it all is about, see ``recalibrate.basis``."""

    @property
    def camera(self) -> str:
        """Empty: every camera."""
        return self.place.camera

    def words(self) -> str:
        """Its place, for a sentence."""
        if not self.camera:
            return "all cameras and classes"
        return f"class {self.label} of camera {self.camera}" if self.label else f"camera {self.camera}"

    def resolved(self, why: str) -> DriftEvent:
        """It is over."""
        return replace(self, state=State.RESOLVED, threshold=0.0, why=why)


def overrides(events: Iterable[DriftEvent], basis: str | None = None) -> tuple[PolicyOverride, ...]:
    """What the events that are not resolved put in force: of the events that hold a place the strictest counts there.

    ``basis``: of the goals now, where they are known; a threshold that was found for others is none.
    """
    standing = {event.place: _standing(event, basis) for event in events if event.state is not State.RESOLVED}
    found = []
    for place, event in standing.items():
        holding = [event, *(standing[one] for one in place.wider if one in standing)]
        strictest = max(holding, key=lambda one: one.threshold)
        found.append(PolicyOverride(event.camera, event.label, strictest.threshold, strictest.why))
    return tuple(found)


def _standing(event: DriftEvent, basis: str | None) -> DriftEvent:
    if basis is None or event.basis == basis or event.threshold > 1:
        return event
    return replace(
        event, threshold=ESCALATE_ALL, why=f"{event.words()}: the threshold since the drift was for other goals"
    )


def too_many(events: Iterable[DriftEvent]) -> list[int]:
    """Numbers of the events of one model to forget, so that ``MAX_EVENTS`` are left."""
    order = sorted(events, key=lambda event: (event.state is not State.RESOLVED, event.version, event.number))
    return [event.number for event in order[: max(0, len(order) - MAX_EVENTS)]]
