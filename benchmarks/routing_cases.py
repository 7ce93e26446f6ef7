"""An exit calibrated at one place and used at others: its parts, its rows, and every way to say which samples are hard.

A case takes a :class:`Line`, fits the exit at the origin and divides the origin's other units into validation (chooses the score
and fits what is fitted), hold-out (the threshold alone) and home (a test without a shift). The other sites are tests, whole but
for what the whole model was taught on. Knows no figures of merit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.routing_rows import SITES, Line
from services.router.goals import Goals
from services.router.rule_choice import choose_rule
from splitmesh.compress.exit_scores import Asked, fit_gain
from splitmesh.model.exits import FittedExit, fit_exit
from splitmesh.model.outcomes import CalibrationOutcomes, Part
from splitmesh.routing.constraints import Disagreement
from splitmesh.routing.deferral import Deferral
from splitmesh.routing.division import divided
from splitmesh.routing.rule import DEFERRAL, Judge, Rule
from splitmesh.routing.unusual import Unusual
from splitmesh.routing.unusual_fit import fit_unusual

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]

SHARES = (0.36, 0.36, 0.28)
"""Validation, hold-out and home, of the origin's units outside the fit."""
STRANGE_SHARE = 0.01
"""Of usual samples that may be called strange."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Some samples as the exit and the whole model see them."""

    probabilities: Floats
    """``[n, classes]``, the exit's."""
    logits: Floats
    features: NDArray[np.float32]
    whole: Numbers
    """``[n]``: class that the whole model names."""
    truth: Numbers
    unit: Numbers
    size: Numbers

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def answer(self) -> Numbers:
        """The exit's class."""
        found: Numbers = self.probabilities.argmax(axis=1)
        return found

    def take(self, chosen: NDArray[np.int64] | Flags) -> Rows:
        """Those samples."""
        return Rows(*(getattr(self, name)[chosen] for name in Rows.__slots__))


def joined(parts: Sequence[Rows]) -> Rows:
    """One after the other."""
    columns: list[Any] = [np.concatenate([getattr(rows, name) for rows in parts]) for name in Rows.__slots__]
    return Rows(*columns)


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One exit, fitted at its origin, and where it is used."""

    line: str
    origin: str
    seed: int
    validation: Rows
    holdout: Rows
    fitting: Rows
    """Fit and validation together: what is usual is learned from these."""
    tests: Mapping[str, Rows]
    """By site; the origin's own is called home."""
    exit: FittedExit


def case(name: str, line: Line, grid: int, origin: str, seed: int) -> Case:
    """Origin: letters of sites."""
    at = np.isin(line.site, list(origin))
    fit, rest = np.flatnonzero(at & line.fit), np.flatnonzero(at & ~line.fit)
    part = divided(len(rest), SHARES, seed=seed, groups=line.unit[rest])
    validation, holdout, home = (rest[part == number] for number in range(3))
    exit_ = fit_exit(line.features, line.whole, grid=grid, parts=(fit, validation, holdout))
    everything = rows_of(exit_, line)
    tests = {"home": everything.take(home)}
    for site in SITES:
        if site not in origin:
            tests[site] = everything.take((line.site == site) & ~line.fit)
    return Case(
        name,
        origin,
        seed,
        everything.take(validation),
        everything.take(holdout),
        everything.take(np.concatenate([fit, validation])),
        tests,
        exit_,
    )


def rows_of(exit_: FittedExit, line: Line) -> Rows:
    """All pictures of a line, as they look to this exit."""
    standard = (line.features.astype(np.float64) - exit_.mean) / exit_.scale
    return Rows(
        probabilities=exit_.predict(line.features),
        logits=(standard @ exit_.weights + exit_.bias) / exit_.temperature,
        features=line.features,
        whole=line.whole.argmax(axis=1),
        truth=line.truth,
        unit=line.unit,
        size=line.size,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Router:
    """What the product makes of a case: a rule chosen on validation, and what it needs."""

    rule: Rule
    why: str
    deferral: Deferral | None
    unusual: Unusual | None

    def eases(self, rows: Rows, *, escalate_unusual: bool = False) -> Floats:
        """``[n]``; NaN: hard at any threshold."""
        worth = None
        if self.rule.score == DEFERRAL and self.deferral is not None:
            worth = self.deferral.worth(rows.probabilities, rows.features)
        found, _ = Judge(self.rule).eases(rows.probabilities, logits=rows.logits, worth=worth)
        if escalate_unusual and self.unusual is not None:
            found = np.where(self.unusual.strange(rows.features), np.nan, found)
        return found


def router(found: Case, max_disagreement: float, delta: float) -> Router:
    """As the compressor fits and the router chooses, with labels; nothing of hold-out or tests is looked at."""
    seen = found.validation
    gain = fit_gain(_asked(seen, labels=True))
    outcomes = CalibrationOutcomes(
        probabilities=seen.probabilities[:, None].astype(np.float32),
        whole=seen.whole,
        part=np.full(len(seen), int(Part.VALIDATION), np.uint8),
        logits=seen.logits[:, None].astype(np.float32),
        worth=None if gain is None else gain.worth.astype(np.float32),
        labels=seen.truth,
        groups=seen.unit,
        seed=found.seed,
    )
    goals = Goals(max_disagreement, delta, audit_share=0.0)
    chosen = choose_rule(outcomes, goals, [Disagreement(max_disagreement)], escalate_unusual=False)
    return Router(chosen.rule, chosen.why, None if gain is None else gain.score, what_is_usual(found))


def deferral_alone(found: Case, *, labels: bool) -> Router:
    """The same with the deferral score whether it does better on validation or not; without labels against the whole model."""
    gain = fit_gain(_asked(found.validation, labels=labels))
    return Router(Rule(DEFERRAL), "stated", None if gain is None else gain.score, None)


def what_is_usual(found: Case) -> Unusual | None:
    """From the origin's fit and validation samples; None where they are too few for a limit."""
    usual = fit_unusual(found.fitting.features, share=STRANGE_SHARE, groups=found.fitting.unit)
    return usual if math.isfinite(usual.limit) else None


def _asked(rows: Rows, *, labels: bool) -> Asked:
    truth = rows.truth if labels else None
    return Asked.of(rows.probabilities, rows.features.astype(np.float64), rows.whole, truth, rows.unit, finding=False)
