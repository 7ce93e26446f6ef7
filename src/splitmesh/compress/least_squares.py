"""New weights for a layer that lost input channels: the ones whose outputs come nearest to what it gave before.

Y. He, X. Zhang, J. Sun: Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017 (and ThiNet, Luo et al.,
the same year). A layer is a linear map of what it reads: with inputs of the pruned model and outputs of the original as
data, the best weights solve normal equations. They are pulled towards the weights that were there (ridge), as strongly as
samples kept aside ask for. Knows arrays and one layer's attributes; no graph, no choice of channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from splitmesh.tensor.spec import Array

Matrix = NDArray[np.float64]

MAX_FEATURES = 6144
"""Inputs of one output value beyond which the equations take too long; such a layer keeps its weights."""

PULLS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, math.inf)
"""Strengths of the pull towards the old weights, as a share of the mean square of an input; inf: keep them."""

_ASIDE = 4
"""Every so many batches are kept aside."""


@dataclass(frozen=True, slots=True)
class Window:
    """How a convolution reads its input; a matrix product is None."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...] | None
    """Begins, then ends; None: so that the output is the input divided by the stride, the odd one at the end."""
    lower: bool = False
    """The odd one at the beginning instead."""

    @classmethod
    def of(cls, node: NodeProto, kernel: tuple[int, ...]) -> Window:
        """Of a ``Conv``."""
        values = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        ones = (1,) * len(kernel)
        auto = values.get("auto_pad", b"NOTSET").decode()
        pads = tuple(values.get("pads", (0, 0) * len(kernel)))
        return cls(
            kernel,
            tuple(values.get("strides", ones)),
            tuple(values.get("dilations", ones)),
            None if auto.startswith("SAME") else (0, 0) * len(kernel) if auto == "VALID" else pads,
            auto == "SAME_LOWER",
        )

    def patches(self, data: Array, places: NDArray[np.int64], size: tuple[int, ...]) -> Matrix:
        """What the outputs at these places (numbers in the flattened ``size``) read: ``[n * places, channels * kernel]``."""
        rank = len(self.kernel)
        padded = np.pad(data, [(0, 0), (0, 0), *self._padding(data.shape[2:], size)])
        where = np.unravel_index(places, size)
        index: list[Any] = [slice(None), slice(None)]
        for axis in range(rank):
            offsets = np.arange(self.kernel[axis]) * self.dilations[axis]
            grid = where[axis].reshape(-1, *[1] * rank) * self.strides[axis]
            index.append(grid + offsets.reshape([1] + [-1 if at == axis else 1 for at in range(rank)]))
        taken = padded[tuple(index)]
        found: Matrix = np.moveaxis(taken, 2, 1).reshape(len(data) * len(places), -1).astype(np.float64)
        return found

    def _padding(self, given: tuple[int, ...], size: tuple[int, ...]) -> list[tuple[int, int]]:
        rank = len(self.kernel)
        if self.pads is not None:
            return [(self.pads[axis], self.pads[axis + rank]) for axis in range(rank)]
        found = []
        for axis in range(rank):
            reach = (self.kernel[axis] - 1) * self.dilations[axis] + 1
            total = max(0, (size[axis] - 1) * self.strides[axis] + reach - given[axis])
            half = total // 2
            found.append((total - half, half) if self.lower else (half, total - half))
        return found


class Equations:
    """Normal equations of one layer, gathered batch by batch. Inputs are ``features`` wide, a constant 1 is added."""

    def __init__(self, features: int, outputs: int) -> None:
        self._kept = _Sums(features + 1, outputs)
        self._aside = _Sums(features + 1, outputs)
        self._batches = 0

    def add(self, inputs: Matrix, outputs: Matrix) -> None:
        """``[rows, features]`` of the pruned model and ``[rows, outputs]`` of the original."""
        self._batches += 1
        part = self._aside if self._batches % _ASIDE == 0 else self._kept
        part.add(np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1), outputs)

    def solve(self, weights: Matrix, bias: Matrix) -> tuple[Matrix, Matrix, float, float]:
        """New weights ``[features, outputs]`` and bias ``[outputs]``, and the relative error (root mean square) of the old
        ones and of these, on what was kept aside where there is something.
        """
        old = np.concatenate([weights, bias[None]])
        judge = self._aside if self._aside.rows else self._kept
        before = judge.error(old)
        pull = min(PULLS, key=lambda value: judge.error(self._kept.solve(old, value)))
        self._kept.join(self._aside)
        new = self._kept.solve(old, pull)
        return new[:-1], new[-1], before, judge.error(new)


class _Sums:
    """Second moments."""

    def __init__(self, features: int, outputs: int) -> None:
        self.rows = 0
        self._inputs = np.zeros((features, features))
        self._cross = np.zeros((features, outputs))
        self._outputs = 0.0

    def add(self, inputs: Matrix, outputs: Matrix) -> None:
        self.rows += len(inputs)
        self._inputs += inputs.T @ inputs
        self._cross += inputs.T @ outputs
        self._outputs += float(np.square(outputs).sum())

    def join(self, other: _Sums) -> None:
        self.rows += other.rows
        self._inputs += other._inputs
        self._cross += other._cross
        self._outputs += other._outputs

    def solve(self, old: Matrix, pull: float) -> Matrix:
        if math.isinf(pull) or not self.rows:
            return old
        strength = np.full(len(old), pull * float(np.trace(self._inputs)) / len(old))
        # The constant is free to take up the mean of what went.
        strength[-1] = 1e-9 * self.rows
        try:
            found = np.linalg.solve(self._inputs + np.diag(strength), self._cross + strength[:, None] * old)
        except np.linalg.LinAlgError:
            return old
        return found.astype(np.float64) if np.isfinite(found).all() else old

    def error(self, weights: Matrix) -> float:
        residual = self._outputs - 2 * float((weights * self._cross).sum())
        residual += float((weights * (self._inputs @ weights)).sum())
        return math.sqrt(max(residual, 0.0) / max(self._outputs, 1e-30))
