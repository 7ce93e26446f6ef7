"""The hub between alias moves and watchers: newest state wins, one database read per watched alias."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from services.registry.limits import Slots
from services.registry.memory_store import MemoryStore
from services.registry.store import AliasState, Draft
from services.registry.watch import AliasWatch
from splitmesh.kernel.streams import Drain


class CountingStore(MemoryStore):
    """Counts how often the state of an alias is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    async def alias_state(self, model: str, alias: str) -> AliasState:
        self.asked += 1
        return await super().alias_state(model, alias)


@pytest.fixture
async def store() -> CountingStore:
    made = CountingStore()
    for _ in range(2):
        await made.create_version(Draft("m", (), 0, "", "", ""), datetime(2026, 5, 4, tzinfo=UTC))
    return made


@pytest.fixture
async def watch(store: CountingStore) -> AsyncIterator[AliasWatch]:
    made = AliasWatch(store, Slots("watches", 1000), stream_s=60.0, drain=Drain())
    await made.start()
    yield made
    await made.stop()


async def test_a_state_that_was_overtaken_is_not_told(store: CountingStore, watch: AliasWatch) -> None:
    states = watch.follow("m", "prod")
    assert (await anext(states)).revision == 0
    older = (await store.set_alias("m", "prod", 1)).state
    newer = (await store.set_alias("m", "prod", 2)).state
    watch.offer(newer)
    watch.offer(older)
    assert await anext(states) == newer
    following = asyncio.ensure_future(anext(states))
    watch.offer(newer)
    newest = (await store.set_alias("m", "prod", 1)).state
    watch.offer(newest)
    async with asyncio.timeout(10):
        assert await following == newest
    await states.aclose()


async def test_a_watched_alias_is_read_once_for_all_its_watchers(store: CountingStore, watch: AliasWatch) -> None:
    first = watch.follow("m", "prod")
    await anext(first)
    before = store.asked
    others = [watch.follow("m", "prod") for _ in range(100)]
    await asyncio.gather(*(anext(states) for states in others))
    state = (await store.set_alias("m", "prod", 1)).state
    told = store.asked
    watch.offer(state)
    assert [await anext(states) for states in [first, *others]] == [state] * 101
    assert before == 1
    assert store.asked == told
    for states in [first, *others]:
        await states.aclose()
