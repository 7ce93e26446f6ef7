"""The cache of a node: verified reads, damage mended from the registry, and notes that survive it."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from splitmesh.client.cache import ModelCache
from splitmesh.errors import MeshError, Reason
from splitmesh.model.lineage import Lineage
from splitmesh.model.manifest import HEAD, MANIFEST
from tests.integration.small_model import small_manifest
from tests.support.cached import HEAD_BYTES, VERSION, OneVersion, cache_in, files_in


@pytest.fixture
def registry() -> OneVersion:
    return OneVersion()


@pytest.fixture
def cache(tmp_path: Path, registry: OneVersion) -> ModelCache:
    return cache_in(tmp_path, registry)


async def test_a_part_is_pulled_once_and_read_from_disk_from_then_on(tmp_path: Path, registry: OneVersion) -> None:
    assert await cache_in(tmp_path, registry).part(VERSION, HEAD) == HEAD_BYTES
    registry.reachable = False
    assert await cache_in(tmp_path, registry).part(VERSION, HEAD) == HEAD_BYTES
    assert registry.asked == [HEAD]
    assert files_in(tmp_path) == [f"parts/{VERSION.artifacts[HEAD].sha256}"]


async def test_the_manifest_comes_as_a_value(cache: ModelCache) -> None:
    assert await cache.manifest(VERSION) == small_manifest()


async def test_two_versions_with_the_same_part_keep_it_once(
    tmp_path: Path, cache: ModelCache, registry: OneVersion
) -> None:
    await asyncio.gather(cache.part(VERSION, HEAD), cache.part(replace(VERSION, version=4), HEAD))
    assert await cache.part(replace(VERSION, version=5), HEAD) == HEAD_BYTES
    assert registry.asked == [HEAD]
    assert len(files_in(tmp_path)) == 1


async def test_who_gives_up_waiting_for_a_part_leaves_it_to_the_others(
    tmp_path: Path, cache: ModelCache, registry: OneVersion
) -> None:
    tasks = [asyncio.create_task(cache.part(VERSION, HEAD)) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert done[1:] == [HEAD_BYTES, HEAD_BYTES]
    assert cache._fetching == {}


async def test_a_version_that_is_not_trusted_gives_nothing_though_it_is_on_disk(
    cache: ModelCache, registry: OneVersion
) -> None:
    await cache.part(VERSION, HEAD)
    registry.refusal = MeshError(Reason.KEY_REVOKED, "the key was stolen")
    for name in (HEAD, MANIFEST):
        with pytest.raises(MeshError) as caught:
            await cache.part(VERSION, name)
        assert caught.value.reason is Reason.KEY_REVOKED
    assert registry.asked == [HEAD]


async def test_signatures_that_came_later_are_kept_for_a_restart_without_a_registry(
    tmp_path: Path, cache: ModelCache, registry: OneVersion
) -> None:
    unsigned = replace(VERSION, signatures=())
    for name in ("joints@3", "joints@production"):
        await cache.remember(unsigned, name)
    await cache.remember(replace(unsigned, version=4), "joints@canary")
    registry.signed_since = (b"by somebody",)
    await cache.part(unsigned, HEAD)
    again = cache_in(tmp_path, registry)
    for name in ("joints@3", "joints@production"):
        assert await again.recall(name) == replace(unsigned, signatures=(b"by somebody",))
    assert await again.recall("joints@canary") == replace(unsigned, version=4)


async def test_a_part_the_version_does_not_have_is_not_asked_for(cache: ModelCache, registry: OneVersion) -> None:
    with pytest.raises(MeshError) as caught:
        await cache.part(VERSION, "tail.onnx")
    assert caught.value.reason is Reason.MODEL_INCOMPLETE
    assert registry.asked == []


@pytest.mark.parametrize(
    "damaged",
    [b"", HEAD_BYTES[:-1], HEAD_BYTES + b"!", HEAD_BYTES.replace(b"3", b"4"), bytes(len(HEAD_BYTES))],
    ids=["empty", "short", "long", "one-byte", "zeros"],
)
async def test_a_file_damaged_on_disk_is_pulled_again(
    tmp_path: Path, cache: ModelCache, registry: OneVersion, damaged: bytes
) -> None:
    await cache.part(VERSION, HEAD)
    file = tmp_path / "parts" / VERSION.artifacts[HEAD].sha256
    file.write_bytes(damaged)
    assert await cache.part(VERSION, HEAD) == HEAD_BYTES
    assert file.read_bytes() == HEAD_BYTES
    assert registry.asked == [HEAD, HEAD]


async def test_a_damaged_part_is_never_handed_out_while_the_registry_is_away(
    tmp_path: Path, cache: ModelCache, registry: OneVersion
) -> None:
    await cache.part(VERSION, HEAD)
    (tmp_path / "parts" / VERSION.artifacts[HEAD].sha256).write_bytes(b"other")
    registry.reachable = False
    with pytest.raises(MeshError) as caught:
        await cache.part(VERSION, HEAD)
    assert caught.value.reason is Reason.SERVICE_UNAVAILABLE


async def test_a_file_the_disk_cannot_give_back_is_pulled_again(
    tmp_path: Path, cache: ModelCache, registry: OneVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cache.part(VERSION, HEAD)

    def broken(_: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "read_bytes", broken)
    assert await cache.part(VERSION, HEAD) == HEAD_BYTES
    # Once to mend the file, and once more since the disk does not give that back either.
    assert registry.asked == [HEAD, HEAD, HEAD]


async def test_a_version_is_known_by_number_after_the_first_question(tmp_path: Path, registry: OneVersion) -> None:
    assert await cache_in(tmp_path, registry).version("joints", 3) == VERSION
    registry.reachable = False
    assert await cache_in(tmp_path, registry).version("joints", 3) == VERSION
    assert registry.asked == ["joints:3"]


async def test_a_version_that_does_not_exist_leaves_no_note(tmp_path: Path, cache: ModelCache) -> None:
    with pytest.raises(MeshError) as caught:
        await cache.version("joints", 9)
    assert caught.value.reason is Reason.VERSION_NOT_FOUND
    assert files_in(tmp_path) == []


async def test_a_name_that_was_forgotten_stands_for_nothing(tmp_path: Path, cache: ModelCache) -> None:
    await cache.remember(VERSION, "joints@_previous")
    await cache.forget("joints@_previous")
    await cache.forget("joints@never")
    assert await cache.recall("joints@_previous") is None
    assert files_in(tmp_path) == []


async def test_what_is_not_here_whole_is_missing(tmp_path: Path, cache: ModelCache) -> None:
    assert await cache.missing(VERSION, [HEAD, MANIFEST]) == [HEAD, MANIFEST]
    await cache.part(VERSION, HEAD)
    assert await cache.missing(VERSION, [HEAD, MANIFEST]) == [MANIFEST]
    (tmp_path / "parts" / VERSION.artifact(HEAD).sha256).write_bytes(HEAD_BYTES[:-1])
    assert await cache.missing(VERSION, [HEAD]) == [HEAD]


async def test_what_a_name_stood_for_is_recalled_whole(tmp_path: Path, registry: OneVersion) -> None:
    await cache_in(tmp_path, registry).remember(VERSION, "joints@production")
    again = cache_in(tmp_path, registry)
    assert await again.recall("joints@production") == VERSION
    assert await again.recall("joints@tested") is None
    assert await again.recall("others@production") is None
    await again.remember(replace(VERSION, version=4), "joints@production")
    recalled = await again.recall("joints@production")
    assert recalled is not None
    assert recalled.version == 4


def _note(**changes: Any) -> bytes:
    artifacts = {name: {"name": name, "sha256": ref.sha256, "size_bytes": 1} for name, ref in VERSION.artifacts.items()}
    values = {
        "model": "joints",
        "version": 3,
        "parent": 2,
        "artifacts": artifacts,
        "created_by": "",
        "description": "",
        "aliases": [],
        "create_time": "2025-03-01T12:30:05+00:00",
    }
    return json.dumps({name: value for name, value in (values | changes).items() if value != "absent"}).encode()


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        bytes(200),
        _note()[:-10],
        b"\xff\xfe\xfd",
        b"[]",
        b"null",
        b"3",
        b"{}",
        _note(artifacts=[]),
        _note(artifacts=None),
        _note(artifacts={HEAD: {"name": HEAD}}),
        _note(artifacts={HEAD: 7}),
        _note(artifacts={HEAD: {"name": HEAD, "sha256": "../../elsewhere", "size_bytes": 1}}),
        _note(artifacts={HEAD: {"name": MANIFEST, "sha256": "a" * 64, "size_bytes": 1}}),
        _note(artifacts={"../x": {"name": "../x", "sha256": "a" * 64, "size_bytes": 1}}),
        _note(aliases=None),
        _note(create_time="yesterday"),
        _note(create_time=5),
        _note(version="absent"),
        _note(colour="blue"),
        _note(lineage={}),
        _note(lineage="{}"),
        _note(signatures=["%"]),
        _note(signatures=[7]),
        _note(signatures=3),
        _note(holders=None),
    ],
)
async def test_a_damaged_note_is_like_none(tmp_path: Path, cache: ModelCache, damaged: bytes) -> None:
    await cache.remember(VERSION, "joints@3")
    (file,) = (path for path in tmp_path.rglob("*.json"))
    file.write_bytes(damaged)
    assert await cache.recall("joints@3") is None
    assert await cache.version("joints", 3) == VERSION
    assert await cache.recall("joints@3") == VERSION


async def test_a_note_of_another_model_or_number_is_none(cache: ModelCache, registry: OneVersion) -> None:
    other_model, other_number = replace(VERSION, model="backbone"), replace(VERSION, version=2)
    for name, wrong in (
        ("joints@production", other_model),
        ("joints@3", other_model),
        ("joints@3", other_number),
    ):
        await cache.remember(wrong, name)
        assert await cache.recall(name) is None
    assert await cache.version("joints", 3) == VERSION
    assert registry.asked == ["joints:3"]
    await cache.remember(other_number, "joints@production")
    assert await cache.recall("joints@production") == other_number


def test_the_note_used_for_damage_is_a_good_one_when_left_alone(tmp_path: Path, cache: ModelCache) -> None:
    asyncio.run(cache.remember(VERSION, "joints@3"))
    (file,) = (path for path in tmp_path.rglob("*.json"))
    file.write_bytes(_note())
    recalled = asyncio.run(cache.recall("joints@3"))
    assert recalled is not None
    assert recalled.create_time == datetime(2025, 3, 1, 12, 30, 5, tzinfo=UTC)
    # It is one that an earlier release wrote, too: unsigned, and of unknown origin.
    assert (recalled.lineage, recalled.signatures, recalled.holders) == (Lineage(), (), ())


@pytest.mark.parametrize(
    "name",
    ["..@production", "../../etc@x", "/etc/passwd@x", "a\0b@x", "joints@../../x", "joints@..", ".hidden@x", "Ä B@C:D"],
)
async def test_no_name_leads_out_of_the_folder(tmp_path: Path, registry: OneVersion, name: str) -> None:
    folder = tmp_path / "deep" / "cache"
    cache = cache_in(folder, registry)
    version = replace(VERSION, model=name.partition("@")[0])
    await cache.remember(version, name)
    assert await cache.recall(name) == version
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file.parent.parent == folder / "versions"
    assert not file.parent.name.startswith(".")


async def test_a_name_too_long_for_the_disk_is_unknown(cache: ModelCache) -> None:
    assert await cache.recall(f"{'x' * 5000}@production") is None
