"""What only a folder of this machine can suffer: full and failing disks, links, and how few syncs a batch takes."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.registry.content.ages import GRACE_S, Ages
from services.registry.content.port import Progress
from services.registry.content.staged import StagedStore
from splitmesh.errors import MeshError, Reason
from tests.integration.registry_world import small_disk
from tests.support.contents import FolderPlace, digest, write

CONTENT = bytes(range(256)) * 40
SHA = digest(CONTENT)


@pytest.fixture
def place(tmp_path: Path) -> FolderPlace:
    return FolderPlace(tmp_path)


@pytest.fixture
async def store(place: FolderPlace) -> AsyncIterator[StagedStore]:
    async with place.store() as made:
        yield made


async def test_contents_lie_in_folders_by_their_first_digits(place: FolderPlace, store: StagedStore) -> None:
    await write(store, CONTENT)
    await write(store, b"unfinished", upto=3)
    files = {str(path.relative_to(place.folder)) for path in place.folder.rglob("*") if path.is_file()}
    assert files == {f"blobs/{SHA[:2]}/{SHA}", f"uploads/{digest(b'unfinished')}.part"}


async def test_a_link_in_place_of_a_part_is_not_followed(store: StagedStore, tmp_path: Path) -> None:
    target = tmp_path / "victim"
    target.write_bytes(b"precious")
    (tmp_path / "uploads" / f"{SHA}.part").symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        await write(store, CONTENT)
    assert target.read_bytes() == b"precious"


async def test_a_really_full_disk_keeps_what_fitted_and_goes_on_later(tmp_path: Path) -> None:
    content = os.urandom(600_000)
    with small_disk(tmp_path / "disk", 1_000_000) as path:
        place = FolderPlace(path)
        async with place.store() as store:
            ballast = path / "ballast"
            async with store.upload(digest(content), len(content)) as upload:
                assert upload is not None
                await upload.append(content[:100_000])
                ballast.write_bytes(bytes(700_000))
                with pytest.raises(MeshError) as error:
                    await upload.append(content[100_000:])
            assert error.value.reason is Reason.STORAGE_FULL
            kept = (await store.progress(digest(content))).offset
            assert 100_000 <= kept < len(content)
            assert not place.whole()
            ballast.unlink()
            await write(store, content)
        assert place.whole() == {digest(content): content}


async def test_of_a_batch_on_a_really_full_disk_nothing_stays(tmp_path: Path) -> None:
    batch = [(digest(data), data) for data in (os.urandom(50_000) for _ in range(8))]
    with small_disk(tmp_path / "disk", 1_000_000) as path:
        place = FolderPlace(path)
        async with place.store() as store:
            ballast = path / "ballast"
            ballast.write_bytes(bytes(700_000))
            free = os.statvfs(path).f_bavail

            with pytest.MonkeyPatch.context() as patch:  # the space goes after it was looked at
                patch.setattr("services.registry.content.staging.Staging._require_free", _no_look)
                with pytest.raises(MeshError) as error:
                    await store.put(batch)
            assert error.value.reason is Reason.STORAGE_FULL
            assert not place.whole()
            assert not place.left_over() or place.left_over() == ["ballast"]
            assert os.statvfs(path).f_bavail >= free - 3  # the folders
            ballast.unlink()
            await store.put(batch)
        assert place.whole() == dict(batch)


async def test_uploads_at_the_same_time_leave_the_disk_as_much_as_one_does(tmp_path: Path) -> None:
    """What others still have to write is spoken for, and what they have written is not counted twice."""
    contents = [os.urandom(300_000) for _ in range(3)]
    with small_disk(tmp_path / "disk", 1_000_000) as path:
        place = FolderPlace(path)
        free = shutil.disk_usage(path).free
        async with place.store(min_free_bytes=free - 700_000) as store:
            async with store.upload(digest(contents[0]), 300_000) as first:
                assert first is not None
                async with store.upload(digest(contents[1]), 300_000) as second:
                    assert second is not None
                    await _require_full(store, contents[2])
                    await first.append(contents[0])
                    await _require_full(store, contents[2])
                    await second.append(contents[1][:200_000])
                    await store.put([(digest(b"s" * 20_000), b"s" * 20_000)])
            await _require_full(store, contents[2])
            async with store.upload(digest(contents[1]), 300_000) as second:
                assert second is not None
                assert second.offset == 200_000


async def _require_full(store: StagedStore, content: bytes) -> None:
    with pytest.raises(MeshError) as error:
        await write(store, content)
    assert error.value.reason is Reason.STORAGE_FULL


async def _no_look(*_: object) -> None:
    return None


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, Reason.STORAGE_FULL),
        (errno.EDQUOT, Reason.STORAGE_FULL),
        (errno.EFBIG, Reason.FRAME_TOO_LARGE),
        (errno.EROFS, Reason.SERVICE_UNAVAILABLE),
    ],
)
async def test_a_failed_sync_discards_the_part_because_nobody_knows_what_is_on_disk(
    place: FolderPlace, store: StagedStore, monkeypatch: pytest.MonkeyPatch, code: int, reason: Reason
) -> None:
    await write(store, CONTENT, upto=100)

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(MeshError) as error:
            await write(store, CONTENT)
    assert error.value.reason is reason
    assert not place.whole()
    assert not place.unfinished()
    await write(store, CONTENT)
    assert place.whole() == {SHA: CONTENT}


async def test_a_content_counts_as_there_only_once_its_name_is_durable(
    place: FolderPlace, store: StagedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a second sender would be told that it is there, and a power cut could take it."""
    plain, seen = os.fsync, []
    loop = asyncio.get_running_loop()

    def look(descriptor: int) -> None:
        if place.whole():
            there = asyncio.run_coroutine_threadsafe(store.missing([SHA]), loop).result(10)
            seen.append(there == [])
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    await write(store, CONTENT)
    assert seen
    assert not any(seen)
    assert await store.missing([SHA]) == []


async def test_a_large_batch_is_synced_file_by_file_after_all_are_written_and_folder_by_folder(
    store: StagedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = [(digest(data), data) for data in (bytes([number % 256, number // 256]) for number in range(256))]
    calls: list[str] = []
    plain_sync, plain_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        calls.append("file" if os.path.isfile(f"/proc/self/fd/{descriptor}") else "folder")
        plain_sync(descriptor)

    def replace(source: Path, target: Path) -> None:
        calls.append("rename")
        plain_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    await store.put(batch)
    folders = len({sha256[:2] for sha256, _ in batch})
    assert calls == ["file"] * 256 + ["folder"] + ["rename"] * 256 + ["folder"] * folders


async def test_a_damaged_file_is_kept_aside_for_people_to_look_at(place: FolderPlace, store: StagedStore) -> None:
    await write(store, CONTENT)
    place.damage(SHA, b"damaged")
    with pytest.raises(MeshError, match="damaged"):
        await store.doubt(SHA)
    assert (place.folder / "damaged" / SHA).read_bytes() == b"damaged"
    assert await store.progress(SHA) == Progress(0, False)


async def test_what_else_lies_in_the_folders_is_left_alone_and_disturbs_nothing(place: FolderPlace) -> None:
    blobs, uploads = place.folder / "blobs", place.folder / "uploads"
    async with place.store() as store:
        await write(store, CONTENT)
    for folder in (
        "blobs/lost+found",
        f"blobs/{SHA[:2]}/{'0' * 64}",
        "blobs/zz",
        f"uploads/{'1' * 64}.part",
        "incoming/x",
    ):
        (place.folder / folder).mkdir()
    strays = [blobs / ".DS_Store", blobs / "x", blobs / "00", blobs / SHA[:2] / "notes.txt", uploads / "mine.part"]
    for stray in [*strays, blobs / "zz" / SHA]:
        stray.write_text("by hand")
    place.ahead_s = 1e6
    async with place.store(max_store_bytes=len(CONTENT)) as store:  # they count nothing
        assert [kept.sha256 async for kept in store.listing()] == [SHA]
        assert await store.missing([digest(b"?"), "0" * 64]) == [digest(b"?"), "0" * 64]
        assert await store.remove(SHA) == len(CONTENT)
        assert await store.sweep() == 0
    assert all(stray.exists() for stray in strays)


async def test_what_a_killed_process_left_of_small_files_is_removed_at_the_start(place: FolderPlace) -> None:
    (place.folder / ".tmp-mark").write_bytes(b"half")
    async with place.store():
        assert not list(place.folder.glob(".tmp-*"))


def test_what_came_before_the_start_is_new_for_an_hour_of_it_and_then_old() -> None:
    moment = 100.0
    ages = Ages(lambda: moment, remembered=1)
    ages.touch("a")
    moment += GRACE_S - 1.0
    assert [ages.age_s(name) for name in ("a", "before")] == [3599.0, 3599.0]
    moment += 1.0
    assert [ages.age_s(name) for name in ("a", "before")] == [3600.0, math.inf]
    ages.touch("b")  # and a is forgotten, so that nobody can say any more what came before
    assert [ages.age_s(name) for name in ("a", "before", "b")] == [3600.0, 3600.0, 0.0]


def test_forgotten_contents_are_never_older_than_they_are() -> None:
    moment = 100.0
    ages = Ages(lambda: moment, remembered=2)
    for name in "abc":
        moment += 10.0
        ages.touch(name)
    moment = 200.0
    assert [ages.age_s(name) for name in "abc"] == [90.0, 80.0, 70.0]  # a: forgotten, the floor is its own time
    assert ages.age_s("unknown") == 90.0
    assert [ages.known_age_s(name) for name in "ac"] == [None, 70.0]
