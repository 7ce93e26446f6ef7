"""An exit for a model that has none: a small classifier on the features of a cut, taught by the model's own answers.

Fits multinomial logistic regression on pooled features (mean, maximum, standard deviation) and measures on a hold-out
how often it says what the whole model says. Needs no labels and knows nothing about the truth. ``exit_graph.py`` puts
the fitted exit into a head; ``threshold.py`` finds the confidence from which its answer may stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.pooling import pool
from splitmesh.routing.division import divided
from splitmesh.routing.gate import confidence
from splitmesh.tensor.spec import Array, TensorSpec, require_finite

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Parts = tuple[Indices, Indices, Indices]
"""Rows for fit, validation and hold-out."""

MIN_FIT_SAMPLES = 20
MIN_VALIDATION_SAMPLES = 10
MIN_HOLDOUT_SAMPLES = 10
"""Below these a fit says nothing. A useful threshold takes far more hold-out samples: ``threshold.samples_needed``."""

VALIDATION_SHARE = 0.2
"""Part of the samples outside the hold-out that chooses ``l2`` and the temperature."""

L2_GRID = tuple(float(value) for value in np.geomspace(10.0, 1e-4, 6))
"""Weight penalties tried, strongest first, so that each fit starts from a simpler one."""

MAX_ITERATIONS = 100
"""Of L-BFGS; three times as many changed a small ResNet's coverage by nothing and took half as long again."""
LOG_TEMPERATURES = (float(np.log(0.1)), float(np.log(10.0)))

_CONSTANT = 1e-5
"""Spread below this share of a feature's size is float32 rounding, not information."""


@dataclass(frozen=True, slots=True, eq=False)
class FittedExit:
    """A fitted exit: softmax(((pool(x, grid) - mean) / scale) @ weights + bias) / temperature), and how well it does."""

    weights: Floats
    """``[pooled features, classes]``, for standardised features."""
    bias: Floats
    """``[classes]``."""
    mean: Floats
    """``[pooled features]``."""
    scale: Floats
    """``[pooled features]``, greater than 0."""
    temperature: float
    grid: int
    """Cells per side that the features were pooled in; see ``pooling.pool``."""
    l2: float
    """The weight penalty used."""
    fit_indices: Indices
    validation_indices: Indices
    holdout_indices: Indices
    """Rows of the data for each purpose; the hold-out decided nothing about the exit."""
    holdout_confidences: Floats
    """``[holdout]``, for ``threshold.choose_threshold``."""
    holdout_agrees: NDArray[np.bool_]
    """``[holdout]``: the exit's class is the whole model's."""

    @property
    def fit_samples(self) -> int:
        """Samples the weights were fitted to."""
        return len(self.fit_indices)

    @property
    def holdout_samples(self) -> int:
        """Samples held out."""
        return len(self.holdout_indices)

    @property
    def holdout_agreement(self) -> float:
        """Share of the hold-out on which exit and whole model give the same class."""
        return float(self.holdout_agrees.mean())

    def predict(self, features: Array) -> Floats:
        """Class probabilities ``[n, classes]`` of features ``[n, ...]``: the reference for the graph."""
        standard = (pool(features, self.grid) - self.mean) / self.scale
        probabilities: Floats = softmax((standard @ self.weights + self.bias) / self.temperature, axis=1)
        return probabilities


def choose_feature(specs: Sequence[TensorSpec]) -> TensorSpec:
    """The tensor of a cut that carries the exit: of the float tensors of rank 2 to 4 the one with most channels.

    One tensor, not all: the other tensors of a frontier are mostly shortcuts of the same features, and fewer inputs fit
    better on few samples. Equal channel counts: the larger tensor, then the first. MeshError CUT_INVALID if none fits.
    """
    usable = [spec for spec in specs if spec.dtype.startswith("float") and 2 <= len(spec.shape) <= 4]
    if not usable:
        raise MeshError(Reason.CUT_INVALID, "no tensor of the cut is a float tensor of rank 2 to 4, as an exit needs")
    return max(usable, key=lambda spec: (spec.shape[2 if len(spec.shape) == 3 else 1], abs(spec.size_bytes)))


def fit_exit(
    features: Array,
    whole_probabilities: Array,
    *,
    holdout: float = 0.3,
    seed: int = 0,
    grid: int = 1,
    l2: float | None = None,
    groups: ArrayLike | None = None,
    parts: Parts | None = None,
) -> FittedExit:
    """Fit an exit to the whole model's soft answers.

    Args:
        features: ``[n, ...]`` of one cut tensor, or already pooled ``[n, pooled features]``.
        whole_probabilities: ``[n, classes]``, the whole model's, summing to 1.
        holdout: share of the samples kept apart for the evaluation, 0..1.
        seed: of the division into fit, validation and hold-out; the same seed gives the same exit.
        grid: cells per side that the features are, or were, pooled in.
        l2: weight penalty; None: chosen on the validation samples.
        groups: ``[n]``; samples with the same value (pictures of one unit) stay in the same part.
        parts: rows for fit, validation and hold-out that were divided before; ``holdout``, ``seed`` and ``groups`` then
            say nothing.

    The validation samples also set the temperature (Guo et al., "On Calibration of Modern Neural Networks", 2017),
    against the whole model's class, so that the confidence estimates the probability of agreement.

    Raises MeshError CALIBRATION_INSUFFICIENT for too few samples or when the whole model gives one class only,
    TENSOR_NOT_FINITE for NaN, TENSOR_SHAPE_MISMATCH or FIELD_INVALID for arguments that do not fit together.
    """
    target = _require_probabilities(whole_probabilities)
    if len(features) != len(target):
        raise MeshError(
            Reason.TENSOR_SHAPE_MISMATCH, f"{len(features)} feature rows but {len(target)} answers of the whole model"
        )
    require_finite("features", features)
    if l2 is not None and not l2 > 0:
        raise field_error("l2", f"is {l2}, expected a number greater than 0")
    fit, validation, held = parts or split_samples(len(target), holdout=holdout, seed=seed, groups=groups)
    classes = target.argmax(axis=1)
    if len(np.unique(classes[fit])) < 2:
        raise MeshError(
            Reason.CALIBRATION_INSUFFICIENT,
            f"the whole model gives class {classes[fit][0]} for all {len(fit)} samples of the fit: "
            "an exit cannot learn what another class looks like",
        )
    pooled = pool(features, grid)
    mean, scale = _standardisation(pooled[fit])
    standard = (pooled - mean) / scale
    candidates = L2_GRID if l2 is None else (l2,)
    best_loss, best_l2 = np.inf, candidates[0]
    parameters = best = np.zeros((standard.shape[1] + 1, target.shape[1]))
    for candidate in candidates:
        parameters = _fit_weights(standard[fit], target[fit], candidate, parameters)
        loss = _cross_entropy(_logits(parameters, standard[validation]), target[validation])
        if loss < best_loss:
            best_loss, best_l2, best = loss, candidate, parameters
    temperature = _fit_temperature(_logits(best, standard[validation]), classes[validation])
    answers = softmax(_logits(best, standard[held]) / temperature, axis=1)
    return FittedExit(
        weights=best[:-1],
        bias=best[-1],
        mean=mean,
        scale=scale,
        temperature=temperature,
        grid=grid,
        l2=best_l2,
        fit_indices=fit,
        validation_indices=validation,
        holdout_indices=held,
        holdout_confidences=confidence(answers),
        holdout_agrees=answers.argmax(axis=1) == classes[held],
    )


def split_samples(n: int, *, holdout: float, seed: int, groups: ArrayLike | None = None) -> Parts:
    """Rows for fit, validation and hold-out, each sorted; groups stay whole, the same seed gives the same parts.

    Not stratified by class on purpose: the hold-out has to look like production for a threshold to hold.
    MeshError CALIBRATION_INSUFFICIENT when a part has fewer samples than its minimum.
    """
    if not 0 < holdout < 1:
        raise field_error("holdout", f"is {holdout}, expected a share between 0 and 1")
    part = divided(
        n, [holdout, (1 - holdout) * VALIDATION_SHARE, (1 - holdout) * (1 - VALIDATION_SHARE)], seed=seed, groups=groups
    )
    held, validation, fit = (np.flatnonzero(part == index) for index in range(3))
    for name, rows, least in (
        ("fit", fit, MIN_FIT_SAMPLES),
        ("validation", validation, MIN_VALIDATION_SAMPLES),
        ("holdout", held, MIN_HOLDOUT_SAMPLES),
    ):
        if len(rows) < least:
            raise MeshError(
                Reason.CALIBRATION_INSUFFICIENT,
                f"{n} samples leave {len(rows)} for the {name} part; at least {least} are needed",
                metadata={"samples": str(n), "part": name, "needed": str(least)},
            )
    return fit, validation, held


def _require_probabilities(probabilities: Array) -> Floats:
    require_finite("whole_probabilities", probabilities)
    if np.isnan(confidence(probabilities)).any():
        raise field_error(
            "whole_probabilities", "has rows that are no distribution over at least 2 classes; apply softmax to logits"
        )
    wide = probabilities.astype(np.float64)
    normalised: Floats = wide / wide.sum(axis=1, keepdims=True)
    return normalised


def _standardisation(pooled: Floats) -> tuple[Floats, Floats]:
    mean, spread = pooled.mean(axis=0), pooled.std(axis=0)
    constant = spread <= _CONSTANT * np.maximum(np.abs(mean), np.finfo(np.float32).tiny)
    # a constant feature standardises to about 0 and keeps weight 0
    return mean, np.where(constant, np.maximum(np.abs(mean), 1.0), spread)


def _logits(parameters: Floats, standard: Floats) -> Floats:
    logits: Floats = standard @ parameters[:-1] + parameters[-1]
    return logits


def _cross_entropy(logits: Floats, target: Floats) -> float:
    return -float((target * log_softmax(logits, axis=1)).sum(axis=1).mean())


def _fit_weights(standard: Floats, target: Floats, l2: float, start: Floats) -> Floats:
    """Minimise mean cross-entropy + l2 / 2 |weights|^2 (bias free); the last row of the result is the bias."""

    def objective(flat: Floats) -> tuple[float, Floats]:
        parameters = flat.reshape(start.shape)
        logits = _logits(parameters, standard)
        error = (softmax(logits, axis=1) - target) / len(target)
        gradient = np.vstack([standard.T @ error + l2 * parameters[:-1], error.sum(axis=0)])
        return _cross_entropy(logits, target) + l2 / 2 * float((parameters[:-1] ** 2).sum()), gradient.ravel()

    found = minimize(objective, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": MAX_ITERATIONS})
    parameters: Floats = found.x.reshape(start.shape)
    return parameters


def _fit_temperature(logits: Floats, classes: Indices) -> float:
    n, k = logits.shape
    # Targets smoothed by one imaginary sample per class (Platt, 1999): a perfect validation part proves no certainty.
    target = (n * np.eye(k)[classes] + 1) / (n + k)
    found = minimize_scalar(
        lambda log_t: _cross_entropy(logits / np.exp(log_t), target), bounds=LOG_TEMPERATURES, method="bounded"
    )
    return float(np.exp(found.x))
