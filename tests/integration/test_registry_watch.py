"""Following aliases over the wire: where they point first, then every move, over outages and deaths of the registry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from shutil import copyfile
from sqlite3 import connect
from typing import Any

import pytest

from services.registry.app import build
from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.client.registry import RegistryClient, VersionInfo
from splitmesh.errors import MeshError
from splitmesh.kernel.channels import mesh_errors
from splitmesh.kernel.lifecycle import Host
from tests.integration.registry_world import WAIT_S, Process, World, parts, reaching, running, settings_for

DATABASE = "registry.sqlite3"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path) as made:
        yield made


async def following(states: AsyncIterator[VersionInfo | None]) -> int | None:
    """The next state's version number."""
    async with asyncio.timeout(WAIT_S):
        state = await anext(states)
    return state.version if state else None


def watching(world: World, alias: str = "prod", after: int = 0) -> Any:
    """One raw stream."""
    return world.stub.WatchModel(pb.WatchModelRequest(model="m", alias=alias, after_sequence=after))


async def read(call: Any) -> pb.WatchModelResponse:
    """The next message; MeshError where the stream ended with one."""
    async with asyncio.timeout(WAIT_S), mesh_errors():
        message = await call.read()
    assert isinstance(message, pb.WatchModelResponse)
    return message


def move_of(message: pb.WatchModelResponse) -> tuple[str, int, int, int]:
    """Alias, where it pointed, where it points, and the sequence."""
    move = message.move
    return move.alias, move.previous_version, move.version, move.sequence


async def make(world: World, count: int = 2) -> None:
    for _ in range(count):
        await world.client.create_version("m", parts(), created_by="push")


async def test_watchers_hear_of_every_move_and_first_of_the_current_state(world: World) -> None:
    watches = [world.client.watch_alias("m", "prod") for _ in range(50)]
    assert await asyncio.gather(*map(following, watches)) == [None] * 50
    await make(world)
    for number in (1, 2, 1):
        await world.client.set_alias("m", "prod", number)
        assert await asyncio.gather(*map(following, watches)) == [number] * 50
    assert await following(world.client.watch_alias("m", "prod")) == 1


async def test_a_message_says_who_moved_what_and_why_and_carries_the_version(world: World) -> None:
    await make(world)
    call = watching(world, alias="")
    assert not (await read(call)).HasField("move")
    await world.stub.SetAlias(
        pb.SetAliasRequest(model="m", alias="prod", version=2, moved_by="alice", reason="better on line 4")
    )
    message = await read(call)
    assert move_of(message) == ("prod", 0, 2, 1)
    assert (message.move.moved_by, message.move.reason, message.sequence) == ("alice", "better on line 4", 1)
    assert (message.version.version, list(message.version.aliases)) == (2, ["prod"])
    await world.stub.SetAlias(pb.SetAliasRequest(model="m", alias="prod", version=0))
    gone = await read(call)
    assert move_of(gone) == ("prod", 2, 0, 2)
    assert not gone.HasField("version")
    call.cancel()


async def test_a_slow_watcher_gets_every_move_in_order(world: World) -> None:
    await make(world)
    call = watching(world)
    await read(call)
    for turn in range(40):
        await asyncio.gather(
            *(
                world.stub.SetAlias(pb.SetAliasRequest(model="m", alias="prod", version=1 + (turn + i) % 2))
                for i in range(5)
            )
        )
    newest = (await world.client.alias_moves("m", "prod"))[0].sequence
    told = [move_of(await read(call)) for _ in range(newest)]
    assert [sequence for *_, sequence in told] == list(range(1, newest + 1))
    assert all(before[2] == after[1] for before, after in pairwise(told))
    call.cancel()


async def test_watchers_beyond_the_limit_are_refused_and_places_come_back(tmp_path: Path) -> None:
    async with running(tmp_path, max_watchers=1) as world:
        first = watching(world)
        await read(first)
        with pytest.raises(MeshError) as error:
            await read(watching(world))
        assert error.value.reason.value == "QUEUE_FULL"
        patient = world.client.watch_alias("m", "prod")
        waiting = asyncio.create_task(following(patient))
        first.cancel()
        assert await waiting is None


async def test_a_watch_that_has_lived_its_time_is_renewed_without_repeating(tmp_path: Path) -> None:
    async with running(tmp_path, watch_stream_s=0.1) as world:
        await make(world, 1)
        states = world.client.watch_alias("m", "prod")
        assert await following(states) is None
        following_next = asyncio.create_task(following(states))
        for _ in range(4):  # as long as the client's own stream takes to end, and to be opened again
            assert len([message async for message in watching(world)]) == 1
        await world.client.set_alias("m", "prod", 1)
        assert await following_next == 1


async def test_a_watch_outlives_the_registry_and_learns_what_it_missed(tmp_path: Path) -> None:
    async with running(tmp_path) as before:
        port = int(before.address.rpartition(":")[2])
        await make(before)
        await before.client.set_alias("m", "prod", 1)
        async with reaching(before.address) as channels:
            client = RegistryClient(channels)
            states = client.watch_alias("m", "prod")
            assert await following(states) == 1
            news = asyncio.create_task(following(states))
            await before.stop()
            async with Host("registry", settings_for(tmp_path, port=port), build):
                await client.set_alias("m", "prod", 2)
                assert await news == 2


async def test_moves_made_after_a_registry_was_killed_are_told_to_whoever_comes_back(tmp_path: Path) -> None:
    first = Process(tmp_path)
    address = await first.address()
    async with reaching(address) as channels:
        world = World.at(tmp_path, address, channels)
        await make(world, 3)
        await world.client.set_alias("m", "prod", 1)
        call = watching(world)
        known = (await read(call)).sequence
        first.kill()
        with pytest.raises(MeshError):
            await read(call)
    async with running(tmp_path) as between:
        for version in (2, 3, 2):
            await between.client.set_alias("m", "prod", version)
        await between.client.set_alias("m", "canary", 3)
    async with running(tmp_path) as after:
        call = watching(after, after=known)
        assert [move_of(await read(call)) for _ in range(3)] == [
            ("prod", 1, 2, 2),
            ("prod", 2, 3, 3),
            ("prod", 3, 2, 4),
        ]
        present = await read(call)
        assert (move_of(present), present.present) == (("prod", 3, 2, 4), True)
        await after.client.set_alias("m", "prod", 1)
        assert move_of(await read(call)) == ("prod", 2, 1, 6)
        call.cancel()


async def test_a_registry_set_back_to_a_backup_sets_right_whoever_knows_a_sequence_of_its_new_history(
    tmp_path: Path,
) -> None:
    async with running(tmp_path / "data") as world:
        await make(world)
        await world.client.set_alias("m", "prod", 1)
        with closing(connect(tmp_path / "data" / DATABASE)) as kept, closing(connect(tmp_path / "backup")) as backup:
            kept.backup(backup)
        for version in (2, 1, 2):
            await world.client.set_alias("m", "prod", version)
        await world.client.set_alias("m", "canary", 2)
        known = 5
    for left in (tmp_path / "data").glob(f"{DATABASE}*"):
        left.unlink()
    copyfile(tmp_path / "backup", tmp_path / "data" / DATABASE)
    async with running(tmp_path / "data") as world:
        for version in (2, 1) * 3:
            await world.client.set_alias("m", "shadow", version)
        call = watching(world, alias="", after=known)
        told = [await read(call) for _ in range(4)]
        assert [(move_of(one)[0], move_of(one)[2], one.present, one.present_complete) for one in told] == [
            ("shadow", 2, False, False),
            ("shadow", 1, False, False),
            ("prod", 1, True, False),
            ("shadow", 1, True, True),
        ]
        assert {one.version.version for one in told[2:]} == {1}
        call.cancel()


async def test_a_stop_does_not_wait_for_watchers(tmp_path: Path) -> None:
    async with running(tmp_path, drain_s=600.0) as world:
        call = watching(world)
        await read(call)
        async with asyncio.timeout(WAIT_S):
            await world.stop()
        with pytest.raises(MeshError) as error:
            await read(call)
        assert error.value.reason.value == "NOT_READY"


async def test_names_outside_the_contract_are_refused(world: World) -> None:
    for field, request in (
        ("model", pb.WatchModelRequest(model="../m", alias="prod")),
        ("model", pb.WatchModelRequest()),
        ("alias", pb.WatchModelRequest(model="m", alias="12")),
    ):
        with pytest.raises(MeshError) as error:
            await read(world.stub.WatchModel(request))
        assert error.value.fields[0][0] == field
