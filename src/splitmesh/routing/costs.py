"""Answers when mistakes differ in price: a missed defect may cost a hundred false alarms. Numpy only, the edge runs it.

Knows an exit's probabilities and a table of costs. The answer of least expected cost is right only as far as the
probabilities are; what accepted answers really do is measured, and promised, by ``risk.py``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from splitmesh.errors import field_error
from splitmesh.routing.scores import distributions
from splitmesh.tensor.spec import Array

Floats = NDArray[np.float64]

MAX_CLASSES = 4096
"""Of a table of costs, which takes 8 bytes a pair."""

NO_ANSWER = -1
"""For a row that is no distribution."""


class Costs:
    """A table of costs, checked once: for a head that uses one for every frame."""

    __slots__ = ("gains",)

    gains: Floats
    """``[classes, classes]``: 1 where an answer costs nothing, 0 where it costs the most."""

    def __init__(self, costs: ArrayLike) -> None:
        """``costs`` [classes, classes]: of saying the column's class where the reference is the row's, in any unit.

        MeshError FIELD_INVALID unless it is a square table of 2 to ``MAX_CLASSES`` classes, finite, nowhere below 0, 0 on the
        diagonal and somewhere above 0.
        """
        try:
            table = np.asarray(costs, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise field_error("costs", "is no table of numbers") from error
        if table.ndim != 2 or table.shape[0] != table.shape[1] or not 2 <= len(table) <= MAX_CLASSES:
            raise field_error("costs", f"has shape {table.shape}, expected (classes, classes), 2 to {MAX_CLASSES}")
        if not (np.isfinite(table).all() and (table >= 0).all()):
            raise field_error("costs", "has an entry that is below 0 or not finite")
        if np.diagonal(table).any():
            raise field_error("costs", "has an entry above 0 on the diagonal: a right answer costs nothing")
        largest = float(table.max())
        if largest == 0:
            raise field_error("costs", "has no entry above 0")
        self.gains = 1 - table / largest

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.gains)


def cost_ease(rows: Array, costs: ArrayLike | Costs) -> tuple[Floats, NDArray[np.int64]]:
    """The answer of least expected cost for each row, and how easy that makes it.

    Ease is 1 - expected cost of the answer / largest cost of the table: 1 where a mistake is ruled out or free. With costs
    of 0 and 1 it is the largest probability, and the answer its class (Elkan, The foundations of cost-sensitive learning,
    2001). Of answers that cost the same the first class stands.

    Args:
        rows: ``[n, classes]``, an exit's probabilities.
        costs: ``[classes, classes]`` as of :class:`Costs`, checked at every call unless it is one.

    Returns eases ``[n]`` in 0..1, NaN where a row is no distribution, and class numbers ``[n]``, ``NO_ANSWER`` there.
    Raises MeshError TENSOR_SHAPE_MISMATCH unless rows has two dimensions, FIELD_INVALID for costs that are none, or of
    other classes.
    """
    table = costs if isinstance(costs, Costs) else Costs(costs)
    probabilities, valid = distributions(rows)
    if probabilities.shape[1] != table.classes:
        raise field_error("costs", f"is for {table.classes} classes, the rows have {probabilities.shape[1]}")
    ease, answer = np.full(len(valid), np.nan), np.full(len(valid), NO_ANSWER, dtype=np.int64)
    if valid.any():
        # Expected gain, not 1 - expected cost: the same for rows that sum to exactly 1, and with costs of 0 and 1 the
        # largest probability for the others too.
        gain = probabilities[valid] @ table.gains
        ease[valid] = np.clip(gain.max(axis=1), 0.0, 1.0)
        answer[valid] = gain.argmax(axis=1)
    return ease, answer
