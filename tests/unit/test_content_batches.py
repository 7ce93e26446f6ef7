"""Whole contents on every content store: batches, what is missing, listings and ages, removal, files, damage.

The bucket is on moto's server, which speaks S3 and is not S3.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.registry.content.port import Progress
from services.registry.content.staged import StagedStore
from splitmesh.errors import MeshError, Reason
from tests.support.contents import Place, digest, place_of, write
from tests.support.s3 import S3, serving_s3

PICTURES = [os.urandom(100 + number) for number in range(20)]
BATCH = [(digest(data), data) for data in PICTURES]
SHA, CONTENT = BATCH[0]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with serving_s3() as server:
        yield server


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path, s3: S3) -> Place:
    return place_of(request.param, tmp_path, s3)


async def test_a_batch_is_whole_after_a_restart_and_leaves_nothing_else(place: Place) -> None:
    async with place.store() as store:
        await store.put(BATCH)
    assert place.whole() == dict(BATCH)
    assert not place.left_over()
    async with place.store() as store:
        assert await store.read(*BATCH[7][:1], 0, 1000) == PICTURES[7]


async def test_a_content_twice_in_a_batch_or_there_already_is_kept_once(place: Place) -> None:
    async with place.store(max_store_bytes=len(CONTENT) + len(PICTURES[1])) as store:
        await write(store, CONTENT)
        for _ in range(3):  # the quota would say so if any of them counted twice
            await store.put([BATCH[0], BATCH[1], BATCH[1]])
    assert place.whole() == dict(BATCH[:2])


async def test_of_a_batch_with_a_wrong_digest_nothing_is_kept(place: Place) -> None:
    async with place.store() as store:
        with pytest.raises(MeshError) as error:
            await store.put([*BATCH[:3], ("0" * 64, b"liar"), *BATCH[3:]])
        assert error.value.reason is Reason.DIGEST_MISMATCH
        assert error.value.metadata["sha256"] == "0" * 64
        assert await store.missing([sha256 for sha256, _ in BATCH]) == [sha256 for sha256, _ in BATCH]
    assert not place.whole()


async def test_what_is_missing_is_told_in_the_order_asked(place: Place) -> None:
    async with place.store() as store:
        await store.put(BATCH[5:])
        await write(store, PICTURES[2], upto=50)  # unfinished is missing
        asked = ["f" * 64, BATCH[9][0], BATCH[2][0], BATCH[0][0], BATCH[2][0], BATCH[6][0]]
        assert await store.missing(asked) == ["f" * 64, BATCH[2][0], BATCH[0][0], BATCH[2][0]]


async def test_two_batches_and_an_upload_of_the_same_content_at_once_keep_it_once(place: Place) -> None:
    async with place.store(max_store_bytes=2 * sum(map(len, PICTURES))) as store:
        await asyncio.gather(store.put(BATCH), store.put(BATCH[::-1]), write(store, PICTURES[3]))
        assert await store.missing([sha256 for sha256, _ in BATCH]) == []
        used = sum(map(len, PICTURES))
        async with store.upload("1" * 64, used):  # exactly what is left
            pass
        with pytest.raises(MeshError) as error:
            async with store.upload("1" * 64, used + 1):
                pass
        assert error.value.reason is Reason.STORAGE_FULL
    assert place.whole() == dict(BATCH)


async def test_the_listing_tells_every_whole_content_and_how_long_nobody_asked(place: Place) -> None:
    async with place.store() as store:
        await store.put(BATCH[:3])
        await write(store, PICTURES[9], upto=10)
    place.ahead_s = 1000.0
    async with place.store() as store:
        place.ahead_s = 1500.0
        await store.put(BATCH[3:4])
        place.ahead_s = 1600.0
        await store.missing([BATCH[1][0]])
        async with store.local(BATCH[2][0]):
            pass
        place.ahead_s = 1610.0
        found = {kept.sha256: kept async for kept in store.listing()}
    assert {sha256: kept.size_bytes for sha256, kept in found.items()} == {s: len(d) for s, d in BATCH[:4]}
    ages = [found[sha256].age_s for sha256, _ in BATCH[:4]]
    # What came before this process counts from its start.
    assert ages == pytest.approx([610.0, 10.0, 10.0, 110.0])


async def test_a_content_pushed_again_is_young_again(place: Place) -> None:
    async with place.store() as store:
        await store.put(BATCH[:2])
        place.ahead_s = 500.0
        await store.put(BATCH[:1])
        async with store.upload(BATCH[1][0], len(PICTURES[1])) as upload:
            assert upload is None
        for sha256, _ in BATCH[:2]:
            assert await store.remove(sha256, min_age_s=100.0) is None
        place.ahead_s = 600.0
        assert await store.remove(SHA, min_age_s=100.0) == len(CONTENT)


async def test_a_removed_content_is_gone_and_can_come_again(place: Place) -> None:
    async with place.store() as store:
        await store.put(BATCH[:2])
        assert await store.remove(SHA) == len(CONTENT)
        assert await store.remove(SHA) is None
        assert await store.progress(SHA) == Progress(0, False)
        assert place.whole() == dict(BATCH[1:2])
        await store.put(BATCH[:1])
        assert await store.read(SHA, 0, 1000) == CONTENT


async def test_what_is_read_as_a_file_or_uploaded_is_not_removed(place: Place) -> None:
    async with place.store() as store:
        await store.put(BATCH[:1])
        async with store.local(SHA) as path:
            assert await store.remove(SHA) is None
            assert path.read_bytes() == CONTENT
        async with store.upload(SHA, len(CONTENT)):
            assert await store.remove(SHA) is None
        assert await store.remove(SHA) == len(CONTENT)
    assert not place.left_over()


async def test_removals_and_batches_at_once_leave_what_they_say(place: Place) -> None:
    async with place.store() as store:
        await store.put(BATCH)
        for _ in range(5):
            put, removed = await asyncio.gather(store.put(BATCH[:1]), store.remove(SHA))
            there = await store.missing([SHA]) == []
            assert put is None
            assert there == (SHA in place.whole())
            if removed is None:
                assert there
            await store.put(BATCH[:1])


async def test_a_damaged_content_is_told_set_aside_and_can_be_pushed_again(place: Place) -> None:
    async with place.store(max_store_bytes=10_000) as store:
        await store.put(BATCH[:2])
        for damaged in (CONTENT[:-1], b"?" + CONTENT[1:], CONTENT + b"?"):
            place.damage(SHA, damaged)
            await _require_damaged(store, SHA)
            assert await store.missing([SHA, BATCH[1][0]]) == [SHA]
            await store.put(BATCH[:1])
            assert await store.read(SHA, 0, 1000) == CONTENT
        place.damage(SHA, b"")
        with pytest.raises(MeshError) as error:
            async with store.local(SHA):
                pass
        assert error.value.reason is Reason.INTERNAL
        await write(store, CONTENT)
    assert place.whole() == dict(BATCH[:2])


async def _require_damaged(store: StagedStore, sha256: str) -> None:
    with pytest.raises(MeshError) as error:
        await store.read(sha256, 0, 1000)
    assert error.value.reason is Reason.INTERNAL
    assert sha256 in error.value.message


async def test_what_is_not_damaged_stays_when_it_is_doubted(place: Place) -> None:
    async with place.store() as store:
        await store.put(BATCH[:1])
        await store.doubt(SHA)
        assert await store.read(SHA, 0, 1000) == CONTENT
