"""Datasets in the registry, over gRPC: what a version says, what is refused, and which pictures stay how long."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from splitmesh.api.datasets.v1 import datasets_pb2 as pb
from splitmesh.api.registry.v1 import registry_pb2
from splitmesh.datasets.freeze import freeze_items
from splitmesh.errors import MeshError, Reason
from splitmesh.model.lineage import DatasetUse, Lineage
from tests.integration.dataset_sets import PICTURES, Sets, refusal, version_of
from tests.integration.registry_world import WAIT_S, parts, running
from tests.unit.dataset_items import box, boxed, digest_of, item


@pytest.fixture
async def sets(tmp_path: Path) -> AsyncIterator[Sets]:
    async with running(tmp_path / "data", garbage_min_age_s=0) as world:
        yield Sets(world)


async def test_a_version_says_what_its_manifest_says(sets: Sets) -> None:
    items = [
        boxed(n, *(box(label) for label in labels), site=site, group=f"g{n}", split=split)
        for n, (labels, site, split) in enumerate(
            [(("bolt", "nut", "nut"), "lyon", "train"), ((), "oulu", "train"), (("bolt",), "oulu", "test")]
        )
    ]
    dataset = freeze_items(items, task="detection", seed=1, classes=["nut", "bolt", "rust"])
    made = await sets.create(dataset, description="first", request_id="r1")
    assert (made.dataset, made.version, made.parent) == ("joints", 1, 0)
    assert (made.manifest_sha256, made.manifest_bytes) == (dataset.id, len(dataset.to_json()))
    assert made.task == "detection"
    assert list(made.classes) == ["nut", "bolt", "rust"]
    assert list(made.sites) == ["lyon", "oulu"]
    assert (made.pictures, made.picture_bytes, made.HasField("pictures_here")) == (3, 3003, False)
    assert {one.split: (one.pictures, one.groups, dict(one.labels)) for one in made.splits} == {
        "train": (2, 2, {"nut": 2, "bolt": 1, "rust": 0}),
        "val": (0, 0, {"nut": 0, "bolt": 0, "rust": 0}),
        "test": (1, 1, {"nut": 0, "bolt": 1, "rust": 0}),
    }
    assert (made.created_by, made.description) == ("ana", "first")
    assert await sets.get() == await sets.get(1) == made


async def test_versions_and_datasets_are_listed_page_by_page(sets: Sets) -> None:
    for n in range(5):
        assert (await sets.create(version_of(PICTURES[n]))).version == n + 1
    await sets.create(version_of(PICTURES[0]), "cells", parent=0)
    assert await sets.versions() == await sets.versions(size=2) == [5, 4, 3, 2, 1]
    page = await sets.stub.ListDatasets(pb.ListDatasetsRequest(page_size=1), timeout=WAIT_S)
    rest = await sets.stub.ListDatasets(pb.ListDatasetsRequest(page_token=page.next_page_token), timeout=WAIT_S)
    listed = [(one.name, one.latest_version) for one in (*page.datasets, *rest.datasets)]
    assert listed == [("cells", 1), ("joints", 5)]
    assert rest.next_page_token == ""


async def test_pictures_here_are_those_that_were_uploaded_and_counted_for_who_asks(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as world:
        sets = Sets(world)
        await sets.push(PICTURES[0])
        await sets.push(PICTURES[5])
        await sets.create(version_of(*PICTURES[:4]))
        assert (await sets.get(count=True)).pictures_here == 1
        await sets.push(PICTURES[1])
        await sets.create(version_of(*PICTURES[:4], label="bad"))
        counted = await sets.get(count=True)
        assert (counted.HasField("pictures_here"), counted.pictures_here) == (True, 2)
        assert not (await sets.get()).HasField("pictures_here")


async def test_counting_pictures_keeps_none_of_them_from_being_collected(sets: Sets) -> None:
    await sets.push(PICTURES[0])
    await sets.create(version_of(*PICTURES[:2]))
    assert (await sets.get(count=True)).pictures_here == 1
    assert await sets.delete(1)
    assert await sets.collect() == 2
    await sets.create(version_of(*PICTURES[:2]))
    assert (await sets.get(count=True)).pictures_here == 0


LIES = {
    "empty": b"",
    "no JSON": b"\xff\xfe",
    "counts that are wrong": version_of(*PICTURES).to_json().replace(b'"pictures":6', b'"pictures":7'),
    "a path for a digest": version_of(PICTURES[0]).to_json().replace(digest_of(PICTURES[0]).encode(), b"../../x"),
    "other bytes": version_of(*PICTURES).to_json() + b" ",
    "another form": version_of(*PICTURES).to_json().replace(b'"schema_version":2', b'"schema_version":9'),
    "nested for ever": b"[" * 200_000,
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_manifest_that_lies_makes_no_version(sets: Sets, lie: str) -> None:
    error = await refusal(sets.create(LIES[lie]))
    assert error.reason is Reason.FIELD_INVALID
    assert error.fields[0][0] == "manifest"
    assert (await refusal(sets.get())).reason is Reason.DATASET_NOT_FOUND
    await sets.create(version_of(*PICTURES))


async def test_what_is_not_there_or_only_half_makes_no_version(sets: Sets) -> None:
    data = version_of(*PICTURES).to_json()
    sha256 = hashlib.sha256(data).hexdigest()
    assert (await refusal(sets.create_of(sha256))).reason is Reason.ARTIFACT_NOT_FOUND
    call = await sets.world.begin(data)
    await call.write(registry_pb2.PushArtifactRequest(data=data[:100]))
    call.cancel()
    assert (await refusal(sets.create_of(sha256))).reason is Reason.ARTIFACT_NOT_FOUND
    assert (await refusal(sets.versions())).reason is Reason.DATASET_NOT_FOUND


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": "../up"}, "dataset"),
        ({"name": ""}, "dataset"),
        ({"name": "UPPER"}, "dataset"),
        ({"created_by": "x" * 129}, "created_by"),
        ({"description": "x" * 4001}, "description"),
        ({"request_id": "x" * 129}, "request_id"),
        ({"request_id": "\0"}, "request_id"),
        ({"parent": 2**31}, "parent"),
    ],
)
async def test_fields_out_of_their_bounds_are_named(sets: Sets, fields: dict[str, Any], field: str) -> None:
    error = await refusal(sets.create(version_of(*PICTURES), **fields))
    assert error.reason is Reason.FIELD_INVALID
    assert error.fields[0][0] == field
    assert (await refusal(sets.create_of("A" * 64))).fields[0][0] == "manifest_sha256"


async def test_a_parent_must_be_there(sets: Sets) -> None:
    assert (await refusal(sets.create(version_of(*PICTURES), parent=1))).reason is Reason.VERSION_NOT_FOUND
    await sets.create(version_of(*PICTURES))
    assert (await refusal(sets.create(version_of(*PICTURES), parent=2))).reason is Reason.VERSION_NOT_FOUND
    assert (await sets.create(version_of(*PICTURES), parent=1)).parent == 1


async def test_a_request_that_is_repeated_makes_one_version_even_at_once(sets: Sets) -> None:
    sha256 = await sets.push(version_of(*PICTURES).to_json())
    made = await asyncio.gather(*(sets.create_of(sha256, request_id="once") for _ in range(4)))
    assert {one.version for one in made} == {1}
    assert (await sets.create_of(sha256, request_id="twice")).version == 2


async def test_names_and_numbers_that_are_not_there_are_told_apart(sets: Sets) -> None:
    assert (await refusal(sets.get())).reason is Reason.DATASET_NOT_FOUND
    await sets.create(version_of(*PICTURES))
    assert (await refusal(sets.get(2))).reason is Reason.VERSION_NOT_FOUND
    for call in (sets.delete(0), sets.delete(7)):
        assert (await refusal(call)).reason is Reason.VERSION_NOT_FOUND
    assert (await refusal(sets.delete(1, "cells"))).reason is Reason.DATASET_NOT_FOUND
    assert (await refusal(sets.get(1, "../x"))).reason is Reason.FIELD_INVALID


async def test_pictures_go_with_the_last_version_that_names_them(sets: Sets) -> None:
    for data in PICTURES[:4]:
        await sets.push(data)
    await sets.create(version_of(*PICTURES[:3]))
    await sets.create(version_of(*PICTURES[1:4]))
    assert await sets.collect() == 0
    await sets.delete(1, reason="a person asked for it")
    assert await sets.collect() == 2, "the manifest and the one picture that only it named"
    assert set(sets.world.visible()) == {version_of(*PICTURES[1:4]).id, *(digest_of(data) for data in PICTURES[1:4])}
    assert await sets.versions() == [2]
    await sets.delete(2)
    assert await sets.collect() == 4
    assert (await refusal(sets.get(2))).reason is Reason.VERSION_NOT_FOUND
    assert (await sets.create(version_of(PICTURES[0]))).version == 3, "a number is not used again"


async def test_a_version_that_a_model_was_made_from_stays_unless_it_must_go(sets: Sets) -> None:
    dataset = version_of(*PICTURES)
    await sets.create(dataset)
    await sets.world.client.create_version(
        "solder", parts(), created_by="push", lineage=Lineage(datasets=(DatasetUse("joints", 1, dataset.id),))
    )
    error = await refusal(sets.delete(1))
    assert error.reason is Reason.VERSION_IN_USE
    assert "solder:1" in error.message
    await sets.delete(1, even_if_used=True, reason="a person asked for it")
    assert (await refusal(sets.get(1))).reason is Reason.VERSION_NOT_FOUND


async def test_collecting_all_the_time_never_takes_what_a_version_is_just_made_of(sets: Sets) -> None:
    done = asyncio.Event()

    async def collect() -> None:
        while not done.is_set():
            await sets.collect()

    collecting = asyncio.create_task(collect())
    made, refused = 0, set[Reason]()
    try:
        for n in range(8):
            try:
                version = await sets.create(freeze_items([item(n)], seed=1, shares={"train": 1}))
            except MeshError as error:
                refused.add(error.reason)
            else:
                made += 1
                assert version.manifest_sha256 in sets.world.visible()
    finally:
        done.set()
        await collecting
    # A manifest may go before anybody says what it is for; never once a version names it.
    assert refused <= {Reason.ARTIFACT_NOT_FOUND}
    for number in range(1, made + 1):
        assert (await sets.get(number)).manifest_sha256 in sets.world.visible()
