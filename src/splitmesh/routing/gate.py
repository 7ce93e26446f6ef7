"""The decision at the exit: is this answer sure enough to stay at the edge?

Runs on every frame, so it is numpy and nothing else. Knows a rule, a threshold and what it is compared with; how the threshold
is chosen and what it guarantees is ``risk.py``. It fails safe: whatever is not a probability distribution, looks like nothing
that the calibration saw, or comes from where things have drifted, escalates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from splitmesh.errors import field_error
from splitmesh.routing.costs import NO_ANSWER
from splitmesh.routing.deferral import Deferral
from splitmesh.routing.finding import SOMETHING
from splitmesh.routing.rule import Judge
from splitmesh.routing.scores import ease
from splitmesh.routing.unusual import Unusual
from splitmesh.tensor.spec import Array

ESCALATE_ALL = 2.0
"""A threshold that no ease reaches: every sample crosses the link."""


def confidence(probabilities: Array) -> NDArray[np.float64]:
    """The largest probability of each row: ``[n, classes]`` to ``[n]``, in 0..1.

    NaN, which is below every threshold, stands for a row that is no distribution: a value that is not finite or outside
    0..1, a sum other than 1, fewer than two classes (a lone class is always "sure").
    MeshError TENSOR_SHAPE_MISMATCH unless ``probabilities`` has two dimensions.
    """
    return ease("max_probability", probabilities)


class Why(StrEnum):
    """Why a sample is easy or hard; the names are those of ``splitmesh.api.routing.v1.RouteReason``."""

    SURE = "SURE"
    UNSURE = "UNSURE"
    UNDEFINED = "UNDEFINED"
    """No distribution."""
    FINDING = "FINDING"
    """A detector's exit says that there is something."""
    UNUSUAL = "UNUSUAL"
    DRIFTED = "DRIFTED"
    """An override of its camera or class lets nothing pass."""
    NO_PROMISE = "NO_PROMISE"
    """The threshold lets nothing pass at all."""
    ASKED = "ASKED"
    """The caller wants the whole model's outputs."""


@dataclass(frozen=True, slots=True)
class Override:
    """Another threshold for a camera, a class or both."""

    camera: str
    """Empty: every camera."""
    label: str
    """Name of the class that the exit names, or its number as text where classes have no names; empty: every class."""
    threshold: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """About one sample."""

    sure: bool
    """The exit's answer may stand."""
    why: Why
    ease: float
    """0..1, NaN where it is undefined."""
    threshold: float
    """That the ease was compared with."""
    worth: float
    """Expected gain of asking the tail, 0..1; 1 where that is not known."""
    answer: int
    """Class that the exit names; ``costs.NO_ANSWER`` where there is none."""
    unusual: bool | None
    """None: not looked at."""


class Gate:
    """Lets the exit's answer stand where its ease reaches the threshold.

    Args:
        threshold: smallest accepted ease, at least 0; above 1 (``ESCALATE_ALL``) nothing is accepted.
        judge: what an ease is; the largest probability unless it is given.
        overrides: the most special one that fits a sample holds: camera and class, then camera, then class, then neither. It was
            measured at the cut alone, so where one fits, no exit before the cut answers.
        deferral: what asking is expected to gain, where the version brings it.
        unusual: says which samples are unlike the calibration's, where it is given.
        escalate_unusual: those escalate; else they are only told.

    Raises MeshError FIELD_INVALID for a threshold that is none.
    """

    __slots__ = ("_deferral", "_escalate_unusual", "_overrides", "_unusual", "judge", "threshold")

    def __init__(
        self,
        threshold: float = ESCALATE_ALL,
        judge: Judge | None = None,
        *,
        overrides: Sequence[Override] = (),
        deferral: Deferral | None = None,
        unusual: Unusual | None = None,
        escalate_unusual: bool = True,
    ) -> None:
        for value in (threshold, *(override.threshold for override in overrides)):
            if not (math.isfinite(value) and value >= 0):
                raise field_error("threshold", f"is {value}, expected a finite number of at least 0")
        self.threshold = threshold
        self.judge = judge or Judge()
        self._overrides = {(override.camera, override.label): override.threshold for override in overrides}
        self._deferral, self._unusual, self._escalate_unusual = deferral, unusual, escalate_unusual

    def verdict(
        self,
        row: Array,
        *,
        logits: Array | None = None,
        features: Array | None = None,
        camera: str = "",
        labels: Sequence[str] = (),
        asked: bool = False,
        at_cut: bool = True,
    ) -> Verdict:
        """About one sample.

        Args:
            row: ``[1, classes]``, the exit's probabilities.
            logits: the same shape, where the exit gives them.
            features: ``[1, F]``, pooled, where the exit gives them.
            camera: that took it.
            labels: names of the classes; a class without one goes by its number.
            asked: the caller wants more than an exit can say.
            at_cut: the row is of the exit at the cut, which the deferral score was fitted to and overrides were measured at.

        Raises MeshError TENSOR_SHAPE_MISMATCH or TENSOR_DTYPE_MISMATCH for arguments that do not fit the version's scores.
        """
        worth = self._worth(row, features) if at_cut else None
        eases, answers = self.judge.eases(row, logits=logits, worth=None if worth is None else np.array([worth]))
        ease_, answer = float(eases[0]), int(answers[0])
        unusual = bool(self._unusual.strange(features)[0]) if self._unusual and features is not None else None
        own = self._override(camera, _name(labels, answer))
        threshold = self.threshold if own is None else own if at_cut else ESCALATE_ALL
        why = self._why(
            ease_, answer, threshold, overridden=own is not None, unusual=bool(unusual) and self._escalate_unusual
        )
        if asked:
            why = Why.ASKED
        if worth is None:
            worth = 1.0 - ease_
        known = min(1.0, max(0.0, worth)) if math.isfinite(worth) and not asked else 1.0
        return Verdict(why is Why.SURE, why, ease_, threshold, known, answer, unusual)

    def _why(self, ease_: float, answer: int, threshold: float, *, overridden: bool, unusual: bool) -> Why:
        if math.isnan(ease_):
            return Why.FINDING if self.judge.finding and answer == SOMETHING else Why.UNDEFINED
        if unusual:
            return Why.UNUSUAL
        if ease_ >= threshold:
            return Why.SURE
        if threshold > 1:
            return Why.DRIFTED if overridden else Why.NO_PROMISE
        return Why.UNSURE

    def _worth(self, row: Array, features: Array | None) -> float | None:
        """None where nothing was fitted, or not to this exit."""
        if self._deferral is None or row.shape[1] != self._deferral.classes:
            return None
        if self._deferral.projection is not None and features is None:
            return None
        return float(self._deferral.worth(row, features)[0])

    def _override(self, camera: str, label: str) -> float | None:
        if not self._overrides:
            return None
        places = ((camera, label), (camera, ""), ("", label), ("", ""))
        return next((self._overrides[place] for place in places if place in self._overrides), None)


def _name(labels: Sequence[str], answer: int) -> str:
    if answer == NO_ANSWER:
        return ""
    return labels[answer] if answer < len(labels) else str(answer)
