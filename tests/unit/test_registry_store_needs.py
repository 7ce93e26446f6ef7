"""What every metadata store promises of versions that others run with, of its own name, and of removals."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.registry.metadata.port import MetadataStore
from services.registry.metadata.records import Artifact
from splitmesh.errors import Reason
from splitmesh.model.lineage import VersionName
from tests.support.stores import ACTOR, DATASET, KINDS, NOON, Clock, draft, made, opened, refused


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MetadataStore]:
    async with opened(request.param, tmp_path, Clock()) as ready:
        await made(ready, "m", "m")
        yield ready


async def need(store: MetadataStore, *needed: tuple[str, int], model: str = "user") -> None:
    needs = tuple(VersionName(name, version) for name, version in needed)
    await store.create_version(draft(model=model, needs=needs), ACTOR, NOON)


async def delete(store: MetadataStore, model: str, version: int) -> None:
    await store.delete_version(model, version, "", ACTOR, NOON)


async def test_a_version_that_others_need_stays_as_long_as_they_do(store: MetadataStore) -> None:
    await need(store, ("m", 1), ("m", 1))
    await need(store, ("m", 1), ("m", 2))
    await need(store, ("m", 2), model="m")
    error = await refused(delete(store, "m", 1), Reason.VERSION_IN_USE)
    assert error.metadata["users"] == "model user:1,model user:2"
    error = await refused(delete(store, "m", 2), Reason.VERSION_IN_USE)
    assert error.metadata["users"] == "model m:3,model user:2"
    await delete(store, "user", 2)
    error = await refused(delete(store, "m", 1), Reason.VERSION_IN_USE)
    assert error.metadata["users"] == "model user:1"
    await delete(store, "m", 3)
    await delete(store, "m", 2)
    await delete(store, "user", 1)
    await delete(store, "m", 1)


async def test_only_versions_that_exist_are_needed(store: MetadataStore) -> None:
    await delete(store, "m", 2)
    await refused(need(store, ("m", 1), ("m", 3)), Reason.VERSION_NOT_FOUND)
    error = await refused(need(store, ("m", 2)), Reason.VERSION_NOT_FOUND)
    assert error.metadata["deleted"] == "true"
    await refused(need(store, ("user", 1)), Reason.MODEL_NOT_FOUND)
    assert [model.name for model in await store.list_models("", 10)] == ["m"]
    await refused(need(store, ("a\0", 1)), Reason.FIELD_INVALID)


async def test_a_store_has_a_name_that_no_other_has(store: MetadataStore, tmp_path: Path) -> None:
    name = await store.identity()
    assert len(name) == 32
    assert name == await store.identity()
    (tmp_path / "other").mkdir()
    async with opened("sqlite", tmp_path / "other", Clock()) as other:
        assert await other.identity() != name


async def test_what_may_be_removed_is_what_nothing_names(store: MetadataStore) -> None:
    await store.create_dataset_version(DATASET, ACTOR, NOON)
    asked = ["a" * 64, "d" * 64, "e" * 64, "1" * 64]
    async with store.removing(asked) as removal:
        assert removal.unused == {"e" * 64}
        await removal.check()
        await store.delete_dataset_version("boards", 1, "", ACTOR, NOON, even_if_used=False)
        await removal.check()
    async with store.removing(asked) as removal:
        assert removal.unused == {"d" * 64, "e" * 64, "1" * 64}
    await refused(store.removing(["\0"]).__aenter__(), Reason.FIELD_INVALID)


async def test_versions_with_an_artefact_that_need_nothing_are_found_and_can_be_given_needs(
    store: MetadataStore,
) -> None:
    listed = (Artifact("list", "c" * 64, 1), Artifact("model.onnx", "a" * 64, 10))
    for model in ("b", "a", "a", "B"):
        await store.create_version(draft(model=model, artifacts=listed), ACTOR, NOON)
    await need(store, ("m", 1))
    await store.create_version(draft(model="a", artifacts=listed, needs=(VersionName("m", 1),)), ACTOR, NOON)
    found, after = list[tuple[VersionName, str]](), VersionName("", 0)
    while page := await store.without_needs("list", after, 3):
        found += page
        after = page[-1][0]
    assert [(one.model, one.version) for one, _ in found] == [("B", 1), ("a", 1), ("a", 2), ("b", 1)]
    assert {sha256 for _, sha256 in found} == {"c" * 64}
    await store.set_needs("a", 2, [VersionName("m", 2), VersionName("m", 9), VersionName("none", 1)])
    error = await refused(delete(store, "m", 2), Reason.VERSION_IN_USE)
    assert error.metadata["users"] == "model a:2"
    await store.set_needs("a", 2, (VersionName("a", 1), VersionName("a", 1)))
    await delete(store, "m", 2)
    await refused(delete(store, "a", 1), Reason.VERSION_IN_USE)
    await delete(store, "b", 1)
    assert [one for one, _ in await store.without_needs("list", VersionName("", 0), 10)] == [
        VersionName("B", 1),
        VersionName("a", 1),
    ]
    await refused(store.set_needs("b", 1, ()), Reason.VERSION_NOT_FOUND)
    await refused(store.set_needs("c", 1, ()), Reason.MODEL_NOT_FOUND)
