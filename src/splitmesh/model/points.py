"""Times of a model and of its heads and tails, and what makes them comparable when the host is busy now and then.

What decides between "do not split" and a cut is the ratio of their times, and they are taken minutes or seconds apart. So
the whole model is timed again beside every cut: its time is the middle one of all rounds, and a cut's times are divided by
how much slower the whole ran beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from splitmesh.model.profile_data import QUANTISED_CODEC, Profile
from splitmesh.runtime.timing import Timing

Tensors = tuple[str, ...]


class Times(NamedTuple):
    """Milliseconds per sample."""

    median_ms: float
    p90_ms: float
    p99_ms: float = 0.0
    """0: not known."""

    def at(self, factor: float) -> Times:
        """All times so."""
        return Times(self.median_ms * factor, self.p90_ms * factor, self.p99_ms * factor)


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured at one cut."""

    head: Times
    tail: Times
    agreement: float | None = None
    """Of the model with the cut rounded to 8 bits; None: not measured."""


Points = Mapping[Tensors, Point]


def per_sample(timing: Timing, batch: int) -> Times:
    """A run's times divided by its samples."""
    return Times(timing.median_ms / batch, timing.p90_ms / batch, timing.p99_ms / batch)


@dataclass(slots=True)
class Pace:
    """Rounds of one measurement."""

    first: Times
    """Of the whole model, before any cut; or what an earlier measurement, that is continued, found it to be."""
    continued: bool = False
    """The new cuts are brought to the pace of the earlier ones."""
    _beside: dict[Tensors, tuple[Point, Times]] = field(default_factory=dict)

    def add(self, tensors: Tensors, point: Point, whole: Times) -> None:
        """A cut, and the whole model right after it."""
        self._beside[tensors] = point, whole

    @property
    def whole(self) -> Times:
        """The middle one of all rounds, the faster of two."""
        if self.continued:
            return self.first
        rounds = sorted([self.first, *(whole for _, whole in self._beside.values())])
        return rounds[(len(rounds) - 1) // 2]

    def points(self, known: Points) -> dict[Tensors, Point]:
        """The new ones at the pace of ``whole``, and ``known`` as they are."""
        found, typical = dict(known), self.whole.median_ms
        for tensors, (point, whole) in self._beside.items():
            factor = typical / whole.median_ms if whole.median_ms else 1.0
            found[tensors] = Point(point.head.at(factor), point.tail.at(factor), point.agreement)
        return found


def known_points(profile: Profile) -> dict[Tensors, Point]:
    """What an earlier profile measured."""
    return {
        cut.tensors: Point(
            Times(cut.head_ms, cut.head_p90_ms, cut.head_p99_ms or 0.0),
            Times(cut.tail_ms, cut.tail_p90_ms, cut.tail_p99_ms or 0.0),
            cut.agreement.get(QUANTISED_CODEC),
        )
        for cut in profile.cuts
        if cut.measured
    }
