"""The content store of a registry with a disk of its own: whole contents and unfinished uploads in one folder.

Made of :mod:`staged`, :mod:`folder_shelf` and :mod:`scrub`; knows no more than where things lie.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from services.registry.content.folder_shelf import FolderShelf
from services.registry.content.port import ContentLimits
from services.registry.content.scrub import Scrub
from services.registry.content.staged import StagedStore

SCRUBBED = "scrubbed"
"""How far contents have been read again."""


class FolderStore(StagedStore):
    """Contents in ``folder``, which is there; one process at a time uses it.

    Args:
        folder: where everything is.
        limits: bounds.
        scrub_every_s: every content is read again once in so long that the store runs; 0: never.
        now: seconds since 1970.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        folder: Path,
        limits: ContentLimits,
        *,
        scrub_every_s: float = 0.0,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        shelf = FolderShelf(folder)
        super().__init__(shelf, folder / "uploads", limits, now=now, clock=clock)
        place = folder / SCRUBBED
        self._scrub = Scrub(shelf.under, self.doubt, place=place, every_s=scrub_every_s) if scrub_every_s else None

    async def start(self) -> None:
        """See :meth:`StagedStore.start`."""
        await super().start()
        if self._scrub is not None:
            await self._scrub.start()

    async def stop(self) -> None:
        """See :meth:`StagedStore.stop`."""
        if self._scrub is not None:
            await self._scrub.stop()
        await super().stop()
