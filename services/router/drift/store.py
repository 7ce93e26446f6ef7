"""What the router remembers of drifts: events, and per version what its watches have learned. The port, and the store in memory.

An event is what holds after a crash; what watches have learned may be a minute old. `drift_store_sqlite.py` is the durable one;
both pass the same conformance suite. Knows no statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from services.router.drift.events import DriftEvent

MAX_LINES = 256
"""Versions of which it is remembered what their watches have learned: those saved last."""


@dataclass(frozen=True, slots=True)
class SavedLine:
    """What is known of one version."""

    watches: bytes
    """As ``Watches.to_json``."""
    basis: str
    """The goals that it was learned under."""
    audits: str
    """JSON."""
    sights: int
    """Samples that were told."""
    left_out: int
    """Samples that there was no room for, in heads or here."""
    collected: Mapping[int, bytes] = field(default_factory=dict)
    """By number of the event: as ``Collected.to_bytes``."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """All of it."""

    events: tuple[DriftEvent, ...]
    """By number."""
    last: int
    """The highest number that an event ever had; 0: none had."""
    lines: Mapping[tuple[str, int], SavedLine]
    """By model and version, the one that was longest not saved first."""


class DriftStore(Protocol):
    """Every change is durable when its call returns. MeshError STORAGE_FULL when it cannot be."""

    async def start(self) -> None:
        """Open; ready when it returns."""
        ...

    async def stop(self) -> None:
        """Let go; safe to call after a failed start, and twice."""
        ...

    async def remembered(self) -> Remembered:
        """All of it. What cannot be read is left out, with a warning in the log."""
        ...

    async def put(self, events: Sequence[DriftEvent], forget: Sequence[int] = ()) -> None:
        """Adds events or replaces those of the same number, and forgets others: all of it, or nothing."""
        ...

    async def save(self, model: str, version: int, line: SavedLine) -> None:
        """What is known of a version; that of the versions above ``MAX_LINES`` is forgotten."""
        ...


class MemoryDriftStore:
    """A DriftStore that forgets everything at its end, for tests and demonstrations."""

    def __init__(self) -> None:
        self._events: dict[int, DriftEvent] = {}
        self._last = 0
        self._lines: dict[tuple[str, int], SavedLine] = {}

    async def start(self) -> None:
        """Nothing to open."""

    async def stop(self) -> None:
        """Nothing to close."""

    async def remembered(self) -> Remembered:
        """See DriftStore."""
        events = tuple(self._events[number] for number in sorted(self._events))
        return Remembered(events, self._last, dict(self._lines))

    async def put(self, events: Sequence[DriftEvent], forget: Sequence[int] = ()) -> None:
        """See DriftStore."""
        self._events |= {event.number: event for event in events}
        self._last = max([self._last, *(event.number for event in events)])
        for number in forget:
            self._events.pop(number, None)

    async def save(self, model: str, version: int, line: SavedLine) -> None:
        """See DriftStore."""
        self._lines.pop((model, version), None)
        self._lines[model, version] = line
        while len(self._lines) > MAX_LINES:
            del self._lines[next(iter(self._lines))]
