"""How much time passed, by a clock that may stand still or be set back.

Knows the caller's clock only, and nothing of real time. A small step back is two callers that read the clock in one order and got
here in the other: the time was counted already. A large one is a clock that was set: time goes on from there.
"""

from __future__ import annotations

import math

from splitmesh.errors import field_error

SET_BACK_S = 1.0
"""A clock that goes back by more was set."""


class Elapsed:
    """Seconds between one call and the next; for one thread at a time."""

    def __init__(self, now_s: float) -> None:
        self._last_s = _finite(now_s)

    def since_last(self, now_s: float) -> float:
        """Seconds by which the clock is further than it was, at least 0; MeshError FIELD_INVALID unless it is a finite number.

        All of them together are never more than the clock went forward.
        """
        passed_s = _finite(now_s) - self._last_s
        if passed_s > 0 or passed_s < -SET_BACK_S:
            self._last_s = now_s
        return max(0.0, passed_s)


def _finite(now_s: float) -> float:
    if not math.isfinite(now_s):
        raise field_error("now_s", f"is {now_s}, expected a finite number of seconds")
    return now_s
