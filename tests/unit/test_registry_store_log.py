"""What every metadata store promises of events, keyrings and profiles."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from services.registry.metadata.port import MetadataStore
from services.registry.metadata.records import Actor, ProfileRecord, Signature
from services.registry.metadata.refusals import MAX_PROFILES
from splitmesh.errors import Reason
from tests.support.stores import ACTOR, DATASET, KINDS, NOON, Clock, after, made, move, opened, refused


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MetadataStore]:
    async with opened(request.param, tmp_path, Clock()) as ready:
        yield ready


async def test_every_act_leaves_an_event_and_says_who_when_and_to_what(store: MetadataStore) -> None:
    await made(store, "m", "m")
    await store.add_signature("m", 1, Signature("k", b"e"), ACTOR, after(1))
    await store.hold_version("m", 1, "line/4", None, ACTOR, after(2))
    await store.release_version("m", 1, "line/4", ACTOR, after(3))
    await move(store, "prod", 2, late=4)
    await move(store, "prod", 0, late=5)
    await store.delete_version("m", 1, "bad", ACTOR, after(6))
    await store.put_keyring(1, b"ring", ACTOR, after(7))
    await store.create_dataset_version(DATASET, ACTOR, after(8))
    await store.delete_dataset_version("boards", 1, "old", ACTOR, after(9), even_if_used=False)
    await store.record("garbage.collected", "registry", "registry", Actor(), "3 contents", after(10))
    events = list(reversed(await store.list_events("", 0, 100)))
    assert [(event.kind, event.name, event.subject) for event in events] == [
        ("version.created", "m", "m:1"),
        ("version.created", "m", "m:2"),
        ("version.signed", "m", "m:1"),
        ("version.held", "m", "m:1"),
        ("version.released", "m", "m:1"),
        ("alias.moved", "m", "m@prod"),
        ("alias.moved", "m", "m@prod"),
        ("version.deleted", "m", "m:1"),
        ("keyring.put", "keyring", "keyring:1"),
        ("dataset.created", "boards", "boards:1"),
        ("dataset.deleted", "boards", "boards:1"),
        ("garbage.collected", "registry", "registry"),
    ]
    assert [event.time for event in events] == [NOON, NOON, *(after(late) for late in range(1, 11))]
    assert [event.sequence for event in events] == list(range(1, 13))
    assert [event.actor for event in events] == [ACTOR] * 11 + [Actor()]
    assert events[5].detail == "nowhere to 2: to 2"
    assert events[-1].detail == "3 contents"


async def test_events_are_listed_newest_first_by_name_in_pages(store: MetadataStore) -> None:
    await made(store, "m", "n", "m", "m")
    assert [event.sequence for event in await store.list_events("", 0, 3)] == [4, 3, 2]
    assert [event.sequence for event in await store.list_events("m", 0, 2)] == [4, 3]
    assert [event.sequence for event in await store.list_events("m", 3, 2)] == [1]
    assert list(await store.list_events("none", 0, 2)) == []


async def test_what_is_refused_leaves_no_event(store: MetadataStore) -> None:
    await made(store, "m")
    await move(store, "prod", 1)
    await refused(store.delete_version("m", 1, "", ACTOR, NOON), Reason.VERSION_IN_USE)
    await refused(move(store, "prod", 1, expected=0), Reason.ALIAS_MOVED)
    await refused(store.put_keyring(2, b"ring", ACTOR, NOON), Reason.KEYRING_STALE)
    assert len(await store.list_events("", 0, 100)) == 2
    await made(store, "m")
    assert [event.sequence for event in await store.list_events("", 0, 1)] == [3]


async def test_keyrings_follow_each_other_and_the_same_again_is_fine(store: MetadataStore) -> None:
    assert list(await store.keyrings(0)) == []
    await refused(store.put_keyring(2, b"two", ACTOR, NOON), Reason.KEYRING_STALE)
    for version, envelope in ((1, b"one"), (1, b"one"), (2, b"two\x00"), (1, b"one")):
        await store.put_keyring(version, envelope, ACTOR, NOON)
    for version, envelope in ((1, b"other"), (2, b"other"), (4, b"four"), (0, b"none")):
        error = await refused(store.put_keyring(version, envelope, ACTOR, NOON), Reason.KEYRING_STALE)
        assert error.metadata["newest"] == "2"
    assert list(await store.keyrings(0)) == [b"one", b"two\x00"]
    assert list(await store.keyrings(1)) == [b"two\x00"]
    assert list(await store.keyrings(2)) == []
    assert len(await store.list_events("keyring", 0, 10)) == 2


async def test_the_first_keyring_of_another_chain_takes_the_place_of_all_that_are_kept(store: MetadataStore) -> None:
    for version, envelope in ((1, b"one"), (2, b"two")):
        await store.put_keyring(version, envelope, ACTOR, NOON)
    for _ in range(2):
        await store.put_keyring(7, b"seven", ACTOR, NOON, first=True)
    await store.put_keyring(8, b"eight", ACTOR, NOON)
    assert list(await store.keyrings(0)) == [b"seven", b"eight"]
    assert list(await store.keyrings(7)) == [b"eight"]
    await refused(store.put_keyring(1, b"one", ACTOR, NOON), Reason.KEYRING_STALE)
    events = await store.list_events("keyring", 0, 10)
    assert [(one.kind, one.subject) for one in events] == [
        ("keyring.put", "keyring:8"),
        ("keyring.put", "keyring:7"),
        ("keyring.removed", "keyring:2"),
        ("keyring.put", "keyring:2"),
        ("keyring.put", "keyring:1"),
    ]
    assert hashlib.sha256(b"two").hexdigest() in events[2].detail


async def test_of_two_next_keyrings_at_once_one_is_kept(store: MetadataStore) -> None:
    puts = (store.put_keyring(1, str(number).encode(), ACTOR, NOON) for number in range(6))
    answers = await asyncio.gather(*puts, return_exceptions=True)
    assert sum(answer is None for answer in answers) == 1
    assert len(await store.keyrings(0)) == 1


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
    await refused(store.put_profile(_record("one more")), Reason.STORAGE_FULL)
    await store.put_profile(_record("7", content="new"))
    await store.put_profile(_record("other model", sha256="b" * 64))
    assert len(await store.list_profiles("a" * 64, "")) == MAX_PROFILES
