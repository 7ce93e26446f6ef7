"""A board of drifts with all that surrounds it, and a store that can be held up and be full."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from services.router.drift.board import DriftBoard
from services.router.drift.events import DriftEvent
from services.router.drift.store import DriftStore, MemoryDriftStore
from services.router.goals import Goals
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.streams import Drain
from tests.unit.drifting import GOALS, LABELS, NOW, audit, report

PLACE = ("parts", 1)
WRONG = report(*[audit(wrong=True)] * 20)


class Surroundings:
    """What a board is told and tells."""

    def __init__(self) -> None:
        self.goals = GOALS
        self.now = NOW
        self.told: list[tuple[str, int]] = []
        self.refusals: list[MeshError] = []
        self.heard = asyncio.Event()
        self.drain = Drain()

    async def goals_of(self, model: str) -> Goals:
        return self.goals

    async def changed(self, model: str, version: int) -> None:
        if self.refusals:
            raise self.refusals.pop()
        self.told.append((model, version))
        self.heard.set()

    async def labels_of(self, model: str, version: int) -> Sequence[str]:
        return LABELS


class GatedStore(MemoryDriftStore):
    """Puts nothing until it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.let = asyncio.Event(), asyncio.Event()
        self.refusals = 0

    async def put(self, events: Sequence[DriftEvent], forget: Sequence[int] = ()) -> None:
        self.asked.set()
        await self.let.wait()
        if self.refusals:
            self.refusals -= 1
            raise MeshError(Reason.STORAGE_FULL, "the disk is full")
        await super().put(events, forget)


@asynccontextmanager
async def board(
    around: Surroundings, store: DriftStore | None = None, max_watchers: int = 4
) -> AsyncIterator[DriftBoard]:
    made = DriftBoard(
        store or MemoryDriftStore(),
        around.goals_of,
        around.changed,
        now=lambda: around.now,
        max_watchers=max_watchers,
        watch_stream_s=20.0,
        drain=around.drain,
        labels_of=around.labels_of,
    )
    async with asyncio.timeout(20):
        await made.start()
        try:
            yield made
        finally:
            await made.stop()
