"""How easy a sample looks, by name: what a gate's threshold is compared with.

Every score maps an exit's probabilities, or a detector's boxes, to an *ease* in 0..1: 1 is sure, 0 is lost, NaN undefined, which
no threshold accepts. So whatever is empty, not finite or no distribution counts as hard. Runs on every frame, hence numpy and
nothing else. Knows rows of numbers; which score is in force, and from where on its answer may stand, is the router's business.

Names of KubeEdge Sedna's hard-example miners are accepted as they are (``CrossEntropy``, ``Threshold``, ``IBT``), with its
formulas and its thresholds: a sample is easy where the ease is at least the threshold. Where Sedna's crash or call what is
undefined easy (p = 0, one class, NaN, no box), these say NaN or ``nothing_ease``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.tensor.spec import Array

Floats = NDArray[np.float64]
Parameters = Mapping[str, float]
NONE: Parameters = MappingProxyType({})

SUM_TOLERANCE = 0.01
"""How far a row may be from summing to 1; wide enough for a float16 softmax over a thousand classes."""
_LEAST = np.finfo(np.float64).tiny
"""For a logarithm of 0, whose term is 0 all the same."""

RowScore = Callable[[Floats, Floats | None, Parameters], Floats]
"""Valid rows ``[n, classes]``, their logits where a score needs them, and its parameters, to eases ``[n]``."""
BoxScore = Callable[[Floats, Parameters], float]
Compute = TypeVar("Compute")


def distributions(probabilities: Array) -> tuple[Floats, NDArray[np.bool_]]:
    """Rows ``[n, classes]`` as float64, and which of them are a distribution over at least two classes.

    Not one: a value that is not finite or outside 0..1, a sum other than 1, a lone class (it is always "sure"), a type that holds
    no numbers. MeshError TENSOR_SHAPE_MISMATCH unless there are two dimensions.
    """
    if probabilities.ndim != 2:
        raise MeshError(
            Reason.TENSOR_SHAPE_MISMATCH,
            f"exit probabilities have shape {list(probabilities.shape)}, expected [samples, classes]",
        )
    n, classes = probabilities.shape
    if classes < 2 or probabilities.dtype.kind not in "fiu":
        return np.zeros((n, classes)), np.zeros(n, dtype=np.bool_)
    rows = probabilities.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        # comparisons with NaN are false, so one value that is not finite fails all of these
        valid = (rows.min(axis=1) >= 0) & (rows.max(axis=1) <= 1 + SUM_TOLERANCE)
        valid &= np.abs(rows.sum(axis=1) - 1) <= SUM_TOLERANCE
    return rows, valid


def ease(name: str, probabilities: Array, *, logits: Array | None = None, parameters: Parameters = NONE) -> Floats:
    """How easy each row is, ``[n, classes]`` to ``[n]`` in 0..1, NaN where that is not defined.

    Args:
        name: of ``SCORES``, or Sedna's name for one of them.
        probabilities: of an exit.
        logits: ``[n, classes]`` before the softmax; only ``energy`` needs them, and is NaN without.
        parameters: of the score; what is left out has its default.

    Raises MeshError FIELD_INVALID for an unknown name or parameter, or one out of range; TENSOR_SHAPE_MISMATCH.
    """
    rows, valid = distributions(probabilities)
    return ease_of(name, rows, valid, logits=logits, parameters=parameters)


def ease_of(
    name: str, rows: Floats, valid: NDArray[np.bool_], *, logits: Array | None = None, parameters: Parameters = NONE
) -> Floats:
    """As :func:`ease`, of what :func:`distributions` gave, for a caller that needs it too: on one row it takes 20 µs."""
    score = _named(ROW_SCORES, name)
    values = _checked(score, parameters)
    result = np.full(len(rows), np.nan)
    if not valid.any():
        return result
    beside = None
    if logits is not None:
        if logits.shape != rows.shape:
            raise MeshError(
                Reason.TENSOR_SHAPE_MISMATCH,
                f"logits have shape {list(logits.shape)}, the probabilities {list(rows.shape)}",
            )
        beside = logits[valid].astype(np.float64)
    found = score.compute(rows[valid], beside, values)
    result[valid] = np.where(np.isfinite(found), np.clip(found, 0.0, 1.0), np.nan)
    return result


def box_ease(name: str, scores: Sequence[float] | Array, *, parameters: Parameters = NONE) -> float:
    """How easy a detector's boxes look, by their scores in any shape; NaN where one is no number in 0..1.

    Without a box the parameter ``nothing_ease`` answers, 0 unless it is given: nothing found is hard.
    Raises MeshError FIELD_INVALID as :func:`ease`.
    """
    score = _named(BOX_SCORES, name)
    values = _checked(score, parameters)
    boxes = np.asarray(scores)
    if boxes.size == 0:
        return values["nothing_ease"]
    if boxes.dtype.kind not in "fiu":
        return math.nan
    given = boxes.astype(np.float64).ravel()
    with np.errstate(invalid="ignore"):
        if not ((given >= 0) & (given <= 1)).all():
            return math.nan
    return float(min(1.0, max(0.0, score.compute(given, values))))


def names() -> tuple[str, ...]:
    """Every score, of rows and of boxes, without Sedna's names."""
    return (*ROW_SCORES, *BOX_SCORES)


def _max_probability(rows: Floats, logits: Floats | None, values: Parameters) -> Floats:
    top: Floats = rows.max(axis=1)
    return top


def _margin(rows: Floats, logits: Floats | None, values: Parameters) -> Floats:
    top = np.partition(rows, -2, axis=1)[:, -2:]
    gap: Floats = top[:, 1] - top[:, 0]
    return gap


def _entropy(rows: Floats, logits: Floats | None, values: Parameters) -> Floats:
    terms = rows * np.log(np.maximum(rows, _LEAST))
    sure: Floats = 1.0 + terms.sum(axis=1) / math.log(rows.shape[1])
    return sure


def _temperature(rows: Floats, logits: Floats | None, values: Parameters) -> Floats:
    scaled = np.log(np.maximum(rows, _LEAST)) / values["temperature"]
    scaled -= scaled.max(axis=1, keepdims=True)
    top: Floats = 1.0 / np.exp(scaled).sum(axis=1)
    return top


def _energy(rows: Floats, logits: Floats | None, values: Parameters) -> Floats:
    if logits is None:
        return np.full(len(rows), np.nan)
    temperature = values["temperature"]
    scaled = logits / temperature
    top = scaled.max(axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        free = temperature * (top + np.log(np.exp(scaled - top[:, None]).sum(axis=1)))
        sure: Floats = 1.0 / (1.0 + np.exp(-(free - values["mean"]) / values["scale"]))
    return sure


def _threshold(boxes: Floats, values: Parameters) -> float:
    return float(boxes.mean())


def _ibt(boxes: Floats, values: Parameters) -> float:
    return 1.0 - float((boxes <= values["box_threshold"]).mean())


@dataclass(frozen=True, slots=True)
class Range:
    """A parameter."""

    default: float
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class _Score(Generic[Compute]):
    compute: Compute
    parameters: Mapping[str, Range] = field(default_factory=dict)


_NOTHING = Range(0.0, 0.0, 1.0)
_T = Range(1.0, 1e-3, 1e3)

ROW_SCORES: Mapping[str, _Score[RowScore]] = {
    "max_probability": _Score(_max_probability),
    "margin": _Score(_margin),
    "entropy": _Score(_entropy),
    "temperature": _Score(_temperature, {"temperature": _T}),
    "energy": _Score(_energy, {"temperature": _T, "mean": Range(0.0, -1e6, 1e6), "scale": Range(1.0, 1e-6, 1e6)}),
}
"""Of an exit's rows. The largest probability; its lead over the second; 1 minus the entropy's share of its largest (Sedna's
CrossEntropy); the largest probability of the same row at another temperature (Guo et al. 2017); a sigmoid of the negative free
energy of the logits (Liu et al. 2020)."""

BOX_SCORES: Mapping[str, _Score[BoxScore]] = {
    "threshold": _Score(_threshold, {"nothing_ease": _NOTHING}),
    "ibt": _Score(_ibt, {"nothing_ease": _NOTHING, "box_threshold": Range(0.5, 0.0, 1.0)}),
}
"""Of a detector's boxes: their mean score; the share of them whose score is above ``box_threshold`` (a picture is hard, in
Sedna's words, when at least 1 - t of its boxes are not: when this is at most t)."""

SEDNA: Mapping[str, str] = {"CrossEntropy": "entropy", "Threshold": "threshold", "IBT": "ibt"}
"""KubeEdge Sedna's miners by the score that is theirs."""


def _named(scores: Mapping[str, _Score[Compute]], name: str) -> _Score[Compute]:
    found = scores.get(SEDNA.get(name, name))
    if found is None:
        raise field_error("score", f"{name!r} is none of {', '.join(scores)}")
    return found


def _checked(score: _Score[Any], given: Parameters) -> dict[str, float]:
    values = {name: one.default for name, one in score.parameters.items()}
    for name, value in given.items():
        one = score.parameters.get(name)
        if one is None:
            known = ", ".join(score.parameters) or "none"
            raise field_error("parameters", f"{name!r} is no parameter of this score; it has {known}")
        if not one.least <= value <= one.most:  # also refuses NaN
            raise field_error("parameters", f"{name} is {value}, expected {one.least:g} to {one.most:g}")
        values[name] = float(value)
    return values
