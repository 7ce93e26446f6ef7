"""Names of versions' classes: asked for when they are needed, kept, and asked again only after a while where nobody knew them."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

from splitmesh.errors import MeshError

log = logging.getLogger(__name__)

LabelsOf = Callable[[str, int], Awaitable[Sequence[str]]]
"""Names of a version's classes as its heads know them; empty: they have none. May raise a MeshError."""

ASK_S = 2.0
"""Longest wait for an answer, seconds: a drift is not kept waiting for a name."""
AGAIN_S = 30.0
MAX_KEPT = 256


class ClassNames:
    """Of the versions last asked about."""

    def __init__(self, labels_of: LabelsOf | None) -> None:
        self._labels_of = labels_of
        self._known: OrderedDict[tuple[str, int], tuple[str, ...] | None] = OrderedDict()
        self._asked: dict[tuple[str, int], float] = {}

    async def of(self, model: str, version: int) -> tuple[str, ...] | None:
        """None where nobody knows them now."""
        if self._labels_of is None:
            return None
        place, now = (model, version), asyncio.get_running_loop().time()
        if self._known.get(place) is None and now >= self._asked.get(place, now):
            self._asked[place] = now + AGAIN_S
            try:
                async with asyncio.timeout(ASK_S):
                    self._known[place] = tuple(await self._labels_of(model, version))
            except (MeshError, TimeoutError) as error:
                log.info("names of the classes of %s v%d are not known: %s", model, version, error)
                self._known[place] = None
        while len(self._known) > MAX_KEPT:
            self._asked.pop(self._known.popitem(last=False)[0], None)
        return self._known.get(place)
