"""What every metadata store promises of aliases and their moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.registry.metadata.port import MetadataStore
from services.registry.metadata.records import AliasMove
from splitmesh.errors import MeshError, Reason
from tests.support.stores import ACTOR, KINDS, NOON, Clock, after, made, move, opened, refused


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MetadataStore]:
    async with opened(request.param, tmp_path, Clock()) as ready:
        await made(ready, "m", "m", "n")
        yield ready


async def test_a_move_comes_back_as_it_was_made(store: MetadataStore) -> None:
    moved = await move(store, "prod", 1, late=5)
    assert moved == AliasMove(1, "m", "prod", 0, 1, ACTOR.by, "to 1", after(5))
    assert list(await store.alias_moves_after("m", "prod", 0, 10)) == [moved]
    assert await store.version_at("m", "prod") == await store.get_version("m", 1)


async def test_an_alias_that_points_there_already_is_not_moved(store: MetadataStore) -> None:
    first = await move(store, "prod", 1)
    assert await move(store, "prod", 1, late=9) == first
    assert len(await store.alias_moves_after("m", "", 0, 10)) == 1
    assert [event.kind for event in await store.list_events("m", 0, 1)] == ["alias.moved"]
    assert len([one for one in await store.list_events("m", 0, 10) if one.kind == "alias.moved"]) == 1


async def test_moves_say_where_the_alias_was_and_sequences_grow_over_all_models(store: MetadataStore) -> None:
    moves = [
        await move(store, "prod", 1),
        await move(store, "prod", 1, model="n"),
        await move(store, "prod", 2),
        await move(store, "prod", 0),
        await move(store, "prod", 2),
    ]
    assert [(one.sequence, one.previous, one.version) for one in moves] == [
        (1, 0, 1),
        (2, 0, 1),
        (3, 1, 2),
        (4, 2, 0),
        (5, 0, 2),
    ]


async def test_an_alias_that_was_taken_away_is_gone(store: MetadataStore) -> None:
    await move(store, "prod", 2)
    await move(store, "prod", 0)
    await refused(store.version_at("m", "prod"), Reason.ALIAS_NOT_FOUND)
    await refused(move(store, "prod", 0), Reason.ALIAS_NOT_FOUND)
    assert await store.alias_states("m", "") == ([], 2)
    assert (await store.get_version("m", 2)).aliases == ()
    (model, _) = await store.list_models("", 10)
    assert model.aliases == {}


async def test_an_alias_moves_only_from_where_it_is_expected(store: MetadataStore) -> None:
    error = await refused(move(store, "prod", 2, expected=1), Reason.ALIAS_MOVED)
    assert error.metadata == {"model": "m", "alias": "prod", "version": "0"}
    await move(store, "prod", 1, expected=0)
    for expected in (0, 2):
        error = await refused(move(store, "prod", 1, expected=expected), Reason.ALIAS_MOVED)
        assert error.metadata["version"] == "1"
    await refused(move(store, "prod", 0, expected=2), Reason.ALIAS_MOVED)
    assert (await move(store, "prod", 2, expected=1)).previous == 1
    assert (await move(store, "prod", 2, expected=2)).sequence == 2
    assert (await move(store, "prod", 0, expected=2)).version == 0


async def test_of_two_that_expect_the_same_one_moves_it(store: MetadataStore) -> None:
    await move(store, "prod", 1)
    tries = await asyncio.gather(*(move(store, "prod", 2, expected=1) for _ in range(8)), return_exceptions=True)
    moved = [one for one in tries if isinstance(one, AliasMove)]
    assert len(moved) == 1
    assert all(isinstance(one, MeshError) and one.reason is Reason.ALIAS_MOVED for one in tries if one not in moved)


async def test_a_version_lists_the_aliases_that_point_at_it_now(store: MetadataStore) -> None:
    for alias, number in (("prod", 1), ("canary", 2), ("blue", 2), ("prod", 2)):
        await move(store, alias, number)
    assert (await store.get_version("m", 1)).aliases == ()
    assert (await store.get_version("m", 2)).aliases == ("blue", "canary", "prod")
    (model, other) = await store.list_models("", 10)
    assert (model.aliases, other.aliases) == ({"blue": 2, "canary": 2, "prod": 2}, {})


async def test_moves_are_read_forwards_and_backwards_in_pages(store: MetadataStore) -> None:
    for number in (1, 2, 1, 2):
        await move(store, "prod", number)
        await move(store, "canary", 3 - number)
    await move(store, "prod", 1, model="n")

    async def forwards(alias: str, after_sequence: int, limit: int) -> list[int]:
        return [one.sequence for one in await store.alias_moves_after("m", alias, after_sequence, limit)]

    async def backwards(alias: str, before: int, limit: int) -> list[int]:
        return [one.sequence for one in await store.alias_moves_before("m", alias, before, limit)]

    assert await forwards("", 0, 10) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert await forwards("prod", 0, 3) == [1, 3, 5]
    assert await forwards("prod", 5, 3) == [7]
    assert await forwards("", 8, 3) == []
    assert await backwards("", 0, 3) == [8, 7, 6]
    assert await backwards("canary", 6, 10) == [4, 2]
    assert await backwards("prod", 1, 10) == []
    assert await backwards("none", 0, 10) == []
    assert list(await store.alias_moves_after("none", "", 0, 10)) == []


async def test_states_are_the_last_moves_of_aliases_that_exist_with_the_newest_sequence(store: MetadataStore) -> None:
    assert await store.alias_states("m", "") == ([], 0)
    await move(store, "gone", 1)
    prod, canary = await move(store, "prod", 1), await move(store, "canary", 1)
    await move(store, "gone", 0)
    prod = await move(store, "prod", 2)
    await move(store, "prod", 1, model="n")
    assert await store.alias_states("m", "") == ([canary, prod], 6)
    assert await store.alias_states("m", "prod") == ([prod], 6)
    assert await store.alias_states("m", "gone") == ([], 6)
    assert await store.alias_states("none", "") == ([], 6)


async def test_moves_outlive_the_versions_they_tell_of(store: MetadataStore) -> None:
    await move(store, "prod", 1)
    await move(store, "prod", 2)
    await store.delete_version("m", 1, "", ACTOR, NOON)
    assert [one.version for one in await store.alias_moves_after("m", "prod", 0, 10)] == [1, 2]


async def test_moves_at_the_same_time_get_sequences_without_gaps(store: MetadataStore) -> None:
    wanted = [(f"a{index % 5}", 1 + index // 5 % 2) for index in range(40)]
    moves = await asyncio.gather(*(move(store, alias, number) for alias, number in wanted))
    kept = await store.alias_moves_after("m", "", 0, 100)
    assert [one.sequence for one in kept] == list(range(1, len(kept) + 1))
    assert {one.sequence for one in moves} == {one.sequence for one in kept}
