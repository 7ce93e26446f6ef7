"""From observed values to an 8-bit rule: the range of a tensor per channel, its scale and zero point, its rounding.

numpy only. ``quantize.py`` writes the rule into graphs; :func:`quantise` here is its reference and what a profile uses
to count bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.tensor.spec import Array

LEVELS = 255
"""Steps of a uint8."""

VALUES_PER_ADD = 4096
"""Values per channel kept of each call for a percentile: bounds the memory; drawn at random, with a fixed seed."""

_SMALLEST_RANGE = 1e-30
"""Below this a float32 scale turns denormal and a division by it infinite."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranges:
    """Observed values of one tensor: ``[channels]`` along ``axis``, or one entry when it has no channel axis."""

    axis: int | None
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    samples: int
    """Samples that counted."""


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """real = (q - zero_point) * scale with q in 0..255; one entry, or one per channel along ``axis``."""

    axis: int | None
    scale: NDArray[np.float32]
    zero_point: NDArray[np.uint8]


class RangeCollector:
    """Widens the range of one tensor batch by batch.

    MeshError FIELD_INVALID for a percentile outside 50..100.
    """

    def __init__(self, name: str, percentile: float | None = None) -> None:
        if percentile is not None and not 50 < percentile <= 100:
            raise field_error("percentile", f"is {percentile}, expected more than 50 and at most 100")
        self._name = name
        self._percentile = percentile
        self._random = np.random.default_rng(0)
        self._axis: int | None = None
        self._parts: list[Array] = []
        self._samples = 0

    def add(self, batch: Array) -> None:
        """``batch`` is ``[samples, ...]``; samples that are not finite are passed over."""
        if batch.ndim == 0 or batch.shape[0] == 0:
            return
        finite = np.isfinite(batch).reshape(len(batch), -1).all(axis=1)
        usable = batch[finite].astype(np.float64)
        if usable.size == 0:
            return
        self._samples += len(usable)
        self._axis = channel_axis(batch.ndim)
        rows = usable.reshape(1, -1) if self._axis is None else _by_channel(usable, self._axis)
        if self._parts and len(self._parts[0]) != len(rows):
            raise MeshError(
                Reason.TENSOR_SHAPE_MISMATCH,
                f"{self._name!r} has {len(rows)} channels after {len(self._parts[0])}: their number must not vary",
            )
        if self._percentile is None:
            rows = np.stack([rows.min(axis=1), rows.max(axis=1)], axis=1)
        elif rows.shape[1] > VALUES_PER_ADD:
            rows = rows[:, self._random.choice(rows.shape[1], VALUES_PER_ADD, replace=False)]
        self._parts.append(rows.astype(np.float32))

    def ranges(self) -> Ranges:
        """What was seen; MeshError CALIBRATION_INSUFFICIENT when no sample was finite."""
        if not self._parts:
            raise MeshError(
                Reason.CALIBRATION_INSUFFICIENT, f"no calibration sample gives finite values for {self._name!r}"
            )
        values = np.concatenate(self._parts, axis=1).astype(np.float64)
        if self._percentile is None:
            low, high = values.min(axis=1), values.max(axis=1)
        else:
            low, high = np.percentile(values, [100 - self._percentile, self._percentile], axis=1)
        return Ranges(self._axis, low, high, self._samples)


def channel_axis(rank: int) -> int | None:
    """Where the channels are: last for tokens ``[n, tokens, channels]``, none without features, otherwise axis 1."""
    if rank < 2:
        return None
    return 2 if rank == 3 else 1


def affine(ranges: Ranges, *, per_channel: bool) -> Affine:
    """The uint8 rule for a range that is widened to hold 0, so that zero stays exactly zero.

    Values that are never negative (after a ReLU) get zero point 0 and all 256 levels. A channel that never moved off
    zero in calibration takes the tensor's common rule: it may move in production. Inside the range the rounding error
    is at most half a scale.
    """
    low, high = np.minimum(ranges.low, 0.0), np.maximum(ranges.high, 0.0)
    common_low, common_high = low.min(), high.max()
    if common_high - common_low < _SMALLEST_RANGE:
        common_low, common_high = 0.0, float(LEVELS)
    if not per_channel or ranges.axis is None:
        low, high, axis = np.array([common_low]), np.array([common_high]), None
    else:
        still = high - low < _SMALLEST_RANGE
        low, high, axis = np.where(still, common_low, low), np.where(still, common_high, high), ranges.axis
    scale = ((high - low) / LEVELS).astype(np.float32)
    zero_point = np.clip(np.rint(-low / scale), 0, LEVELS).astype(np.uint8)
    return Affine(axis, scale, zero_point)


def quantise(array: Array, rule: Affine) -> NDArray[np.uint8]:
    """ONNX QuantizeLinear: divide, round half to even, shift, saturate."""
    steps = np.rint(array.astype(np.float32) / _along(rule.scale, array.ndim, rule.axis))
    shifted = steps + _along(rule.zero_point, array.ndim, rule.axis)
    levels: NDArray[np.uint8] = np.clip(shifted, 0, LEVELS).astype(np.uint8)
    return levels


def dequantise(array: NDArray[np.uint8], rule: Affine) -> NDArray[np.float32]:
    """ONNX DequantizeLinear."""
    centred = array.astype(np.float32) - _along(rule.zero_point, array.ndim, rule.axis)
    real: NDArray[np.float32] = centred * _along(rule.scale, array.ndim, rule.axis)
    return real


def _by_channel(batch: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.moveaxis(batch, axis, 0).reshape(batch.shape[axis], -1)


def _along(values: Array, rank: int, axis: int | None) -> NDArray[np.float32]:
    shape = [1] * rank
    if axis is not None:
        shape[axis] = -1
    return values.astype(np.float32).reshape(shape)
