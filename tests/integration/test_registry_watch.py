"""Following an alias: the current state first, then every move, over outages, without queues."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.registry.app import build
from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.client.registry import RegistryClient, VersionInfo
from splitmesh.errors import MeshError
from splitmesh.kernel.channels import mesh_errors
from splitmesh.kernel.lifecycle import Host
from tests.integration.registry_world import (
    WAIT_S,
    World,
    parts,
    reaching,
    running,
    settings_for,
)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path) as made:
        yield made


async def following(states: AsyncIterator[VersionInfo | None]) -> int | None:
    """The next state's version number."""
    async with asyncio.timeout(WAIT_S):
        state = await anext(states)
    return state.version if state else None


async def test_watchers_hear_of_every_move_and_first_of_the_current_state(world: World) -> None:
    watches = [world.client.watch_alias("m", "prod") for _ in range(50)]
    assert await asyncio.gather(*map(following, watches)) == [None] * 50
    for _ in range(2):
        await world.client.create_version("m", parts(), created_by="push")
    for number, previous in ((1, 0), (2, 1), (1, 2)):
        assert await world.client.set_alias("m", "prod", number) == previous
        assert await asyncio.gather(*map(following, watches)) == [number] * 50
    late = world.client.watch_alias("m", "prod")
    assert await following(late) == 1
    assert (await world.client.get_version("m", alias="prod")).aliases == ("prod",)


async def test_a_move_to_where_it_points_already_is_no_news(world: World) -> None:
    for _ in range(2):
        await world.client.create_version("m", parts(), created_by="push")
    await world.client.set_alias("m", "prod", 1)
    call = world.stub.WatchAlias(pb.WatchAliasRequest(model="m", alias="prod"))
    assert (await call.read()).revision == 1
    await world.client.set_alias("m", "prod", 1)
    await world.client.set_alias("m", "prod", 2)
    news = await call.read()
    assert (news.version.version, news.revision) == (2, 2)
    call.cancel()


async def test_a_slow_watcher_gets_the_latest_state_not_a_queue(world: World) -> None:
    for _ in range(2):
        await world.client.create_version("m", parts(), created_by="push")
    call = world.stub.WatchAlias(pb.WatchAliasRequest(model="m", alias="prod"))
    assert (await call.read()).revision == 0
    for turn in range(40):
        await asyncio.gather(*(world.client.set_alias("m", "prod", 1 + (turn + i) % 2) for i in range(5)))
    last = (await world.client.get_version("m", alias="prod")).version
    await world.client.set_alias("m", "prod", 3 - last)
    revisions = [0]
    while True:
        async with asyncio.timeout(WAIT_S):
            news = await call.read()
        revisions.append(news.revision)
        if news.revision == await newest_revision(world):
            break
    assert revisions == sorted(set(revisions))
    assert news.version.version == 3 - last
    call.cancel()


async def newest_revision(world: World) -> int:
    call = world.stub.WatchAlias(pb.WatchAliasRequest(model="m", alias="prod"))
    async with asyncio.timeout(WAIT_S):
        revision = int((await call.read()).revision)
    call.cancel()
    return revision


async def test_watchers_beyond_the_limit_are_refused_and_places_come_back(tmp_path: Path) -> None:
    async with running(tmp_path, max_watchers=1) as world:
        first = world.stub.WatchAlias(pb.WatchAliasRequest(model="m", alias="prod"))
        await first.read()
        with pytest.raises(MeshError) as error:
            async with mesh_errors():
                await world.stub.WatchAlias(pb.WatchAliasRequest(model="m", alias="prod")).read()
        assert error.value.reason.value == "QUEUE_FULL"
        patient = world.client.watch_alias("m", "prod")
        waiting = asyncio.create_task(following(patient))
        first.cancel()
        assert await waiting is None


async def test_a_watch_that_has_lived_its_time_is_renewed_without_repeating(tmp_path: Path) -> None:
    async with running(tmp_path, watch_stream_s=0.1) as world:
        await world.client.create_version("m", parts(), created_by="push")
        states = world.client.watch_alias("m", "prod")
        assert await following(states) is None
        following_next = asyncio.create_task(following(states))
        for _ in range(4):  # as long as the client's own stream takes to end, and to be opened again
            raw = world.stub.WatchAlias(pb.WatchAliasRequest(model="m", alias="prod"))
            assert len([message async for message in raw]) == 1
        await world.client.set_alias("m", "prod", 1)
        assert await following_next == 1


async def test_a_watch_outlives_the_registry_and_learns_what_it_missed(tmp_path: Path) -> None:
    async with running(tmp_path) as before:
        port = int(before.address.rpartition(":")[2])
        for _ in range(2):
            await before.client.create_version("m", parts(), created_by="push")
        await before.client.set_alias("m", "prod", 1)
        async with reaching(before.address) as channels:
            client = RegistryClient(channels)
            states = client.watch_alias("m", "prod")
            assert await following(states) == 1
            news = asyncio.create_task(following(states))
            await before.stop()
            async with Host("registry", settings_for(tmp_path, port=port), build):
                assert await client.set_alias("m", "prod", 2) == 1
                assert await news == 2


async def test_a_stop_does_not_wait_for_watchers(tmp_path: Path) -> None:
    async with running(tmp_path, drain_s=600.0) as world:
        call = world.stub.WatchAlias(pb.WatchAliasRequest(model="m", alias="prod"))
        await call.read()
        async with asyncio.timeout(WAIT_S):
            await world.stop()
        with pytest.raises(MeshError) as error:
            async with mesh_errors():
                await call.read()
        assert error.value.reason.value == "NOT_READY"
