"""A problem's figures as arrays: what solvers compute with. Knows no solver."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from splitmesh.model.placement.problem import Problem

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Figures:
    """N vertices, K tiers, H = K-1 hops, M arcs in the order of the vertices that read."""

    cost_ms: Floats
    """(N, K), weighed by survival; infinite stays infinite at a survival of zero."""
    transfer_ms: Floats
    """(N, H), not weighed."""
    memory_bytes: Floats
    """(N, K)."""
    wire_bytes: Floats
    """(N, H), not weighed."""
    survival: Floats
    """(N,)."""
    read: Ints
    """(M,): the vertex whose output an arc carries."""
    reader: Ints
    """(M,): the vertex that reads it."""

    @classmethod
    def of(cls, problem: Problem) -> Figures:
        """Of vertices whose lengths fit."""
        vertices, tiers = problem.vertices, problem.tiers
        count = len(vertices)
        cost = _table([v.cost_ms for v in vertices], tiers)
        survival = np.array([v.survival for v in vertices], dtype=np.float64)
        if not (survival == 1).all():
            np.multiply(cost, survival[:, None], out=cost, where=np.isfinite(cost))
        degrees = [len(v.sources) for v in vertices]
        return cls(
            cost_ms=cost,
            transfer_ms=_table([v.transfer_ms for v in vertices], tiers - 1),
            memory_bytes=_table([v.memory_bytes for v in vertices], tiers),
            wire_bytes=_table([v.wire_bytes for v in vertices], tiers - 1),
            survival=survival,
            read=np.fromiter(chain.from_iterable(v.sources for v in vertices), dtype=np.int64, count=sum(degrees)),
            reader=np.repeat(np.arange(count), degrees),
        )

    def levels(self) -> Iterator[tuple[float, NDArray[np.bool_]]]:
        """Level by level of survival above zero, what it adds to the one before, and (N,) which vertices decide it.

        The largest survival beyond a hop is the sum over the levels of which a deciding vertex is beyond: one that no
        other of its level reads.
        """
        below = 0.0
        for level in np.unique(self.survival[self.survival > 0]).tolist():
            deciding = self.survival >= level
            deciding[self.read[deciding[self.reader]]] = False
            yield level - below, deciding
            below = level

    def first_unordered(self) -> int | None:
        """The first vertex that reads something that does not come before it."""
        wrong = self.reader[(self.read < 0) | (self.read >= self.reader)]
        return int(wrong[0]) if wrong.size else None

    def first_negative(self) -> int | None:
        """The first vertex with a negative or undefined time or size."""
        wrong = [
            (~(table >= 0)).any(axis=1).argmax()
            for table in (self.cost_ms, self.transfer_ms, self.memory_bytes, self.wire_bytes)
            if not (table >= 0).all()
        ]
        return int(min(wrong)) if wrong else None

    def first_wrong_survival(self) -> int | None:
        """The first vertex reached by less than none, more than all, or more samples than something it reads."""
        wrong = ~((self.survival >= 0) & (self.survival <= 1))
        wrong[self.reader[self.survival[self.reader] > self.survival[self.read]]] = True
        return int(wrong.argmax()) if wrong.any() else None


def _table(rows: Sequence[tuple[float, ...]], width: int) -> Floats:
    """Rows of that width, empty ones as zeros."""
    if not all(rows):
        empty = (0.0,) * width
        rows = [row or empty for row in rows]
    return np.fromiter(chain.from_iterable(rows), dtype=np.float64, count=len(rows) * width).reshape(-1, width)
