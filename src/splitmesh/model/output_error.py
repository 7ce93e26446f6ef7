"""How far the outputs of one model are from another's, as one number: for models that name no class. Numpy only."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from splitmesh.tensor.spec import Array


class OutputError:
    """Root mean square of the difference of all outputs, as a share of the outputs' own; of all batches added."""

    def __init__(self) -> None:
        self._difference = 0.0
        self._size = 0.0

    def add(self, expected: Mapping[str, Array], actual: Mapping[str, Array]) -> None:
        """One batch: outputs by name; an output of another shape counts as lost whole. Values must be finite to count."""
        for name, array in expected.items():
            want, got = array.astype(np.float64), actual[name].astype(np.float64)
            size = float((want**2).sum(where=np.isfinite(want)))
            self._size += size
            if want.shape != got.shape or not np.isfinite(got[np.isfinite(want)]).all():
                self._difference += size
                continue
            difference = np.subtract(want, got, where=np.isfinite(want), out=np.zeros_like(want))
            self._difference += float((difference**2).sum())

    def relative(self) -> float:
        """0: the same; 1: as far from it as nothing at all. A difference from outputs that are all 0 counts as 1."""
        if not self._size:
            return 1.0 if self._difference else 0.0
        return math.sqrt(self._difference / self._size)
