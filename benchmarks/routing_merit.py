"""Figures of merit for routers: accuracy against escalations, escalations at equal accuracy, and whether a promise was kept.

Knows eases, answers and truths as arrays, no models. A sample is answered by the exit where its ease reaches the threshold, else
by the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Graded:
    """Samples with what is right about them."""

    ease: Floats
    """``[n]``; NaN: escalates at any threshold."""
    exit_right: Flags
    whole_right: Flags

    def take(self, rows: Numbers) -> Graded:
        """Those samples, repeated ones too."""
        return Graded(self.ease[rows], self.exit_right[rows], self.whole_right[rows])

    def right_at(self, threshold: float) -> int:
        """Right answers of exit and whole together."""
        stays = self.ease >= threshold
        return int(np.where(stays, self.exit_right, self.whole_right).sum())

    def curve(self) -> tuple[Numbers, Numbers]:
        """Samples that escalate and right answers, at every threshold that tells any samples apart; fewest answered first."""
        ease = np.where(np.isnan(self.ease), -np.inf, self.ease)
        order = np.argsort(-ease, kind="stable")
        change = self.exit_right.astype(np.int64) - self.whole_right
        right = int(self.whole_right.sum()) + np.concatenate([[0], np.cumsum(change[order])])
        ordered = ease[order]
        # Of samples of one ease all stay or none.
        between = np.concatenate([[True], ordered[1:] != ordered[:-1], [True]])
        possible = np.concatenate([[True], np.isfinite(ordered)]) & between
        stays = np.flatnonzero(possible)
        return len(ordered) - stays, right[stays]

    def least_escalated(self, right: int) -> int:
        """Fewest samples that must escalate for so many right answers, read off these very samples; all where none does."""
        escalated, reached = self.curve()
        enough = reached >= right
        return int(escalated[enough].min()) if enough.any() else len(self.ease)


def read_off(graded: Graded, right: float) -> float:
    """The lowest threshold that keeps so many right answers among these samples; above 1 where none does. No promise."""
    thresholds = np.unique(graded.ease[~np.isnan(graded.ease)])
    keeping = [float(value) for value in thresholds if graded.right_at(value) >= right]
    return min(keeping, default=2.0)


def resampled(unit: Numbers, times: int, seed: int) -> Iterator[Numbers]:
    """Rows of samples of as many units as there are, drawn with replacement."""
    names, member = np.unique(unit, return_inverse=True)
    of_unit = np.split(np.argsort(member, kind="stable"), np.cumsum(np.bincount(member))[:-1])
    rng = np.random.default_rng(seed)
    for _ in range(times):
        yield np.concatenate([of_unit[number] for number in rng.integers(0, len(names), len(names))])


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of a promise over many draws."""

    draws: int
    kept: int
    """Draws in which the disagreement was at most the limit."""
    answering: int
    """Draws in which the exit may answer at all."""
    coverage: float
    """Mean share of the tested samples that the exit answers."""
    disagreement: float
    """Mean over the draws."""


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Samples of one place, none of which the exit or the score was fitted to."""

    ease: Floats
    wrong: Flags
    """``[n]``: the exit does not say what the whole model says."""
    unit: Numbers


Choose = Callable[[Floats, Flags, Numbers, int], float]
"""Eases, wrong, unit and seed of calibration samples to a threshold."""


def promise_on_parts(pool: Pool, choose: Choose, limit: float, draws: int, seed: int) -> Kept:
    """Units divided in halves at random: one calibrates, the other tests. The test's own chance counts against the promise."""
    names, member = np.unique(pool.unit, return_inverse=True)

    def parts(rng: np.random.Generator) -> tuple[Numbers, Numbers, Numbers]:
        order = rng.permutation(len(names))
        calibrates = np.isin(member, order[: len(names) // 2])
        rows = np.flatnonzero(calibrates)
        return rows, pool.unit[rows], np.flatnonzero(~calibrates)

    return _over(pool, choose, limit, draws, seed, parts)


def promise_on_population(pool: Pool, choose: Choose, limit: float, draws: int, seed: int) -> Kept:
    """As many units as there are, drawn with replacement, calibrate; the population they come from, the pool itself, tests. That
    is what is promised, to the letter."""
    _, member = np.unique(pool.unit, return_inverse=True)
    of_unit = np.split(np.argsort(member, kind="stable"), np.cumsum(np.bincount(member))[:-1])
    everything = np.arange(len(pool.unit))

    def parts(rng: np.random.Generator) -> tuple[Numbers, Numbers, Numbers]:
        drawn = [of_unit[number] for number in rng.integers(0, len(of_unit), len(of_unit))]
        again = np.repeat(np.arange(len(drawn)), [len(rows) for rows in drawn])
        return np.concatenate(drawn), again, everything

    return _over(pool, choose, limit, draws, seed, parts)


def _over(
    pool: Pool,
    choose: Choose,
    limit: float,
    draws: int,
    seed: int,
    parts: Callable[[np.random.Generator], tuple[Numbers, Numbers, Numbers]],
) -> Kept:
    rng = np.random.default_rng(seed)
    kept = answering = 0
    coverage, disagreement = np.zeros(draws), np.zeros(draws)
    for draw in range(draws):
        rows, unit, tested = parts(rng)
        threshold = choose(pool.ease[rows], pool.wrong[rows], unit, draw)
        stays = pool.ease[tested] >= threshold
        coverage[draw] = by_unit(stays, pool.unit[tested])
        disagreement[draw] = by_unit(stays & pool.wrong[tested], pool.unit[tested])
        kept += bool(disagreement[draw] <= limit)
        answering += threshold <= 1
    return Kept(draws, kept, answering, float(coverage.mean()), float(disagreement.mean()))


def by_unit(flags: Flags, unit: Numbers) -> float:
    """Share of flags when every unit counts the same."""
    _, member = np.unique(unit, return_inverse=True)
    return float((np.bincount(member, weights=flags) / np.bincount(member)).mean())
