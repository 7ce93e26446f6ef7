"""From stated goals to a policy: score and threshold for one version, and why. Pure.

`risk.choose` does the statistics; here is what happens around it: a version without an exit, without enough samples, or for
which the goals make no sense gets a policy too, by which everything escalates. That is slow but right.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from services.router.class_limits import constraints_of, labels_of
from services.router.goals import Goals, PolicyOverride
from services.router.rule_choice import choose_rule
from splitmesh.errors import MeshError, field_error
from splitmesh.model.outcomes import CalibrationOutcomes, Part
from splitmesh.routing.constraint_tests import ConstraintBound
from splitmesh.routing.gate import ESCALATE_ALL
from splitmesh.routing.risk import choose
from splitmesh.routing.rule import DEFAULT


@dataclass(frozen=True, slots=True)
class Bound:
    """What is promised; the fields are those of `splitmesh.api.routing.v1.Bound`."""

    constraint: str
    limit: float
    bound: float
    events: int
    n: int


@dataclass(frozen=True, slots=True)
class Policy:
    """How a head decides; the fields are those of `splitmesh.api.routing.v1.Policy`."""

    model: str
    version: int
    threshold: float
    max_disagreement: float
    delta: float
    disagreement_bound: float
    coverage: float
    calibration_samples: int
    why: str
    audit_share: float
    score: str = DEFAULT
    parameters: Mapping[str, float] = field(default_factory=dict)
    costs: tuple[float, ...] = ()
    bounds: tuple[Bound, ...] = ()
    escalate_unusual: bool = False
    overrides: tuple[PolicyOverride, ...] = ()
    revision: int = 0
    """0 until the store has numbered it."""

    def content(self) -> str:
        """Everything but the revision, as text: two policies of equal content are the same."""
        return json.dumps(asdict(replace(self, revision=0)), sort_keys=True)


def make_policy(
    model: str, version: int, goals: Goals, outcomes: bytes | None, overrides: Sequence[PolicyOverride] = ()
) -> Policy:
    """The policy of one version.

    Args:
        model: by name.
        version: its number.
        goals: what was stated.
        outcomes: the version's artefact `manifest.OUTCOMES`; None when it has none.
        overrides: thresholds of cameras and classes that have drifted.

    Outcomes that cannot be read, and goals that the version cannot keep, are no error: everything escalates, everywhere, and
    the policy says so.
    """
    if outcomes is None:
        return _escalate(model, version, goals, "this version has no exit with measured calibration outcomes")
    try:
        return _chosen(model, version, goals, CalibrationOutcomes.from_bytes(outcomes), tuple(overrides))
    except MeshError as error:
        return _escalate(model, version, goals, error.message)


def _chosen(
    model: str, version: int, goals: Goals, outcomes: CalibrationOutcomes, overrides: tuple[PolicyOverride, ...]
) -> Policy:
    constraints = constraints_of(goals, labels_of(outcomes))
    unusual = _escalates_unusual(goals, outcomes)
    chosen = choose_rule(outcomes, goals, constraints, escalate_unusual=unusual)
    held = outcomes.of(Part.HOLDOUT)
    eases, answers = held.eases(chosen.rule, escalate_unusual=unusual)
    choice = choose(
        eases, answers, held.whole, constraints, delta=goals.delta, groups=_units(held.groups), seed=held.seed
    )
    return Policy(
        model=model,
        version=version,
        threshold=choice.threshold,
        max_disagreement=goals.max_disagreement,
        delta=goals.delta,
        disagreement_bound=choice.bounds[0].bound,
        coverage=choice.coverage,
        calibration_samples=choice.n,
        why="; ".join(part for part in (choice.reason, chosen.why) if part),
        audit_share=goals.audit_share,
        score=chosen.rule.score,
        parameters=dict(chosen.rule.parameters),
        costs=chosen.rule.costs,
        bounds=tuple(_bound(bound) for bound in choice.bounds),
        escalate_unusual=unusual,
        overrides=overrides,
    )


def _escalates_unusual(goals: Goals, outcomes: CalibrationOutcomes) -> bool:
    if goals.escalate_unusual and outcomes.strange is None:
        raise field_error(
            "escalate_unusual", "is stated, and this version cannot tell unusual samples: it brings no measure of them"
        )
    return outcomes.strange is not None if goals.escalate_unusual is None else goals.escalate_unusual


def _units(groups: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """None where each sample is a unit of its own."""
    return None if groups is None or len(np.unique(groups)) == len(groups) else groups


def _bound(kept: ConstraintBound) -> Bound:
    about, event = kept.constraint.words()
    return Bound(f"samples{about} exit and {event}", kept.constraint.limit, kept.bound, kept.events, kept.n)


def _escalate(model: str, version: int, goals: Goals, reason: str) -> Policy:
    """Without overrides: nothing may loosen it."""
    return Policy(
        model=model,
        version=version,
        threshold=ESCALATE_ALL,
        max_disagreement=goals.max_disagreement,
        delta=goals.delta,
        disagreement_bound=0.0,
        coverage=0.0,
        calibration_samples=0,
        why=f"everything escalates: {reason}",
        audit_share=goals.audit_share,
    )
