"""What every metadata store promises of datasets, and of contents that are named."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.registry.metadata.port import MetadataStore
from services.registry.metadata.records import Artifact, DatasetVersion, Signature
from splitmesh.errors import Reason
from splitmesh.model.lineage import DatasetUse, Lineage
from tests.support.stores import ACTOR, DATASET, KINDS, NOON, PICTURES, Clock, after, draft, made, opened, refused

SIGNED = replace(DATASET, signature=Signature("k1", b"envelope"))


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MetadataStore]:
    async with opened(request.param, tmp_path, Clock()) as ready:
        yield ready


async def create(store: MetadataStore, times: int = 1) -> None:
    for _ in range(times):
        await store.create_dataset_version(DATASET, ACTOR, NOON)


async def delete(store: MetadataStore, version: int, *, even_if_used: bool = False) -> None:
    await store.delete_dataset_version("boards", version, "why", ACTOR, after(1), even_if_used=even_if_used)


async def test_a_dataset_version_comes_back_as_it_was_made(store: MetadataStore) -> None:
    made = await store.create_dataset_version(SIGNED, ACTOR, NOON)
    assert made == DatasetVersion(
        "boards", 1, DATASET.manifest, 0, "site", "from line 4", '{"pictures":2}', NOON, (Signature("k1", b"envelope"),)
    )
    assert await store.get_dataset_version("boards", 1) == made == await store.get_dataset_version("boards", 0)


async def test_dataset_versions_count_without_gaps_also_at_the_same_time(store: MetadataStore) -> None:
    made = await asyncio.gather(*(store.create_dataset_version(DATASET, ACTOR, NOON) for _ in range(10)))
    assert sorted(version.version for version in made) == list(range(1, 11))


async def test_a_request_id_makes_one_dataset_version(store: MetadataStore) -> None:
    asked = replace(DATASET, request_id="r")
    assert await store.find_dataset_request("boards", "r") is None
    made = await asyncio.gather(*(store.create_dataset_version(asked, ACTOR, after(i)) for i in range(5)))
    assert all(version == made[0] for version in made)
    assert await store.find_dataset_request("boards", "r") == made[0]
    assert await store.find_dataset_request("boards", "") is None
    await delete(store, 1)
    await refused(store.find_dataset_request("boards", "r"), Reason.VERSION_NOT_FOUND)
    await refused(store.create_dataset_version(asked, ACTOR, NOON), Reason.VERSION_NOT_FOUND)


async def test_what_is_unknown_of_datasets_is_named_precisely(store: MetadataStore) -> None:
    for call in (
        store.get_dataset_version("boards", 0),
        store.get_dataset_version("boards", 1),
        store.list_dataset_versions("boards", 0, 10),
        delete(store, 1),
    ):
        await refused(call, Reason.DATASET_NOT_FOUND)
    await refused(store.create_dataset_version(replace(DATASET, parent=1), ACTOR, NOON), Reason.VERSION_NOT_FOUND)
    assert list(await store.list_datasets("", 10)) == []
    await create(store, 2)
    for number in (3, 2**32 - 1):
        await refused(store.get_dataset_version("boards", number), Reason.VERSION_NOT_FOUND)
    await refused(delete(store, 3), Reason.VERSION_NOT_FOUND)
    assert (await store.create_dataset_version(replace(DATASET, parent=2), ACTOR, NOON)).parent == 2


async def test_datasets_and_their_versions_are_listed_in_pages(store: MetadataStore) -> None:
    for name in ("b", "B", "a-1", "a"):
        await store.create_dataset_version(replace(DATASET, dataset=name), ACTOR, NOON)
    await create(store, 4)
    await delete(store, 2)
    assert [one.name for one in await store.list_datasets("", 10)] == ["B", "a", "a-1", "b", "boards"]
    (one,) = await store.list_datasets("b", 5)
    assert (one.name, one.latest_version, one.create_time) == ("boards", 4, NOON)
    assert [one.version for one in await store.list_dataset_versions("boards", 0, 10)] == [4, 3, 1]
    assert [one.version for one in await store.list_dataset_versions("boards", 4, 1)] == [3]
    assert list(await store.list_dataset_versions("boards", 1, 1)) == []


async def test_a_deleted_dataset_version_is_gone_and_its_number_is_not_used_again(store: MetadataStore) -> None:
    await create(store, 2)
    await delete(store, 2)
    assert (await store.get_dataset_version("boards", 0)).version == 1
    error = await refused(store.get_dataset_version("boards", 2), Reason.VERSION_NOT_FOUND)
    assert error.metadata == {"dataset": "boards", "version": "2", "deleted": "true"}
    await refused(delete(store, 2), Reason.VERSION_NOT_FOUND)
    await delete(store, 1)
    await refused(store.get_dataset_version("boards", 0), Reason.VERSION_NOT_FOUND)
    assert (await store.create_dataset_version(DATASET, ACTOR, NOON)).version == 3


async def test_a_dataset_version_in_a_lineage_is_deleted_only_when_asked_twice(store: MetadataStore) -> None:
    await create(store, 2)
    for model in ("n", "m", "m"):
        lineage = Lineage(datasets=(DatasetUse("boards", 1, "d" * 64), DatasetUse("boards", 1, "d" * 64, "test")))
        await store.create_version(draft(model=model, lineage=lineage), ACTOR, NOON)
    await delete(store, 2)
    error = await refused(delete(store, 1), Reason.VERSION_IN_USE)
    assert error.metadata["users"] == "model m:1,model m:2,model n:1"
    await store.delete_version("m", 1, "", ACTOR, NOON)
    error = await refused(delete(store, 1), Reason.VERSION_IN_USE)
    assert error.metadata["users"] == "model m:2,model n:1"
    await delete(store, 1, even_if_used=True)
    (event,) = await store.list_events("boards", 0, 1)
    assert (event.kind, event.subject) == ("dataset.deleted", "boards:1")
    assert "2 model versions" in event.detail
    assert (await store.get_version("n", 1)).lineage.datasets[0].dataset == "boards"


async def test_contents_are_unused_when_no_version_of_anything_names_them(store: MetadataStore) -> None:
    everything = ["a" * 64, "b" * 64, "d" * 64, *PICTURES, "f" * 64]
    assert await store.unused(everything) == set(everything)
    assert await store.unused([]) == set()
    await made(store, "m")
    await create(store)
    assert await store.unused(everything) == {"f" * 64}
    await store.delete_version("m", 1, "", ACTOR, NOON)
    assert await store.unused(everything) == {"a" * 64, "b" * 64, "f" * 64}
    other = replace(DATASET, manifest=Artifact("dataset.json", "e" * 64, 1), contents=PICTURES[:1])
    await store.create_dataset_version(other, ACTOR, NOON)
    await delete(store, 1)
    assert await store.unused(everything) == {"a" * 64, "b" * 64, "d" * 64, PICTURES[1], "f" * 64}


async def test_a_dataset_of_many_pictures_names_each_of_them(store: MetadataStore) -> None:
    pictures = tuple(f"{number:064x}" for number in range(5000))
    await store.create_dataset_version(replace(DATASET, contents=pictures), ACTOR, NOON)
    others = [f"{number:064x}" for number in range(5000, 7000)]
    assert await store.unused([*pictures, *others]) == set(others)
