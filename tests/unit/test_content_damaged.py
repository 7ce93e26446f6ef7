"""Contents that are no longer what they were: found by their size or by being read again, set aside, and replaced.

The bucket is on moto's server, which speaks S3 and is not S3.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.registry.content import damaged
from services.registry.content.damaged import SetAside, too_many
from services.registry.content.digests import sha256_of_file
from services.registry.content.port import Progress
from splitmesh.errors import MeshError, Reason
from tests.support.contents import BucketPlace, Place, digest, place_of, write
from tests.support.s3 import S3, serving_s3

CONTENT = os.urandom(5000)
SHA = digest(CONTENT)
WAIT_S = 10.0


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with serving_s3() as server:
        yield server


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path, s3: S3) -> Place:
    return place_of(request.param, tmp_path, s3)


@pytest.mark.parametrize("left", [CONTENT[:4000], b"", CONTENT + b"more"])
async def test_a_content_of_another_size_than_announced_is_taken_again(place: Place, left: bytes) -> None:
    async with place.store() as store:
        await write(store, CONTENT)
        place.damage(SHA, left)
        # Whoever announces it sees by the size that it is not what he has.
        assert await store.progress(SHA) == Progress(len(left), True)
        await write(store, CONTENT)
        place.damage(SHA, left)
        await store.put([(SHA, CONTENT)])
        assert await store.read(SHA, 0, 10_000) == CONTENT
    assert place.whole() == {SHA: CONTENT}


async def test_a_sound_content_stays_whatever_size_is_announced(place: Place) -> None:
    async with place.store() as store:
        await write(store, CONTENT)
        for size_bytes in (0, len(CONTENT) - 1, len(CONTENT) + 1):
            with pytest.raises(MeshError, match="5000 bytes") as error:
                async with store.upload(SHA, size_bytes):
                    pass
            assert error.value.reason is Reason.FIELD_INVALID
    assert place.whole() == {SHA: CONTENT}


async def test_two_who_bring_a_damaged_content_again_both_find_it_whole(place: Place) -> None:
    async with place.store() as store:
        await write(store, CONTENT)
        place.damage(SHA, CONTENT[:10])

        async def bring() -> None:
            async with store.upload(SHA, len(CONTENT)) as upload:
                if upload is not None:
                    await upload.append(CONTENT)
                    await upload.finish()

        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(bring(), bring(), store.put([(SHA, CONTENT)]))
    assert place.whole() == {SHA: CONTENT}


async def test_what_was_brought_anew_after_it_was_read_stays(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async with place.store() as store:
        await write(store, CONTENT)
        plain = store._checks._damaged

        async def then_brought(sha256: str) -> str | None:
            found = await plain(sha256)
            await store.put([(SHA, CONTENT)])
            return found

        monkeypatch.setattr(store._checks, "_damaged", then_brought)
        place.damage(SHA, CONTENT[:10])
        with pytest.raises(MeshError, match="damaged"):
            await store.doubt(SHA)
        assert await store.missing([SHA]) == []
        place.damage(SHA, CONTENT[:10])
        with pytest.raises(MeshError, match="5000 bytes"):
            async with store.upload(SHA, 20):
                pass
    assert place.whole() == {SHA: CONTENT}


async def test_a_content_that_goes_while_it_is_doubted_can_be_uploaded(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.store() as store:
        await write(store, CONTENT)
        place.damage(SHA, CONTENT[:10])
        shelf, size = store._shelf, store._shelf.size

        async def then_gone(sha256: str) -> int | None:
            monkeypatch.setattr(shelf, "size", size)
            found = await size(sha256)
            await shelf.remove(sha256)
            return found

        monkeypatch.setattr(shelf, "size", then_gone)
        await write(store, CONTENT)
    assert place.whole() == {SHA: CONTENT}


class SlowReading:
    """Holds back the reading of files again, from the given time on, until it may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, from_number: int) -> None:
        self.reached = asyncio.Event()
        self.go_on = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._left = from_number
        monkeypatch.setattr("services.registry.content.checks.sha256_of_file", self._read)

    def _read(self, path: Path) -> str:
        self._left -= 1
        if self._left <= 0:
            self._loop.call_soon_threadsafe(self.reached.set)
            self.go_on.wait(WAIT_S)
        return sha256_of_file(path)


@pytest.mark.parametrize("by", ["announcement", "look"])
async def test_nobody_waits_while_a_doubted_content_is_read_again(
    place: Place, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    other = digest(b"other")
    async with place.store() as store:
        await write(store, CONTENT)
        place.damage(SHA, CONTENT[::-1])

        async def announce() -> None:
            async with store.upload(SHA, 20):
                pass

        slow = SlowReading(monkeypatch, 1 if by == "announcement" else 2)
        doubting = asyncio.create_task(announce() if by == "announcement" else store.doubt(SHA))
        try:
            async with asyncio.timeout(WAIT_S / 2):
                await slow.reached.wait()
                await store.put([(other, b"other")])
                assert await store.remove(other) == 5
            assert not doubting.done()
        finally:
            slow.go_on.set()
            await asyncio.gather(doubting, return_exceptions=True)
        assert await store.missing([SHA]) == [SHA]


async def test_a_look_makes_no_content_younger(place: Place) -> None:
    async with place.store() as store:
        await write(store, CONTENT)
        place.ahead_s += 1000.0
        await store.doubt(SHA)
        assert [kept.age_s async for kept in store.listing()] == [1000.0]


async def test_what_was_set_aside_is_bounded_and_the_newest_stay(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damaged, "MOST", 2)
    contents = [os.urandom(100) for _ in range(4)]
    async with place.store() as store:
        await store.put([(digest(data), data) for data in contents])
        for data in contents:
            place.damage(digest(data), b"damaged")
            with pytest.raises(MeshError):
                await store.doubt(digest(data))
    assert len(kept := _set_aside(place)) == 2
    if not isinstance(place, BucketPlace):  # there the times have no more than seconds
        assert kept == {digest(data) for data in contents[2:]}


def _set_aside(place: Place) -> set[str]:
    if isinstance(place, BucketPlace):
        return {name.rpartition("/")[2] for name in place.files().ls(f"{place.bucket.name}/{place.prefix}/damaged")}
    return {path.name for path in (place.folder / "damaged").iterdir()}


def test_of_the_damaged_so_many_and_so_many_bytes_are_kept_but_always_the_newest() -> None:
    gib = damaged.MOST_BYTES
    assert too_many([SetAside(3.0, "c", gib // 2), SetAside(1.0, "a", 1), SetAside(2.0, "b", gib // 2)]) == ["a"]
    assert too_many([SetAside(1.0, "a", 5 * gib)]) == []
    assert too_many([SetAside(2.0, "b", 5 * gib), SetAside(1.0, "a", 1)]) == ["a"]
    assert len(too_many([SetAside(float(number), str(number), 1) for number in range(130)])) == 30
