"""The cache of a node when the disk is full, and what it drops to stay within its bounds."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from splitmesh.client.cache import UNFINISHED_S, ModelCache
from splitmesh.errors import MeshError, Reason
from splitmesh.model.manifest import HEAD, MANIFEST
from tests.support.cached import (
    HEAD_BYTES,
    SIZE,
    VERSION,
    ManyVersions,
    OneVersion,
    cache_in,
    content_of,
    files_in,
    numbered,
)


@pytest.fixture
def registry() -> OneVersion:
    return OneVersion()


@pytest.fixture
def cache(tmp_path: Path, registry: OneVersion) -> ModelCache:
    return cache_in(tmp_path, registry)


def _full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("function", ["os.fsync", "os.replace", "tempfile.mkstemp", "pathlib.Path.mkdir"])
async def test_a_note_that_finds_no_room_says_so_and_leaves_nothing_behind(
    tmp_path: Path, cache: ModelCache, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    monkeypatch.setattr(function, _full)
    with pytest.raises(MeshError) as caught:
        await cache.remember(VERSION, "joints@production")
    assert caught.value.reason is Reason.STORAGE_FULL
    assert "No space left" in caught.value.message
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("function", ["os.fsync", "os.write", "os.replace", "pathlib.Path.mkdir"])
async def test_a_part_that_finds_no_room_says_so_and_comes_when_there_is_some(
    tmp_path: Path, cache: ModelCache, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(function, _full)
        with pytest.raises(MeshError) as caught:
            await cache.part(VERSION, HEAD)
        assert caught.value.reason is Reason.STORAGE_FULL
        assert "No space left" in caught.value.message
        assert not list(tmp_path.glob("parts/[!.]*"))
    assert await cache.part(VERSION, HEAD) == HEAD_BYTES
    assert files_in(tmp_path) == [f"parts/{VERSION.artifacts[HEAD].sha256}"]


async def test_a_note_that_cannot_be_replaced_stays(
    tmp_path: Path, cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cache.remember(VERSION, "joints@production")

    monkeypatch.setattr("os.fsync", _full)
    with pytest.raises(MeshError):
        await cache.remember(replace(VERSION, version=4), "joints@production")
    assert await cache.recall("joints@production") == VERSION
    assert len(files_in(tmp_path)) == 1


def _parts(folder: Path) -> list[int]:
    return sorted(path.read_bytes()[0] for path in (folder / "parts").iterdir())


async def _use(cache: ModelCache, folder: Path, *versions: int) -> None:
    for version in versions:
        await cache.part(numbered(version), HEAD)
        # Clocks of file systems are coarse: everything else is made older.
        for path in (folder / "parts").iterdir():
            if path.read_bytes()[0] != version:
                status = path.stat()
                os.utime(path, (status.st_atime - 10, status.st_mtime - 10))


async def test_above_the_cap_the_part_unused_for_longest_goes(tmp_path: Path) -> None:
    cache = cache_in(tmp_path, ManyVersions(), max_bytes=3 * SIZE)
    await _use(cache, tmp_path, 1, 2, 3)
    assert _parts(tmp_path) == [1, 2, 3]
    await _use(cache, tmp_path, 1, 4)
    assert _parts(tmp_path) == [1, 3, 4]
    await _use(cache, tmp_path, 5, 6, 7, 8)
    assert _parts(tmp_path) == [6, 7, 8]


async def test_the_parts_of_an_aliased_version_stay_until_the_alias_moves(tmp_path: Path) -> None:
    cache = cache_in(tmp_path, ManyVersions(), max_bytes=2 * SIZE)
    await _use(cache, tmp_path, 1)
    await cache.remember(numbered(1), "joints@production")
    await _use(cache, tmp_path, 2, 3, 4)
    assert _parts(tmp_path) == [1, 4]
    await cache.remember(numbered(4), "joints@production")
    await _use(cache, tmp_path, 5)
    assert _parts(tmp_path) == [4, 5]


async def test_what_an_alias_stood_for_is_what_a_new_part_is_compared_with(tmp_path: Path) -> None:
    registry = ManyVersions()
    cache = cache_in(tmp_path, registry)
    await _use(cache, tmp_path, 1, 2)
    await cache.version("joints", 2)
    await cache.remember(numbered(1), "joints@production")
    await cache.remember(replace(numbered(9), artifacts={}), "joints@canary")
    await cache.remember(numbered(8), "joints@not-here")
    await cache.remember(numbered(2), "others@production")
    await _use(cache, tmp_path, 3)
    assert registry.bases == [None, None, tmp_path / "parts" / numbered(1).artifacts[HEAD].sha256]


async def test_a_note_by_number_keeps_no_part(tmp_path: Path) -> None:
    cache = cache_in(tmp_path, ManyVersions(), max_bytes=SIZE)
    for version in (1, 2):
        await cache.part(await cache.version("joints", version), HEAD)
    assert _parts(tmp_path) == [2]


async def test_the_version_in_use_stays_whole_above_the_cap(
    tmp_path: Path, registry: OneVersion, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cache_in(tmp_path, registry, max_bytes=1)
    await cache.part(VERSION, MANIFEST)
    await cache.part(VERSION, HEAD)
    assert len(files_in(tmp_path)) == 2
    assert "above its limit" in caplog.text


async def test_a_part_that_cannot_be_removed_costs_no_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cache_in(tmp_path, ManyVersions(), max_bytes=SIZE)
    await _use(cache, tmp_path, 1)

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "unlink", refused)
    assert await cache.part(numbered(2), HEAD) == content_of(2)
    assert "cannot remove" in caplog.text


async def test_versions_are_remembered_by_number_up_to_a_count_and_by_alias_always(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitmesh.client.cache.MAX_NUMBERED", 2)
    cache = cache_in(tmp_path, ManyVersions())
    await cache.remember(numbered(1), "joints@production")
    for age, version in enumerate((1, 2, 3)):
        await cache.version("joints", version)
        path = tmp_path / "versions" / "joints" / f"{version}.json"
        os.utime(path, (1000 + age, 1000 + age))
    assert sorted(path.stem for path in (tmp_path / "versions" / "joints").iterdir()) == ["2", "3", "production"]


async def test_what_an_earlier_process_left_unfinished_goes_after_a_week(tmp_path: Path) -> None:
    cache = cache_in(tmp_path, ManyVersions(), now=lambda: 10 * UNFINISHED_S)
    await _use(cache, tmp_path, 1)
    left = {name: tmp_path / "parts" / name for name in (".a.a.part", ".a.a.synced", ".b.b.part")}
    for name, path in left.items():
        path.write_bytes(b"unfinished")
        used = 9 * UNFINISHED_S + (1 if name == ".b.b.part" else -1)
        os.utime(path, (used, used))
    await _use(cache, tmp_path, 2)
    assert [name for name, path in left.items() if path.exists()] == [".b.b.part"]
