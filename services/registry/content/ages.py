"""When contents were last written or asked for, as far as this process knows: what keeps garbage collection off what is new.

Bounded: what is forgotten counts as touched when the newest forgotten one was, so that forgetting only makes contents younger.
Knows no wall clock: one that steps by years, as on a machine without a battery, makes nothing old.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

REMEMBERED = 200_000
"""About 30 MiB."""
GRACE_S = 3600.0
"""So long after the start what came before it is taken for new, so that whoever was at it can go on; then for old."""


class Ages:
    """What was touched before its making is old once it has been there for :data:`GRACE_S`.

    Args:
        clock: seconds, monotonic.
        remembered: most contents known one by one.
    """

    def __init__(self, clock: Callable[[], float], *, remembered: int = REMEMBERED) -> None:
        self._clock = clock
        self._remembered = remembered
        self._floor = clock()
        self._forgotten = False
        self._touched: OrderedDict[str, float] = OrderedDict()

    def touch(self, sha256: str) -> None:
        """Written or asked for now."""
        self._touched[sha256] = self._clock()
        self._touched.move_to_end(sha256)
        if len(self._touched) > self._remembered:
            self._floor = max(self._floor, self._touched.popitem(last=False)[1])
            self._forgotten = True

    def distrust(self) -> None:
        """What came before the start is as old as the start for good: somebody may yet know who names it."""
        self._forgotten = True

    def forget(self, sha256: str) -> None:
        """It is gone."""
        self._touched.pop(sha256, None)

    def age_s(self, sha256: str) -> float:
        """Seconds since it was touched; of what is not known at most that, and infinite once it is certainly from before."""
        age_s = self._clock() - self._touched.get(sha256, self._floor)
        before = sha256 not in self._touched and not self._forgotten
        return math.inf if before and age_s >= GRACE_S else age_s

    def known_age_s(self, sha256: str) -> float | None:
        """Seconds since it was touched; None: not that this process remembers."""
        return self.age_s(sha256) if sha256 in self._touched else None
