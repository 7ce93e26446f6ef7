"""How large a model from outside may be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """Upper bounds for a model from outside."""

    max_size_bytes: int = 512 * 1024 * 1024
    """Largest file."""
    max_nodes: int = 20_000
    """Operators, sub-graphs and calls of functions included."""
    max_initialiser_bytes: int = 512 * 1024 * 1024
    """All constant tensors together, dense, as their dimensions say."""
    max_tensor_elements: int = 1 << 27
    """Largest single tensor for one sample."""
    assumed_dim: int = 256
    """What a dynamic input dimension other than the batch is taken for when tensor sizes are checked."""


DEFAULT_LIMITS = ModelLimits()
