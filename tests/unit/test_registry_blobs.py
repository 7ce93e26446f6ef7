"""The content-addressed folder: whole or invisible, resumable at any byte, bounded, and sane on a full disk."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.registry.blobs import BlobFolder, BlobLimits, Progress
from splitmesh.errors import MeshError, Reason
from tests.integration.registry_world import digest, small_disk

LIMITS = {
    "max_artifact_bytes": 10_000_000,
    "max_store_bytes": 0,
    "min_free_bytes": 0,
    "upload_wait_s": 10.0,
    "stale_upload_s": 100.0,
    "sweep_every_s": 3600.0,
}
CONTENT = bytes(range(256)) * 40
SHA = digest(CONTENT)


class Folder:
    """A started blob folder with the clock in the test's hand."""

    def __init__(self, path: Path, **limits: float) -> None:
        self.path = path
        self.ahead_s = 0.0
        self.blobs = BlobFolder(
            path,
            BlobLimits(**{**LIMITS, **limits}),  # type: ignore[arg-type]
            now=lambda: os.stat(path).st_mtime + self.ahead_s,
        )

    async def __aenter__(self) -> Folder:
        await self.blobs.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.blobs.stop()

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_file())

    async def write(self, content: bytes, *, upto: int | None = None, sha256: str = "") -> None:
        """Appends from where the upload stands; finishes it unless ``upto`` stops it earlier."""
        async with self.blobs.upload(sha256 or digest(content), len(content)) as upload:
            assert upload is not None
            await upload.append(content[upload.offset : upto])
            if upto is None:
                await upload.finish()


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Folder]:
    async with Folder(tmp_path) as made:
        yield made


async def test_a_finished_upload_is_visible_under_its_digest_and_nothing_else_is_left(folder: Folder) -> None:
    await folder.write(CONTENT)
    assert folder.files() == [f"blobs/{SHA[:2]}/{SHA}"]
    assert await folder.blobs.read(SHA, 0, 10**6) == CONTENT
    assert await folder.blobs.read(SHA, 255, 2) == b"\xff\x00"
    assert await folder.blobs.progress(SHA) == Progress(len(CONTENT), True)


@pytest.mark.parametrize("cut", [1, 4095, 4096, 4097, len(CONTENT) - 1])
async def test_an_upload_goes_on_at_any_byte_also_after_a_restart(tmp_path: Path, cut: int) -> None:
    async with Folder(tmp_path) as first:
        await first.write(CONTENT, upto=cut)
        assert first.files() == [f"uploads/{SHA}.part"]
    async with Folder(tmp_path) as second:
        assert await second.blobs.progress(SHA) == Progress(cut, False)
        await second.write(CONTENT)
        assert second.files() == [f"blobs/{SHA[:2]}/{SHA}"]


async def test_an_upload_that_was_complete_but_not_verified_is_finished_without_data(tmp_path: Path) -> None:
    async with Folder(tmp_path) as first:
        await first.write(CONTENT, upto=len(CONTENT))
    async with Folder(tmp_path) as second, second.blobs.upload(SHA, len(CONTENT)) as upload:
        assert upload is not None
        assert upload.offset == len(CONTENT)
        await upload.finish()
    assert second.files() == [f"blobs/{SHA[:2]}/{SHA}"]


async def test_content_of_another_digest_is_discarded(folder: Folder) -> None:
    with pytest.raises(MeshError) as error:
        await folder.write(CONTENT, sha256="0" * 64)
    assert error.value.reason is Reason.DIGEST_MISMATCH
    assert folder.files() == []
    assert await folder.blobs.progress("0" * 64) == Progress(0, False)


async def test_a_whole_artefact_is_not_written_again(folder: Folder) -> None:
    await folder.write(CONTENT)
    async with folder.blobs.upload(SHA, len(CONTENT)) as upload:
        assert upload is None


async def test_more_than_was_announced_is_refused_and_the_rest_kept(folder: Folder) -> None:
    async with folder.blobs.upload(SHA, 100) as upload:
        assert upload is not None
        await upload.append(CONTENT[:60])
        with pytest.raises(MeshError) as error:
            await upload.append(CONTENT[:41])
    assert error.value.reason is Reason.PROTOCOL_VIOLATION
    assert (await folder.blobs.progress(SHA)).offset == 60


async def test_a_part_longer_than_the_content_is_started_anew(folder: Folder) -> None:
    async with folder.blobs.upload(SHA, 10**6) as upload:
        assert upload is not None
        await upload.append(b"x" * (len(CONTENT) + 1))
    await folder.write(CONTENT)
    assert await folder.blobs.read(SHA, 0, 10**6) == CONTENT


@pytest.mark.parametrize(
    "name", ["", "a" * 63, "A" * 64, "g" * 64, "../" + "a" * 61, "a" * 64 + "\n", "a" * 32 + "\0" * 32]
)
async def test_nothing_but_a_digest_names_a_content(folder: Folder, name: str) -> None:
    with pytest.raises(MeshError) as read:
        await folder.blobs.size_of(name)
    with pytest.raises(MeshError) as write:
        async with folder.blobs.upload(name, 1):
            pass
    assert read.value.reason is write.value.reason is Reason.FIELD_INVALID
    assert folder.files() == []


async def test_a_link_in_place_of_a_part_is_not_followed(folder: Folder, tmp_path: Path) -> None:
    target = tmp_path / "victim"
    target.write_bytes(b"precious")
    (tmp_path / "uploads" / f"{SHA}.part").symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        await folder.write(CONTENT)
    assert target.read_bytes() == b"precious"


async def test_a_second_upload_of_the_same_content_waits_and_finds_it_whole(folder: Folder) -> None:
    async with folder.blobs.upload(SHA, len(CONTENT)) as first:
        assert first is not None
        second = asyncio.create_task(_enter(folder, SHA))
        other = digest(b"other")
        assert await _enter(folder, other) is not None  # other contents do not wait
        assert folder.files() == [f"uploads/{SHA}.part"]  # and where nothing came nothing stays
        await first.append(CONTENT)
        assert not second.done()
        await first.finish()
    assert await second is None


async def _enter(folder: Folder, sha256: str) -> object:
    async with folder.blobs.upload(sha256, len(CONTENT)) as upload:
        return upload


async def test_a_second_upload_that_waits_too_long_is_told_to_come_back(tmp_path: Path) -> None:
    async with Folder(tmp_path, upload_wait_s=0.05) as folder, folder.blobs.upload(SHA, len(CONTENT)):
        with pytest.raises(MeshError) as error:
            await _enter(folder, SHA)
    assert error.value.reason is Reason.QUEUE_FULL
    assert error.value.retry_after_s is not None


async def test_a_cancelled_upload_keeps_its_bytes(folder: Folder) -> None:
    written = asyncio.Event()

    async def upload_and_hang() -> None:
        async with folder.blobs.upload(SHA, len(CONTENT)) as upload:
            assert upload is not None
            await upload.append(CONTENT[:777])
            written.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(upload_and_hang())
    async with asyncio.timeout(10):
        await written.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await folder.blobs.progress(SHA) == Progress(777, False)
    await folder.write(CONTENT)


async def test_an_artefact_above_the_size_limit_is_refused_before_anything_is_written(folder: Folder) -> None:
    with pytest.raises(MeshError) as error:
        async with folder.blobs.upload(SHA, 10_000_001):
            pass
    assert error.value.reason is Reason.FRAME_TOO_LARGE
    assert folder.files() == []


async def test_the_quota_counts_whole_unfinished_and_announced_bytes_also_after_a_restart(tmp_path: Path) -> None:
    small, sha = b"s" * 1000, digest(b"s" * 1000)
    async with Folder(tmp_path) as before:
        await before.write(CONTENT)
        await before.write(small, upto=400)
    async with Folder(tmp_path, max_store_bytes=len(CONTENT) + 1500) as folder:
        for size in (1101, 5000):
            with pytest.raises(MeshError) as error:
                async with folder.blobs.upload("1" * 64, size):
                    pass
            assert error.value.reason is Reason.STORAGE_FULL
        async with folder.blobs.upload(sha, 1000) as resumed:  # its 400 bytes are not counted twice
            assert resumed is not None
            with pytest.raises(MeshError) as error:
                async with folder.blobs.upload("2" * 64, 501):  # 600 are promised to the other upload
                    pass
            assert error.value.reason is Reason.STORAGE_FULL
            async with folder.blobs.upload("2" * 64, 500):
                pass
        async with folder.blobs.upload("2" * 64, 1100):  # the promise is over, 400 bytes are there
            pass


async def test_some_of_the_disk_stays_free(tmp_path: Path) -> None:
    async with Folder(tmp_path, min_free_bytes=2**62) as folder:
        with pytest.raises(MeshError) as error:
            await folder.write(CONTENT)
    assert error.value.reason is Reason.STORAGE_FULL
    assert folder.files() == []


async def test_a_really_full_disk_keeps_what_fitted_and_goes_on_later(tmp_path: Path) -> None:
    content = os.urandom(600_000)
    with small_disk(tmp_path / "disk", 1_000_000) as path:
        async with Folder(path) as folder:
            ballast = path / "ballast"
            async with folder.blobs.upload(digest(content), len(content)) as upload:
                assert upload is not None
                await upload.append(content[:100_000])
                ballast.write_bytes(bytes(700_000))
                with pytest.raises(MeshError) as error:
                    await upload.append(content[100_000:])
            assert error.value.reason is Reason.STORAGE_FULL
            kept = (await folder.blobs.progress(digest(content))).offset
            assert 100_000 <= kept < len(content)
            assert not list((path / "blobs").rglob("*"))
            ballast.unlink()
            await folder.write(content)
            assert await folder.blobs.read(digest(content), 0, 10**6) == content


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_a_failed_sync_discards_the_part_because_nobody_knows_what_is_on_disk(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    await folder.write(CONTENT, upto=100)

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(MeshError) as error:
            await folder.write(CONTENT)
    assert error.value.reason is Reason.STORAGE_FULL
    assert folder.files() == []
    await folder.write(CONTENT)
    assert folder.files() == [f"blobs/{SHA[:2]}/{SHA}"]


async def test_stale_uploads_are_removed_and_fresh_ones_and_those_in_progress_stay(folder: Folder) -> None:
    await folder.write(CONTENT, upto=100)
    assert await folder.blobs.sweep() == 0
    folder.ahead_s = 1000.0
    async with folder.blobs.upload("1" * 64, 10) as upload:
        assert upload is not None
        await upload.append(b"1")
        assert await folder.blobs.sweep() == 1
        assert folder.files() == [f"uploads/{'1' * 64}.part"]
    assert await folder.blobs.sweep() == 1
    assert folder.files() == []


async def test_stale_uploads_are_removed_at_start(tmp_path: Path) -> None:
    async with Folder(tmp_path) as first:
        await first.write(CONTENT, upto=100)
    second = Folder(tmp_path)
    second.ahead_s = 1000.0
    async with second:
        assert second.files() == []


async def test_nothing_of_unknown_content_is_read(folder: Folder) -> None:
    await folder.write(CONTENT, upto=100)
    for sha in (SHA, "0" * 64):
        with pytest.raises(MeshError) as error:
            await folder.blobs.size_of(sha)
        assert error.value.reason is Reason.ARTIFACT_NOT_FOUND
