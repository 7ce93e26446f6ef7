"""What asking a bucket costs: single questions, or listings where those are cheaper; and that uploads leave room for others."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from services.registry.content.bucket import BucketStore
from services.registry.content.bucket_listing import BucketListing
from services.registry.content.bucket_shelf import BucketShelf
from services.registry.content.port import ContentLimits
from services.registry.content.remote import CALLS, Remote
from tests.support.contents import LIMITS, digest, write

WAIT_S = 10.0
NAMES = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(6000)]
THERE = frozenset(NAMES[:5000])


class Objects:
    """Some thousand objects, and how often each folder was listed; every other call asks for one object."""

    def __init__(self, names: list[str]) -> None:
        self.folders: dict[str, list[str]] = {}
        for name in names:
            self.folders.setdefault(name[:2], []).append(name)
        self.asked, self.listed = 0, Counter[str]()

    def ls(self, path: str, *, detail: bool) -> list[dict[str, Any]]:
        folder = path.rpartition("/")[2]
        self.listed[folder] += 1
        if folder in self.folders:
            return [{"name": f"{path}/{name}", "size": 7, "type": "file"} for name in self.folders[folder]]
        return [{"name": f"{path}/{name}", "size": 0, "type": "directory"} for name in self.folders]

    def info(self, path: str) -> dict[str, Any]:
        self.asked += 1
        folder, name = path.split("/")[-2:]
        if name not in self.folders.get(folder, ()):
            raise FileNotFoundError
        return {"size": 7}


@pytest.fixture
def objects() -> Objects:
    return Objects(NAMES[:5000])


@pytest.fixture
def bucket(objects: Objects) -> BucketListing:
    remote = Remote("memory://bucket/prefix", {})
    remote.files = objects
    return BucketListing(remote)


async def cost(bucket: BucketListing, objects: Objects, wanted: list[str]) -> tuple[int, int]:
    """Objects asked for, and listings, of a question whose answer is right."""
    objects.asked = 0
    objects.listed.clear()
    assert await bucket.sizes(wanted) == dict.fromkeys((one for one in wanted if one in THERE), 7)
    assert not objects.listed or max(objects.listed.values()) == 1
    return objects.asked, objects.listed.total()


async def test_many_are_listed_only_where_that_is_cheaper_than_asking_for_each(
    bucket: BucketListing, objects: Objects
) -> None:
    many, few = NAMES[4000:], NAMES[4500:5100]
    assert await cost(bucket, objects, many) == (len(many), 0), "nobody knows how much would be listed"
    assert len([one async for one in bucket.everything()]) == 5000
    assert await cost(bucket, objects, many) == (0, 1 + 256)
    assert await cost(bucket, objects, few) == (len(few), 0)
    bucket.count(100_000)
    assert await cost(bucket, objects, many) == (len(many), 0)
    bucket.count(-100_000)
    in_one_folder = [name for name in NAMES if name.startswith("a")]
    assert await cost(bucket, objects, in_one_folder) == (0, 1 + 16)


async def test_uploads_on_their_way_to_the_bucket_stand_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, half_at_it, sending = threading.Event(), threading.Event(), list[str]()
    plain = BucketShelf._send

    def send(shelf: BucketShelf, part: Path, path: str) -> None:
        sending.append(path)
        if len(sending) == CALLS // 2:
            half_at_it.set()
        assert go_on.wait(WAIT_S)
        plain(shelf, part, path)

    monkeypatch.setattr(BucketShelf, "_send", send)
    limits = ContentLimits(**LIMITS)  # type: ignore[arg-type]
    store = BucketStore(f"memory://{uuid4().hex}/contents", tmp_path, limits, storage_options={})
    await store.start()
    large = [bytes([number]) * 100 for number in range(2 * CALLS)]
    try:
        uploads = asyncio.gather(*(write(store, content) for content in large))
        assert await asyncio.to_thread(half_at_it.wait, WAIT_S)
        async with asyncio.timeout(WAIT_S / 2):
            assert await store.missing([digest(b"a")]) == [digest(b"a")]
            await store.put([(digest(b"a"), b"a")])
            assert await store.size_of(digest(b"a")) == 1
            assert [kept.sha256 async for kept in store.listing()] == [digest(b"a")]
            assert await store.remove(digest(b"a")) == 1
        assert len(sending) == CALLS // 2
        small = [bytes([number]) for number in range(2 * CALLS)]
        _hold(store, writing := list[str](), go_on)
        put = asyncio.create_task(store.put([(digest(content), content) for content in small]))
        async with asyncio.timeout(WAIT_S / 2):
            while len(writing) < CALLS // 2:
                await asyncio.to_thread(go_on.wait, 0.001)
            assert await store.missing([digest(b"a")]) == [digest(b"a")]
            assert [kept async for kept in store.listing()] == []
        go_on.set()
        await uploads
        await put
        assert await store.missing([digest(content) for content in [*large, *small]]) == []
    finally:
        go_on.set()
        await store.stop()


def _hold(store: BucketStore, begun: list[str], go_on: threading.Event) -> None:
    """Small contents do not get to the bucket before that."""
    files = store._shelf._files  # type: ignore[attr-defined]
    plain = files.pipe_file

    def pipe_file(path: str, data: bytes) -> None:
        begun.append(path)
        assert go_on.wait(WAIT_S)
        plain(path, data)

    files.pipe_file = pipe_file
