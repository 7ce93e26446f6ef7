"""Samples of one camera in the order of time, watched as a router watches them: for `benchmarks.drift`.

A pool holds what a head knows of pictures: ease, class, whether strange, what the whole model says. A stream draws from it, whole
units in a row or neighbours in ease after each other. A :class:`Watched` is a head and a router's :class:`Line` without what is
between them: thresholds and overrides decide, sure answers are audited, reports of ``REPORT`` samples are fed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.stats import norm

from benchmarks.routing_cases import Router, Rows
from services.router.drift.events import DriftEvent, State, overrides
from services.router.drift.line import Line, Seen
from services.router.goals import Goals
from services.router.store import Sight
from splitmesh.routing.audit import Auditor

Numbers = NDArray[np.int64]

CAMERA = "line-1"
REPORT = 50
"""Samples of one report: five seconds of ten pictures a second."""
FRAME = timedelta(milliseconds=100)
START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """What there is to draw from; plain lists, for they are read one by one."""

    ease: list[float]
    said: list[int]
    whole: list[int]
    strange: list[bool]
    unit: Numbers

    @classmethod
    def of(cls, router: Router, rows: Rows) -> Pool:
        """Of pictures."""
        strange = (
            np.zeros(len(rows), dtype=np.bool_) if router.unusual is None else router.unusual.strange(rows.features)
        )
        eases = router.eases(rows)
        return cls(eases.tolist(), rows.answer.tolist(), rows.whole.tolist(), strange.tolist(), rows.unit)

    def disagreement(self, threshold: float) -> float:
        """Of the samples that stay, as a share of all."""
        return float(
            np.mean(
                [
                    ease >= threshold and not strange and said != whole
                    for ease, said, whole, strange in zip(self.ease, self.said, self.whole, self.strange, strict=True)
                ]
            )
        )


def by_units(pool: Pool, rng: np.random.Generator) -> Iterator[int]:
    """For ever: a unit drawn at random, its pictures in a row."""
    _, member = np.unique(pool.unit, return_inverse=True)
    of_unit = np.split(np.argsort(member, kind="stable"), np.cumsum(np.bincount(member))[:-1])
    while True:
        for number in rng.integers(0, len(of_unit), 256):
            yield from of_unit[number].tolist()


def alike(pool: Pool, rng: np.random.Generator, memory: float) -> Iterator[int]:
    """For ever: pictures in the order of a walk over their eases, each ``memory`` like the one before (an AR(1) behind them)."""
    order = np.argsort(np.nan_to_num(np.array(pool.ease), nan=-1.0), kind="stable")
    state = float(rng.standard_normal())
    while True:
        noise = rng.standard_normal(4096) * math.sqrt(1 - memory**2)
        walk, _ = lfilter([1.0], [1.0, -memory], noise, zi=[memory * state])
        state = float(walk[-1])
        places = np.minimum((norm.cdf(walk) * len(order)).astype(np.int64), len(order) - 1)
        yield from order[places].tolist()


class Watched:
    """One camera's head and the router's line.

    Args:
        threshold: of the policy.
        goals: in force.
        labels: of the classes.
        seed: of the audits.
    """

    def __init__(self, threshold: float, goals: Goals, labels: tuple[str, ...], seed: int) -> None:
        self._threshold, self._goals, self._labels = threshold, goals, labels
        self._line = Line("m", 1, goals)
        self._auditor = Auditor(goals.audit_share, seed)
        self._events: dict[int, DriftEvent] = {}
        self._overrides: dict[tuple[str, str], float] = {}
        self._report: list[Seen] = []
        self._ticks = 0
        self.samples = self.stayed = self.wrong = self.audits = 0

    def begin(self) -> None:
        """Counts of what stayed and what was wrong begin anew."""
        self.samples = self.stayed = self.wrong = self.audits = 0

    def saw(self, pool: Pool, sample: int) -> list[DriftEvent]:
        """One sample; events that are new, once the report that it completes was looked at."""
        ease, said, whole, strange = pool.ease[sample], pool.said[sample], pool.whole[sample], pool.strange[sample]
        label = self._labels[said]
        sure = not strange and ease >= self._threshold_for(label)
        audited = sure and self._auditor.take(CAMERA, label, ease, str(self._auditor.seen))
        self.samples += 1
        self.stayed += sure
        self.audits += audited
        self.wrong += sure and said != whole
        tail = whole if audited or not sure else None
        self._ticks += 1
        at = START + FRAME * self._ticks
        self._report.append(Seen(at, Sight(CAMERA, said, ease, strange, tail, audited, 0, 0.0)))
        return self._fed(at) if len(self._report) == REPORT else []

    def resolve(self) -> None:
        """A person ends whatever holds."""
        ended = [one.resolved("seen to") for one in self._events.values() if one.state is not State.RESOLVED]
        self._adopt(ended)

    def _threshold_for(self, label: str) -> float:
        if not self._overrides:
            return self._threshold
        places = ((CAMERA, label), (CAMERA, ""), ("", label), ("", ""))
        return next((self._overrides[one] for one in places if one in self._overrides), self._threshold)

    def _fed(self, now: datetime) -> list[DriftEvent]:
        seen, self._report = self._report, []
        changed = self._line.fed(seen, self._goals, self._labels, now)
        numbered = [
            one if one.number else replace(one, number=len(self._events) + 1 + k) for k, one in enumerate(changed)
        ]
        new = [one for one in numbered if one.number not in self._events and one.state is State.TIGHTENED]
        if numbered:
            self._adopt(numbered)
        return new

    def _adopt(self, events: list[DriftEvent]) -> None:
        self._events.update({one.number: one for one in events})
        self._line.adopt(events)
        standing = overrides(self._events.values())
        self._overrides = {(one.camera, one.label): one.threshold for one in standing}
