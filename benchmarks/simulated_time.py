"""An event loop whose time jumps to the next thing to do: minutes of asyncio code run in as long as its computing takes.

Threads and sockets work, but take no time. Deterministic as far as the code is that runs in it.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

TURN_S = 1e-9
"""That a turn of the loop takes: what fires a little early, as timers do, and waits for the rest then, comes to an end."""


class _Jumps(selectors.DefaultSelector):
    """Does not wait where a timer says until when: the time is then, at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As the original; ``timeout`` passes without anybody waiting for it."""
        found = super().select(None if timeout is None else 0)
        if timeout is not None:
            self.now_s += TURN_S + (0.0 if found else timeout)
        return found


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Seconds from 0."""

    def __init__(self) -> None:
        self._jumps = _Jumps()
        super().__init__(self._jumps)
        self._clock_resolution = TURN_S

    def time(self) -> float:
        """Simulated."""
        return self._jumps.now_s


def run_simulated(work: Coroutine[Any, Any, T]) -> T:
    """As ``asyncio.run``."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(work)
