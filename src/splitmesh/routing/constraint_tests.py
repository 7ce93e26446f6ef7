"""Constraints tested on calibration samples, each by itself, at every threshold of the grid.

Knows counts and the binomial: how many accepted answers break a constraint, of how many samples, and what that bounds. Which
thresholds follow from several tests is ``risk.py``, which also says what all this promises.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, binom

from splitmesh.errors import field_error
from splitmesh.routing.constraints import Constraint
from splitmesh.routing.exit_counts import Reach

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

_MOST_SAMPLES = 10**18
"""That anybody is told to get; keeps the arithmetic finite for limits next to 0."""


@dataclass(frozen=True, slots=True)
class ConstraintBound:
    """What a threshold did to one constraint on the calibration samples."""

    constraint: Constraint
    events: int
    """Accepted answers that break it, of the n."""
    n: int
    """Samples that it is about, one a unit where there are groups."""
    bound: float
    """Clopper-Pearson's upper limit at confidence 1 - delta, at most the constraint's; 0 when everything escalates."""


@dataclass(frozen=True, slots=True, eq=False)
class ConstraintTest:
    """One constraint at every threshold of ``GRID``."""

    constraint: Constraint
    delta: float
    n: int
    """As in :class:`ConstraintBound`."""
    events: Counts
    """``[thresholds]``."""
    bounds: Floats
    """``[thresholds]``: upper limits as of :func:`risk_bound`."""

    @property
    def lacks(self) -> int:
        """Samples to add before any threshold can pass; 0 when there are enough."""
        return max(0, samples_needed(self.constraint.limit, self.delta) - self.n)

    def p_value(self, position: int) -> float:
        """Of "the constraint is broken" at a threshold: P(so few events) if the risk were its limit."""
        return float(binom.cdf(self.events[position], self.n, self.constraint.limit))

    def at(self, position: int) -> ConstraintBound:
        """At one threshold."""
        return ConstraintBound(self.constraint, int(self.events[position]), self.n, float(self.bounds[position]))


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Calibration samples, checked."""

    reach: Reach
    answers: Counts
    """``[n, exits]``."""
    reference: Counts
    """``[n]``."""
    order: Counts
    """A permutation of the samples: of a unit, the first that a constraint is about is the one drawn."""
    unit: Counts | None
    """``[n]``: number of each sample's unit; None when all are independent."""

    @property
    def n(self) -> int:
        """Samples, all of every unit."""
        return len(self.reference)

    @classmethod
    def of(
        cls, eases: ArrayLike, answers: ArrayLike, reference: ArrayLike, groups: ArrayLike | None, seed: int
    ) -> Samples:
        """Arguments and errors as of ``risk.choose``."""
        scores, said, truth = _eases(eases), _classes("answers", answers), _classes("reference", reference)
        if said.shape != scores.shape:
            raise field_error("answers", f"has shape {said.shape} for eases of shape {scores.shape}")
        n = len(scores)
        if truth.shape != (n,):
            raise field_error("reference", f"has shape {truth.shape}, expected ({n},)")
        if (truth < 0).any():
            raise field_error("reference", "has a number below 0, which is no class")
        if (said[~np.isnan(scores)] < 0).any():
            raise field_error("answers", "has a number below 0, which is no class, where there is an ease")
        if seed < 0:
            raise field_error("seed", f"is {seed}, expected at least 0")
        if scores.ndim == 1:
            scores, said = scores[:, None], said[:, None]
        unit = None if groups is None else _units(groups, n)
        order = np.arange(n) if unit is None else np.random.default_rng(seed).permutation(n)
        return cls(Reach.of(scores), said, truth, order, unit)

    def test(self, constraint: Constraint, delta: float) -> ConstraintTest:
        """The constraint on the samples it is about, one a unit where there are units."""
        concerned, broken = constraint.judge(self.answers, self.reference)
        rows = self.order[concerned[self.order]]
        if self.unit is not None:
            rows = rows[np.unique(self.unit[rows], return_index=True)[1]]
        events = self.reach.marked(broken, rows)
        return ConstraintTest(constraint, delta, len(rows), events, _upper_bounds(events, len(rows), delta))


def risk_bound(events: int, n: int, delta: float) -> float:
    """Clopper-Pearson: upper limit, at confidence 1 - delta, of the probability behind so many events in n draws."""
    return float(_upper_bounds(np.array([events]), n, delta)[0])


def samples_needed(limit: float, delta: float) -> int:
    """Fewest samples with which any threshold can be accepted under a limit, even without one event."""
    return math.ceil(min(math.log(delta) / math.log1p(-limit), _MOST_SAMPLES))


def _upper_bounds(events: Counts, n: int, delta: float) -> Floats:
    counts, where = np.unique(events, return_inverse=True)
    others = n - counts
    bounds: Floats = np.where(others > 0, beta.ppf(1 - delta, counts + 1, np.maximum(others, 1)), 1.0)
    return bounds[where]


def _eases(given: ArrayLike) -> Floats:
    try:
        eases = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise field_error("eases", "are no table of numbers") from error
    if eases.ndim not in (1, 2) or (eases.ndim == 2 and eases.shape[1] == 0):
        raise field_error("eases", f"has shape {eases.shape}, expected (n,) or (n, exits)")
    if not (np.isnan(eases) | ((eases >= 0) & (eases <= 1))).all():
        raise field_error("eases", "has a value outside 0..1")
    return eases


def _classes(name: str, given: ArrayLike) -> Counts:
    try:
        classes = np.asarray(given)
    except (TypeError, ValueError) as error:
        raise field_error(name, "is no table of class numbers") from error
    if classes.size and classes.dtype.kind not in "biu":
        raise field_error(name, f"is of type {classes.dtype}, expected class numbers")
    return classes.astype(np.int64)


def _units(groups: ArrayLike, n: int) -> Counts:
    try:
        names = np.asarray(groups)
        unit = np.unique(names, return_inverse=True)[1]
    except (TypeError, ValueError) as error:
        raise field_error("groups", "are not all numbers or all texts") from error
    if names.shape != (n,):
        raise field_error("groups", f"has shape {names.shape}, expected ({n},)")
    return unit
