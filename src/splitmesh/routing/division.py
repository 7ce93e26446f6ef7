"""Divides samples into parts by chance, with groups whole: pictures of one unit never stand on two sides of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from splitmesh.errors import field_error


def divided(n: int, shares: Sequence[float], *, seed: int, groups: ArrayLike | None = None) -> NDArray[np.int64]:
    """Which part each of ``n`` samples is in, ``[n]`` of 0 to one less than the number of shares.

    Args:
        shares: of the parts, summing to 1. A part gets about its share of the samples; large groups make it less exact.
        seed: the same one divides the same way.
        groups: ``[n]``, numbers or names; samples with the same value stay together. None: every sample is its own.

    Raises MeshError FIELD_INVALID for groups of another shape.
    """
    names = np.arange(n) if groups is None else np.asarray(groups)
    if names.shape != (n,):
        raise field_error("groups", f"has shape {list(names.shape)}, expected [{n}]")
    _, member = np.unique(names, return_inverse=True)
    sizes = np.bincount(member, minlength=1)
    order = np.random.default_rng(seed).permutation(len(sizes))
    # A group goes where the middle of its samples falls, so that one big group cannot empty a neighbouring part.
    middle = (np.cumsum(sizes[order]) - sizes[order] / 2) / max(n, 1)
    part = np.empty(len(sizes), dtype=np.int64)
    part[order] = np.searchsorted(np.cumsum(shares)[:-1], middle, side="right")
    return part[member]
