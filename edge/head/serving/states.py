"""Who watches what is served here: woken by every change, told of each model at most four times a second.

Knows which models changed, not what: their state is made when it is sent, so a watcher who is slow gets the newest.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.latest import Latest
from splitmesh.kernel.streams import Drain

EVERY_S = 0.25
"""Between two messages to a watcher at least."""
MOST_WATCHERS = 32
LONGEST_S = 3600.0
"""A watch ends then; who is alive asks again."""
MAX_GONE = 1000
"""Models that went, remembered for those who watch."""


@dataclass(frozen=True, slots=True)
class News:
    """Since the last message."""

    changed: tuple[str, ...]
    gone: tuple[str, ...]


class States:
    """Of all models; ``names`` gives those that are here."""

    def __init__(self, names: Callable[[], list[str]], drain: Drain, *, every_s: float = EVERY_S) -> None:
        self._names = names
        self._drain = drain
        self._every_s = every_s
        self._number = 0
        self._changed: dict[str, int] = {}
        self._gone: OrderedDict[str, int] = OrderedDict()
        self._latest = Latest(0)
        self._watchers = 0

    def changed(self, model: str) -> None:
        """Its state is another one, or the host's policy where it names no model."""
        self._number += 1
        self._changed[model] = self._number
        self._latest.set(self._number)

    def gone(self, model: str) -> None:
        """It is not served any more."""
        self._number += 1
        self._changed.pop(model, None)
        self._gone[model] = self._number
        while len(self._gone) > MAX_GONE:
            self._gone.popitem(last=False)
        self._latest.set(self._number)

    async def watch(self) -> AsyncGenerator[News]:
        """All models, then what changed. MeshError QUEUE_FULL, too many watch; NOT_READY, the head stops."""
        if self._watchers >= MOST_WATCHERS:
            raise MeshError(Reason.QUEUE_FULL, f"{self._watchers} watch already", retry_after_s=1.0)
        self._watchers += 1
        try:
            seen, first = 0, True
            async with aclosing(self._latest.follow(self._drain, longest_s=LONGEST_S)) as numbers:
                async for _ in numbers:
                    now = self._number
                    names = self._names()
                    changed = tuple(name for name in names if first or self._changed.get(name, 0) > seen)
                    gone = (
                        ()
                        if first
                        else tuple(name for name, at in self._gone.items() if at > seen and name not in names)
                    )
                    seen, first = now, False
                    yield News(changed, gone)
                    await asyncio.sleep(self._every_s)
        finally:
            self._watchers -= 1
