"""Frames that are sent once more another way, to learn what the link is like; nobody sees their answers."""

from __future__ import annotations

import asyncio
import logging

from edge.head.active import ActiveModel
from edge.head.frame import FrameRequest
from edge.head.line import BEHIND_ALL
from edge.head.turns import Turns
from edge.head.uplink.budget import Budget
from edge.head.ways import Ways
from splitmesh.errors import MeshError

log = logging.getLogger(__name__)

SHADOW_DEADLINE_S = 2.0


class Shadows:
    """One at a time, behind all frames that somebody waits for, and only of the budget that nobody else needs."""

    def __init__(self, turns: Turns, budget: Budget) -> None:
        self._turns = turns
        self._budget = budget
        self._running: set[asyncio.Task[None]] = set()

    async def stop(self) -> None:
        """Give up what is under way."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def follow(self, request: FrameRequest, ways: Ways) -> None:
        """Send a frame that was just answered, where that is due."""
        if not self._running and (other := ways.shadow_due()) is not None:
            task = asyncio.create_task(self._send(request, other))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _send(self, request: FrameRequest, other: ActiveModel) -> None:
        with other.use():
            expires = asyncio.get_running_loop().time() + SHADOW_DEADLINE_S
            try:
                async with asyncio.timeout_at(expires):
                    seen = await self._turns.perceive(other, request, expires, escalate=True, priority=BEHIND_ALL)
                if seen.packed is None or other.link is None:
                    return
                other.link.require()  # what cannot be sent takes nothing
                if self._budget.spare(other.info.model, len(seen.packed.payload)):
                    await other.link.run(seen.packed, trace_context=b"", deadline_s=SHADOW_DEADLINE_S)
            except (MeshError, TimeoutError) as error:
                log.debug("a shadow frame got no answer: %r", error)
