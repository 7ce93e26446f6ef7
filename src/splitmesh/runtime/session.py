"""The port every backend implements: one loaded segment, ready to run.

Knows tensors by name, type and shape. Does not know which backend, device or file is behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from splitmesh.tensor.spec import Array, TensorSpec


class Session(Protocol):
    """A loaded segment. ``run`` may be called from several threads at once; ``close`` only when none runs."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What ``run`` takes, in the model's order; ``-1`` marks a dimension that may vary."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What ``run`` returns, in the model's order; ``-1`` marks a dimension that may vary."""
        ...

    @property
    def providers(self) -> tuple[str, ...]:
        """What computes, by the backend's own names, the preferred one first; at least one."""
        ...

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name.

        Raises MeshError TENSOR_SHAPE_MISMATCH or TENSOR_DTYPE_MISMATCH when the feeds are not exactly the inputs.
        """
        ...

    def close(self) -> None:
        """Give the memory back; ``run`` then raises MeshError NOT_READY. Closing twice is harmless."""
        ...
