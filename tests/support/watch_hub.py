"""A hub of watchers over a store in memory that counts what it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from services.registry.aliases import Aliases
from services.registry.limits import Slots
from services.registry.metadata.memory_store import MemoryStore
from services.registry.metadata.records import Actor, AliasChange, AliasMove, Draft, Version
from services.registry.watch import ModelWatch, News
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.streams import Drain

NOW = datetime(2026, 5, 4, tzinfo=UTC)
WAIT_S = 10


class CountingStore(MemoryStore):
    """Counts what it is asked; can hold an answer back, or fail after a commit."""

    def __init__(self) -> None:
        super().__init__()
        self.states = self.last_moves = self.pages = self.versions = 0
        self.free = asyncio.Event()
        self.free.set()
        self.asked = asyncio.Event()
        self.lose_answers = False

    async def alias_states(self, model: str, alias: str) -> tuple[Sequence[AliasMove], int]:
        self.states += 1
        found = await super().alias_states(model, alias)
        self.asked.set()
        await self.free.wait()
        return found

    async def alias_moves_after(self, model: str, alias: str, after: int, limit: int) -> Sequence[AliasMove]:
        self.pages += 1
        return await super().alias_moves_after(model, alias, after, limit)

    async def alias_moves_before(self, model: str, alias: str, before: int, limit: int) -> Sequence[AliasMove]:
        self.last_moves += 1
        return await super().alias_moves_before(model, alias, before, limit)

    async def get_version(self, model: str, version: int) -> Version:
        self.versions += 1
        return await super().get_version(model, version)

    async def set_alias(self, change: AliasChange, actor: Actor, time: datetime) -> AliasMove:
        move = await super().set_alias(change, actor, time)
        if self.lose_answers:
            raise MeshError(Reason.SERVICE_UNAVAILABLE, "the link broke after the commit")
        return move


class Hub:
    """A store, its watch, and moves the way the registry makes them."""

    def __init__(self) -> None:
        self.store = CountingStore()
        self.drain = Drain()
        self.watch = ModelWatch(self.store, Slots("watches", 10_000), stream_s=60.0, drain=self.drain)
        self._aliases = Aliases(self.store, self.watch, lambda: NOW)

    async def move(self, version: int, alias: str = "prod", model: str = "m") -> AliasMove:
        return await self._aliases.set(AliasChange(model, alias, version), Actor("tester"))

    def follow(self, alias: str = "prod", after: int = 0) -> AsyncGenerator[News, None]:
        return self.watch.follow("m", alias, after)


@asynccontextmanager
async def hub_of_two_models() -> AsyncIterator[Hub]:
    """Started, with two versions of ``m`` and one of ``other``."""
    made = Hub()
    for model in ("m", "m", "other"):
        await made.store.create_version(Draft(model, (), 0, "", "", ""), Actor(), NOW)
    await made.watch.start()
    yield made
    await made.watch.stop()


async def take(news: AsyncGenerator[News, None], count: int = 1) -> list[News]:
    """The next messages."""
    async with asyncio.timeout(WAIT_S):
        return [await anext(news) for _ in range(count)]


def told(news: Sequence[News]) -> list[tuple[str, int, int]]:
    """Alias, version and sequence of each that tells of a move."""
    return [(one.move.alias, one.version.version if one.version else 0, one.sequence) for one in news if one.move]
