"""Uploads, on every content store: whole or invisible, resumable at any byte, bounded, one caller at a time.

The bucket is on moto's server, which speaks S3 and is not S3.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.registry.content.port import Progress
from services.registry.content.staged import StagedStore
from splitmesh.errors import MeshError, Reason
from tests.support.contents import Place, digest, place_of, write
from tests.support.s3 import S3, serving_s3

CONTENT = bytes(range(256)) * 40
SHA = digest(CONTENT)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with serving_s3() as server:
        yield server


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path, s3: S3) -> Place:
    return place_of(request.param, tmp_path, s3)


async def test_a_finished_upload_is_visible_under_its_digest_and_nothing_else_is_left(place: Place) -> None:
    async with place.store() as store:
        await write(store, CONTENT)
        assert await store.read(SHA, 0, 10**6) == CONTENT
        assert await store.read(SHA, 255, 2) == b"\xff\x00"
        assert await store.read(SHA, len(CONTENT) - 1, 5) == b"\xff"
        assert await store.read(SHA, len(CONTENT), 5) == b""
        assert await store.progress(SHA) == Progress(len(CONTENT), True)
    assert place.whole() == {SHA: CONTENT}
    assert not place.unfinished()
    assert not place.left_over()


async def test_an_empty_content_is_a_content(place: Place) -> None:
    async with place.store() as store:
        await write(store, b"")
        assert await store.progress(digest(b"")) == Progress(0, True)
        assert await store.read(digest(b""), 0, 10) == b""


@pytest.mark.parametrize("cut", [1, 4095, 4096, 4097, len(CONTENT) - 1])
async def test_an_upload_goes_on_at_any_byte_also_after_a_restart(place: Place, cut: int) -> None:
    async with place.store() as first:
        await write(first, CONTENT, upto=cut)
        assert place.unfinished() == {f"{SHA}.part": cut}
        assert place.whole() == {}
    async with place.store() as second:
        assert await second.progress(SHA) == Progress(cut, False)
        await write(second, CONTENT)
    assert place.whole() == {SHA: CONTENT}
    assert not place.unfinished()


async def test_an_upload_that_was_complete_but_not_verified_is_finished_without_data(place: Place) -> None:
    async with place.store() as first:
        await write(first, CONTENT, upto=len(CONTENT))
    async with place.store() as second, second.upload(SHA, len(CONTENT)) as upload:
        assert upload is not None
        assert upload.offset == len(CONTENT)
        await upload.finish()
    assert place.whole() == {SHA: CONTENT}


async def test_content_of_another_digest_is_discarded(place: Place) -> None:
    async with place.store() as store:
        with pytest.raises(MeshError) as error:
            await write(store, CONTENT, sha256="0" * 64)
        assert error.value.reason is Reason.DIGEST_MISMATCH
        assert await store.progress("0" * 64) == Progress(0, False)
    assert not place.whole()
    assert not place.unfinished()


async def test_a_part_damaged_while_nobody_looked_is_found_and_discarded(place: Place) -> None:
    async with place.store() as store:
        await write(store, CONTENT, upto=1000)
        (place.folder / "uploads" / f"{SHA}.part").write_bytes(b"?" * 1000)
        with pytest.raises(MeshError) as error:
            await write(store, CONTENT)
        assert error.value.reason is Reason.DIGEST_MISMATCH
        await write(store, CONTENT)
    assert place.whole() == {SHA: CONTENT}


async def test_a_whole_artefact_is_not_written_again(place: Place) -> None:
    async with place.store() as store:
        await write(store, CONTENT)
        async with store.upload(SHA, len(CONTENT)) as upload:
            assert upload is None


async def test_more_than_was_announced_is_refused_and_the_rest_kept(place: Place) -> None:
    async with place.store() as store:
        async with store.upload(SHA, 100) as upload:
            assert upload is not None
            await upload.append(CONTENT[:60])
            with pytest.raises(MeshError) as error:
                await upload.append(CONTENT[:41])
        assert error.value.reason is Reason.PROTOCOL_VIOLATION
        assert (await store.progress(SHA)).offset == 60


async def test_a_part_longer_than_the_content_is_started_anew(place: Place) -> None:
    async with place.store() as store:
        async with store.upload(SHA, 10**6) as upload:
            assert upload is not None
            await upload.append(b"x" * (len(CONTENT) + 1))
        await write(store, CONTENT)
    assert place.whole() == {SHA: CONTENT}


@pytest.mark.parametrize(
    "name", ["", "a" * 63, "A" * 64, "g" * 64, "../" + "a" * 61, "a" * 64 + "\n", "a" * 32 + "\0" * 32]
)
async def test_nothing_but_a_digest_names_a_content(place: Place, name: str) -> None:
    async with place.store() as store:

        async def enter() -> None:
            async with store.upload(name, 1):
                pass

        async def local() -> None:
            async with store.local(name):
                pass

        calls = (store.size_of(name), store.read(name, 0, 1), store.missing([name]), store.remove(name))
        for call in (*calls, store.put([(name, b"")]), enter(), local()):
            with pytest.raises(MeshError) as error:
                await call
            assert error.value.reason is Reason.FIELD_INVALID
    assert not place.whole()
    assert not place.unfinished()


async def test_a_second_upload_of_the_same_content_waits_and_finds_it_whole(place: Place) -> None:
    async with place.store() as store:
        async with store.upload(SHA, len(CONTENT)) as first:
            assert first is not None
            second = asyncio.create_task(_enter(store, SHA))
            assert await _enter(store, digest(b"other")) is not None  # other contents do not wait
            assert list(place.unfinished()) == [f"{SHA}.part"]  # and where nothing came nothing stays
            await first.append(CONTENT)
            assert not second.done()
            await first.finish()
        assert await second is None


async def _enter(store: StagedStore, sha256: str) -> object:
    async with store.upload(sha256, len(CONTENT)) as upload:
        return upload


async def test_a_second_upload_that_waits_too_long_is_told_to_come_back(place: Place) -> None:
    async with place.store(upload_wait_s=0.05) as store, store.upload(SHA, len(CONTENT)):
        with pytest.raises(MeshError) as error:
            await _enter(store, SHA)
    assert error.value.reason is Reason.QUEUE_FULL
    assert error.value.retry_after_s is not None


async def test_a_cancelled_upload_keeps_its_bytes(place: Place) -> None:
    written = asyncio.Event()

    async def upload_and_hang(store: StagedStore) -> None:
        async with store.upload(SHA, len(CONTENT)) as upload:
            assert upload is not None
            await upload.append(CONTENT[:777])
            written.set()
            await asyncio.Event().wait()

    async with place.store() as store:
        task = asyncio.create_task(upload_and_hang(store))
        async with asyncio.timeout(10):
            await written.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await store.progress(SHA) == Progress(777, False)
        await write(store, CONTENT)


async def test_an_artefact_above_the_size_limit_is_refused_before_anything_is_written(place: Place) -> None:
    async with place.store(max_artifact_bytes=100) as store:
        with pytest.raises(MeshError) as upload:
            async with store.upload(SHA, 101):
                pass
        with pytest.raises(MeshError) as put:
            await store.put([(SHA, CONTENT)])
    assert upload.value.reason is put.value.reason is Reason.FRAME_TOO_LARGE
    assert not place.unfinished()
    assert not place.whole()


async def test_the_quota_counts_whole_unfinished_and_announced_bytes_also_after_a_restart(place: Place) -> None:
    small, sha = b"s" * 1000, digest(b"s" * 1000)
    async with place.store() as before:
        await write(before, CONTENT)
        await write(before, small, upto=400)
    async with place.store(max_store_bytes=len(CONTENT) + 1500) as store:
        for size in (1101, 5000):
            await _require_full(store, "1" * 64, size)
        async with store.upload(sha, 1000) as resumed:  # its 400 bytes are not counted twice
            assert resumed is not None
            await _require_full(store, "2" * 64, 501)  # 600 are promised to the other upload
            async with store.upload("2" * 64, 500):
                pass
        async with store.upload("2" * 64, 1100):  # the promise is over, 400 bytes are there
            pass
        with pytest.raises(MeshError) as error:
            await store.put([(digest(b"p" * 1101), b"p" * 1101)])
        assert error.value.reason is Reason.STORAGE_FULL
        await store.put([(digest(b"p" * 1100), b"p" * 1100)])
        await _require_full(store, "2" * 64, 1)
        assert await store.remove(SHA) == len(CONTENT)
        async with store.upload("2" * 64, len(CONTENT)):
            pass


async def _require_full(store: StagedStore, sha256: str, size_bytes: int) -> None:
    with pytest.raises(MeshError) as error:
        async with store.upload(sha256, size_bytes):
            pass
    assert error.value.reason is Reason.STORAGE_FULL


async def test_some_of_the_disk_stays_free(place: Place) -> None:
    async with place.store(min_free_bytes=2**62) as store:
        await _require_full(store, SHA, len(CONTENT))
    assert not place.unfinished()


async def test_stale_uploads_are_removed_and_fresh_ones_and_those_in_progress_stay(place: Place) -> None:
    async with place.store() as store:
        await write(store, CONTENT, upto=100)
        assert await store.sweep() == 0
        place.ahead_s = 1000.0
        async with store.upload("1" * 64, 10) as upload:
            assert upload is not None
            await upload.append(b"1")
            assert await store.sweep() == 1
            assert list(place.unfinished()) == [f"{'1' * 64}.part"]
        assert await store.sweep() == 0
        place.ahead_s = 1100.0
        assert await store.sweep() == 1
    assert not place.unfinished()


async def test_a_step_of_the_wall_clock_makes_nothing_stale_or_old(place: Place) -> None:
    batch = [(digest(data), data) for data in (b"one", b"two")]
    async with place.store() as store:
        await store.put(batch)
        await write(store, CONTENT, upto=100)
        for step in (1.8e9, -1.6e9):
            place.stepped_s = step
            assert await store.sweep() == 0
            assert [kept.age_s async for kept in store.listing()] == [0.0, 0.0]
            assert await store.remove(batch[0][0], min_age_s=1.0) is None
        place.ahead_s = 100.0
        assert await store.sweep() == 1
        assert await store.remove(batch[0][0], min_age_s=1.0) == 3


async def test_stale_uploads_are_removed_at_start(place: Place) -> None:
    async with place.store() as store:
        await write(store, CONTENT, upto=100)
    place.ahead_s = 1000.0
    async with place.store():
        assert not place.unfinished()


async def test_nothing_of_unknown_content_is_read(place: Place) -> None:
    async with place.store() as store:
        await write(store, CONTENT, upto=100)
        for sha256 in (SHA, "0" * 64):
            for call in (store.size_of(sha256), store.read(sha256, 0, 1), store.doubt(sha256)):
                with pytest.raises(MeshError) as error:
                    await call
                assert error.value.reason is Reason.ARTIFACT_NOT_FOUND
