"""What every metadata store promises of signatures, holds and the end of versions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import pytest

from services.registry.metadata.port import MetadataStore
from services.registry.metadata.records import Signature
from services.registry.metadata.refusals import MAX_HOLDERS, MAX_SIGNATURES
from splitmesh.errors import Reason
from tests.support.stores import ACTOR, KINDS, NOON, Clock, after, made, move, opened, refused


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncIterator[MetadataStore]:
    async with opened(request.param, tmp_path, clock) as ready:
        await made(ready, "m", "m")
        yield ready


async def hold(store: MetadataStore, holder: str, until: datetime | None = None, *, time: datetime = NOON) -> None:
    await store.hold_version("m", 1, holder, until, ACTOR, time)


async def kinds(store: MetadataStore) -> list[str]:
    """Of events since the versions were made, oldest first."""
    return [event.kind for event in reversed(await store.list_events("m", 0, 100))][2:]


async def test_signatures_are_kept_by_key_and_one_of_a_key_replaces_another(store: MetadataStore) -> None:
    for key, envelope in (("k2", b"two"), ("k1", b"one"), ("k2", b"new"), ("k2", b"new")):
        await store.add_signature("m", 1, Signature(key, envelope), ACTOR, NOON)
    assert (await store.get_version("m", 1)).signatures == (Signature("k1", b"one"), Signature("k2", b"new"))
    assert (await store.get_version("m", 2)).signatures == ()
    assert await kinds(store) == ["version.signed"] * 3


async def test_the_number_of_signatures_is_limited_and_replacing_goes_on(store: MetadataStore) -> None:
    for number in range(MAX_SIGNATURES):
        await store.add_signature("m", 1, Signature(str(number), b"e"), ACTOR, NOON)
    await refused(store.add_signature("m", 1, Signature("more", b"e"), ACTOR, NOON), Reason.STORAGE_FULL)
    await store.add_signature("m", 1, Signature("7", b"new"), ACTOR, NOON)
    assert len((await store.get_version("m", 1)).signatures) == MAX_SIGNATURES


async def test_a_held_version_names_its_holders_and_is_not_deleted(store: MetadataStore) -> None:
    await hold(store, "line/4")
    await hold(store, "line/2")
    assert (await store.get_version("m", 1)).holders == ("line/2", "line/4")
    await move(store, "prod", 1)
    error = await refused(store.delete_version("m", 1, "", ACTOR, NOON), Reason.VERSION_IN_USE)
    assert error.metadata["users"] == "alias prod,holder line/2,holder line/4"
    await store.release_version("m", 1, "line/2", ACTOR, NOON)
    await move(store, "prod", 2)
    error = await refused(store.delete_version("m", 1, "", ACTOR, NOON), Reason.VERSION_IN_USE)
    assert error.metadata["users"] == "holder line/4"
    await store.release_version("m", 1, "line/4", ACTOR, NOON)
    await store.delete_version("m", 1, "", ACTOR, NOON)
    await refused(store.get_version("m", 1), Reason.VERSION_NOT_FOUND)


async def test_a_hold_ends_at_its_time(store: MetadataStore, clock: Clock) -> None:
    await hold(store, "h", after(10))
    clock.time = after(9.999999)
    assert (await store.get_version("m", 1)).holders == ("h",)
    await refused(store.delete_version("m", 1, "", ACTOR, clock.time), Reason.VERSION_IN_USE)
    clock.time = after(10)
    assert (await store.get_version("m", 1)).holders == ()
    assert (await store.list_versions("m", 0, 10))[1].holders == ()
    await store.delete_version("m", 1, "", ACTOR, clock.time)


async def test_a_second_hold_of_a_holder_replaces_the_first_and_renewing_is_no_event(store: MetadataStore) -> None:
    await hold(store, "h")
    await hold(store, "h", after(10))
    assert await kinds(store) == ["version.held"]
    await hold(store, "h", after(30), time=after(20))
    assert await kinds(store) == ["version.held"] * 2
    await store.delete_version("m", 1, "", ACTOR, after(30))


async def test_releasing_is_fine_without_a_hold_and_an_event_only_with_one(store: MetadataStore) -> None:
    await store.release_version("m", 1, "h", ACTOR, NOON)
    await hold(store, "h", after(1))
    await store.release_version("m", 1, "h", ACTOR, after(2))
    assert await kinds(store) == ["version.held"]
    await hold(store, "h")
    for _ in range(2):
        await store.release_version("m", 1, "h", ACTOR, NOON)
    assert await kinds(store) == ["version.held", "version.held", "version.released"]


async def test_the_number_of_holders_is_limited_and_ended_ones_make_room(store: MetadataStore) -> None:
    await hold(store, "ends", after(1))
    for number in range(MAX_HOLDERS - 1):
        await hold(store, str(number))
    await refused(hold(store, "more"), Reason.STORAGE_FULL)
    await hold(store, "7", after(5))
    await hold(store, "more", time=after(1))
    assert len((await store.get_version("m", 1)).holders) == MAX_HOLDERS


async def test_a_version_that_an_alias_left_can_be_deleted_with_all_that_hangs_on_it(store: MetadataStore) -> None:
    await store.add_signature("m", 1, Signature("k", b"e"), ACTOR, NOON)
    await move(store, "prod", 1)
    await refused(store.delete_version("m", 1, "", ACTOR, NOON), Reason.VERSION_IN_USE)
    await move(store, "prod", 2)
    assert await store.unused(["a" * 64]) == set()
    await store.delete_version("m", 1, "too slow", ACTOR, after(3))
    (event, *_) = await store.list_events("m", 0, 1)
    assert (event.kind, event.subject, event.detail, event.time) == ("version.deleted", "m:1", "too slow", after(3))
    assert event.actor == ACTOR
