"""The hub between moves of aliases and watchers: nothing missed, nothing twice, one read for all who watch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import pytest

from services.registry.limits import Slots
from services.registry.metadata.records import Actor, AliasMove
from services.registry.topic import REMEMBERED
from services.registry.watch import ModelWatch, News
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.streams import Drain
from tests.support.watch_hub import NOW, WAIT_S, CountingStore, Hub, hub_of_two_models, take, told


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    async with hub_of_two_models() as made:
        yield made


async def test_the_first_message_comes_at_once_also_where_nothing_points(hub: Hub) -> None:
    async with aclosing(hub.follow()) as news:
        assert await take(news) == [News(None, None, 0, 0, complete=True)]
        await hub.move(1)
        assert told(await take(news)) == [("prod", 1, 1)]


async def test_all_aliases_of_a_model_are_told_by_sequence_and_the_last_covers_the_whole_registry(hub: Hub) -> None:
    await hub.move(1, "b")
    await hub.move(2, "a")
    await hub.move(1, "gone")
    await hub.move(0, "gone")
    await hub.move(1, model="other")
    async with aclosing(hub.follow("")) as news:
        assert told(await take(news, 2)) == [("b", 1, 1), ("a", 2, 5)]
        await hub.move(0, "b")
        await hub.move(1, "new")
        assert told(await take(news, 2)) == [("b", 0, 6), ("new", 1, 7)]


async def test_a_slow_watcher_gets_every_move_although_memory_holds_only_the_last(hub: Hub) -> None:
    async with aclosing(hub.follow()) as news:
        await take(news)
        made = [await hub.move(1 + turn % 2) for turn in range(3 * REMEMBERED)]
        assert [one.move for one in await take(news, len(made))] == made
        assert hub.store.pages >= 1
        await hub.move(1)
        assert told(await take(news)) == [("prod", 1, len(made) + 1)]


async def test_a_move_while_the_store_is_still_answering_is_told_once(hub: Hub) -> None:
    await hub.move(1)
    hub.store.free.clear()
    async with aclosing(hub.follow()) as news:
        first = asyncio.create_task(take(news))
        async with asyncio.timeout(WAIT_S):
            await hub.store.asked.wait()
        await hub.move(2, "canary")
        await hub.move(2)
        hub.store.free.set()
        assert told(await first)[-1:] == [("prod", 2, 3)]
        await hub.move(1)
        assert told(await take(news)) == [("prod", 1, 4)]


async def test_thousands_of_watchers_cost_one_read_of_the_aliases_and_one_of_the_version(hub: Hub) -> None:
    watchers = [hub.follow() for _ in range(2000)]
    await asyncio.gather(*(take(news) for news in watchers))
    assert (hub.store.states, hub.store.versions) == (1, 0)
    following = asyncio.gather(*(take(news) for news in watchers))
    move = await hub.move(1)
    assert {one.move for found in await following for one in found} == {move}
    assert (hub.store.states, hub.store.pages, hub.store.versions) == (1, 0, 1)
    for news in watchers:
        await news.aclose()


async def test_a_move_to_where_it_points_already_is_no_news(hub: Hub) -> None:
    await hub.move(1)
    async with aclosing(hub.follow()) as news:
        await take(news)
        await hub.move(1)
        await hub.move(2)
        assert told(await take(news)) == [("prod", 2, 2)]


async def test_a_move_whose_answer_was_lost_is_told_all_the_same(hub: Hub) -> None:
    async with aclosing(hub.follow()) as news:
        await take(news)
        hub.store.lose_answers = True
        with pytest.raises(MeshError, match="the link broke"):
            await hub.move(1)
        assert told(await take(news)) == [("prod", 1, 1)]


async def test_who_asks_for_a_move_and_leaves_cannot_keep_it_from_the_watchers(hub: Hub) -> None:
    async with aclosing(hub.follow()) as news:
        await take(news)
        asking = asyncio.create_task(hub.move(1))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert told(await take(news)) == [("prod", 1, 1)]


async def test_a_move_to_a_version_that_was_deleted_since_comes_without_it(hub: Hub) -> None:
    first = await hub.move(1)
    await hub.move(2)
    async with aclosing(hub.follow(after=first.sequence)) as news:
        assert told(await take(news)) == [("prod", 2, 2)]
    await hub.move(0)
    await hub.store.delete_version("m", 2, "", Actor(), NOW)
    hub.watch.changed("m")
    async with aclosing(hub.follow(after=first.sequence)) as news:
        found = await take(news, 2)
        assert [(one.move.version if one.move else None, one.version) for one in found] == [(2, None), (0, None)]


async def test_a_new_keyring_is_told_by_itself_and_with_every_message(hub: Hub) -> None:
    hub.watch.keyring(3)
    async with aclosing(hub.follow()) as news:
        assert (await take(news))[0].keyring_version == 3
        hub.watch.keyring(4)
        assert await take(news) == [News(None, None, 0, 4)]
        await hub.move(1)
        assert (await take(news))[0].keyring_version == 4


async def test_a_store_that_is_away_ends_the_watch_and_the_next_one_reads_again(hub: Hub) -> None:
    class Away(CountingStore):
        away = True

        async def alias_states(self, model: str, alias: str) -> tuple[Sequence[AliasMove], int]:
            if self.away:
                raise MeshError(Reason.SERVICE_UNAVAILABLE, "the database is away", retry_after_s=0.5)
            return await super().alias_states(model, alias)

    store = Away()
    watch = ModelWatch(store, Slots("watches", 10), stream_s=60.0, drain=Drain())
    for _ in range(2):
        with pytest.raises(MeshError, match="is away"):
            await anext(watch.follow("m", "prod", 0))
    store.away = False
    async with aclosing(watch.follow("m", "prod", 0)) as news:
        assert await take(news) == [News(None, None, 0, 0, complete=True)]


async def test_watches_end_at_a_drain_and_their_places_come_back(hub: Hub) -> None:
    news = hub.follow()
    await take(news)
    waiting = asyncio.create_task(take(news))
    async with asyncio.timeout(WAIT_S):
        await hub.drain.drain(WAIT_S)
    with pytest.raises(MeshError) as error:
        await waiting
    assert error.value.reason is Reason.NOT_READY
