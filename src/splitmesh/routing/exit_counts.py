"""Who answers at which threshold: counts over a grid of thresholds, for any number of exits. Numpy only.

An exit answers a sample for the thresholds above every exit before it, up to its own ease; with one exit, for all up to its ease.
Knows eases and marks on answers; what a mark means, and how many are too many, is the caller's business.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]

GRID: Floats = np.concatenate([[1.0], 1.0 - np.geomspace(1e-7, 1.0, 512)])
"""Thresholds in the order of testing, 1 down to 0; dense near 1, where softmax confidences crowd.

Fixed in advance, independent of any data, as the proofs of ``risk.py`` ask for. In a fixed sequence more points cost nothing.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Reach:
    """Down to which threshold each exit answers each sample."""

    up_to: Floats
    """``[n, exits]``: the highest threshold at which the exit is sure, -inf where it never is."""
    above: Floats
    """``[n, exits]``: what the threshold must exceed, or an earlier exit answers."""
    surest: Floats
    """``[n]``: the highest threshold at which any exit answers, -inf where none does."""

    @classmethod
    def of(cls, eases: Floats) -> Reach:
        """From ``[n, exits]``, from the input on, at least one exit; NaN where an exit gave no ease."""
        up_to = np.where(np.isnan(eases), -np.inf, eases)
        reached = np.maximum.accumulate(up_to, axis=1)
        above = np.hstack([np.full((len(up_to), 1), -np.inf), reached[:, :-1]])
        return cls(up_to, above, reached[:, -1])

    @property
    def exits(self) -> int:
        """How many there are."""
        return int(self.up_to.shape[1])

    def answered(self) -> Counts:
        """Samples that any exit answers, at each threshold of ``GRID``; never fewer at a lower one."""
        return _from(self.surest[np.isfinite(self.surest)])

    def marked(self, marks: Mask, rows: Counts) -> Counts:
        """Of the samples ``rows``, those answered by an exit whose answer is marked (``[n, exits]``), at each threshold of
        ``GRID``. With several exits it may rise and fall."""
        up_to, above = self.up_to[rows], self.above[rows]
        answering = marks[rows] & (up_to > above)
        return _from(up_to[answering]) - _from(above[answering])


def before_failure(keeps: Mask) -> int:
    """How many come before the first that is False."""
    return len(keeps) if keeps.all() else int(keeps.argmin())


def _from(values: Floats) -> Counts:
    """How many of the values reach each threshold of ``GRID``."""
    counts: Counts = len(values) - np.searchsorted(np.sort(values), GRID)
    return counts
