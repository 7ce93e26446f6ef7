"""Random inputs by the specs of a session, for comparing and timing models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.tensor.spec import DTYPES, Array, TensorSpec

MAX_FEED_BYTES = 1 << 30
"""Inputs that take more are refused before they are made."""


def random_feed(specs: Sequence[TensorSpec], batch: int, rng: np.random.Generator) -> dict[str, Array]:
    """One feed: standard normal floats, full-range bytes, and 0 or 1 for other integers (they may be indices).

    A leading ``-1`` becomes ``batch``. Raises MeshError MODEL_SHAPE_UNKNOWN when another dimension varies, FIELD_INVALID
    when the batch takes more than ``MAX_FEED_BYTES``.
    """
    shapes = [_shape(spec, batch) for spec in specs]
    size = sum(math.prod(shape) * DTYPES[spec.dtype].itemsize for spec, shape in zip(specs, shapes, strict=True))
    if size > MAX_FEED_BYTES:
        raise field_error("batch", f"of {batch} makes inputs of {size} bytes; at most {MAX_FEED_BYTES}")
    return {spec.name: _random(spec, shape, rng) for spec, shape in zip(specs, shapes, strict=True)}


def _shape(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    shape = tuple(batch if axis == 0 and dim == -1 else dim for axis, dim in enumerate(spec.shape))
    if -1 in shape:
        raise MeshError(
            Reason.MODEL_SHAPE_UNKNOWN, f"input {spec.name!r} has shape {list(spec.shape)}: no input can be made up"
        )
    return shape


def _random(spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    dtype = DTYPES[spec.dtype]
    if dtype.kind == "f":
        return np.asarray(rng.standard_normal(shape), dtype=dtype)
    if dtype.itemsize == 1 and dtype.kind != "b":
        info = np.iinfo(spec.dtype)
        return np.asarray(rng.integers(info.min, info.max, size=shape, endpoint=True), dtype=dtype)
    return np.asarray(rng.integers(0, 2, size=shape), dtype=dtype)
