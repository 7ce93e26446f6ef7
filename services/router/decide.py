"""Whether one sample of a gateway is hard: by a version's policy, or by a rule of the gateway's own. Pure.

A gateway runs a model of its own and asks about what it said: a row of class probabilities, or the scores of its boxes. Knows
values and gates; where a policy comes from and what a site's budget is, the caller knows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from services.router.parts import Parts
from services.router.policy import Policy
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.routing.costs import NO_ANSWER
from splitmesh.routing.gate import Gate, Override, Verdict, Why
from splitmesh.routing.rule import DEFERRAL, EXPECTED_COST, Judge, Rule
from splitmesh.routing.scores import box_ease

Row = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Classes:
    """What a classifier, or a detector's exit, said."""

    probabilities: Row
    """``[1, classes]``."""
    logits: Row | None = None
    """The same shape; None: not given."""
    features: Row | None = None
    """``[1, F]``, pooled; None: not given."""


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """What a detector said."""

    scores: Row
    """``[boxes]``, 0..1."""


@dataclass(frozen=True, slots=True)
class OwnRule:
    """A threshold that the gateway brings itself."""

    score: str
    """Also by Sedna's name."""
    threshold: float
    """Easy from here on, 0..1."""
    parameters: Mapping[str, float] = field(default_factory=dict)


def by_policy(policy: Policy, parts: Parts, said: Classes | Boxes, camera: str) -> Verdict:
    """The verdict by which a head of that version would go on.

    A sample without features is hard where the policy lets unusual samples escalate: they are what tells it, and the bound
    is of samples that were looked at.

    Raises MeshError FIELD_INVALID for boxes, which no policy compares; TENSOR_SHAPE_MISMATCH for a row of other classes, or
    logits or features that do not fit.
    """
    if isinstance(said, Boxes):
        raise field_error("boxes", "need a rule of their own: a policy compares the row of an exit's classes")
    classes = said.probabilities.shape[1]
    known = len(parts.labels) or parts.classes
    if known and classes != known:
        raise MeshError(
            Reason.TENSOR_SHAPE_MISMATCH,
            f"the row has {classes} classes, {policy.model} v{policy.version} has {known}",
        )
    _check_logits(said)
    gate = Gate(
        policy.threshold,
        Judge(Rule(policy.score, policy.parameters, policy.costs), finding=parts.finding),
        overrides=[Override(one.camera, one.label, one.threshold) for one in policy.overrides],
        deferral=parts.deferral,
        unusual=parts.unusual,
        escalate_unusual=policy.escalate_unusual,
    )
    verdict = gate.verdict(
        said.probabilities, logits=said.logits, features=said.features, camera=camera, labels=parts.labels
    )
    if verdict.sure and policy.escalate_unusual and verdict.unusual is None:
        return replace(verdict, sure=False, why=Why.UNUSUAL)
    return verdict


def by_own_rule(rule: OwnRule, said: Classes | Boxes) -> Verdict:
    """The verdict of one score and threshold.

    Raises MeshError FIELD_INVALID for a score that is not of what was said, its parameters, or a threshold outside 0..1;
    TENSOR_SHAPE_MISMATCH for logits that do not fit.
    """
    if not 0 <= rule.threshold <= 1:
        raise field_error("own.threshold", f"is {rule.threshold}, expected 0 to 1")
    # What was said came as float32: 0.7 of it is less than 0.7.
    threshold = min(rule.threshold, float(np.float32(rule.threshold)))
    if isinstance(said, Boxes):
        return _of_boxes(box_ease(rule.score, said.scores, parameters=rule.parameters), threshold)
    if rule.score in (DEFERRAL, EXPECTED_COST):
        raise field_error("own.score", f"{rule.score!r} is of a version's policy, no rule of its own")
    _check_logits(said)
    gate = Gate(threshold, Judge(Rule(rule.score, rule.parameters)))
    return gate.verdict(said.probabilities, logits=said.logits)


def _of_boxes(ease: float, threshold: float) -> Verdict:
    if math.isnan(ease):
        return Verdict(False, Why.UNDEFINED, ease, threshold, 1.0, NO_ANSWER, None)
    sure = ease >= threshold
    return Verdict(sure, Why.SURE if sure else Why.UNSURE, ease, threshold, 1.0 - ease, NO_ANSWER, None)


def _check_logits(said: Classes) -> None:
    if said.logits is not None and said.logits.shape != said.probabilities.shape:
        raise MeshError(
            Reason.TENSOR_SHAPE_MISMATCH,
            f"{said.logits.shape[1]} logits were given for {said.probabilities.shape[1]} probabilities",
        )
