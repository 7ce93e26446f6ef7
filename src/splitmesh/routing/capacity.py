"""How much of the tails' time may be used, judged from how long a frame waits there and from nothing else.

Nobody says what the tails can do, and others may use them too. So what is used is cut by a factor while frames wait too long,
and grows slowly while they do not: additive increase and multiplicative decrease, which many independent users of one server
can follow at once and end at equal parts of it (Chiu and Jain, "Analysis of the increase and decrease algorithms for congestion
avoidance in computer networks", 1989). The cut is the larger the further the wait is above what is allowed, and the next one
waits for the one before to show (Kumar et al., "Swift: delay is simple and effective for congestion control in the datacenter",
2020, section 3.1). The growth ends before the wait is as long as allowed, so that it seldom has to be cut.

Knows no tail and no application; time is the caller's.
"""

from __future__ import annotations

import math

from splitmesh.errors import field_error
from splitmesh.routing.elapsed import Elapsed

CUT_EVERY_S = 0.1
"""A cut needs so long to show."""
MOST_CUT = 0.5
"""Of what is used, that one cut takes away at most."""
CUT = 0.8
"""Times the share of the wait that is too much: taken away in one cut."""
SHRINKS_S, DRAINS = 0.6, 0.5
"""A wait needs no further cut where what is too much shrinks to 1/e in so long, or by such a share of the time that passes: it
goes away by itself."""
GROWTH_PER_S = 0.1
"""Of the limit, while frames wait no longer than allowed; so much again for each second in which next to none waited, as what is
free by far should not be approached in small steps (Mittal et al., "TIMELY: RTT-based congestion control for the datacenter",
2015, "hyperactive increase")."""
NEXT_TO_NONE = 0.1
"""Of the wait that is allowed."""
ADDED_PER_S = 100.0
"""Milliseconds per second, each second, beside that: whoever has little grows faster."""
LEAST_MS_PER_S = 10.0
"""Is always allowed, a hundredth of one tail: what is never used can never be seen to be free."""
LULL_S = 1.0
"""What was used is forgotten so slowly: a moment in which little came is no reason to fall to nothing."""
BOUND = 0.8
"""A limit binds where so much of it is used."""
RELEASED_S = 5.0
"""One that has not bound for so long is none any more."""


class Capacity:
    """Of all tails together, as one user of them sees it. For one thread at a time.

    Args:
        max_backlog_ms: how long a frame may have to wait at the least crowded tail, above 0.
        now_s: on the caller's clock.

    Raises MeshError FIELD_INVALID for a number out of range, here and below.
    """

    def __init__(self, max_backlog_ms: float, now_s: float) -> None:
        if not 0 < max_backlog_ms < math.inf:
            raise field_error("max_backlog_ms", f"is {max_backlog_ms}, expected a finite number above 0")
        self._max_ms = max_backlog_ms
        self._elapsed, self._told_s = Elapsed(now_s), now_s
        self._limit = math.inf
        self._used = 0.0  # lately, and not in a lull
        self._peak_ms = 0.0  # the longest wait since the last look
        self._before_ms = 0.0  # that of the look before
        self._since_look_s = CUT_EVERY_S
        self._free_s = 0.0  # for how long the limit has not bound
        self._clear_s = 0.0  # for how long next to nothing has waited

    def saw(self, backlog_ms: float, used_ms_per_s: float, now_s: float) -> None:
        """So long would a frame wait, and so much of the tails' time was really used lately.

        Tell it several times a second; what the user was not seen to use is not cut.
        """
        for name, value in (("backlog_ms", backlog_ms), ("used_ms_per_s", used_ms_per_s)):
            if not 0 <= value < math.inf:  # also refuses NaN
                raise field_error(name, f"is {value}, expected a finite number of at least 0")
        passed_s, self._told_s = self._elapsed.since_last(now_s), now_s
        self._peak_ms = max(self._peak_ms, backlog_ms)
        self._since_look_s += passed_s
        self._used = max(used_ms_per_s, self._used * math.exp(-passed_s / LULL_S))
        crowded = backlog_ms > self._max_ms
        binds = crowded or used_ms_per_s >= BOUND * self._limit
        self._free_s = 0.0 if binds else self._free_s + passed_s
        self._clear_s = self._clear_s + passed_s if backlog_ms <= NEXT_TO_NONE * self._max_ms else 0.0
        if self._free_s >= RELEASED_S:
            self._limit = math.inf
        elif not crowded and math.isfinite(self._limit):
            room = 1 - backlog_ms / self._max_ms
            growth = GROWTH_PER_S * (1 + self._clear_s) * self._limit
            self._limit += (ADDED_PER_S + growth) * room * passed_s
        if self._since_look_s >= CUT_EVERY_S - 1e-6:
            if crowded:
                self._cut()
            self._before_ms, self._peak_ms, self._since_look_s = self._peak_ms, 0.0, 0.0

    def limit_ms_per_s(self, now_s: float) -> float:
        """What may be used per second; infinite where nothing is known to be scarce, or nothing was told for long."""
        silent_s = max(0.0, now_s - self._told_s)
        return math.inf if self._free_s + silent_s >= RELEASED_S else self._limit

    def _cut(self) -> None:
        if self._used < LEAST_MS_PER_S and math.isinf(self._limit):
            return  # the wait is others' doing
        beyond_ms, before_ms = self._peak_ms - self._max_ms, self._before_ms - self._max_ms
        passed_s = self._since_look_s
        enough_ms = min(max(0.0, before_ms) * -math.expm1(-passed_s / SHRINKS_S), DRAINS * passed_s * 1e3)
        if before_ms - beyond_ms >= enough_ms > 0:
            return
        factor = max(1 - MOST_CUT, 1 - CUT * beyond_ms / self._peak_ms)
        self._limit = max(LEAST_MS_PER_S, factor * min(self._limit, self._used))
