"""Some of a version's decided frames, in a few numbers each, for the router to watch for drift.

Bounded by time and by number, whatever comes. Audited frames are told first, in the next report if this one is full: they are
few, and each is what an audit was made for. Of the others, those that the tail answered among them, every one has the same
chance, so that they are spread over the time and the cameras as the frames were, and their mean ease is the frames' own: were
the hard ones told first, a link that breaks would look like a drift. What there is no room for is counted. Knows no clock and
no network.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import OrderedDict
from dataclasses import dataclass

from splitmesh.client.routing import Sight

PER_SECOND = 50
"""Sights of one version that are told at most; so many may be saved up for a burst."""
MOST = 1000
"""In one report."""
MOST_AWAITED = 256
"""Audits whose end is waited for."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One frame, as it was decided."""

    at: float
    """When it arrived, seconds on the caller's clock."""
    camera: str
    exit_class: int
    ease: float
    """0..1, NaN where it is undefined."""
    unusual: bool | None
    exit: int
    tail_class: int | None = None
    audited: bool = False

    def sight(self, now: float) -> Sight:
        """To be told at ``now``."""
        return Sight(
            camera=self.camera,
            exit_class=self.exit_class,
            ease=self.ease,
            unusual=self.unusual,
            tail_class=self.tail_class,
            audited=self.audited,
            exit=self.exit,
            age_ms=max(0.0, (now - self.at) * 1e3),
        )


class Sights:
    """Of one version. Every frame draws a number from ``random_``; those with the largest numbers are a fair sample."""

    def __init__(self, random_: random.Random, now: float) -> None:
        """``now``: from when on room is earned."""
        self._random = random_
        self._since, self._room = now, float(PER_SECOND)
        self._kept: list[tuple[bool, float, int, Seen]] = []
        self._numbers = itertools.count()
        self._awaited: OrderedDict[str, tuple[float, Seen]] = OrderedDict()
        self._left_out = 0

    def add(self, seen: Seen) -> None:
        """A frame that nothing more will be known of."""
        entry = (seen.audited, self._random.random(), next(self._numbers), seen)
        if len(self._kept) < MOST:
            heapq.heappush(self._kept, entry)
        else:
            heapq.heappushpop(self._kept, entry)
            self._left_out += 1

    def expect(self, key: str, seen: Seen, until: float) -> None:
        """A frame that the tail was asked about after its answer: told with what it says, or without after ``until``."""
        if len(self._awaited) >= MOST_AWAITED:
            self.add(self._awaited.popitem(last=False)[1][1])
        self._awaited[key] = (until, seen)

    def heard(self, key: str, seen: Seen) -> None:
        """The tail has said what that frame is; nothing where it was told without."""
        if self._awaited.pop(key, None) is not None:
            self.add(seen)

    def drain(self, now: float) -> tuple[tuple[Seen, ...], int]:
        """Those to tell since the last time, in the order of their arrival, and how many there was no room for."""
        while self._awaited and next(iter(self._awaited.values()))[0] <= now:
            self.add(self._awaited.popitem(last=False)[1][1])
        self._room += PER_SECOND * max(0.0, now - self._since)
        self._kept.sort(reverse=True)
        room = int(self._room)
        told, rest = self._kept[:room], self._kept[room:]
        left_out = self._left_out + sum(not entry[0] for entry in rest)
        self._since, self._room, self._left_out = now, min(PER_SECOND, self._room - len(told)), 0
        self._kept = [entry for entry in rest if entry[0]]
        heapq.heapify(self._kept)
        told.sort(key=lambda entry: (entry[3].at, entry[2]))
        return tuple(entry[3] for entry in told), left_out
