"""What operators ask of the registry, through the client: holds, deletion, history, events, keyrings, garbage."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.trust.keys import SigningKey
from tests.integration.registry_world import World, parts, running
from tests.support.signing import chain, ring_of


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path, garbage_min_age_s=0) as made:
        for number in range(3):
            await made.client.create_version("m", parts(str(number)), created_by="push")
        yield made


async def test_an_alias_is_moved_only_from_where_it_is_expected_and_its_moves_are_kept(world: World) -> None:
    client = world.client
    assert await client.set_alias("m", "production", 1, expected=0, moved_by="alice", reason="first") == 0
    assert await client.set_alias("m", "production", 2, expected=1, moved_by="bob") == 1
    assert await client.set_alias("m", "canary", 3) == 0
    for version, expected in ((3, 1), (3, 0), (0, 3)):
        with pytest.raises(MeshError) as caught:
            await client.set_alias("m", "production", version, expected=expected)
        assert (caught.value.reason, caught.value.metadata["version"]) == (Reason.ALIAS_MOVED, "2")
    assert await client.set_alias("m", "production", 0) == 2
    with pytest.raises(MeshError) as caught:
        await client.get_version("m", alias="production")
    assert caught.value.reason is Reason.ALIAS_NOT_FOUND
    moves = await client.alias_moves("m", "production")
    assert [(move.previous, move.version, move.moved_by, move.reason) for move in moves] == [
        (2, 0, "", ""),
        (1, 2, "bob", ""),
        (0, 1, "alice", "first"),
    ]
    every = await client.alias_moves("m")
    assert [move.alias for move in every] == ["production", "canary", "production", "production"]
    assert [move.sequence for move in every] == sorted((move.sequence for move in every), reverse=True)
    assert await client.alias_moves("m", most=2) == every[:2]
    with pytest.raises(MeshError) as caught:
        await client.alias_moves("unknown")
    assert caught.value.reason is Reason.MODEL_NOT_FOUND


async def test_a_version_that_is_held_or_pointed_at_stays(world: World) -> None:
    client = world.client
    await client.set_alias("m", "production", 1)
    await client.hold_version("m", 2, "deployment/line-4")
    await client.hold_version("m", 2, "deployment/line-5", hold_s=3600.0)
    assert (await client.get_version("m", 2)).holders == ("deployment/line-4", "deployment/line-5")
    for version, user in ((1, "production"), (2, "deployment/line-4")):
        with pytest.raises(MeshError) as caught:
            await client.delete_version("m", version, deleted_by="alice")
        assert caught.value.reason is Reason.VERSION_IN_USE
        assert user in caught.value.metadata["users"]
    await client.release_version("m", 2, "deployment/line-4")
    await client.release_version("m", 2, "deployment/line-5")
    await client.release_version("m", 2, "never held it")
    await client.delete_version("m", 2, deleted_by="alice", reason="bad")
    with pytest.raises(MeshError) as caught:
        await client.get_version("m", 2)
    assert caught.value.reason is Reason.VERSION_NOT_FOUND
    assert [version.version for version in await client.list_versions("m")] == [3, 1]


async def test_garbage_is_counted_before_it_is_collected(world: World) -> None:
    client = world.client
    loose = await client.push_artifact("loose", b"nobody names this")
    counted = await client.collect_garbage(dry_run=True)
    assert loose.sha256 in world.visible()
    collected = await client.collect_garbage()
    assert (counted.contents, counted.size_bytes) == (collected.contents, collected.size_bytes)
    assert collected.contents + collected.too_young == 1
    assert collected.kept >= 4


async def test_events_say_who_did_what(world: World) -> None:
    await world.client.set_alias("m", "production", 2, moved_by="alice", reason="better")
    await world.client.create_version("other", parts(), created_by="bob")
    events = await world.client.events("m")
    assert [(event.kind, event.subject, event.by) for event in events[:2]] == [
        ("alias.moved", "m@production", "alice"),
        ("version.created", "m:3", "push"),
    ]
    assert events[0].peer
    assert (await world.client.events())[0].subject == "other:1"
    assert await world.client.events("m", most=1) == events[:1]


async def test_keyrings_are_kept_in_their_order(world: World) -> None:
    root = SigningKey.generate()
    first, second, third = chain(root, *(ring_of(root, version=version) for version in (1, 2, 3)))
    assert await world.client.put_keyring(first) == 1
    with pytest.raises(MeshError) as caught:
        await world.client.put_keyring(third)
    assert caught.value.reason is Reason.KEYRING_STALE
    assert await world.client.put_keyring(second) == 2
    assert await world.client.keyrings() == [first, second]
    assert await world.client.keyrings(after=1) == [second]
    with pytest.raises(MeshError) as caught:
        await world.client.put_keyring(b"no keyring")
    assert caught.value.reason is Reason.SIGNATURE_INVALID
