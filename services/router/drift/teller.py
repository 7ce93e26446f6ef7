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
TRIES = 20
"""Then it is left to who asks for a policy next: the overrides hold all the same."""
PERMANENT = frozenset({Reason.MODEL_NOT_FOUND, Reason.VERSION_NOT_FOUND, Reason.FIELD_INVALID})


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
        task = self._tasks[place] = asyncio.create_task(self._tell(place))
        task.add_done_callback(lambda _: self._tasks.pop(place, None))

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
        wait_s, tries = BACKOFF_S[0], 0
        while True:
            self._again.discard(place)
            try:
                async with asyncio.timeout(TELL_S):
                    await self._changed(*place)
                if place not in self._again:
                    return
                continue
            except (MeshError, TimeoutError) as error:
                tries += 1
                permanent = isinstance(error, MeshError) and error.reason in PERMANENT
                log.warning("the policy of %s v%d is not pushed%s: %s", *place, "" if permanent else " yet", error)
                if permanent or tries >= TRIES:
                    return
            except Exception:
                log.exception("the policy of %s v%d is not pushed", *place)
                return
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, BACKOFF_S[1])
