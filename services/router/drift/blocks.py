"""What the watches of one version are fed, made from its samples: means of a few eases, and flags for the promise. Pure.

Frames of one camera resemble each other for longer than ``changes.py`` averages, so an ease is fed as the mean of ``BLOCK``
samples of a camera and class. Wider watches are fed by how much such a mean differs from what is usual of its own camera and
class, not the mean itself: how often each comes may change by the hour (a camera stops, nobody walks by at night), and that is
no drift. A class whose ease was never defined (a detector's "something") has none to watch; where it was, an undefined one
counts as 0.

What is promised is a share of all samples, and audits are of accepted ones alone: of the others, which cannot break it, as large
a share is fed. Of those a head may have left out some, so each stands for as many as its report says.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from services.router.drift.events import Place

BLOCK = 4
"""Samples of a camera and class whose mean ease is one value of a watch."""
MIDDLE = 0.5
"""What a wider watch is fed where the ease is the usual one."""
MAX_STANDS_FOR = 100.0
"""Samples that one that was told can stand for."""


@dataclass(slots=True)
class _Block:
    n: int = 0
    total: float = 0.0
    escalated: float = 0.0
    defined: bool = False
    """An ease was, at some time."""


class Blocks:
    """Of one version.

    Args:
        most: places that are told apart; the one that was longest without a sample is begun anew when it comes back.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._blocks: OrderedDict[Place, _Block] = OrderedDict()
        self._wide = (0, 0.0)

    def ease(self, place: Place, ease: float, *, known: bool) -> float | None:
        """The mean of a block that is full now. ``known``: it is, what is usual of the place, so its ease was defined before."""
        block = self._of(place)
        block.defined = block.defined or known or not math.isnan(ease)
        if not block.defined:
            return None
        block.n, block.total = block.n + 1, block.total + (0.0 if math.isnan(ease) else ease)
        if block.n < BLOCK:
            return None
        mean, block.n, block.total = block.total / BLOCK, 0, 0.0
        return mean

    def right(self, place: Place, audit_share: float, stands_for: float) -> int:
        """An escalated sample that the tail answered: how many flags of a promise that was kept it makes."""
        block = self._of(place)
        block.escalated += audit_share * min(stands_for, MAX_STANDS_FOR)
        whole = int(block.escalated)
        block.escalated -= whole
        return whole

    def over_all(self, distance: float | None) -> tuple[()] | tuple[float]:
        """The mean of the distances of all places, when there are as many as places whose ease is defined."""
        if distance is None:
            return ()
        n, total = self._wide[0] + 1, self._wide[1] + distance
        full = n >= sum(block.defined for block in self._blocks.values())
        self._wide = (0, 0.0) if full else (n, total)
        return (total / n,) if full else ()

    def others(self, place: Place) -> bool:
        """Another class of its camera has an ease too."""
        return any(one.camera == place.camera and one != place and block.defined for one, block in self._blocks.items())

    def clear(self) -> None:
        """Begin anew."""
        self._blocks.clear()
        self._wide = (0, 0.0)

    def _of(self, place: Place) -> _Block:
        block = self._blocks.setdefault(place, _Block())
        self._blocks.move_to_end(place)
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)
        return block


def distance(ease: float | None, usual: float | None) -> float | None:
    """What a wider watch is fed: 0..1, ``MIDDLE`` where the ease is the usual one; None until that is known."""
    return None if ease is None or usual is None else min(1.0, max(0.0, MIDDLE + ease - usual))
