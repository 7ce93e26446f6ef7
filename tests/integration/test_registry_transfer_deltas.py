"""What differs little costs little, up and down; whatever goes wrong with a patch costs a whole transfer and nothing else."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from splitmesh.blobs.delta import apply_delta, make_delta
from splitmesh.client.cache import ModelCache
from splitmesh.client.registry import ArtifactRef, RegistryClient
from splitmesh.errors import MeshError, Reason
from splitmesh.testing.relay import PROFILES, LinkRelay
from tests.integration.registry_world import World, digest, parts, reaching, running
from tests.integration.test_registry_transfer_files import contents, version_of

MIB = 1024 * 1024
MAKE, APPLY = "splitmesh.client.deltas.make_delta", "splitmesh.client.deltas.apply_delta"
OLD = os.urandom(3 * MIB)
NEW = OLD[:MIB] + os.urandom(1000) + OLD[MIB:]


@asynccontextmanager
async def over_a_relay(world: World) -> AsyncIterator[tuple[RegistryClient, LinkRelay]]:
    """A client whose bytes are counted."""
    async with LinkRelay(world.address, PROFILES["loopback"]) as relay, reaching(relay.address) as channels:
        yield RegistryClient(channels), relay


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "v1"
    folder.mkdir()
    (folder / "head.onnx").write_bytes(OLD)
    (folder / "manifest.json").write_bytes(b"{}")
    return folder


@pytest.mark.parametrize("as_folder", [True, False])
async def test_a_push_sends_what_changed(tmp_path: Path, base: Path, as_folder: bool) -> None:
    told: list[tuple[int, int]] = []
    async with running(tmp_path / "data") as world:
        await world.client.push_files({path.name: path for path in base.iterdir()})
        async with over_a_relay(world) as (client, relay):
            refs = await client.push_files(
                {"head.onnx": NEW, "manifest.json": b"{}"},
                base=base if as_folder else {"head.onnx": OLD},
                on_progress=lambda *seen: told.append(seen),
            )
            assert relay.uplink_bytes < 0.1 * MIB
        assert refs["head.onnx"] == ArtifactRef("head.onnx", digest(NEW), len(NEW))
        assert await world.client.pull_artifact(refs["head.onnx"]) == NEW
    assert told[-1] == (len(NEW) + 2, len(NEW) + 2)
    assert told == sorted(told)


async def test_a_version_is_made_of_patches(tmp_path: Path) -> None:
    extra = {"report.json": OLD}
    async with running(tmp_path / "data") as world:
        await world.client.create_version("m", {**parts(), **extra}, created_by="test")
        async with over_a_relay(world) as (client, relay):
            made = await client.create_version(
                "m", {**parts(), "report.json": NEW}, created_by="test", parent=1, base=extra
            )
            assert relay.uplink_bytes < 0.1 * MIB
        assert (made.version, made.parent) == (2, 1)
        assert await world.client.fetch(made, "report.json") == NEW


@pytest.mark.parametrize(
    "old", [b"", OLD, os.urandom(MIB), None], ids=["empty", "unknown to the registry", "unlike", "not there"]
)
async def test_a_push_without_a_good_base_sends_the_whole(tmp_path: Path, base: Path, old: bytes | None) -> None:
    if old is None:
        (base / "head.onnx").unlink()
    else:
        (base / "head.onnx").write_bytes(old)
    async with running(tmp_path / "data") as world:
        if old is not OLD:
            await world.client.push_artifact("base", old or b"")
        async with over_a_relay(world) as (client, relay):
            refs = await client.push_files({"head.onnx": NEW}, base=base)
            assert relay.uplink_bytes > len(NEW)
        assert await world.client.pull_artifact(refs["head.onnx"]) == NEW


async def test_a_pull_fetches_what_changed_and_takes_over_what_did_not(tmp_path: Path, base: Path) -> None:
    told: list[tuple[int, int]] = []
    (base / "renamed.onnx").write_bytes(OLD[:MIB])
    async with running(tmp_path / "data") as world:
        await world.client.push_artifact("base", OLD)
        files = {"head.onnx": NEW, "manifest.json": b"{}", "tail.onnx": OLD[:MIB]}
        version = version_of(await world.client.push_files(files))
        async with over_a_relay(world) as (client, relay):
            await client.pull_version(version, tmp_path / "v2", base=base, on_progress=lambda *seen: told.append(seen))
            assert relay.downlink_bytes < 0.1 * MIB
    assert contents(tmp_path / "v2") == files
    assert not os.path.samefile(base / "renamed.onnx", tmp_path / "v2" / "tail.onnx")
    assert (base / "head.onnx").read_bytes() == OLD
    total = sum(map(len, files.values()))
    assert told[-1] == (total, total)


async def test_a_version_that_follows_another_in_its_folder_fetches_what_changed(tmp_path: Path, base: Path) -> None:
    async with running(tmp_path / "data") as world:
        await world.client.push_artifact("base", OLD)
        version = version_of(await world.client.push_files({"head.onnx": NEW, "manifest.json": b"{}"}))
        async with over_a_relay(world) as (client, relay):
            await client.pull_version(version, base)
            assert relay.downlink_bytes < 0.1 * MIB
    assert contents(base) == {"head.onnx": NEW, "manifest.json": b"{}"}


async def test_what_is_the_same_is_copied_so_that_an_edit_of_one_is_not_seen_in_the_other(
    tmp_path: Path, base: Path
) -> None:
    async with running(tmp_path / "data") as world:
        version = version_of(await world.client.push_files({"head.onnx": OLD}))
        async with over_a_relay(world) as (client, relay):
            await client.pull_version(version, tmp_path / "v2", base=base)
            assert relay.downlink_bytes < 0.1 * MIB
    with (base / "head.onnx").open("ab") as file:
        file.write(b"edited")
    assert contents(tmp_path / "v2") == {"head.onnx": OLD}


async def test_a_link_in_the_base_is_not_followed(tmp_path: Path, base: Path) -> None:
    (base / "head.onnx").rename(tmp_path / "elsewhere")
    (base / "head.onnx").symlink_to(tmp_path / "elsewhere")
    async with running(tmp_path / "data") as world:
        version = version_of(await world.client.push_files({"head.onnx": OLD}))
        await world.client.pull_version(version, tmp_path / "v2", base=base)
    assert not (tmp_path / "v2" / "head.onnx").is_symlink()
    assert contents(tmp_path / "v2") == {"head.onnx": OLD}


@pytest.mark.parametrize(
    "damage",
    [lambda patch: patch[:-5], lambda patch: os.urandom(len(patch)), lambda patch: b"", lambda patch: patch + b"x"],
    ids=["short", "random", "empty", "long"],
)
async def test_a_patch_that_does_not_fit_costs_a_whole_pull(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr(APPLY, lambda old, patch, size: apply_delta(old, damage(patch), size))
    async with running(tmp_path / "data") as world:
        await world.client.push_artifact("base", OLD)
        version = version_of(await world.client.push_files({"head.onnx": NEW}))
        await world.client.pull_version(version, tmp_path / "v2", base=base)
    assert contents(tmp_path / "v2") == {"head.onnx": NEW}


async def test_a_patch_that_makes_something_else_is_noticed_at_both_ends(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = NEW[:-1] + bytes([NEW[-1] ^ 1])
    async with running(tmp_path / "data") as world:
        await world.client.push_artifact("base", OLD)
        with monkeypatch.context() as patched:
            patched.setattr(MAKE, lambda old, new: make_delta(old, other))
            refs = await world.client.push_files({"head.onnx": NEW}, base=base)
        assert await world.client.pull_artifact(refs["head.onnx"]) == NEW
        with monkeypatch.context() as patched:
            patched.setattr(APPLY, lambda *_: other)
            await world.client.pull_version(version_of(refs), tmp_path / "v2", base=base)
        assert digest(other) not in world.visible()
    assert contents(tmp_path / "v2") == {"head.onnx": NEW}


async def test_a_registry_that_makes_no_patches_is_asked_for_the_whole(tmp_path: Path, base: Path) -> None:
    async with running(tmp_path / "data", max_delta_bytes=1000) as world:
        await world.client.push_artifact("base", OLD)
        refs = await world.client.push_files({"head.onnx": NEW}, base=base)
        await world.client.pull_version(version_of(refs), tmp_path / "v2", base=base)
    assert contents(tmp_path / "v2") == {"head.onnx": NEW}


async def test_many_pulls_with_patches_wait_for_each_other(tmp_path: Path, base: Path) -> None:
    async with running(tmp_path / "data", max_deltas=1) as world:
        await world.client.push_artifact("base", OLD)
        version = version_of(await world.client.push_files({"head.onnx": NEW}))
        async with over_a_relay(world) as (_, relay), reaching(relay.address) as channels:
            clients = [RegistryClient(channels) for _ in range(4)]
            await asyncio.gather(
                *(client.pull_version(version, tmp_path / f"out{i}", base=base) for i, client in enumerate(clients))
            )
            assert relay.downlink_bytes < 0.5 * MIB
    assert all(contents(tmp_path / f"out{i}") == {"head.onnx": NEW} for i in range(4))


async def test_patches_can_be_asked_for_by_hand(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as world:
        old, new = await world.client.push_artifact("a", OLD), await world.client.push_artifact("b", NEW)
        delta = await world.client.make_delta(old.sha256, new.sha256)
        assert delta is not None
        assert delta.size_bytes < 10_000
        unlike = await world.client.push_artifact("c", os.urandom(MIB))
        assert await world.client.make_delta(old.sha256, unlike.sha256) is None
        with pytest.raises(MeshError) as caught:
            await world.client.make_delta("0" * 64, new.sha256)
        assert caught.value.reason is Reason.ARTIFACT_NOT_FOUND
        with pytest.raises(MeshError) as caught:
            await world.client.apply_delta(old.sha256, delta.sha256, "0" * 64, new.size_bytes)
        assert caught.value.reason is Reason.DIGEST_MISMATCH


async def test_a_node_that_follows_an_alias_fetches_what_changed(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as world:
        for number, report in enumerate((OLD, NEW)):
            await world.client.create_version("m", {**parts(str(number)), "report.json": report}, created_by="test")
        async with over_a_relay(world) as (client, relay):
            cache = ModelCache(tmp_path / "cache", client)
            first, second = [await client.get_version("m", number) for number in (1, 2)]
            assert await cache.part(first, "report.json") == OLD
            await cache.remember(first, "m@production")
            before = relay.downlink_bytes
            assert await cache.part(second, "report.json") == NEW
            assert relay.downlink_bytes - before < 0.1 * MIB
