"""What only a bucket can suffer: no bucket, no access, outages, answers that are not whole; and what is said about it.

On moto's server, which speaks S3 and is not S3, and on ports where nobody answers.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.registry.content import bucket_shelf, staging
from services.registry.content.bucket import BucketStore
from services.registry.content.port import ContentLimits, Progress
from splitmesh.errors import MeshError, Reason
from tests.support.contents import LIMITS, BucketPlace, digest, write
from tests.support.s3 import S3, Bucket, serving_s3

CONTENT = os.urandom(10_000)
SHA = digest(CONTENT)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with serving_s3() as server:
        yield server


@pytest.fixture
def place(tmp_path: Path, s3: S3) -> BucketPlace:
    return BucketPlace(tmp_path, s3.bucket())


def store_at(url: str, folder: Path, options: dict[str, Any]) -> BucketStore:
    limits = ContentLimits(**LIMITS)  # type: ignore[arg-type]
    return BucketStore(url, folder, limits, storage_options=options)


async def test_contents_are_objects_by_their_first_digits(place: BucketPlace) -> None:
    async with place.store() as store:
        await write(store, CONTENT)
    assert place.files().find(place.bucket.name) == [f"{place.bucket.name}/contents/{SHA[:2]}/{SHA}"]


async def test_a_large_content_goes_up_in_parts_and_comes_back_whole(
    place: BucketPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(11 * 1024 * 1024)
    monkeypatch.setattr(bucket_shelf, "PART_BYTES", 5 * 1024 * 1024)
    async with place.store(max_artifact_bytes=2**24) as store:
        await write(store, content)
        async with store.local(digest(content)) as path:
            assert path.read_bytes() == content
            assert path.is_relative_to(place.folder / "downloads")
        assert not path.exists()
        assert await store.read(digest(content), 5 * 1024 * 1024 - 5, 10) == content[5 * 1024 * 1024 - 5 :][:10]
    info = place.files().info(f"{place.bucket.name}/contents/{digest(content)[:2]}/{digest(content)}")
    assert info["ETag"].endswith('-3"')  # of three parts


async def test_a_copy_that_does_not_fit_beside_what_stays_free_is_not_made(
    place: BucketPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 1_000_000
    monkeypatch.setattr(staging, "shutil", SimpleNamespace(disk_usage=lambda path: SimpleNamespace(free=free)))
    async with place.store(min_free_bytes=500_000) as store:
        await write(store, CONTENT)
        free = 500_000 + len(CONTENT) - 1
        with pytest.raises(MeshError) as error:
            async with store.local(SHA):
                pass
        assert error.value.reason is Reason.STORAGE_FULL
        assert list((place.folder / "downloads").iterdir()) == []
        free += 1
        async with store.local(SHA) as path:
            assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("nobody-made-this", {}, "there is no such bucket"),
        ("", {"endpoint_url": "http://127.0.0.1:9"}, "does not answer"),
    ],
)
async def test_a_store_that_cannot_be_used_says_so_at_the_start_without_secrets(
    place: BucketPlace, caplog: pytest.LogCaptureFixture, name: str, options: dict[str, Any], said: str
) -> None:
    url = f"s3://{name or place.bucket.name}/contents"
    store = store_at(url, place.folder, {**place.bucket.options, **options})
    with pytest.raises(MeshError, match=said) as error:
        await store.start()
    await store.stop()
    assert error.value.reason is Reason.NOT_READY
    assert url in error.value.message
    for secret in ("moto-key", "moto-secret"):
        assert secret not in error.value.message + caplog.text


async def test_denied_access_is_named_at_the_start(place: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_at(place.bucket.url, place.folder, place.bucket.options)

    def deny(*_: object, **__: object) -> None:
        raise PermissionError("Access Denied for moto-key")

    monkeypatch.setattr(store._shelf._files, "pipe_file", deny)  # type: ignore[attr-defined]
    with pytest.raises(MeshError, match="access is denied") as error:
        await store.start()
    await store.stop()
    assert error.value.reason is Reason.NOT_READY
    assert "moto-key" not in error.value.message


@pytest.mark.parametrize("url", ["/somewhere", "file:///somewhere", "local://x", "nonesuch://bucket/x"])
def test_a_url_that_is_no_object_store_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(MeshError) as error:
        store_at(url, tmp_path, {})
    assert error.value.reason is Reason.FIELD_INVALID


def test_a_store_whose_package_is_not_installed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MeshError) as error:
        store_at("gs://bucket/x", tmp_path, {})
    assert error.value.reason is Reason.EXTRA_MISSING


def test_a_url_with_a_secret_is_shown_without(tmp_path: Path) -> None:
    with pytest.raises(MeshError) as error:
        store_at("nonesuch://me:secret@bucket/x?token=secret", tmp_path, {})
    assert "secret" not in error.value.message
    assert "bucket/x" in error.value.message


async def test_an_outage_is_told_with_a_time_to_come_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with serving_s3() as server:
        place = BucketPlace(tmp_path, server.bucket())
        store = place.make(ContentLimits(**LIMITS))  # type: ignore[arg-type]
        await store.start()
    for call in (store.size_of(SHA), store.read(SHA, 0, 10), store.put([(SHA, CONTENT)]), store.missing([SHA])):
        await _require_unavailable(call)
    await store.stop()
    assert "moto-secret" not in caplog.text


async def _require_unavailable(call: Any) -> None:
    with pytest.raises(MeshError) as error:
        await call
    assert error.value.reason is Reason.SERVICE_UNAVAILABLE
    assert error.value.retry_after_s is not None


async def test_a_content_that_does_not_get_there_stays_staged(
    place: BucketPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.store() as store:
        with monkeypatch.context() as patch:
            patch.setattr(store._shelf._files, "put_file", _drop)  # type: ignore[attr-defined]
            await _require_unavailable(write(store, CONTENT))
        assert place.unfinished() == {f"{SHA}.part": len(CONTENT)}
        assert await store.progress(SHA) == Progress(len(CONTENT), False)
        await write(store, CONTENT)
    assert place.whole() == {SHA: CONTENT}
    assert not place.unfinished()


def _drop(*_: object, **__: object) -> None:
    raise ConnectionResetError


async def test_a_store_that_takes_half_an_object_and_says_nothing_is_caught(
    place: BucketPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.store() as store:
        files = store._shelf._files  # type: ignore[attr-defined]

        def half(source: str, target: str, **_: object) -> None:
            files.pipe_file(target, Path(source).read_bytes()[:5000])

        monkeypatch.setattr(files, "put_file", half)
        await _require_unavailable(write(store, CONTENT))
        assert place.unfinished() == {f"{SHA}.part": len(CONTENT)}


async def test_downloads_of_a_killed_process_are_removed_at_the_start(place: BucketPlace) -> None:
    (place.folder / "downloads").mkdir()
    (place.folder / "downloads" / "left").write_bytes(b"over")
    async with place.store():
        assert not place.left_over()


def test_options_of_the_operator_come_before_ours(tmp_path: Path) -> None:
    bucket = Bucket("b", "http://127.0.0.1:9")
    store = store_at(bucket.url, tmp_path, {**bucket.options, "config_kwargs": {"read_timeout": 7}})
    config = store._shelf._files.config_kwargs  # type: ignore[attr-defined]
    assert config["read_timeout"] == 7
    assert config["connect_timeout"] == 5
