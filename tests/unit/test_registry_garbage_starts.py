"""When a registry collects that is started again and again, over a store that remembers only what happened since."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from services.registry.content.staged import StagedStore
from services.registry.garbage import FIRST_S, Collected, Garbage, Pins
from services.registry.metadata.memory_store import MemoryStore
from services.registry.metadata.records import Actor
from tests.support.contents import FolderPlace, digest

WAIT_S = 10.0
HOUR_S = 3600.0


class Life:
    """Of one process: a sleep that moves the clock of its place, until it would end after that life."""

    def __init__(self, place: FolderPlace, life_s: float) -> None:
        self.over = asyncio.Event()
        self.slept: list[float] = []
        self._place = place
        self._left_s = life_s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if seconds > self._left_s:
            self.over.set()
            await asyncio.Event().wait()
        self._left_s -= seconds
        self._place.ahead_s += seconds


def collector(store: StagedStore, sleep: Callable[[float], Awaitable[None]]) -> Garbage:
    return Garbage(
        store,
        MemoryStore(),
        Pins(),
        every_s=6 * HOUR_S,
        min_age_s=24 * HOUR_S,
        now=lambda: datetime(2026, 5, 4, tzinfo=UTC),
        sleep=sleep,
    )


async def live(place: FolderPlace, life_s: float, new: bytes) -> Life:
    """One life that begins with a push."""
    life = Life(place, life_s)
    async with place.store() as store:
        await store.put([(digest(new), new)])
        garbage = collector(store, life.sleep)
        await garbage.start()
        async with asyncio.timeout(WAIT_S):
            await life.over.wait()
        await garbage.stop()
    return life


async def test_a_registry_that_is_started_every_day_removes_what_came_before_and_keeps_what_is_new(
    tmp_path: Path,
) -> None:
    place = FolderPlace(tmp_path)
    life = await live(place, 12 * HOUR_S, b"first day")
    assert life.slept == [FIRST_S, 6 * HOUR_S, 6 * HOUR_S]
    assert set(place.whole().values()) == {b"first day"}
    await live(place, 12 * HOUR_S, b"second day")
    assert set(place.whole().values()) == {b"second day"}


async def test_what_came_before_is_kept_for_the_first_hour(tmp_path: Path) -> None:
    place = FolderPlace(tmp_path)
    async with place.store() as store:
        await store.put([(digest(b"before"), b"before")])
    async with place.store() as store:
        garbage = collector(store, asyncio.sleep)
        place.ahead_s += HOUR_S - 1.0
        assert await garbage.collect(Actor()) == Collected(0, 0, 1, 1)
        place.ahead_s += 1.0
        assert (await garbage.collect(Actor())).contents == 1
