"""How late the event loop runs what is due: on a busy host an answer that is to be in time must be begun earlier.

Knows a clock and sleeps; nothing of frames.
"""

from __future__ import annotations

import asyncio
import math

TICK_S = 0.05
FORGOTTEN_S = 10.0
"""After so long a late tick counts for a third (1/e)."""


class Lateness:
    """Watches one event loop by waking up every ``TICK_S``."""

    def __init__(self) -> None:
        self._peak_s = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def peak_s(self) -> float:
        """The latest that something was run lately, seconds; older lateness fades."""
        return self._peak_s

    def start(self) -> None:
        """Begin to watch the running loop."""
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def saw(self, late_s: float, since_s: float) -> None:
        """Something was run so late, ``since_s`` seconds after the last look."""
        self._peak_s = max(late_s, self._peak_s * math.exp(-since_s / FORGOTTEN_S))

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            begun = loop.time()
            await asyncio.sleep(TICK_S)
            since_s = loop.time() - begun
            self.saw(since_s - TICK_S, since_s)
