"""Fits a deferral score (``deferral.py``) to samples on which it is known who was right.

Two logistic regressions, held towards what is believed without them by an L2 penalty on the difference: the exit is right with
the odds of its first class against its second, the tail equally often everywhere. The penalty is the one that did best, in log
loss, on groups its fit had not seen (k-fold cross-validation: Stone 1974), with the features only where that did better than
without, and anything but the belief, moved to the right mean, only where it did better by ``EVIDENCE`` standard errors (after
the rule of one standard error: Breiman et al. 1984). A good exit is wrong on a handful of samples; what is learned from so few
orders samples worse than the exit's own odds, so without evidence those stay. Outcomes are smoothed by one imaginary sample of
each kind (Platt 1999): few samples prove no certainty. Needs scipy; the edge never imports it.

Knows nothing about thresholds. Samples that the score was fitted to look a little better under it than new ones; a promise
needs others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize
from scipy.special import expit

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.routing.deferral import CERTAIN, MAX_DIRECTIONS, Deferral, Logistic, feature_inputs, row_inputs
from splitmesh.routing.division import divided
from splitmesh.routing.projection import Projection
from splitmesh.routing.projection_fit import insufficient, principal, rounded, standardisation, usable_features
from splitmesh.routing.scores import distributions
from splitmesh.tensor.spec import Array

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Numbers = NDArray[np.int64]

MIN_SAMPLES = 40
FOLDS = 5
SAMPLES_PER_DIRECTION = 10
"""With fewer a logistic model learns them by heart (Peduzzi et al. 1996 ask for ten events per input)."""
L2_GRID = tuple(float(value) for value in np.geomspace(10.0, 1e-4, 6))
"""Weight penalties tried, strongest first, so that each fit starts from a simpler one and a tie keeps the simpler."""
EVIDENCE = 2.0
"""Standard errors by which a fit must beat the belief on groups it had not seen: the best of a dozen often does by one."""
MAX_ITERATIONS = 200
"""Of L-BFGS; the problem is convex and has at most 37 weights."""


def fit_deferral(
    rows: Array,
    *,
    exit_right: ArrayLike,
    tail_right: ArrayLike | None,
    features: Array | None = None,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> Deferral:
    """The score of one exit, from samples that neither the exit nor the tail was trained on.

    Args:
        rows: ``[n, classes]``, the exit's probabilities.
        exit_right: ``[n]`` bool, by the reference: the whole model's answer, or the truth.
        tail_right: ``[n]`` bool, by the truth; None: the tail is the reference and always right.
        features: ``[n, F]`` pooled features of the exit; None: the score reads the probabilities only. Where they help neither
            model, the score does not read them either (``projection`` is None).
        groups: ``[n]``; samples with the same value (pictures of one unit) stay on one side of the cross-validation.
        seed: of the division into folds; the same seed gives the same score.

    Raises MeshError CALIBRATION_INSUFFICIENT for fewer than ``MIN_SAMPLES`` samples or one group, FIELD_INVALID for rows that are
    no distribution and for outcomes that are not bool ``[n]``, TENSOR_NOT_FINITE, TENSOR_SHAPE_MISMATCH, TENSOR_DTYPE_MISMATCH.
    """
    given, valid = distributions(rows)
    n, classes = given.shape
    if not valid.all():
        raise field_error("rows", f"{int((~valid).sum())} of {n} are no distribution over at least 2 classes")
    outcomes = _outcomes("exit_right", exit_right, n)
    tail_outcomes = None if tail_right is None else _outcomes("tail_right", tail_right, n)
    if n < MIN_SAMPLES:
        raise insufficient(n, MIN_SAMPLES, "to fit a deferral score")
    division = _divided(n, groups, seed)
    seen = row_inputs(given)
    mean, scale, _ = standardisation(seen)
    own, inputs, projection = seen.shape[1], (seen - mean) / scale, None
    if features is not None:
        standard, projection = _projected(features, n)
        inputs = inputs if projection is None else np.hstack([inputs, feature_inputs(standard, projection)])
    even = np.zeros(inputs.shape[1])
    odds = even.copy()
    odds[:2] = scale[0], -scale[1]  # of the standardised logarithms: that of the first over the second
    exit_model = _logistic(inputs, outcomes, division, own, odds)
    tail_model = (
        Logistic(even, CERTAIN) if tail_outcomes is None else _logistic(inputs, tail_outcomes, division, own, even)
    )
    if not (exit_model.weights[own:].any() or tail_model.weights[own:].any()):
        projection = None
        exit_model = Logistic(exit_model.weights[:own], exit_model.bias)
        tail_model = Logistic(tail_model.weights[:own], tail_model.bias)
    return Deferral(classes, mean, scale, projection, exit_model, tail_model, samples=n)


@dataclass(frozen=True, slots=True, eq=False)
class _Division:
    """Of the samples, for cross-validation."""

    folds: Numbers
    """``[n]``."""
    unit: Numbers
    """``[n]``: samples with the same number are no independent evidence."""


def _divided(n: int, groups: ArrayLike | None, seed: int) -> _Division:
    folds = divided(n, [1 / FOLDS] * FOLDS, seed=seed, groups=groups)
    if len(np.unique(folds)) < 2:
        raise MeshError(
            Reason.CALIBRATION_INSUFFICIENT,
            f"all {n} samples are of one group: nothing tells how a deferral score would do on another",
            metadata={"samples": str(n), "groups": "1"},
        )
    return _Division(folds, np.unique(np.arange(n) if groups is None else np.asarray(groups), return_inverse=True)[1])


def _outcomes(name: str, given: ArrayLike, n: int) -> Flags:
    found = np.asarray(given)
    if found.dtype != np.bool_ or found.shape != (n,):
        raise field_error(name, f"is {found.dtype.name} {list(found.shape)}, expected bool [{n}]")
    return found


def _projected(features: Array, n: int) -> tuple[Floats, Projection | None]:
    """Standardised features, and the projection, or None where they do not vary."""
    values = usable_features(features)
    if len(values) != n:
        raise MeshError(Reason.TENSOR_SHAPE_MISMATCH, f"{len(values)} rows of features for {n} samples")
    mean, scale, varies = standardisation(values)
    standard = np.where(varies, (values - mean) / scale, 0.0)
    directions, variances = principal(standard, min(MAX_DIRECTIONS, n // SAMPLES_PER_DIRECTION))
    if not len(variances):
        return standard, None
    # One factor for all: the first has unit variance like the other inputs, and a weak direction stays weak, so that the penalty
    # holds it down first.
    directions = rounded(directions / np.sqrt(variances[0]))
    return standard, Projection(mean, scale, directions)


def _logistic(inputs: Floats, outcomes: Flags, division: _Division, own: int, belief: Floats) -> Logistic:
    """With the first ``own`` inputs or with all, whichever does better, or by the belief; weights that are not used are 0."""
    width, penalties = _best(inputs, outcomes, division, tuple(sorted({own, inputs.shape[1]})), belief)
    rows, target, held = inputs[:, :width], _smoothed(outcomes), belief[:width]
    found = _believed(rows, target, held)
    for l2 in penalties:
        found = _fitted(rows, target, l2, found, held)
    return Logistic(np.append(found[:-1], np.zeros(inputs.shape[1] - width)), float(found[-1]))


def _best(
    inputs: Floats, outcomes: Flags, division: _Division, widths: tuple[int, ...], belief: Floats
) -> tuple[int, tuple[float, ...]]:
    """The width and penalty of least loss on the folds left out, and the penalties that lead there: none where it does not beat
    the belief for sure."""
    losses = np.zeros((len(widths), len(L2_GRID), len(outcomes)))
    believed = np.zeros(len(outcomes))
    for fold in np.unique(division.folds):
        held, rest = division.folds == fold, division.folds != fold
        target, truth = _smoothed(outcomes[rest]), outcomes[held].astype(np.float64)
        for row, width in enumerate(widths):
            rows, away = inputs[rest, :width], inputs[held, :width]
            found = _believed(rows, target, belief[:width])
            believed[held] = _losses(_logits(found, away), truth)
            for column, l2 in enumerate(L2_GRID):
                found = _fitted(rows, target, l2, found, belief[:width])
                losses[row, column, held] = _losses(_logits(found, away), truth)
    best, penalty = divmod(int(losses.sum(axis=2).argmin()), len(L2_GRID))
    gains = np.bincount(division.unit, weights=believed - losses[best, penalty])
    if gains.sum() <= EVIDENCE * np.sqrt(len(gains)) * gains.std():
        return widths[0], ()
    return widths[best], L2_GRID[: penalty + 1]


def _smoothed(outcomes: Flags) -> Floats:
    n = len(outcomes)
    target: Floats = (n * outcomes.astype(np.float64) + 1.0) / (n + 2.0)
    return target


def _logits(parameters: Floats, inputs: Floats) -> Floats:
    # einsum: on a busy host the threads of a BLAS wait for each other far longer than such small products take
    logits: Floats = np.einsum("ij,j->i", inputs, parameters[:-1]) + parameters[-1]
    return logits


def _losses(logits: Floats, target: Floats) -> Floats:
    """Log loss of each sample, in nats."""
    losses: Floats = np.logaddexp(0.0, logits) - target * logits
    return losses


def _believed(inputs: Floats, target: Floats, belief: Floats) -> Floats:
    """The weights that are believed, with the bias that gives the right mean."""
    offset = np.einsum("ij,j->i", inputs, belief)

    def slope(bias: float) -> float:
        return float((expit(offset + bias) - target).sum())

    reach = float(np.abs(offset).max()) + CERTAIN
    return np.append(belief, brentq(slope, -reach, reach))


def _fitted(inputs: Floats, target: Floats, l2: float, start: Floats, belief: Floats) -> Floats:
    """Minimise mean log loss + l2 / 2 |weights - belief|^2; the last number is the bias, which is free."""

    def objective(parameters: Floats) -> tuple[float, Floats]:
        logits, away = _logits(parameters, inputs), parameters[:-1] - belief
        error = (expit(logits) - target) / len(target)
        gradient = np.append(np.einsum("ij,i->j", inputs, error) + l2 * away, error.sum())
        return float(_losses(logits, target).mean()) + l2 / 2 * float((away**2).sum()), gradient

    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": MAX_ITERATIONS})
    parameters: Floats = found.x
    return parameters
