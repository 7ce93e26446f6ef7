"""The cache of a node: verified reads, damage mended from the registry, notes that survive it, and a disk that is full."""

import asyncio
import errno
import hashlib
import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from splitmesh.client.cache import ModelCache
from splitmesh.client.registry import ArtifactRef, RegistryClient, VersionInfo
from splitmesh.errors import MeshError, Reason
from splitmesh.model.manifest import HEAD, MANIFEST
from tests.integration.small_model import small_manifest

HEAD_BYTES = b"the head of version 3"
MANIFEST_BYTES = small_manifest().to_json().encode()


def _ref(name: str, content: bytes) -> ArtifactRef:
    return ArtifactRef(name, hashlib.sha256(content).hexdigest(), len(content))


VERSION = VersionInfo(
    model="joints",
    version=3,
    parent=2,
    artifacts={HEAD: _ref(HEAD, HEAD_BYTES), MANIFEST: _ref(MANIFEST, MANIFEST_BYTES)},
    created_by="compress",
    description="ünïcode",
    aliases=("production", "tested"),
    create_time=datetime(2025, 3, 1, 12, 30, 5, 250_000, tzinfo=UTC),
)


class _Registry:
    """Has one version; counts what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.reachable = True

    async def pull_artifact(self, ref: ArtifactRef) -> bytes:
        await self._ask(ref.name)
        return {HEAD: HEAD_BYTES, MANIFEST: MANIFEST_BYTES}[ref.name]

    async def get_version(self, model: str, version: int) -> VersionInfo:
        await self._ask(f"{model}:{version}")
        if (model, version) != (VERSION.model, VERSION.version):
            raise MeshError(Reason.VERSION_NOT_FOUND, f"{model} {version}")
        return VERSION

    async def _ask(self, what: str) -> None:
        self.asked.append(what)
        if not self.reachable:
            raise MeshError(Reason.SERVICE_UNAVAILABLE, "the cable is cut")


@pytest.fixture
def registry() -> _Registry:
    return _Registry()


def _cache(folder: Path, registry: Any, **options: int) -> ModelCache:
    return ModelCache(folder, cast(RegistryClient, registry), **options)


@pytest.fixture
def cache(tmp_path: Path, registry: _Registry) -> ModelCache:
    return _cache(tmp_path, registry)


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


async def test_a_part_is_pulled_once_and_read_from_disk_from_then_on(tmp_path: Path, registry: _Registry) -> None:
    assert await _cache(tmp_path, registry).part(VERSION, HEAD) == HEAD_BYTES
    registry.reachable = False
    assert await _cache(tmp_path, registry).part(VERSION, HEAD) == HEAD_BYTES
    assert registry.asked == [HEAD]
    assert _files(tmp_path) == [f"parts/{VERSION.artifacts[HEAD].sha256}"]


async def test_the_manifest_comes_as_a_value(cache: ModelCache) -> None:
    assert await cache.manifest(VERSION) == small_manifest()


async def test_two_versions_with_the_same_part_keep_it_once(
    tmp_path: Path, cache: ModelCache, registry: _Registry
) -> None:
    await asyncio.gather(cache.part(VERSION, HEAD), cache.part(replace(VERSION, version=4), HEAD))
    assert await cache.part(replace(VERSION, version=5), HEAD) == HEAD_BYTES
    assert set(registry.asked) == {HEAD}
    assert len(_files(tmp_path)) == 1


async def test_a_part_the_version_does_not_have_is_not_asked_for(cache: ModelCache, registry: _Registry) -> None:
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
    tmp_path: Path, cache: ModelCache, registry: _Registry, damaged: bytes
) -> None:
    await cache.part(VERSION, HEAD)
    file = tmp_path / "parts" / VERSION.artifacts[HEAD].sha256
    file.write_bytes(damaged)
    assert await cache.part(VERSION, HEAD) == HEAD_BYTES
    assert file.read_bytes() == HEAD_BYTES
    assert registry.asked == [HEAD, HEAD]


async def test_a_damaged_part_is_never_handed_out_while_the_registry_is_away(
    tmp_path: Path, cache: ModelCache, registry: _Registry
) -> None:
    await cache.part(VERSION, HEAD)
    (tmp_path / "parts" / VERSION.artifacts[HEAD].sha256).write_bytes(b"other")
    registry.reachable = False
    with pytest.raises(MeshError) as caught:
        await cache.part(VERSION, HEAD)
    assert caught.value.reason is Reason.SERVICE_UNAVAILABLE


async def test_a_file_the_disk_cannot_give_back_is_pulled_again(
    tmp_path: Path, cache: ModelCache, registry: _Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cache.part(VERSION, HEAD)

    def broken(_: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "read_bytes", broken)
    assert await cache.part(VERSION, HEAD) == HEAD_BYTES
    assert registry.asked == [HEAD, HEAD]


async def test_a_version_is_known_by_number_after_the_first_question(tmp_path: Path, registry: _Registry) -> None:
    assert await _cache(tmp_path, registry).version("joints", 3) == VERSION
    registry.reachable = False
    assert await _cache(tmp_path, registry).version("joints", 3) == VERSION
    assert registry.asked == ["joints:3"]


async def test_a_version_that_does_not_exist_leaves_no_note(tmp_path: Path, cache: ModelCache) -> None:
    with pytest.raises(MeshError) as caught:
        await cache.version("joints", 9)
    assert caught.value.reason is Reason.VERSION_NOT_FOUND
    assert _files(tmp_path) == []


async def test_what_a_name_stood_for_is_recalled_whole(tmp_path: Path, registry: _Registry) -> None:
    await _cache(tmp_path, registry).remember(VERSION, "joints@production")
    again = _cache(tmp_path, registry)
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
        _note(aliases=None),
        _note(create_time="yesterday"),
        _note(create_time=5),
        _note(version="absent"),
        _note(colour="blue"),
    ],
)
async def test_a_damaged_note_is_like_none(tmp_path: Path, cache: ModelCache, damaged: bytes) -> None:
    await cache.remember(VERSION, "joints@3")
    (file,) = (path for path in tmp_path.rglob("*.json"))
    file.write_bytes(damaged)
    assert await cache.recall("joints@3") is None
    assert await cache.version("joints", 3) == VERSION
    assert await cache.recall("joints@3") == VERSION


def test_the_note_used_for_damage_is_a_good_one_when_left_alone(tmp_path: Path, cache: ModelCache) -> None:
    asyncio.run(cache.remember(VERSION, "joints@3"))
    (file,) = (path for path in tmp_path.rglob("*.json"))
    file.write_bytes(_note())
    recalled = asyncio.run(cache.recall("joints@3"))
    assert recalled is not None
    assert recalled.create_time == datetime(2025, 3, 1, 12, 30, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    "name",
    ["..@production", "../../etc@x", "/etc/passwd@x", "a\0b@x", "joints@../../x", "joints@..", ".hidden@x", "Ä B@C:D"],
)
async def test_no_name_leads_out_of_the_folder(tmp_path: Path, registry: _Registry, name: str) -> None:
    folder = tmp_path / "deep" / "cache"
    cache = _cache(folder, registry)
    await cache.remember(VERSION, name)
    assert await cache.recall(name) == VERSION
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file.parent.parent == folder / "versions"
    assert not file.parent.name.startswith(".")


async def test_a_name_too_long_for_the_disk_is_unknown(cache: ModelCache) -> None:
    assert await cache.recall(f"{'x' * 5000}@production") is None


@pytest.mark.parametrize("function", ["os.fsync", "os.replace", "tempfile.mkstemp", "pathlib.Path.mkdir"])
async def test_a_full_disk_is_named_and_leaves_nothing_behind(
    tmp_path: Path, cache: ModelCache, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(function, full)
    with pytest.raises(MeshError) as caught:
        await cache.part(VERSION, HEAD)
    assert caught.value.reason is Reason.STORAGE_FULL
    assert "No space left" in caught.value.message
    with pytest.raises(MeshError) as caught:
        await cache.remember(VERSION, "joints@production")
    assert caught.value.reason is Reason.STORAGE_FULL
    assert _files(tmp_path) == []


async def test_a_note_that_cannot_be_replaced_stays(
    tmp_path: Path, cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cache.remember(VERSION, "joints@production")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(MeshError):
        await cache.remember(replace(VERSION, version=4), "joints@production")
    assert await cache.recall("joints@production") == VERSION
    assert len(_files(tmp_path)) == 1


SIZE = 100


def _numbered(version: int) -> VersionInfo:
    """With one part of 100 bytes that no other version has."""
    return replace(VERSION, version=version, artifacts={HEAD: _ref(HEAD, _content(version))})


def _content(version: int) -> bytes:
    return bytes([version]) * SIZE


class _ManyVersions:
    """A registry of all the numbered versions."""

    async def pull_artifact(self, ref: ArtifactRef) -> bytes:
        return next(content for content in map(_content, range(256)) if _ref(HEAD, content) == ref)

    async def get_version(self, model: str, version: int) -> VersionInfo:
        return _numbered(version)


def _parts(folder: Path) -> list[int]:
    return sorted(path.read_bytes()[0] for path in (folder / "parts").iterdir())


async def _use(cache: ModelCache, folder: Path, *versions: int) -> None:
    for version in versions:
        await cache.part(_numbered(version), HEAD)
        # Clocks of file systems are coarse: everything else is made older.
        for path in (folder / "parts").iterdir():
            if path.read_bytes()[0] != version:
                status = path.stat()
                os.utime(path, (status.st_atime - 10, status.st_mtime - 10))


async def test_above_the_cap_the_part_unused_for_longest_goes(tmp_path: Path) -> None:
    cache = _cache(tmp_path, _ManyVersions(), max_bytes=3 * SIZE)
    await _use(cache, tmp_path, 1, 2, 3)
    assert _parts(tmp_path) == [1, 2, 3]
    await _use(cache, tmp_path, 1, 4)
    assert _parts(tmp_path) == [1, 3, 4]
    await _use(cache, tmp_path, 5, 6, 7, 8)
    assert _parts(tmp_path) == [6, 7, 8]


async def test_the_parts_of_an_aliased_version_stay_until_the_alias_moves(tmp_path: Path) -> None:
    cache = _cache(tmp_path, _ManyVersions(), max_bytes=2 * SIZE)
    await _use(cache, tmp_path, 1)
    await cache.remember(_numbered(1), "joints@production")
    await _use(cache, tmp_path, 2, 3, 4)
    assert _parts(tmp_path) == [1, 4]
    await cache.remember(_numbered(4), "joints@production")
    await _use(cache, tmp_path, 5)
    assert _parts(tmp_path) == [4, 5]


async def test_a_note_by_number_keeps_no_part(tmp_path: Path) -> None:
    cache = _cache(tmp_path, _ManyVersions(), max_bytes=SIZE)
    for version in (1, 2):
        await cache.part(await cache.version("joints", version), HEAD)
    assert _parts(tmp_path) == [2]


async def test_the_version_in_use_stays_whole_above_the_cap(
    tmp_path: Path, registry: _Registry, caplog: pytest.LogCaptureFixture
) -> None:
    cache = _cache(tmp_path, registry, max_bytes=1)
    await cache.part(VERSION, MANIFEST)
    await cache.part(VERSION, HEAD)
    assert len(_files(tmp_path)) == 2
    assert "above its limit" in caplog.text


async def test_a_part_that_cannot_be_removed_costs_no_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = _cache(tmp_path, _ManyVersions(), max_bytes=SIZE)
    await _use(cache, tmp_path, 1)

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "unlink", refused)
    assert await cache.part(_numbered(2), HEAD) == _content(2)
    assert "cannot remove" in caplog.text


async def test_versions_are_remembered_by_number_up_to_a_count_and_by_alias_always(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitmesh.client.cache.MAX_NUMBERED", 2)
    cache = _cache(tmp_path, _ManyVersions())
    await cache.remember(_numbered(1), "joints@production")
    for age, version in enumerate((1, 2, 3)):
        await cache.version("joints", version)
        path = tmp_path / "versions" / "joints" / f"{version}.json"
        os.utime(path, (1000 + age, 1000 + age))
    assert sorted(path.stem for path in (tmp_path / "versions" / "joints").iterdir()) == ["2", "3", "production"]
