"""Versions read once for many who ask at the same time: a move of an alias wakes thousands of watchers."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from services.registry.metadata.port import MetadataStore
from services.registry.metadata.records import Version
from splitmesh.errors import MeshError, Reason

REMEMBERED = 1024
KEPT_S = 5.0
"""How old an answer may be: holders change with time alone."""


class VersionReads:
    """Answers of a store, kept for a moment."""

    def __init__(self, store: MetadataStore) -> None:
        self._store = store
        self._kept: OrderedDict[tuple[str, int], tuple[asyncio.Task[Version | None], float]] = OrderedDict()

    async def get(self, model: str, version: int) -> Version | None:
        """One version; None for 0 and for one that does not exist. SERVICE_UNAVAILABLE."""
        if not version:
            return None
        now = asyncio.get_running_loop().time()
        reading, until = self._kept.get((model, version), (None, 0.0))
        if reading is None or now >= until or (reading.done() and reading.exception() is not None):
            reading = asyncio.create_task(self._read(model, version))
            reading.add_done_callback(_seen)
            self._kept[model, version] = (reading, now + KEPT_S)
            self._kept.move_to_end((model, version))
            if len(self._kept) > REMEMBERED:
                self._kept.popitem(last=False)
        return reading.result() if reading.done() else await asyncio.shield(reading)

    def forget(self, model: str) -> None:
        """Something about versions of the model is different."""
        for key in [key for key in self._kept if key[0] == model]:
            del self._kept[key]

    async def _read(self, model: str, version: int) -> Version | None:
        try:
            return await self._store.get_version(model, version)
        except MeshError as error:
            if error.reason in (Reason.MODEL_NOT_FOUND, Reason.VERSION_NOT_FOUND):
                return None
            raise


def _seen(task: asyncio.Task[Version | None]) -> None:
    # Where nobody waits any more nobody asks why it failed.
    _ = task.cancelled() or task.exception()
