"""Tells that the overrides of versions have changed: each at once, again until it is heard, and never twice at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from splitmesh.errors import MeshError, Reason

log = logging.getLogger(__name__)

Changed = Callable[[str, int], Awaitable[None]]
"""The overrides of a version are others now. May raise a MeshError, and is called again then."""

TELL_S = 10.0
"""Longest that one who is told may take, seconds."""
BACKOFF_S = (0.1, 5.0)
"""First and largest wait before it is told again."""
PERMANENT = frozenset({Reason.MODEL_NOT_FOUND, Reason.VERSION_NOT_FOUND, Reason.FIELD_INVALID})
"""Nobody can be told of such a version: waiting does not heal that, anything else is tried again for ever."""


class Teller:
    """Calls ``changed`` in tasks of its own, one for each version."""

    def __init__(self, changed: Changed) -> None:
        self._changed = changed
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._again: set[tuple[str, int]] = set()

    def tell(self, model: str, version: int) -> None:
        """Soon; while one is being told of this version, once more after that."""
        place = (model, version)
        if place in self._tasks:
            self._again.add(place)
            return
        self._tasks[place] = asyncio.create_task(self._tell(place))

    async def told(self, model: str, version: int) -> None:
        """Returns when nothing of the version is left to tell, after ``TELL_S`` seconds at the latest."""
        if (task := self._tasks.get((model, version))) is not None:
            await asyncio.wait([task], timeout=TELL_S)

    async def stop(self) -> None:
        """Gives up what is not told."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _tell(self, place: tuple[str, int]) -> None:
        wait_s, level = BACKOFF_S[0], logging.WARNING
        while True:
            self._again.discard(place)
            done = await self._try(place, level)
            if done and place not in self._again:
                del self._tasks[place]  # here and not in a callback, before which one more may be told
                return
            if done:
                continue
            await asyncio.sleep(wait_s)
            wait_s, level = min(2 * wait_s, BACKOFF_S[1]), logging.INFO

    async def _try(self, place: tuple[str, int], level: int) -> bool:
        """Whether nothing more can be done."""
        try:
            async with asyncio.timeout(TELL_S):
                await self._changed(*place)
        except (MeshError, TimeoutError) as error:
            permanent = isinstance(error, MeshError) and error.reason in PERMANENT
            log.log(level, "the policy of %s v%d is not pushed%s: %s", *place, "" if permanent else " yet", error)
            return permanent
        except Exception:
            log.log(level, "the policy of %s v%d is not pushed yet", *place, exc_info=True)
            return False
        return True
