"""Whether asking the tail is worth it: P(the tail is right) - P(the exit is right), from what the head has at hand.

A sure exit is not the only reason to stay: where the tail would be wrong too, asking gains nothing. So the gain is estimated
itself, after both models are trained (post-hoc deferral: Mozannar and Sontag 2020; Narasimhan et al. 2022; Jitkrittum et al.
2023), as the difference of two logistic models over the same inputs: the logarithms of the three largest probabilities, the
lead of the first over the second, the entropy, and optionally the exit's pooled features on a few directions.

Runs on every frame at the edge, hence numpy and nothing else; ``deferral_fit.py`` finds the numbers. Knows no threshold and
no price: what a gain must be to be asked for is the router's business. Estimates, without a promise: a promise takes samples
that the fit never saw (``threshold.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.routing import number_file
from splitmesh.routing.number_file import Kind, Layout, corrupt
from splitmesh.routing.projection import PROJECTION, Projection, arrays_of, projection_of
from splitmesh.routing.scores import distributions
from splitmesh.tensor.spec import Array

Floats = NDArray[np.float64]

VERSION = 1
MAX_BYTES = 2 * 1024 * 1024
"""A larger file is refused unread; 4,096 features on 32 directions take 600 KB."""
MAX_DIRECTIONS = 32

TOP = 3
"""Probabilities that are looked at one by one."""
LEAST_PROBABILITY = 1e-6
"""Smaller ones count as this: below it a softmax in 16 or 8 bits says 0."""
MOST_DEVIATIONS = 10.0
"""A feature further from its mean counts as this far: a logistic model says nothing about where no sample was."""
CERTAIN = 40.0
"""A logit whose probability is exactly 1 in float64: of a tail that is the reference itself."""

_WHAT = "the deferral score"
_LOGISTIC = {
    f"{model}.{part}": Kind(sizes)
    for model in ("exit", "tail")
    for part, sizes in (("weights", ("inputs",)), ("bias", (1,)))
}
_ROWS: Layout = {
    "classes": Kind((1,), np.int64),
    "samples": Kind((1,), np.int64),
    "rows.mean": Kind(("row inputs",)),
    "rows.scale": Kind(("row inputs",)),
    **_LOGISTIC,
}
_WITH_FEATURES: Layout = {**_ROWS, **PROJECTION}


@dataclass(frozen=True, slots=True, eq=False)
class Logistic:
    """1 / (1 + exp(-(inputs @ weights + bias)))."""

    weights: Floats
    """``[inputs]``."""
    bias: float

    def probability(self, inputs: Floats) -> Floats:
        """``[n, inputs]`` to ``[n]`` in 0..1."""
        with np.errstate(over="ignore", invalid="ignore"):
            # beyond 500 the exponential overflows, and nothing changes any more
            logits = np.clip(inputs @ self.weights + self.bias, -500.0, 500.0)
        found: Floats = 1.0 / (1.0 + np.exp(-logits))
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Deferral:
    """Two fitted models of one exit: is it right, and is the tail right."""

    classes: int
    """Of the exit's rows."""
    mean: Floats
    """Of :func:`row_inputs`, ``[min(classes, 3) + 2]``."""
    scale: Floats
    """The same shape, greater than 0."""
    projection: Projection | None
    """Of the pooled features; None: they are not looked at."""
    exit: Logistic
    tail: Logistic
    samples: int
    """That it was fitted to."""

    def worth(self, rows: Array, features: Array | None = None) -> Floats:
        """The expected gain of asking the tail, ``[n]`` in -1..1; NaN, which the caller must escalate, where it is undefined.

        Args:
            rows: ``[n, classes]``, the exit's probabilities. Undefined where one is no distribution.
            features: ``[n, F]``, pooled as for the fit. Undefined where one is not finite; ignored by a score without features.

        Raises MeshError TENSOR_SHAPE_MISMATCH or TENSOR_DTYPE_MISMATCH for arguments that do not fit the score, FIELD_INVALID
        where it needs features and there are none.
        """
        inputs, defined = self._inputs(rows, features)
        return _laid_out(self.tail.probability(inputs) - self.exit.probability(inputs), defined)

    def exit_right(self, rows: Array, features: Array | None = None) -> Floats:
        """P(the exit is right), ``[n]`` in 0..1, NaN where undefined; arguments and errors as :meth:`worth`."""
        inputs, defined = self._inputs(rows, features)
        return _laid_out(self.exit.probability(inputs), defined)

    def tail_right(self, rows: Array, features: Array | None = None) -> Floats:
        """P(the tail is right), ``[n]`` in 0..1, NaN where undefined; arguments and errors as :meth:`worth`."""
        inputs, defined = self._inputs(rows, features)
        return _laid_out(self.tail.probability(inputs), defined)

    def to_bytes(self) -> bytes:
        """A safetensors file, the same bytes for the same numbers."""
        arrays: dict[str, Any] = {
            "classes": [self.classes],
            "samples": [self.samples],
            "rows.mean": self.mean,
            "rows.scale": self.scale,
            "exit.weights": self.exit.weights,
            "exit.bias": [self.exit.bias],
            "tail.weights": self.tail.weights,
            "tail.bias": [self.tail.bias],
        }
        if self.projection is None:
            return number_file.written(VERSION, _ROWS, arrays)
        return number_file.written(VERSION, _WITH_FEATURES, arrays | arrays_of(self.projection))

    @classmethod
    def from_bytes(cls, data: bytes) -> Deferral:
        """Read a file; MeshError MODEL_CORRUPT names what is wrong with it."""
        arrays = number_file.read(data, _WHAT, version=VERSION, most_bytes=MAX_BYTES, layouts=(_ROWS, _WITH_FEATURES))
        with_features = "features.mean" in arrays
        found = cls(
            classes=int(arrays["classes"][0]),
            mean=arrays["rows.mean"],
            scale=arrays["rows.scale"],
            projection=projection_of(arrays, _WHAT, MAX_DIRECTIONS) if with_features else None,
            exit=Logistic(arrays["exit.weights"], float(arrays["exit.bias"][0])),
            tail=Logistic(arrays["tail.weights"], float(arrays["tail.bias"][0])),
            samples=int(arrays["samples"][0]),
        )
        found._check()
        return found

    def _check(self) -> None:
        seen = min(self.classes, TOP) + 2
        inputs = seen + (self.projection.count if self.projection is not None else 0)
        if self.classes < 2 or self.samples < 1:
            raise corrupt(_WHAT, f"{self.classes} classes and {self.samples} samples are too few")
        if len(self.mean) != seen or len(self.exit.weights) != inputs:
            raise corrupt(_WHAT, f"{self.classes} classes take {inputs} weights, there are {len(self.exit.weights)}")
        if not (self.scale > 0).all():
            raise corrupt(_WHAT, "a scale is not greater than 0")

    def _inputs(self, rows: Array, features: Array | None) -> tuple[Floats, NDArray[np.bool_]]:
        """What the models read of the samples where that is defined, and which those are ``[n]``."""
        given, defined = distributions(rows)
        if given.shape[1] != self.classes:
            raise MeshError(
                Reason.TENSOR_SHAPE_MISMATCH,
                f"the rows have {given.shape[1]} classes, the score was fitted to {self.classes}",
            )
        if self.projection is None:
            return self._seen(given[defined]), defined
        if features is None:
            raise field_error(
                "features", f"are missing; this score reads {self.projection.width} pooled features per sample"
            )
        standard = self.projection.standard(features)
        if len(standard) != len(given):
            raise MeshError(Reason.TENSOR_SHAPE_MISMATCH, f"{len(standard)} rows of features for {len(given)} samples")
        defined &= np.isfinite(features).all(axis=1)
        return np.hstack([self._seen(given[defined]), feature_inputs(standard[defined], self.projection)]), defined

    def _seen(self, rows: Floats) -> Floats:
        with np.errstate(over="ignore"):
            standard: Floats = (row_inputs(rows) - self.mean) / self.scale
        return standard


def row_inputs(rows: Floats) -> Floats:
    """Of distributions ``[n, classes]``: log of the largest probabilities (``TOP``, or all classes), margin, entropy's share of
    its largest; ``[n, min(classes, 3) + 2]``. The order of the classes does not matter."""
    ordered = np.sort(rows, axis=1)[:, ::-1]
    ordered = ordered / ordered.sum(axis=1, keepdims=True)
    logs = np.log(np.maximum(ordered, LEAST_PROBABILITY))
    margin = ordered[:, 0] - ordered[:, 1]
    entropy = -(ordered * logs).sum(axis=1) / np.log(rows.shape[1])
    return np.column_stack([logs[:, :TOP], margin, entropy])


def feature_inputs(standard: Floats, projection: Projection) -> Floats:
    """Of standardised features ``[n, F]``: their coordinates on the directions, ``[n, k]``."""
    coordinates: Floats = np.clip(standard, -MOST_DEVIATIONS, MOST_DEVIATIONS) @ projection.directions
    return coordinates


def _laid_out(found: Floats, defined: NDArray[np.bool_]) -> Floats:
    result = np.full(len(defined), np.nan)
    result[defined] = found
    return result
