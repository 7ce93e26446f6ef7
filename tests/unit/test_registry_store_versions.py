"""What every metadata store promises of models and versions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from services.registry.metadata.port import MetadataStore
from services.registry.metadata.records import Signature, Version
from splitmesh.errors import MeshError, Reason
from splitmesh.model.lineage import DatasetUse, Lineage, VersionName
from tests.support.stores import (
    ACTOR,
    DATASET,
    DRAFT,
    KINDS,
    NOON,
    PARTS,
    Clock,
    after,
    draft,
    made,
    move,
    opened,
    refused,
)

LINEAGE = Lineage(
    parents=(VersionName("backbone", 1),),
    datasets=(DatasetUse("boards", 1, "d" * 64), DatasetUse("boards", 1, "d" * 64, role="test")),
    task="train/7",
    code_version="c0ffee",
    recipe_sha256="e" * 64,
    seeds=(0, -(2**63), 2**63 - 1),
    metrics={"auroc": 0.1 + 0.2, "größe": -1e300},
)


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MetadataStore]:
    async with opened(request.param, tmp_path, Clock()) as made:
        yield made


async def test_a_version_comes_back_as_it_was_made(store: MetadataStore) -> None:
    made = await store.create_version(DRAFT, ACTOR, NOON)
    assert made == Version("m", 1, 0, PARTS, "push", "first", NOON)
    assert await store.get_version("m", 1) == made == await store.newest("m")


async def test_a_version_keeps_its_lineage_and_signature(store: MetadataStore) -> None:
    await made(store, "backbone")
    await store.create_dataset_version(DATASET, ACTOR, NOON)
    signature = Signature("k1", b"\x00envelope\xff")
    version = await store.create_version(draft(lineage=LINEAGE, signature=signature), ACTOR, NOON)
    assert (version.lineage, version.signatures) == (LINEAGE, (signature,))
    assert await store.get_version("m", 1) == version


async def test_a_lineage_names_only_what_exists(store: MetadataStore) -> None:
    def of(lineage: Lineage) -> Awaitable[Version]:
        return store.create_version(draft(lineage=lineage), ACTOR, NOON)

    backbone, boards = VersionName("backbone", 1), DatasetUse("boards", 1, "d" * 64)
    await refused(of(Lineage(parents=(backbone,))), Reason.MODEL_NOT_FOUND)
    await refused(of(Lineage(datasets=(boards,))), Reason.DATASET_NOT_FOUND)
    await made(store, "backbone")
    await store.create_dataset_version(DATASET, ACTOR, NOON)
    await refused(of(Lineage(parents=(replace(backbone, version=2),))), Reason.VERSION_NOT_FOUND)
    await refused(of(Lineage(datasets=(replace(boards, version=2),))), Reason.VERSION_NOT_FOUND)
    await store.delete_version("backbone", 1, "", ACTOR, NOON)
    gone = await refused(of(Lineage(parents=(backbone,))), Reason.VERSION_NOT_FOUND)
    assert gone.metadata["deleted"] == "true"
    assert [model.name for model in await store.list_models("", 10)] == ["backbone"]


async def test_version_numbers_count_from_one_per_model_without_gaps(store: MetadataStore) -> None:
    numbers = [(await store.create_version(draft(model=model), ACTOR, NOON)).version for model in "aabab"]
    assert numbers == [1, 2, 1, 3, 2]


async def test_versions_made_at_the_same_time_get_different_numbers(store: MetadataStore) -> None:
    made = await asyncio.gather(*(store.create_version(DRAFT, ACTOR, NOON) for _ in range(20)))
    assert sorted(version.version for version in made) == list(range(1, 21))


async def test_a_request_id_makes_one_version_of_a_model_however_often_it_comes(store: MetadataStore) -> None:
    asked = draft(request_id="r1")
    assert await store.find_request("m", "r1") is None
    made = await asyncio.gather(*(store.create_version(asked, ACTOR, after(i)) for i in range(5)))
    assert all(version == made[0] for version in made)
    assert await store.find_request("m", "r1") == made[0]
    assert (await store.create_version(draft(request_id="r1", model="other"), ACTOR, NOON)).model == "other"
    assert (await store.newest("m")).version == 1
    assert [event.subject for event in await store.list_events("", 0, 10)] == ["other:1", "m:1"]


async def test_the_request_id_of_a_deleted_version_makes_no_other(store: MetadataStore) -> None:
    asked = draft(request_id="r1")
    await store.create_version(asked, ACTOR, NOON)
    await store.delete_version("m", 1, "bad", ACTOR, NOON)
    for call in (store.find_request("m", "r1"), store.create_version(asked, ACTOR, NOON)):
        error = await refused(call, Reason.VERSION_NOT_FOUND)
        assert "was deleted" in error.message
    assert await store.list_versions("m", 0, 10) == []


async def test_a_version_without_a_request_id_is_always_a_new_one(store: MetadataStore) -> None:
    assert [(await store.create_version(DRAFT, ACTOR, NOON)).version for _ in range(2)] == [1, 2]
    assert await store.find_request("m", "") is None


async def test_a_version_derives_only_from_a_version_of_its_model(store: MetadataStore) -> None:
    await refused(store.create_version(draft(parent=1), ACTOR, NOON), Reason.VERSION_NOT_FOUND)
    assert await store.list_models("", 10) == []
    await made(store, "m", "m")
    assert (await store.create_version(draft(parent=1), ACTOR, NOON)).parent == 1
    await store.delete_version("m", 2, "", ACTOR, NOON)
    await refused(store.create_version(draft(parent=2), ACTOR, NOON), Reason.VERSION_NOT_FOUND)
    assert (await store.newest("m")).version == 3


async def test_what_is_unknown_is_named_precisely(store: MetadataStore) -> None:
    for call in (
        store.newest("m"),
        store.get_version("m", 1),
        store.version_at("m", "prod"),
        store.list_versions("m", 0, 10),
        store.alias_moves_before("m", "", 0, 10),
        move(store, "prod", 1),
        move(store, "prod", 0),
        store.add_signature("m", 1, Signature("k", b"e"), ACTOR, NOON),
        store.hold_version("m", 1, "h", None, ACTOR, NOON),
        store.release_version("m", 1, "h", ACTOR, NOON),
        store.delete_version("m", 1, "", ACTOR, NOON),
    ):
        await refused(call, Reason.MODEL_NOT_FOUND)
    await made(store, "m")
    for number in (0, 2, 2**32 - 1, -1):
        error = await refused(store.get_version("m", number), Reason.VERSION_NOT_FOUND)
        assert "has no version" in error.message
    for call in (
        move(store, "prod", 2),
        store.add_signature("m", 2, Signature("k", b"e"), ACTOR, NOON),
        store.hold_version("m", 2, "h", None, ACTOR, NOON),
        store.release_version("m", 2, "h", ACTOR, NOON),
        store.delete_version("m", 2, "", ACTOR, NOON),
    ):
        await refused(call, Reason.VERSION_NOT_FOUND)
    await refused(store.version_at("m", "prod"), Reason.ALIAS_NOT_FOUND)


async def test_models_are_listed_by_code_point_in_pages(store: MetadataStore) -> None:
    for index, name in enumerate(["b", "c", "a-1", "ab", "a", "a_1", "B"]):
        await store.create_version(draft(model=name), ACTOR, after(index))
    await store.create_version(draft(model="b"), ACTOR, NOON + timedelta(days=1))
    every = ["B", "a", "a-1", "a_1", "ab", "b", "c"]
    assert [model.name for model in await store.list_models("", 10)] == every == sorted(every)
    assert [model.name for model in await store.list_models("a", 2)] == ["a-1", "a_1"]
    (model,) = await store.list_models("ab", 1)
    assert (model.latest_version, model.create_time, model.aliases) == (2, NOON, {})
    assert list(await store.list_models("c", 2)) == []


async def test_versions_are_listed_newest_first_in_pages_without_deleted_ones(store: MetadataStore) -> None:
    await made(store, *["m"] * 6)
    await store.delete_version("m", 3, "", ACTOR, NOON)
    assert [version.version for version in await store.list_versions("m", 0, 10)] == [6, 5, 4, 2, 1]
    assert [version.version for version in await store.list_versions("m", 5, 2)] == [4, 2]
    assert await store.list_versions("m", 1, 2) == []
    assert (await store.list_versions("m", 2, 2))[0] == await store.get_version("m", 1)


async def test_a_deleted_version_is_gone_and_its_number_is_never_used_again(store: MetadataStore) -> None:
    await made(store, "m", "m")
    await store.delete_version("m", 2, "bad", ACTOR, NOON)
    assert (await store.newest("m")).version == 1
    error = await refused(store.get_version("m", 2), Reason.VERSION_NOT_FOUND)
    assert error.metadata == {"model": "m", "version": "2", "deleted": "true"}
    await refused(store.delete_version("m", 2, "", ACTOR, NOON), Reason.VERSION_NOT_FOUND)
    await refused(move(store, "prod", 2), Reason.VERSION_NOT_FOUND)
    await store.delete_version("m", 1, "bad", ACTOR, NOON)
    await refused(store.newest("m"), Reason.VERSION_NOT_FOUND)
    (model,) = await store.list_models("", 10)
    assert (model.name, model.latest_version) == ("m", 2)
    assert (await store.create_version(DRAFT, ACTOR, NOON)).version == 3


async def test_what_some_store_cannot_keep_no_store_takes(store: MetadataStore) -> None:
    await made(store, "m")
    bad = {
        "draft.description": store.create_version(draft(description="a\0b"), ACTOR, NOON),
        "actor.by": store.create_version(DRAFT, replace(ACTOR, by="\0"), NOON),
        "draft.artifacts[0].size_bytes": store.create_version(
            draft(artifacts=(replace(PARTS[0], size_bytes=2**63),)), ACTOR, NOON
        ),
        "draft.lineage.seeds[1]": store.create_version(draft(lineage=Lineage(seeds=(1, 2**63))), ACTOR, NOON),
        "draft.lineage.metrics['loss']": store.create_version(
            draft(lineage=Lineage(metrics={"loss": float("nan")})), ACTOR, NOON
        ),
        "holder": store.hold_version("m", 1, "\ud800", None, ACTOR, NOON),
        "model": store.get_version("m\0", 1),
        "version": store.get_version("m", 2**63),
        "after": store.alias_moves_after("m", "", 2**64 - 1, 10),
        "sha256s[1]": store.unused(["a", "b\0"]),
    }
    for field, call in bad.items():
        with pytest.raises(MeshError) as caught:
            await call
        assert caught.value.reason is Reason.FIELD_INVALID
        assert [name for name, _ in caught.value.fields] == [field]
    assert (await store.newest("m")).version == 1
    odd = "ü 漢 😀 \x01 ' \" \\ %s :x"
    assert (await store.create_version(draft(description=odd), ACTOR, NOON)).description == odd
    assert (await store.get_version("m", 2)).description == odd
