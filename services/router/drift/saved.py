"""What is known of one version under watch, to be saved, and as it was. A state that cannot be read is learned anew."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

from services.router.drift.collected import Collected
from services.router.drift.events import DriftEvent, State
from services.router.drift.feed import MAX_WATCHES
from services.router.drift.inbox import Inbox, audits_to
from services.router.drift.line import Line
from services.router.drift.recalibrate import kept, kept_of_unit
from services.router.drift.store import SavedLine
from services.router.drift.watches import Watches
from services.router.goals import Goals
from splitmesh.errors import MeshError

log = logging.getLogger(__name__)

NOTHING = SavedLine(b"", "", "[]", 0, 0)


def sums_of(inbox: Inbox, before: SavedLine) -> SavedLine:
    """With the inbox's sums, and the rest as it was saved before."""
    return replace(before, audits=audits_to(inbox.audits()), sights=inbox.sights, left_out=inbox.left_out)


def with_line(sums: SavedLine, line: Line) -> SavedLine:
    """And with what its watches have learned. The line must not change meanwhile."""
    collected = {line.open[place].number: found.to_bytes() for place, found in line.collected.items()}
    return replace(sums, watches=line.feed.watches.to_json(), basis=line.basis, collected=collected)


def restored_inbox(saved_: SavedLine) -> Inbox:
    """Its sums."""
    inbox = Inbox()
    try:
        inbox.restore(saved_.audits, saved_.sights, saved_.left_out)
    except MeshError as error:
        log.warning("sums of audits are begun anew: %s", error)
    return inbox


def restored_line(model: str, version: int, goals: Goals, saved_: SavedLine, events: Iterable[DriftEvent]) -> Line:
    """As it was, where it was learned under the same goals.

    Args:
        model: by name.
        version: its number.
        goals: in force now.
        saved_: of the version, or ``NOTHING``.
        events: of the version that are not resolved.
    """
    line = Line(model, version, goals)
    line.adopt(events)
    if saved_.basis != line.basis:
        return line
    try:
        line.feed.watches = Watches.from_json(saved_.watches, line.levels, max_watches=MAX_WATCHES)
        for place, event in line.open.items():
            if event.state is State.TIGHTENED and event.number in saved_.collected:
                line.collected[place] = Collected.from_bytes(
                    saved_.collected[event.number], kept(goals), kept_of_unit(goals)
                )
    except MeshError as error:
        log.warning("watches of %s v%d begin anew: %s", model, version, error)
    return line
