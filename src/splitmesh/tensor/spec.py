"""What a tensor looks like, and the only ways from bytes to an array and back.

One representation: raw little-endian, row-major. Shape and size are the sender's word, so each is checked against the
other and against limits before a byte is interpreted (Python integers, no overflow).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitmesh.errors import MeshError, Reason

DTYPES: dict[str, np.dtype[np.generic]] = {
    name: np.dtype(name).newbyteorder("<")
    for name in ("float32", "float16", "float64", "uint8", "int8", "int32", "int64", "bool")
}
"""Every element type that may cross a wire, by name."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
"""``dtype.name`` puts the text together each time."""

MAX_RANK = 8

Array = NDArray[np.generic]
Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class TensorLimits:
    """Bounds for tensors from outside."""

    max_dim: int = 1 << 24
    """Largest single dimension."""
    max_size_bytes: int = 32 * 1024 * 1024
    """Largest tensor, uncompressed."""
    min_dim: int = 1
    """Smallest single dimension; 0 where a tensor may be empty."""


DEFAULT_LIMITS = TensorLimits()
ANSWER_LIMITS = TensorLimits(min_dim=0)
"""For a model's outputs: a detector that finds nothing gives tensors without a row."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, element type and shape of one tensor.

    A dimension of ``-1`` stands for "any" and is allowed only in a specification to compare with, never in a tensor
    that is sent.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor; every dimension must be known."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def validate(self, limits: TensorLimits = DEFAULT_LIMITS) -> None:
        """Raise MeshError unless the dtype is allowed, the rank and dimensions are in range and the size is bounded."""
        if self.dtype not in DTYPES:
            raise MeshError(
                Reason.TENSOR_DTYPE_MISMATCH,
                f"tensor {self.name!r} has dtype {self.dtype!r}; accepted: {', '.join(DTYPES)}",
            )
        if len(self.shape) > MAX_RANK or any(not limits.min_dim <= dim <= limits.max_dim for dim in self.shape):
            raise MeshError(
                Reason.TENSOR_SHAPE_MISMATCH,
                f"tensor {self.name!r} has shape {list(self.shape)}; "
                f"at most {MAX_RANK} dimensions of {limits.min_dim}..{limits.max_dim}",
            )
        if self.size_bytes > limits.max_size_bytes:
            raise MeshError(
                Reason.FRAME_TOO_LARGE,
                f"tensor {self.name!r} takes {self.size_bytes} bytes; at most {limits.max_size_bytes}",
                metadata={"size_bytes": str(self.size_bytes), "max_size_bytes": str(limits.max_size_bytes)},
            )

    def require_match(self, actual: TensorSpec) -> None:
        """Raise MeshError unless ``actual`` has this dtype and this shape (``-1`` here matches any dimension)."""
        if actual.dtype != self.dtype:
            raise MeshError(
                Reason.TENSOR_DTYPE_MISMATCH, f"tensor {self.name!r} has dtype {actual.dtype}, expected {self.dtype}"
            )
        if len(actual.shape) != len(self.shape) or any(
            want not in (-1, got) for want, got in zip(self.shape, actual.shape, strict=True)
        ):
            raise MeshError(
                Reason.TENSOR_SHAPE_MISMATCH,
                f"tensor {self.name!r} has shape {list(actual.shape)}, expected {list(self.shape)} (-1: any)",
            )


def spec_of(name: str, array: Array) -> TensorSpec:
    """The specification of an array."""
    return TensorSpec(name, _NAMES.get(array.dtype) or array.dtype.name, array.shape)


def as_bytes(array: Array) -> memoryview:
    """The array's bytes, little-endian and row-major, without a copy where it already is so."""
    dtype = array.dtype
    if dtype not in _NAMES:
        known = DTYPES.get(dtype.name)
        if known is None:
            raise MeshError(
                Reason.TENSOR_DTYPE_MISMATCH, f"dtype {dtype.name} cannot be sent; accepted: {', '.join(DTYPES)}"
            )
        dtype = known
    return np.ascontiguousarray(array, dtype=dtype).reshape(-1).view(np.uint8).data


def from_bytes(spec: TensorSpec, data: Buffer, limits: TensorLimits = DEFAULT_LIMITS) -> Array:
    """A read-only array over ``data`` (no copy). ``data`` must hold exactly the bytes the specification asks for."""
    spec.validate(limits)
    if len(data) != spec.size_bytes:
        raise MeshError(
            Reason.TENSOR_SIZE_MISMATCH,
            f"tensor {spec.name!r} has {len(data)} bytes; {spec.dtype} {list(spec.shape)} takes {spec.size_bytes}",
        )
    array = np.frombuffer(data, dtype=DTYPES[spec.dtype]).reshape(spec.shape)
    array.flags.writeable = False
    return array


def require_finite(name: str, array: Array) -> None:
    """Raise MeshError TENSOR_NOT_FINITE when a floating-point array holds NaN or infinity."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise MeshError(Reason.TENSOR_NOT_FINITE, f"tensor {name!r} holds NaN or infinity")


def total_bytes(specs: Sequence[TensorSpec]) -> int:
    """Bytes of several tensors together."""
    return sum(spec.size_bytes for spec in specs)
