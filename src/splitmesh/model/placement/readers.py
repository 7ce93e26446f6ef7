"""Which readers of an output decide whether it crosses a hop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitmesh.model.placement.figures import Figures, Floats, Ints


@dataclass(frozen=True, slots=True)
class Groups:
    """G groups: when any of a group's readers is beyond a hop, its share of samples sends the vertex's output there."""

    vertex: Ints
    """(G,)."""
    share: Floats
    """(G,)."""
    reader: Ints
    """(R,): the readers of all groups, group by group."""
    group: Ints
    """(R,): whose reader it is."""


def reader_groups(figures: Figures) -> Groups:
    """Of every output that is read, one per level of its readers' survival; the shares add up to the largest level.

    A reader that another reader of the group builds on decides nothing: the other is never on an earlier tier. So the
    output of a residual block's first vertex is decided by the addition alone.
    """
    alone = np.bincount(figures.read, minlength=len(figures.survival))[figures.read] == 1
    vertices: list[int] = []
    shares: list[float] = []
    readers: list[int] = []
    sizes: list[int] = []
    for vertex, share, last in _shared(figures, ~alone):
        vertices.append(vertex)
        shares.append(share)
        readers.extend(last)
        sizes.append(len(last))
    first = figures.reader[alone]
    return Groups(
        np.concatenate([figures.read[alone], np.array(vertices, dtype=np.int64)]),
        np.concatenate([figures.survival[first], np.array(shares)]),
        np.concatenate([first, np.array(readers, dtype=np.int64)]),
        np.repeat(np.arange(len(first) + len(sizes)), [1] * len(first) + sizes),
    )


def _shared(figures: Figures, arcs: NDArray[np.bool_]) -> Iterator[tuple[int, float, list[int]]]:
    """Vertex, share and deciding readers of the groups of outputs that these arcs, several of each, carry."""
    own: dict[int, list[int]] = {}
    for vertex, reader in zip(figures.read[arcs].tolist(), figures.reader[arcs].tolist(), strict=True):
        own.setdefault(vertex, []).append(reader)
    builds_on = _builds_on(figures) if own else []
    if (figures.survival == 1).all():
        for vertex, readers in own.items():
            yield vertex, 1.0, _last(readers, builds_on)
        return
    survival = figures.survival.tolist()
    for vertex, readers in own.items():
        below = 0.0
        for level in sorted({survival[reader] for reader in readers}):
            yield vertex, level - below, _last([reader for reader in readers if survival[reader] >= level], builds_on)
            below = level


def _last(readers: Sequence[int], builds_on: Sequence[int]) -> list[int]:
    """Of readers in topological order, those that no other one builds on."""
    last, covered = [], 0
    for reader in reversed(readers):
        if not covered >> reader & 1:
            last.append(reader)
            covered |= builds_on[reader] | 1 << reader
    return last


def _builds_on(figures: Figures) -> list[int]:
    """For every vertex a number with a bit for each vertex it depends on."""
    masks = [0] * len(figures.survival)
    for vertex, reader in zip(figures.read.tolist(), figures.reader.tolist(), strict=True):
        masks[reader] |= masks[vertex] | 1 << vertex
    return masks
