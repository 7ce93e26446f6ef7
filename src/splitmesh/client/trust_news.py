"""Asks for newer keyrings now and then, for a node that hears of none by itself: who follows an alias is told with each move.

What is in use is looked at again when there is one, so a key that was revoked is said even where nothing new is ever loaded.
"""

from __future__ import annotations

import asyncio

from splitmesh.client.trust import Trust

EVERY_S = 60.0


class TrustNews:
    """A part of an app.

    Args:
        trust: asks; None: there is nobody to ask for.
        every_s: between two questions, seconds.
    """

    def __init__(self, trust: Trust | None, every_s: float = EVERY_S) -> None:
        self._trust = trust
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to ask; nothing is asked before the first pause is over."""
        if self._trust is not None:
            self._task = asyncio.create_task(self._ask(self._trust))

    async def stop(self) -> None:
        """Asks no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _ask(self, trust: Trust) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            await trust.ask()
