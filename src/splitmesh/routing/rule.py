"""What a row of an exit is taken to mean: an ease, and an answer. The same code where thresholds are chosen and where they hold.

A :class:`Rule` is data, from a person's goals or a router's policy; a :class:`Judge` is the rule made ready, checked once.
Runs on every frame, hence numpy and nothing else. Knows no threshold: that is ``gate.py``'s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from splitmesh.errors import field_error
from splitmesh.routing.costs import NO_ANSWER, Costs, cost_ease
from splitmesh.routing.finding import FINDINGS, NOTHING
from splitmesh.routing.scores import ROW_SCORES, SEDNA, distributions, ease, ease_of
from splitmesh.tensor.spec import Array

Floats = NDArray[np.float64]
Classes = NDArray[np.int64]

DEFAULT = "max_probability"
DEFERRAL = "deferral"
"""Of what asking the tail is expected to gain, 1 less that: the version brings the fitted score (``deferral.py``)."""
EXPECTED_COST = "expected_cost"
"""Of costs: 1 less the expected cost of the cheapest answer (``costs.py``); the only score where there are costs."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Which score, and with what; FIELD_INVALID comes from :class:`Judge`."""

    score: str = DEFAULT
    parameters: Mapping[str, float] = field(default_factory=dict)
    costs: tuple[float, ...] = ()
    """``classes * classes``, row by row, of naming the column's class where the reference is the row's; empty: all mistakes cost
    the same."""


class Judge:
    """A rule, ready for rows of one exit.

    Args:
        rule: which score, and with what.
        finding: the exit is a detector's, ``[n, 2]`` (nothing, something): only "nothing" can be an answer.

    Raises MeshError FIELD_INVALID for an unknown score, a parameter that it does not have or that is out of range, costs that are
    no table, and a score beside costs.
    """

    __slots__ = ("_costs", "finding", "rule")

    def __init__(self, rule: Rule | None = None, *, finding: bool = False) -> None:
        self.rule = rule or Rule()
        self.finding = finding
        self._costs = _table(self.rule.costs)
        if (self._costs is not None) != (self.rule.score == EXPECTED_COST):
            raise field_error(
                "score", f"is {self.rule.score!r}; {EXPECTED_COST!r} it is with costs, and only with costs"
            )
        if self.rule.score in (DEFERRAL, EXPECTED_COST):
            if self.rule.parameters:
                raise field_error("parameters", f"{self.rule.score!r} has none")
        else:
            ease(self.rule.score, np.empty((0, 2)), parameters=self.rule.parameters)

    def eases(self, rows: Array, *, logits: Array | None = None, worth: Array | None = None) -> tuple[Floats, Classes]:
        """How easy each row is, ``[n]`` in 0..1, NaN where it cannot be answered, and the answer's class ``[n]``.

        Args:
            rows: ``[n, classes]``, the exit's probabilities.
            logits: of the same shape, where the exit gives them; a score that reads them is NaN without.
            worth: ``[n]``, what asking is expected to gain, for the score ``deferral``; NaN without.

        The class is ``costs.NO_ANSWER`` where a row is no distribution. Raises MeshError TENSOR_SHAPE_MISMATCH, and FIELD_INVALID
        for costs of another number of classes.
        """
        if self._costs is not None:
            found, answers = cost_ease(rows, self._costs)
        else:
            found, answers = self._scored(rows, logits, worth)
        if self.finding:
            answerable = answers == NOTHING if rows.shape[1] == len(FINDINGS) else np.zeros(len(rows), np.bool_)
            found = np.where(answerable, found, np.nan)
        return found, answers

    def _scored(self, rows: Array, logits: Array | None, worth: Array | None) -> tuple[Floats, Classes]:
        given, valid = distributions(rows)
        answers = np.where(valid, given.argmax(axis=1) if given.shape[1] else NO_ANSWER, NO_ANSWER).astype(np.int64)
        if self.rule.score != DEFERRAL:
            return ease_of(self.rule.score, given, valid, logits=logits, parameters=self.rule.parameters), answers
        if worth is None:
            return np.full(len(rows), np.nan), answers
        return np.where(valid, 1.0 - np.clip(np.asarray(worth, dtype=np.float64), 0.0, 1.0), np.nan), answers


def row_scores() -> tuple[str, ...]:
    """Every name that a rule without costs may have, without Sedna's names."""
    return (*ROW_SCORES, DEFERRAL)


def known_score(name: str) -> str:
    """The score's own name, also by Sedna's; FIELD_INVALID for one of no row."""
    own = SEDNA.get(name, name)
    if own not in (*ROW_SCORES, DEFERRAL, EXPECTED_COST):
        raise field_error("score", f"{name!r} is none of {', '.join((*row_scores(), EXPECTED_COST))}")
    return own


def _table(costs: tuple[float, ...]) -> Costs | None:
    if not costs:
        return None
    classes = math.isqrt(len(costs))
    if classes * classes != len(costs):
        raise field_error("costs", f"has {len(costs)} entries, which is no square table")
    return Costs(np.reshape(np.asarray(costs, dtype=np.float64), (classes, classes)))
