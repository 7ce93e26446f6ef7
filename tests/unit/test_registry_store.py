"""One conformance suite for every metadata store, and what only the durable one promises."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.registry.memory_store import MemoryStore
from services.registry.sqlite_store import SqliteStore
from services.registry.store import MAX_PROFILES, Artifact, Draft, MetadataStore, ProfileRecord
from splitmesh.errors import MeshError, Reason
from tests.integration.registry_world import small_disk

NOON = datetime(2026, 5, 4, 12, 0, 0, 123456, tzinfo=UTC)
PARTS = (Artifact("model.onnx", "a" * 64, 10), Artifact("manifest.json", "b" * 64, 2**40))
DRAFT = Draft("m", PARTS, parent=0, created_by="push", description="first", request_id="")

MAKERS: dict[str, Callable[[Path], MetadataStore]] = {
    "memory": lambda folder: MemoryStore(),
    "sqlite": lambda folder: SqliteStore(folder / "registry.sqlite3"),
}


@pytest.fixture(params=MAKERS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MetadataStore]:
    made = MAKERS[request.param](tmp_path)
    await made.start()
    yield made
    await made.stop()


def reason(error: pytest.ExceptionInfo[MeshError]) -> Reason:
    return error.value.reason


async def test_a_version_comes_back_as_it_was_made(store: MetadataStore) -> None:
    made = await store.create_version(DRAFT, NOON)
    assert (made.model, made.version, made.parent, made.artifacts) == ("m", 1, 0, PARTS)
    assert (made.created_by, made.description, made.create_time, made.aliases) == ("push", "first", NOON, ())
    assert await store.get_version("m", 1) == made == await store.newest("m")


async def test_version_numbers_count_from_one_per_model_without_gaps(store: MetadataStore) -> None:
    numbers = [(await store.create_version(replace(DRAFT, model=model), NOON)).version for model in "aabab"]
    assert numbers == [1, 2, 1, 3, 2]


async def test_versions_made_at_the_same_time_get_different_numbers(store: MetadataStore) -> None:
    made = await asyncio.gather(*(store.create_version(DRAFT, NOON) for _ in range(20)))
    assert sorted(version.version for version in made) == list(range(1, 21))


async def test_a_request_id_makes_one_version_of_a_model_however_often_it_comes(store: MetadataStore) -> None:
    draft = replace(DRAFT, request_id="r1")
    assert await store.find_request("m", "r1") is None
    made = await asyncio.gather(*(store.create_version(draft, NOON + timedelta(seconds=i)) for i in range(5)))
    assert all(version == made[0] for version in made)
    assert await store.find_request("m", "r1") == made[0]
    assert (await store.create_version(replace(draft, model="other"), NOON)).model == "other"
    assert (await store.newest("m")).version == 1


async def test_a_version_without_a_request_id_is_always_a_new_one(store: MetadataStore) -> None:
    assert [(await store.create_version(DRAFT, NOON)).version for _ in range(2)] == [1, 2]
    assert await store.find_request("m", "") is None


async def test_a_version_derives_only_from_a_version_of_its_model(store: MetadataStore) -> None:
    with pytest.raises(MeshError) as error:
        await store.create_version(replace(DRAFT, parent=1), NOON)
    assert reason(error) is Reason.VERSION_NOT_FOUND
    assert await store.list_models("", 10) == []
    await store.create_version(DRAFT, NOON)
    assert (await store.create_version(replace(DRAFT, parent=1), NOON)).parent == 1


async def test_what_is_unknown_is_named_precisely(store: MetadataStore) -> None:
    for ask in (
        store.newest("m"),
        store.get_version("m", 1),
        store.version_at("m", "prod"),
        store.list_versions("m", 0, 10),
        store.set_alias("m", "prod", 1),
    ):
        with pytest.raises(MeshError) as error:
            await ask
        assert reason(error) is Reason.MODEL_NOT_FOUND
    await store.create_version(DRAFT, NOON)
    for number in (0, 2, 2**32 - 1):
        with pytest.raises(MeshError) as error:
            await store.get_version("m", number)
        assert reason(error) is Reason.VERSION_NOT_FOUND
    with pytest.raises(MeshError) as error:
        await store.set_alias("m", "prod", 2)
    assert reason(error) is Reason.VERSION_NOT_FOUND
    with pytest.raises(MeshError) as error:
        await store.version_at("m", "prod")
    assert reason(error) is Reason.ALIAS_NOT_FOUND


async def test_an_alias_counts_its_moves_and_only_real_ones(store: MetadataStore) -> None:
    for _ in range(2):
        await store.create_version(DRAFT, NOON)
    nothing = await store.alias_state("m", "prod")
    assert (nothing.version, nothing.revision) == (None, 0)
    moves = [await store.set_alias("m", "prod", number) for number in (1, 2, 2, 1)]
    assert [move.previous for move in moves] == [0, 1, 2, 2]
    assert [move.state.revision for move in moves] == [1, 2, 2, 3]
    assert moves[-1].state == await store.alias_state("m", "prod")
    assert await store.version_at("m", "prod") == await store.get_version("m", 1)


async def test_a_version_lists_the_aliases_that_point_at_it_now(store: MetadataStore) -> None:
    for _ in range(2):
        await store.create_version(DRAFT, NOON)
    for alias, number in (("prod", 1), ("canary", 2), ("blue", 2), ("prod", 2)):
        await store.set_alias("m", alias, number)
    assert (await store.get_version("m", 1)).aliases == ()
    assert (await store.get_version("m", 2)).aliases == ("blue", "canary", "prod")
    (model,) = await store.list_models("", 10)
    assert model.aliases == {"blue": 2, "canary": 2, "prod": 2}


async def test_models_are_listed_by_name_in_pages(store: MetadataStore) -> None:
    for index, name in enumerate(["b", "c", "a-1", "a"]):
        await store.create_version(replace(DRAFT, model=name), NOON + timedelta(seconds=index))
    await store.create_version(replace(DRAFT, model="b"), NOON + timedelta(days=1))
    assert [model.name for model in await store.list_models("", 10)] == ["a", "a-1", "b", "c"]
    assert [model.name for model in await store.list_models("a", 2)] == ["a-1", "b"]
    (model,) = await store.list_models("a-1", 1)
    assert (model.latest_version, model.create_time, model.aliases) == (2, NOON, {})
    assert await store.list_models("c", 2) == []


async def test_versions_are_listed_newest_first_in_pages(store: MetadataStore) -> None:
    for _ in range(5):
        await store.create_version(DRAFT, NOON)
    assert [version.version for version in await store.list_versions("m", 0, 10)] == [5, 4, 3, 2, 1]
    assert [version.version for version in await store.list_versions("m", 4, 2)] == [3, 2]
    assert await store.list_versions("m", 1, 2) == []
    assert (await store.list_versions("m", 2, 2))[0] == await store.get_version("m", 1)


async def test_sqlite_keeps_everything_over_a_restart(tmp_path: Path) -> None:
    first = SqliteStore(tmp_path / "registry.sqlite3")
    await first.start()
    made = await first.create_version(replace(DRAFT, request_id="r"), NOON)
    await first.set_alias("m", "prod", 1)
    await first.stop()
    second = SqliteStore(tmp_path / "registry.sqlite3")
    await second.start()
    assert await second.get_version("m", 1) == replace(made, aliases=("prod",))
    assert (await second.create_version(replace(DRAFT, request_id="r"), NOON)).version == 1
    assert (await second.alias_state("m", "prod")).revision == 1
    await second.stop()


async def test_sqlite_syncs_before_it_acknowledges(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "registry.sqlite3")
    await store.start()

    def pragmas() -> list[object]:
        return [store._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]

    assert await store._run(pragmas) == ["wal", 2]
    await store.stop()


async def test_sqlite_refuses_a_file_of_another_schema_or_none(tmp_path: Path) -> None:
    newer, noise = tmp_path / "newer", tmp_path / "noise"
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    noise.write_bytes(b"this is not a database at all" * 100)
    for path in (newer, noise):
        store = SqliteStore(path)
        with pytest.raises(MeshError) as error:
            await store.start()
        assert reason(error) is Reason.NOT_READY
        await store.stop()


async def test_sqlite_on_a_full_disk_refuses_and_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 512 * 1024) as folder:
        store = SqliteStore(folder / "registry.sqlite3")
        await store.start()
        acknowledged, refusal = 0, None
        while refusal is None and acknowledged < 10_000:
            try:
                await store.create_version(replace(DRAFT, description="x" * 4000), NOON)
                acknowledged += 1
            except MeshError as error:
                refusal = error
        assert refusal is not None
        assert refusal.reason is Reason.STORAGE_FULL
        assert (await store.newest("m")).version == acknowledged > 0
        await store.stop()
        again = SqliteStore(folder / "registry.sqlite3")
        await again.start()
        assert len(await again.list_versions("m", 0, 10_000)) == acknowledged
        await again.stop()


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "registry.sqlite3")
    await store.start()
    await store.stop()
    with pytest.raises(MeshError) as error:
        await store.newest("m")
    assert reason(error) is Reason.NOT_READY


def _record(
    key: str = "k", *, node: str = "n", sha256: str = "a" * 64, content: str = "{}", late: int = 0
) -> ProfileRecord:
    return ProfileRecord(sha256, key, node, content, NOON + timedelta(seconds=late))


async def test_profiles_come_back_newest_first_by_model_and_node(store: MetadataStore) -> None:
    one, two, three = _record("1"), _record("2", node="m", late=2), _record("3", late=1)
    for record in (one, two, three):
        await store.put_profile(record)
    await store.put_profile(_record("1", sha256="b" * 64))
    assert list(await store.list_profiles("a" * 64, "")) == [two, three, one]
    assert list(await store.list_profiles("a" * 64, "n")) == [three, one]
    assert list(await store.list_profiles("c" * 64, "")) == []
    both = len(two.content.encode()) + len(three.content.encode())
    for max_bytes, fit in ((0, [two]), (both - 1, [two]), (both, [two, three])):
        assert list(await store.list_profiles("a" * 64, "", max_bytes)) == fit


async def test_a_profile_replaces_the_one_with_its_key(store: MetadataStore) -> None:
    await store.put_profile(_record(content="old"))
    newer = _record(content="new", late=5)
    await store.put_profile(newer)
    assert list(await store.list_profiles("a" * 64, "")) == [newer]


async def test_the_number_of_profiles_of_a_model_is_limited_and_replacing_goes_on(store: MetadataStore) -> None:
    for number in range(MAX_PROFILES):
        await store.put_profile(_record(str(number)))
    with pytest.raises(MeshError) as caught:
        await store.put_profile(_record("one more"))
    assert reason(caught) is Reason.STORAGE_FULL
    await store.put_profile(_record("7", content="new"))
    await store.put_profile(_record("other model", sha256="b" * 64))
    assert len(await store.list_profiles("a" * 64, "")) == MAX_PROFILES


async def test_a_file_of_the_first_schema_gets_the_table_of_profiles(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite3"
    store = SqliteStore(path)
    await store.start()
    await store.create_version(DRAFT, NOON)
    await store.stop()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("DROP TABLE profiles; PRAGMA user_version = 1;")
    again = SqliteStore(path)
    await again.start()
    try:
        assert (await again.newest("m")).version == 1
        await again.put_profile(_record())
    finally:
        await again.stop()
    third = SqliteStore(path)
    await third.start()
    try:
        assert list(await third.list_profiles("a" * 64, "")) == [_record()]
    finally:
        await third.stop()
