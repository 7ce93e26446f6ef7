"""A version's files between a folder and the registry: several at once, only what is not there yet, never over a link."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from splitmesh.client import version_files
from splitmesh.client.partial import Partial
from splitmesh.client.registry import ArtifactRef, RegistryClient, VersionInfo
from splitmesh.errors import MeshError, Reason
from splitmesh.testing.relay import PROFILES, LinkRelay
from tests.integration.registry_world import World, digest, reaching, running

MIB = 1024 * 1024
FILES = {
    "head.onnx": os.urandom(MIB + 17),
    "tail.onnx": os.urandom(2 * MIB),
    "manifest.json": b"{}",
    "report.json": b"",
}
TOTAL = sum(map(len, FILES.values()))


def version_of(refs: Mapping[str, ArtifactRef]) -> VersionInfo:
    """A version that the registry need not know: these tests move files."""
    return VersionInfo("m", 1, 0, dict(refs), "test", "", (), datetime(2026, 1, 1, tzinfo=UTC))


async def pushed(world: World, files: Mapping[str, bytes | Path]) -> VersionInfo:
    return version_of(await world.client.push_files(files))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def test_files_go_up_and_come_down_and_progress_counts_all_of_them(tmp_path: Path) -> None:
    source = tmp_path / "tail.onnx"
    source.write_bytes(FILES["tail.onnx"])
    up: list[tuple[int, int]] = []
    down: list[tuple[int, int]] = []
    async with running(tmp_path / "data") as world:
        refs = await world.client.push_files({**FILES, "tail.onnx": source}, on_progress=lambda *told: up.append(told))
        assert refs == {name: ArtifactRef(name, digest(data), len(data)) for name, data in FILES.items()}
        paths = await world.client.pull_version(
            version_of(refs), tmp_path / "new" / "out", on_progress=lambda *told: down.append(told)
        )
    assert contents(tmp_path / "new" / "out") == FILES
    assert paths == {name: tmp_path / "new" / "out" / name for name in FILES}
    for told in (up, down):
        assert told == sorted(told)
        assert told[-1] == (TOTAL, TOTAL)
        assert len(told) > 4


async def test_several_are_on_their_way_at_once_and_no_more_than_four(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path / "data") as world:
        version = await pushed(world, {f"part{index}": os.urandom(1000 + index) for index in range(9)})
        under_way = most = 0
        gate = asyncio.Event()
        real = world.client._artifacts.pull_to_file

        async def counted(ref: ArtifactRef, path: Path, told: object) -> None:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            if under_way == version_files.PARALLEL:
                gate.set()
            await gate.wait()
            await real(ref, path, None)
            under_way -= 1

        monkeypatch.setattr(world.client._artifacts, "pull_to_file", counted)
        async with asyncio.timeout(20):
            await world.client.pull_version(version, tmp_path / "out")
    assert most == version_files.PARALLEL
    assert len(contents(tmp_path / "out")) == 9


async def test_what_is_there_and_right_is_not_fetched_again_and_what_is_wrong_is(tmp_path: Path) -> None:
    out = tmp_path / "out"
    async with running(tmp_path / "data") as world:
        version = await pushed(world, FILES)
        async with LinkRelay(world.address, PROFILES["loopback"]) as relay, reaching(relay.address) as channels:
            client = RegistryClient(channels)
            await client.pull_version(version, out)
            (out / "head.onnx").write_bytes(bytes(len(FILES["head.onnx"])))
            (out / "manifest.json").unlink()
            (out / "of somebody else").write_bytes(b"mine")
            before = relay.downlink_bytes
            await client.pull_version(version, out)
            assert MIB < relay.downlink_bytes - before < 1.5 * MIB
    assert contents(out) == {**FILES, "of somebody else": b"mine"}


async def test_only_what_is_named_is_fetched(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as world:
        version = await pushed(world, FILES)
        told: list[tuple[int, int]] = []
        await world.client.pull_version(
            version,
            tmp_path / "out",
            names=["manifest.json", "manifest.json"],
            on_progress=lambda *seen: told.append(seen),
        )
        assert contents(tmp_path / "out") == {"manifest.json": b"{}"}
        assert told[-1] == (2, 2)
        with pytest.raises(MeshError) as caught:
            await world.client.pull_version(version, tmp_path / "more", names=["manifest.json", "tail_2.onnx"])
        assert caught.value.reason is Reason.MODEL_INCOMPLETE
        assert not (tmp_path / "more").exists()


@pytest.mark.parametrize("cut", range(1, 10))
async def test_a_pull_that_was_broken_off_goes_on_where_it_was(tmp_path: Path, cut: int) -> None:
    out = tmp_path / "out"
    async with running(tmp_path / "data") as world:
        version = await pushed(world, FILES)

        def stop(done: int, total: int) -> None:
            if done >= total * cut / 10:
                raise KeyError("the user has gone home")

        with pytest.raises(KeyError):
            await world.client.pull_version(version, out, on_progress=stop)
        assert all(data == FILES.get(name, data) for name, data in contents(out).items())
        async with LinkRelay(world.address, PROFILES["loopback"]) as relay, reaching(relay.address) as channels:
            await RegistryClient(channels).pull_version(version, out)
            left = TOTAL * (10 - cut) / 10
            assert relay.downlink_bytes < left + 0.1 * TOTAL
    assert contents(out) == FILES


async def test_what_was_begun_of_another_version_goes_when_this_one_is_there(tmp_path: Path) -> None:
    out, older = tmp_path / "out", digest(b"of the version before")
    out.mkdir()
    begun = Partial(out / "head.onnx", older, 21)
    begun.append(b"of the version")
    begun.close()
    somebody = Partial(out / "tail.onnx", older, 21)
    (out / ".head.onnx.notes.part").write_bytes(b"of somebody else")
    async with running(tmp_path / "data") as world:
        await world.client.pull_version(await pushed(world, FILES), out)
    somebody.close()
    left = [".head.onnx.notes.part", f".tail.onnx.{older[:16]}.part"]
    assert sorted(contents(out)) == [*left, *sorted(FILES)]


async def test_one_file_that_cannot_be_had_ends_the_pull_and_keeps_what_came(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as world:
        version = await pushed(world, FILES)
        gone = ArtifactRef("gone", "0" * 64, 5)
        with pytest.raises(MeshError) as caught:
            await world.client.pull_version(version_of({"gone": gone, **version.artifacts}), tmp_path / "out")
        assert caught.value.reason is Reason.VERSION_NOT_FOUND  # nor is there such a version
        assert "gone" not in contents(tmp_path / "out")
        await world.client.pull_version(version, tmp_path / "out")


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "..", "a/b", ".hidden", ""])
async def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    async with running(tmp_path / "data") as world:
        ref = await world.client.push_artifact("a", b"evil")
        lie = version_of({name: ArtifactRef(name, ref.sha256, ref.size_bytes)})
        for base in (None, tmp_path):
            with pytest.raises(MeshError) as caught:
                await world.client.pull_version(lie, tmp_path / "deep" / "out", base=base)
            assert caught.value.reason is Reason.FIELD_INVALID
    assert not [path for path in (tmp_path / "deep").rglob("*") if path.is_file()]
    assert not (tmp_path / "deep" / "escaped").exists()


async def test_a_link_in_the_folder_is_neither_followed_nor_replaced(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(FILES["head.onnx"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "head.onnx").symlink_to(precious)
    async with running(tmp_path / "data") as world:
        version = await pushed(world, FILES)
        with pytest.raises(MeshError) as caught:
            await world.client.pull_version(version, tmp_path / "out")
        assert caught.value.reason is Reason.FIELD_INVALID
    assert (tmp_path / "out" / "head.onnx").is_symlink()
    assert precious.read_bytes() == FILES["head.onnx"]


async def test_a_file_that_cannot_be_read_is_named_before_anything_is_sent(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as world:
        with pytest.raises(MeshError) as caught:
            await world.client.push_files({"a": b"content", "b": tmp_path / "missing"})
        assert caught.value.reason is Reason.FIELD_INVALID
        assert "missing" in caught.value.message
        assert world.visible() == {}


async def test_a_transfer_keeps_to_its_rate(tmp_path: Path) -> None:
    """Counted on a clock of the test's: no second is waited for."""
    from splitmesh.client.rate import BURST_S, Rate

    now_s = 0.0

    async def sleep(wait_s: float) -> None:
        nonlocal now_s
        now_s += wait_s
        await asyncio.sleep(0)

    rate = Rate(MIB, clock=lambda: now_s, sleep=sleep)
    async with running(tmp_path / "data") as world, reaching(world.address) as channels:
        client = RegistryClient(channels, rate=rate)
        version = version_of(await client.push_files(FILES))
        went_up_s = now_s
        await client.pull_version(version, tmp_path / "out")
    assert went_up_s == pytest.approx(TOTAL / MIB - BURST_S, abs=0.1)
    assert now_s == pytest.approx(2 * TOTAL / MIB - BURST_S, abs=0.1)


async def test_a_download_that_keeps_to_a_rate_does_not_cross_the_link_ahead_of_it(tmp_path: Path) -> None:
    from splitmesh.client.rate import Rate

    ahead: list[int] = []
    async with running(tmp_path / "data") as world:
        ref = await world.client.push_artifact("large", os.urandom(12 * MIB))
        async with LinkRelay(world.address, PROFILES["loopback"]) as relay, reaching(relay.address) as channels:
            client = RegistryClient(channels, rate=Rate(16 * MIB))
            await client.pull_to_file(
                ref, tmp_path / "out", on_progress=lambda done, _: ahead.append(relay.downlink_bytes - done)
            )
    assert max(ahead) < 4 * MIB
