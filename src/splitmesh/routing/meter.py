"""How much a second, lately: of bytes, of milliseconds, of anything that is added up. Time is the caller's."""

from __future__ import annotations

import math

from splitmesh.errors import field_error
from splitmesh.routing.elapsed import Elapsed


class Meter:
    """What was added counts exp(-age / ``fading_s``), so a steady flow is shown as what it is. For one thread at a time.

    Args:
        now_s: on the caller's clock.
        fading_s: after which something counts for 1/e; a change shows within about as much.

    Raises MeshError FIELD_INVALID for a number out of range, here and below.
    """

    def __init__(self, now_s: float, *, fading_s: float = 0.25) -> None:
        if not 0 < fading_s < math.inf:
            raise field_error("fading_s", f"is {fading_s}, expected a finite number above 0")
        self._elapsed, self._fading_s, self._sum = Elapsed(now_s), fading_s, 0.0

    def add(self, amount: float, now_s: float) -> None:
        """So much was used since the last call."""
        if not 0 <= amount < math.inf:  # also refuses NaN
            raise field_error("amount", f"is {amount}, expected a finite number of at least 0")
        self._fade(now_s)
        self._sum += amount

    def per_s(self, now_s: float) -> float:
        """Of what was added."""
        self._fade(now_s)
        return self._sum / self._fading_s

    def _fade(self, now_s: float) -> None:
        passed_s = self._elapsed.since_last(now_s)
        if passed_s > 0:
            self._sum *= math.exp(-passed_s / self._fading_s)
