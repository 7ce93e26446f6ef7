"""Asking a bucket for many contents: few calls at once, none after the caller has left, none in the way of readers."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.registry.content.bucket_listing import BucketListing
from services.registry.content.remote import CALLS, Remote
from splitmesh.errors import MeshError, Reason
from tests.support.contents import BucketPlace, digest
from tests.support.s3 import S3, serving_s3

WAIT_S = 10.0
CONTENT = os.urandom(100)
UNKNOWN = [f"{number:064x}" for number in range(400)]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with serving_s3() as server:
        yield server


@pytest.fixture
def place(tmp_path: Path, s3: S3) -> BucketPlace:
    return BucketPlace(tmp_path, s3.bucket())


class Slow:
    """Calls to the bucket that the test holds back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[str] = []
        self.go_on = threading.Event()
        self.all_at_it = threading.Event()

        def size(_: BucketListing, sha256: str) -> None:
            self.begun.append(sha256)
            if len(self.begun) == CALLS:
                self.all_at_it.set()
            assert self.go_on.wait(WAIT_S)

        monkeypatch.setattr(BucketListing, "size", size)


async def test_who_asks_for_many_leaves_room_for_others_and_takes_the_rest_of_the_work_along(
    place: BucketPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.store() as store, asyncio.timeout(WAIT_S):
        await store.put([(digest(CONTENT), CONTENT)])
        slow = Slow(monkeypatch)
        try:
            first = asyncio.create_task(store.missing(UNKNOWN))
            second = asyncio.create_task(store.missing(UNKNOWN[:200]))
            assert await asyncio.to_thread(slow.all_at_it.wait, WAIT_S)  # neither has them all
            assert {slow.begun.count(sha256) for sha256 in UNKNOWN[: CALLS // 2]} == {2}
            assert await store.read(digest(CONTENT), 0, 1000) == CONTENT
            first.cancel()
            slow.go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await first
            assert await second == UNKNOWN[:200]
            assert len(slow.begun) == CALLS // 2 + 200
        finally:
            slow.go_on.set()


async def test_many_are_looked_for_in_listings(place: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [(digest(data), data) for data in (bytes([number]) for number in range(40))]
    asked = [digest(data) for data in (bytes([number, more]) for number in range(40) for more in range(25))]
    asked[:40] = [sha256 for sha256, _ in contents]
    async with place.store() as store:
        await store.put(contents)
        place.files().pipe_file(f"{place.bucket.name}/{place.prefix}/{asked[0][:2]}/notes", b"by hand")
        place.files().pipe_file(
            f"{place.bucket.name}/{place.prefix}/{asked[0][:2]}/{asked[50]}", b"in the wrong folder"
        )
        assert len([kept async for kept in store.listing()]) == 40
        calls: list[str] = []
        plain = BucketListing.ls

        def ls(listing: BucketListing, folder: str) -> dict[str, Any]:
            calls.append(folder)
            return plain(listing, folder)

        monkeypatch.setattr(BucketListing, "ls", ls)
        monkeypatch.delattr(BucketListing, "size")
        assert await store.missing(asked) == asked[40:]
        assert sorted(calls) == [
            "",
            *sorted({sha256[:2] for sha256 in asked[:40]}),
        ]  # where there is nothing nobody looks
        calls.clear()
        assert {kept.sha256 async for kept in store.listing()} == set(asked[:40])
        assert sorted(calls) == ["", *sorted({sha256[:2] for sha256 in asked[:40]})]


async def test_after_an_error_nothing_more_is_asked(place: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    failed = threading.Event()

    def size(_: BucketListing, sha256: str) -> None:
        asked.append(sha256)
        if sha256 == UNKNOWN[0]:
            failed.set()
            raise ConnectionResetError
        assert failed.wait(WAIT_S)

    async with place.store() as store:
        monkeypatch.setattr(BucketListing, "size", size)
        with pytest.raises(MeshError) as error:
            await store.missing(UNKNOWN)
        assert error.value.reason is Reason.SERVICE_UNAVAILABLE
        assert len(asked) < len(UNKNOWN) / 4


async def test_why_a_call_failed_is_logged_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    options = {
        "endpoint_url": "http://store:9000",
        "key": "AKIAEXAMPLE",
        "client_kwargs": {"deep": [{"token": "s3cr3t-token"}]},
    }
    remote = Remote("s3://bucket/prefix", options)
    caplog.set_level(logging.WARNING)

    def fail() -> None:
        raise OSError(
            "SlowDown at http://store:9000:\n the key AKIAEXAMPLE with s3cr3t-token "
            "asked http://me:pass@proxy/bucket?X-Amz-Signature=abc too often" + "x" * 1000
        )

    for call in (remote.call, remote.read):
        with pytest.raises(MeshError) as error:
            await call(fail)
        assert error.value.reason is Reason.SERVICE_UNAVAILABLE
    remote.close()
    for record in caplog.records:
        assert "OSError: SlowDown at http://store:9000: the key *** with *** asked" in record.message
        assert len(record.message) < 500
    for secret in ("AKIAEXAMPLE", "s3cr3t-token", "pass", "X-Amz"):
        assert secret not in caplog.text
