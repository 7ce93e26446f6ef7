"""How much of the workers' time each application of a host gets where there is not enough, by weight.

While every frame is done in time the nearest deadline goes first, whosoever it is: no order keeps more deadlines. Where frames
are late, are refused or wait for long, somebody has to do without, and the order of deadlines would let whoever asks most have
most. Then an application that had more than its part is passed over until the others had theirs (start-time fair queueing
[Goyal, Vin, Cheng 1996]: each one's time is counted divided by its weight, and the one that is behind goes first). What
nobody else asks for is anybody's: it is no debt. Who was idle saves up next to nothing.

Knows names, weights and seconds; nothing of frames or threads. May be used by several threads.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

Clock = Callable[[], float]

ALLOWANCE_S = 0.05
"""Computing time by which an application may be ahead of another one, at a mean weight, before it is passed over: within it
the nearest deadline goes first, so that a burst of frames is not torn apart."""
SAVED = 2
"""Allowances that an idle application has saved up at most: a light one's frame goes before the queue of one that is ahead."""
SATURATED_S = 2.0
"""The workers count as saturated for so long after a frame came too late."""
LONG_WAIT = 0.5
"""Share of its time; a frame that waited for longer says the same as one that came too late."""
WINDOW_S = 1.0
"""Over which the time used is measured; what was used before fades."""
LATELY = 0.01
"""Workers that an application must have used lately to count among those that share."""
LEAST_WORKERS = 1e-3


@dataclass(slots=True)
class _App:
    """One application."""

    had: float = 0.0
    """Computing time divided by weight, on the clock that all share."""
    jobs: int = 0
    """That wait or are computed."""
    used_s: float = 0.0
    """Computing time, fading."""
    used_at: float = 0.0


class CpuShares:
    """Of all applications of one host.

    Args:
        workers: that compute at the same time.
        weight_of: an application's by now, greater than 0.
        clock: seconds.
    """

    def __init__(
        self, workers: int, weight_of: Callable[[str], float] = lambda app: 1.0, *, clock: Clock = time.monotonic
    ) -> None:
        self._workers = workers
        self._weight_of = weight_of
        self._clock = clock
        self._apps: dict[str, _App] = {}
        self._fair = 0.0  # what whoever asks has had by now, divided by weight; never goes back
        self._missed_at = -math.inf
        self._lock = threading.Lock()

    def reweighed(self) -> None:
        """Weights are others from now on: who was ahead by the old ones is so no more."""
        with self._lock:
            self._fair = max([self._fair, *(app.had for app in self._apps.values())])
            for app in self._apps.values():
                app.had = self._fair

    def arrived(self, name: str) -> None:
        """A job of this application waits from now on."""
        with self._lock:
            app = self._apps.setdefault(name, _App())
            if not app.jobs:
                self._fair = self._behind()
                app.had = max(app.had, self._fair - SAVED * self._allowance([name, *self._asking()]))
            app.jobs += 1

    def left(self, name: str) -> None:
        """A job will not be computed any more."""
        with self._lock:
            self._apps[name].jobs -= 1

    def begun(self, name: str, expected_s: float) -> None:
        """A job is computed from now on, for so long by estimate: charged at once, or several workers would all take the same
        application's jobs."""
        with self._lock:
            app = self._apps[name]
            self._fair = self._behind()
            # Where all deadlines were kept nobody owes for having been ahead, beyond what is allowed.
            most = self._fair + SAVED * self._allowance(self._asking())
            app.had = min(app.had, most) + expected_s / self._weight_of(name)

    def ended(self, name: str, expected_s: float, took_s: float) -> None:
        """It took so long of one worker."""
        with self._lock:
            app = self._apps[name]
            app.jobs -= 1
            app.had += (took_s - expected_s) / self._weight_of(name)
            now = self._clock()
            app.used_s, app.used_at = self._used_s(app, now) + took_s, now

    def missed(self) -> None:
        """A frame came too late, was refused for that, or waited for most of its time: there is not enough for all."""
        self._missed_at = self._clock()

    @property
    def saturated(self) -> bool:
        """Whether there was not enough for all a moment ago."""
        return self._clock() - self._missed_at < SATURATED_S

    def may_go(self, waiting: Iterable[str]) -> list[str]:
        """Those of the applications that wait which are not ahead of the others; at least one of them."""
        with self._lock:
            had = {name: self._apps[name].had for name in waiting}
            most = min(had.values()) + self._allowance(had)
            return [name for name, one in had.items() if one <= most]

    def workers_of(self, name: str) -> float:
        """How many of the workers this application can have: what the others lately left of them, and its part at least."""
        with self._lock:
            now = self._clock()
            used = {other: self._used_s(app, now) / WINDOW_S for other, app in self._apps.items() if other != name}
            sharing = [other for other, one in used.items() if one > LATELY or self._apps[other].jobs]
            own = self._weight_of(name)
            part = self._workers * own / (own + sum(map(self._weight_of, sharing)))
            return max(part, self._workers - sum(used.values()), LEAST_WORKERS)

    def _asking(self) -> list[str]:
        return [name for name, app in self._apps.items() if app.jobs]

    def _behind(self) -> float:
        """What the one of those who ask has had that had least."""
        return max(self._fair, min((app.had for app in self._apps.values() if app.jobs), default=self._fair))

    def _allowance(self, names: Iterable[str]) -> float:
        weights = [self._weight_of(name) for name in names]
        return ALLOWANCE_S * len(weights) / sum(weights)

    def _used_s(self, app: _App, now: float) -> float:
        return app.used_s * math.exp(-max(0.0, now - app.used_at) / WINDOW_S)
