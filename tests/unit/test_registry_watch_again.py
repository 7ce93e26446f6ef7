"""Watchers that come back: every move they missed, and then, whatever they knew, where everything points."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from services.registry.topic import REMEMBERED
from services.registry.watch import PAGE, News
from tests.support.watch_hub import WAIT_S, Hub, hub_of_two_models, take, told


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    async with hub_of_two_models() as made:
        yield made


@pytest.mark.parametrize("moves", [3, REMEMBERED - 1, REMEMBERED + 40, PAGE + REMEMBERED + 7, 3 * PAGE])
async def test_a_watcher_that_comes_back_gets_every_move_since(hub: Hub, moves: int) -> None:
    async with aclosing(hub.follow("")) as present:
        await take(present)
        made = [await hub.move(1 + turn % 2, f"a{turn % 3}") for turn in range(moves)]
        for known in (1, moves // 2, moves - 1):
            async with aclosing(hub.follow("", after=known)) as news:
                found = await take(news, moves - known)
                assert [one.move for one in found] == made[known:]
                assert [one.sequence for one in found] == [one.sequence for one in made[known:]]
                assert not any(one.present or one.complete for one in found)


async def test_a_watcher_that_missed_nothing_hears_at_once_where_it_stands(hub: Hub) -> None:
    move = await hub.move(1)
    await hub.move(1, model="other")
    async with aclosing(hub.follow(after=move.sequence)) as news:
        version = await hub.store.get_version("m", 1)
        assert await take(news) == [News(move, version, 2, 0, present=True, complete=True)]
        await hub.move(2)
        (moved,) = await take(news)
        assert told([moved]) == [("prod", 2, 3)]
        assert not moved.present


async def test_who_missed_what_memory_holds_again_after_a_restart_costs_no_page(hub: Hub) -> None:
    made = [await hub.move(1 + turn % 2) for turn in range(3 * REMEMBERED)]
    async with aclosing(hub.follow(after=made[-REMEMBERED].sequence - 1)) as news:
        assert [one.move for one in await take(news, REMEMBERED)] == made[-REMEMBERED:]
    assert hub.store.pages == 0
    async with aclosing(hub.follow(after=made[-REMEMBERED].sequence - 2)) as news:
        assert [one.move for one in await take(news, REMEMBERED + 1)] == made[-REMEMBERED - 1 :]
    assert hub.store.pages == 1


@pytest.mark.parametrize("moves", [REMEMBERED - 1, REMEMBERED + 40])
async def test_nothing_is_missed_of_many_moves_while_the_store_is_still_answering(hub: Hub, moves: int) -> None:
    first = await hub.move(1)
    hub.store.free.clear()
    async with aclosing(hub.follow(after=first.sequence)) as news:
        reading = asyncio.create_task(take(news, moves))
        async with asyncio.timeout(WAIT_S):
            await hub.store.asked.wait()
        made = [await hub.move(2 - turn % 2) for turn in range(moves)]
        hub.store.free.set()
        assert [one.move for one in await reading] == made


async def test_what_was_missed_comes_first_and_then_once_where_everything_points(hub: Hub) -> None:
    first = await hub.move(1)
    await hub.move(2, "gone")
    await hub.move(2, "canary")
    await hub.move(0, "gone")
    async with aclosing(hub.follow("", after=first.sequence)) as news:
        found = await take(news, 5)
        assert told(found) == [("gone", 2, 2), ("canary", 2, 3), ("gone", 0, 4), ("prod", 1, 4), ("canary", 2, 4)]
        assert [(one.present, one.complete) for one in found] == [(False, False)] * 3 + [(True, False), (True, True)]
        await hub.move(2)
        assert [(one.sequence, one.present, one.complete) for one in await take(news)] == [(5, False, False)]


async def test_moves_between_what_was_missed_and_the_present_are_told_before_it(hub: Hub) -> None:
    await hub.move(1)
    async with aclosing(hub.follow("")) as present, aclosing(hub.follow("", after=1)) as news:
        await take(present)
        for turn in range(PAGE + REMEMBERED):
            await hub.move(2 - turn % 2)
        await take(news, PAGE)
        late = await hub.move(0)
        missed = await take(news, REMEMBERED + 1)
        assert missed[-1].move == late
        assert [one.sequence for one in missed] == list(range(PAGE + 2, late.sequence + 1))
        assert await take(news) == [News(None, None, late.sequence, 0, complete=True)]


async def test_an_alias_that_is_not_there_is_told_as_such_to_who_comes_back_from_another_history(hub: Hub) -> None:
    made = await hub.move(1)
    async with aclosing(hub.follow("never", after=made.sequence)) as news:
        assert await take(news) == [News(None, None, 1, 0, complete=True)]


async def test_a_sequence_from_another_life_of_the_registry_begins_anew(hub: Hub) -> None:
    await hub.move(1)
    async with aclosing(hub.follow(after=1000)) as news:
        assert told(await take(news)) == [("prod", 1, 1)]


async def test_thousands_who_come_back_at_once_cost_one_read_of_the_aliases_and_one_of_the_version(hub: Hub) -> None:
    move = await hub.move(1)
    await hub.move(1, model="other")
    watchers = [hub.follow(after=move.sequence) for _ in range(2000)]
    found = await asyncio.gather(*(take(news) for news in watchers))
    assert {one.move for (one,) in found if one.present and one.complete} == {move}
    assert (hub.store.states, hub.store.last_moves, hub.store.pages, hub.store.versions) == (1, 1, 0, 1)
    for news in watchers:
        await news.aclose()
