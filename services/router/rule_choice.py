"""Which score the threshold is compared with: the stated one, or the one that keeps most samples at the edge. Pure.

Looks at validation samples alone. The hold-out is left to the threshold, so that its promise holds whatever was tried here. What
is counted here is a reading of samples, no promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.router.goals import Goals
from splitmesh.errors import field_error
from splitmesh.model.outcomes import CalibrationOutcomes, Part
from splitmesh.routing.constraints import Constraint
from splitmesh.routing.exit_counts import Reach, before_failure
from splitmesh.routing.rule import DEFAULT, DEFERRAL, EXPECTED_COST, Rule

Floats = NDArray[np.float64]

ENERGY = "energy"
CANDIDATES = (DEFAULT, "margin", "entropy", ENERGY, DEFERRAL)
"""In the order in which a tie is settled."""
LEAST_VALIDATION = 50
"""Fewer samples tell no score from another."""
LEAST_GAIN = 0.01
"""By which share of the samples a score must beat the default: less is by chance, and not worth another score."""
LEAST_SCALE = 1e-6
MOST_ENERGY = 1e6
"""The ranges of the energy score's parameters."""


@dataclass(frozen=True, slots=True)
class RuleChoice:
    """A rule, and how it came about."""

    rule: Rule
    why: str
    """A sentence's part; empty where there was nothing to choose."""


def choose_rule(
    outcomes: CalibrationOutcomes, goals: Goals, constraints: Sequence[Constraint], *, escalate_unusual: bool
) -> RuleChoice:
    """The rule by which a version's exits are judged.

    Args:
        outcomes: of which the validation samples are looked at.
        goals: score, parameters and costs.
        constraints: that hold among the validation samples at the threshold at which the scores are compared.
        escalate_unusual: strange samples are not answered.

    Raises MeshError FIELD_INVALID for a score that the version's exits do not give.
    """
    validation = outcomes.of(Part.VALIDATION)
    if goals.costs:
        return RuleChoice(Rule(EXPECTED_COST, costs=goals.costs), "the answer is the one of least expected cost")
    if goals.score:
        _check_given(goals.score, outcomes)
        return RuleChoice(_with_parameters(goals.score, goals, validation), "")
    if validation.n < LEAST_VALIDATION:
        few = f"{validation.n} validation samples are too few to choose a score, {LEAST_VALIDATION} would do"
        return RuleChoice(Rule(), few)
    kept = {
        rule.score: (_kept(validation, rule, constraints, escalate_unusual=escalate_unusual), rule)
        for rule in (_with_parameters(name, goals, validation) for name in CANDIDATES if _is_given(name, outcomes))
    }
    best = max(kept, key=lambda name: kept[name][0])  # of equals the first
    if kept[best][0] < kept[DEFAULT][0] + LEAST_GAIN:
        best = DEFAULT
    others = ", ".join(f"{name} {share:.0%}" for name, (share, _) in kept.items() if name != best)
    why = f"{best} would keep {kept[best][0]:.0%} of {validation.n} validation samples at the edge, {others}"
    return RuleChoice(kept[best][1], why)


def _kept(
    outcomes: CalibrationOutcomes, rule: Rule, constraints: Sequence[Constraint], *, escalate_unusual: bool
) -> float:
    """Share of the samples that exit at the lowest threshold down to which none of the limits is exceeded among them."""
    eases, answers = outcomes.eases(rule, escalate_unusual=escalate_unusual)
    reach = Reach.of(eases)
    keeps = np.ones(len(reach.answered()), dtype=np.bool_)
    for constraint in constraints:
        concerned, broken = constraint.judge(answers, outcomes.whole)
        rows = np.flatnonzero(concerned)
        keeps &= reach.marked(broken, rows) <= constraint.limit * len(rows)
    passed = before_failure(keeps)
    return float(reach.answered()[passed - 1]) / outcomes.n if passed else 0.0


def _with_parameters(score: str, goals: Goals, validation: CalibrationOutcomes) -> Rule:
    """What was stated; of the energy, mean and scale of the validation samples where they were not."""
    stated = dict(goals.parameters) if goals.score == score else {}
    if score != ENERGY or validation.logits is None:
        return Rule(score, stated)
    energies = _free_energies(validation.logits, stated.get("temperature", 1.0))
    if not len(energies):
        return Rule(score, stated)
    mean = float(np.clip(energies.mean(), -MOST_ENERGY, MOST_ENERGY))
    scale = float(np.clip(energies.std(), LEAST_SCALE, MOST_ENERGY))
    return Rule(score, {"mean": mean, "scale": scale} | stated)


def _free_energies(logits: NDArray[np.float32], temperature: float) -> Floats:
    """Negative free energies, T log sum exp(logits / T) (Liu et al. 2020), of all exits' finite rows, ``[m]``."""
    rows = logits.reshape(-1, logits.shape[2]).astype(np.float64) / temperature
    rows = rows[np.isfinite(rows).all(axis=1)]
    if not rows.size:
        return np.empty(0)
    top = rows.max(axis=1)
    found: Floats = temperature * (top + np.log(np.exp(rows - top[:, None]).sum(axis=1)))
    return found


def _is_given(score: str, outcomes: CalibrationOutcomes) -> bool:
    if score == ENERGY:
        return outcomes.logits is not None
    return score != DEFERRAL or outcomes.worth is not None


def _check_given(score: str, outcomes: CalibrationOutcomes) -> None:
    if not _is_given(score, outcomes):
        reads = "logits" if score == ENERGY else "what asking is worth"
        raise field_error("score", f"is {score!r}, which reads {reads}; this version's exit does not give that")
