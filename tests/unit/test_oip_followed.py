"""Aliases that a tail's clients ask for: asked once, followed, and never moved to what cannot be loaded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from cloud.tail import followed
from cloud.tail.followed import Followed
from splitmesh.client.registry import VersionInfo
from splitmesh.errors import MeshError, Reason

WAIT_S = 10.0


def version(number: int, model: str = "m") -> VersionInfo:
    return VersionInfo(model, number, 0, {}, "push", "", (), datetime.now(UTC))


class Registry:
    """One alias of every model; moves are told to those who watch."""

    def __init__(self) -> None:
        self.at = 1
        self.error: MeshError | None = None
        self.refused: set[int] = set()
        self.asked = 0
        self.watching = 0
        self.answers = asyncio.Event()
        self.answers.set()
        self._moved = asyncio.Condition()

    async def get_version(self, model: str, *, alias: str) -> VersionInfo:
        self.asked += 1
        await self.answers.wait()
        if self.error is not None:
            raise self.error
        return version(self.at, model)

    async def verify(self, info: VersionInfo) -> None:
        if info.version in self.refused:
            raise MeshError(Reason.SIGNATURE_INVALID, "it was signed for other contents")

    async def watch_alias(self, model: str, alias: str) -> AsyncIterator[VersionInfo | None]:
        self.watching += 1
        try:
            seen = 0
            while True:
                async with self._moved:
                    await self._moved.wait_for(lambda seen=seen: self.at != seen)
                seen = self.at
                yield version(seen, model)
        finally:
            self.watching -= 1

    async def move(self, number: int) -> None:
        async with self._moved:
            self.at = number
            self._moved.notify_all()


class Notes:
    """What a cache remembers."""

    def __init__(self) -> None:
        self.kept: dict[str, VersionInfo] = {}
        self.changed = asyncio.Event()

    async def remember(self, info: VersionInfo, name: str) -> None:
        self.kept[name] = info
        self.changed.set()

    async def recall(self, name: str) -> VersionInfo | None:
        return self.kept.get(name)


class Loading:
    def __init__(self) -> None:
        self.broken: set[int] = set()
        self.tried = asyncio.Event()
        self.loaded: list[int] = []

    async def __call__(self, info: VersionInfo) -> None:
        self.tried.set()
        if info.version in self.broken:
            raise MeshError(Reason.MODEL_CORRUPT, "it cannot be loaded")
        self.loaded.append(info.version)


class Made:
    def __init__(self, most: int) -> None:
        self.registry, self.notes, self.loading = Registry(), Notes(), Loading()
        registry: Any = self.registry
        notes: Any = self.notes
        self.followed = Followed(registry, notes, self.loading, most=most)

    async def number(self, model: str = "m") -> int:
        return (await self.followed.version(model, "production")).version


@pytest.fixture
async def made(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Made]:
    monkeypatch.setattr(followed, "RETRY_S", 0.01)
    one = Made(most=2)
    yield one
    await one.followed.stop()
    assert one.registry.watching == 0


async def _until(event: asyncio.Event) -> None:
    async with asyncio.timeout(WAIT_S):
        await event.wait()


async def test_an_alias_is_asked_for_once_however_many_ask_at_the_same_time(made: Made) -> None:
    assert await asyncio.gather(*(made.number() for _ in range(5))) == [1] * 5
    assert await made.number() == 1
    assert made.registry.asked == 1
    assert made.notes.kept["m@production"].version == 1


async def test_who_gives_up_does_not_take_the_answer_from_the_others(made: Made) -> None:
    made.registry.answers.clear()
    first, second = asyncio.create_task(made.number()), asyncio.create_task(made.number())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    made.registry.answers.set()
    async with asyncio.timeout(WAIT_S):
        assert await second == 1


async def test_a_move_is_served_when_the_version_is_loaded(made: Made) -> None:
    assert await made.number() == 1
    made.notes.changed.clear()
    await made.registry.move(2)
    await _until(made.notes.changed)
    assert (await made.number(), made.loading.loaded) == (2, [2])
    assert made.notes.kept["m@production"].version == 2


async def test_a_version_that_cannot_be_loaded_is_tried_again_and_the_one_before_answers(made: Made) -> None:
    assert await made.number() == 1
    made.loading.broken = {2}
    await made.registry.move(2)
    await _until(made.loading.tried)
    assert await made.number() == 1
    made.notes.changed.clear()
    made.loading.broken = set()
    await _until(made.notes.changed)
    assert await made.number() == 2


async def test_a_newer_move_ends_the_tries_with_a_version_that_cannot_be_loaded(made: Made) -> None:
    assert await made.number() == 1
    made.loading.broken = {2}
    await made.registry.move(2)
    await _until(made.loading.tried)
    made.notes.changed.clear()
    await made.registry.move(3)
    await _until(made.notes.changed)
    assert await made.number() == 3


@pytest.mark.parametrize("reason", [Reason.SERVICE_UNAVAILABLE, Reason.PROTOCOL_VIOLATION])
async def test_without_a_registry_that_answers_rightly_the_version_last_heard_of_is_used(
    made: Made, reason: Reason
) -> None:
    made.notes.kept["m@production"] = version(7)
    made.registry.error = MeshError(reason, "nobody answers, or with another model")
    assert await made.number() == 7


async def test_where_the_version_is_refused_the_one_last_used_answers(made: Made) -> None:
    made.registry.refused = {1}
    with pytest.raises(MeshError, match="SIGNATURE_INVALID"):
        await made.number()
    made.notes.kept["m@production"] = version(7)
    assert await made.number() == 7
    assert made.notes.kept["m@production"].version == 7


@pytest.mark.parametrize("reason", [Reason.MODEL_NOT_FOUND, Reason.SERVICE_UNAVAILABLE])
async def test_an_error_is_told_to_all_and_nothing_is_followed(made: Made, reason: Reason) -> None:
    made.registry.error = MeshError(reason, "no")
    found = await asyncio.gather(*(made.number() for _ in range(3)), return_exceptions=True)
    assert [getattr(one, "reason", None) for one in found] == [reason] * 3
    assert not made.followed.models()
    made.registry.error = None
    assert await made.number() == 1


async def test_the_alias_unused_for_longest_is_let_go(made: Made) -> None:
    for model in ("a", "b", "a", "c"):
        await made.number(model)
    assert set(made.followed.models()) == {"a", "c"}
    assert await made.followed.forget("a")
    assert not await made.followed.forget("a")
    assert set(made.followed.models()) == {"c"}


async def test_a_model_that_two_forget_at_the_same_time_is_forgotten(made: Made) -> None:
    await made.followed.version("m", "production")
    await made.followed.version("m", "canary")
    await asyncio.gather(made.followed.forget("m"), made.followed.forget("m"))
    assert made.followed.models() == {}
