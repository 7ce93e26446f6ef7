"""Whose contents they are, on every store: a registry with another database is not let near them.

The bucket is on moto's server, which speaks S3 and is not S3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.registry.content.staged import StagedStore
from splitmesh.errors import MeshError, Reason
from tests.support.contents import BucketPlace, Place, digest, place_of
from tests.support.s3 import S3, serving_s3

CONTENT = b"somebody's"
OURS, OTHER = "a" * 32, "b" * 32


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with serving_s3() as server:
        yield server


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path, s3: S3) -> Place:
    return place_of(request.param, tmp_path, s3)


async def test_contents_belong_to_the_database_that_claimed_them_first(place: Place) -> None:
    async with place.store() as store:
        await store.put([(digest(CONTENT), CONTENT)])  # from before there was a mark
    for _ in range(2):
        async with place.store() as store:
            await store.claim(OURS, adopt=False)
            assert [kept.sha256 async for kept in store.listing()] == [digest(CONTENT)]
    async with place.store() as store:
        with pytest.raises(MeshError, match="SPLITMESH_CONTENTS_ADOPT") as error:
            await store.claim(OTHER, adopt=False)
        assert error.value.reason is Reason.NOT_READY
        for known in (OURS, OTHER, str(place.folder) if not isinstance(place, BucketPlace) else place.bucket.name):
            assert known in error.value.message


async def test_contents_are_taken_over_only_when_told_and_who_had_them_notices(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async with place.store() as ours:
        await ours.claim(OURS, adopt=False)
        await ours.put([(digest(CONTENT), CONTENT)])
        async with place.store() as other:
            await other.claim(OTHER, adopt=True)
            assert OURS in caplog.text
            assert [kept.sha256 async for kept in other.listing()] == [digest(CONTENT)]
        # What another database names must not be collected as if this one knew.
        await _require_not_ours(ours)
    async with place.store() as store:
        with pytest.raises(MeshError):
            await store.claim(OURS, adopt=False)


async def test_what_is_taken_over_counts_as_new_at_that_start(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.registry.content.ages.GRACE_S", 0.0)
    async with place.store() as store:
        await store.put([(digest(CONTENT), CONTENT)])
    for adopt in (False, True):
        async with place.store() as store:
            await store.claim(OURS, adopt=adopt)
            assert [math.isinf(kept.age_s) async for kept in store.listing()] == [not adopt]


async def test_of_two_with_copies_of_one_database_the_earlier_one_collects_nothing(place: Place) -> None:
    async with place.store() as ours:
        await ours.claim(OURS, adopt=False)
        await ours.put([(digest(CONTENT), CONTENT)])
        async with place.store() as copy:
            await copy.claim(OURS, adopt=False)
            await _require_not_ours(ours, "a copy of it")
            assert [kept.sha256 async for kept in copy.listing()] == [digest(CONTENT)]
        await _require_not_ours(ours, "a copy of it")
    async with place.store() as again:
        await again.claim(OURS, adopt=False)
        assert [kept.sha256 async for kept in again.listing()] == [digest(CONTENT)]


async def _require_not_ours(store: StagedStore, why: str = "ADOPT") -> None:
    with pytest.raises(MeshError, match=why) as error:
        _ = [kept async for kept in store.listing()]
    assert error.value.reason is Reason.NOT_READY


async def test_a_mark_that_says_nothing_sensible_is_nobody_elses_to_ignore(place: Place) -> None:
    mark = b"\xff" * 10_000
    async with place.store() as store:
        await store.claim(OURS, adopt=False)
    if isinstance(place, BucketPlace):
        place.files().pipe_file(f"{place.bucket.name}/{place.prefix}/belongs-to", mark)
    else:
        (place.folder / "belongs-to").write_bytes(mark)
    async with place.store() as store:
        with pytest.raises(MeshError) as error:
            await store.claim(OURS, adopt=False)
        assert error.value.reason is Reason.NOT_READY
        assert len(error.value.message) < 1000
        await store.claim(OURS, adopt=True)
        assert [kept async for kept in store.listing()] == []
