"""The collector and those who name contents: what is named is never removed, however the two meet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import cast

import pytest

from services.registry.content.port import ContentStore, Kept
from services.registry.garbage import BATCH, LISTED, NAME, Collected, Garbage, Pins
from services.registry.metadata.memory_store import MemoryStore
from services.registry.metadata.port import Removal
from services.registry.metadata.records import Actor, Artifact, Draft, Version
from splitmesh.errors import MeshError, Reason

NOW = datetime(2026, 5, 4, tzinfo=UTC)
WAIT_S = 10
OLD_S = 1000.0


class Contents:
    """Contents by digest with their ages, each of 10 bytes; can stop in the middle of a removal."""

    def __init__(self, ages: dict[str, float]) -> None:
        self.ages = ages
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.removing, self.removed = asyncio.Event(), asyncio.Event()

    async def listing(self) -> AsyncIterator[Kept]:
        for sha256, age_s in list(self.ages.items()):
            yield Kept(sha256, 10, age_s)

    async def remove(self, sha256: str, min_age_s: float = 0.0) -> int | None:
        self.removing.set()
        await self.go_on.wait()
        if self.ages.get(sha256, -1.0) < min_age_s:
            return None
        del self.ages[sha256]
        self.removed.set()
        return 10


class Store(MemoryStore):
    """Can hold back a commit, and lose its database; notes what it was asked to let go."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[str]] = []
        self.checks_left = 10**9
        self.commit = asyncio.Event()
        self.commit.set()
        self.committing = asyncio.Event()

    async def create_version(self, draft: Draft, actor: Actor, create_time: datetime) -> Version:
        self.committing.set()
        await self.commit.wait()
        return await super().create_version(draft, actor, create_time)

    @asynccontextmanager
    async def removing(self, sha256s: Sequence[str]) -> AsyncIterator[Removal]:
        self.batches.append(list(sha256s))

        async def check() -> None:
            self.checks_left -= 1
            if self.checks_left < 0:
                raise MeshError(Reason.SERVICE_UNAVAILABLE, "another registry has begun")

        async with super().removing(sha256s) as removal:
            yield Removal(removal.unused, check)


def digest(number: int) -> str:
    return f"{number:064x}"


def draft(*numbers: int) -> Draft:
    return Draft("m", tuple(Artifact(f"a{one}", digest(one), 10) for one in numbers), 0, "", "", "")


class Yard:
    """A collector over the fakes."""

    def __init__(self, ages: dict[int, float], *, every_s: float = 3600.0) -> None:
        self.contents = Contents({digest(number): age_s for number, age_s in ages.items()})
        self.store = Store()
        self.pins = Pins()
        self.garbage = Garbage(
            cast(ContentStore, self.contents),
            self.store,
            self.pins,
            every_s=every_s,
            min_age_s=100.0,
            now=lambda: NOW,
        )

    async def make(self, *numbers: int) -> Version:
        """As the registry makes a version: pin, look, commit."""
        async with self.pins.hold([digest(one) for one in numbers]) as pin:
            if missing := [one for one in numbers if digest(one) not in self.contents.ages]:
                raise LookupError(missing)
            writing = asyncio.create_task(self.store.create_version(draft(*numbers), Actor(), NOW))
            pin.keep_until(writing)
            return await asyncio.shield(writing)

    def left(self) -> set[int]:
        return {int(sha256, 16) for sha256 in self.contents.ages}


async def reached(event: asyncio.Event) -> None:
    async with asyncio.timeout(WAIT_S):
        await event.wait()


async def test_only_what_is_unused_and_old_is_removed_and_said() -> None:
    yard = Yard({1: OLD_S, 2: OLD_S, 3: 99.0, 4: OLD_S, 5: OLD_S})
    await yard.make(1)
    version = await yard.make(2)
    assert await yard.garbage.collect(Actor(), dry_run=True) == Collected(2, 20, 3, 1)
    assert yard.left() == {1, 2, 3, 4, 5}
    assert not await yard.store.list_events(NAME, 0, 10)
    assert await yard.garbage.collect(Actor("operator", "peer")) == Collected(2, 20, 3, 1)
    assert yard.left() == {1, 2, 3}
    event = (await yard.store.list_events(NAME, 0, 10))[0]
    assert (event.kind, event.actor.by, event.detail) == ("garbage.collected", "operator", "2 contents, 20 bytes")
    await yard.store.delete_version("m", version.version, "", Actor(), NOW)
    assert (await yard.garbage.collect(Actor())).contents == 1
    assert yard.left() == {1, 3}
    assert await yard.garbage.collect(Actor()) == Collected(0, 0, 2, 1)
    assert len(await yard.store.list_events(NAME, 0, 10)) == 2


async def test_batches_join_without_gap() -> None:
    yard = Yard(dict.fromkeys(range(2 * LISTED + 3), OLD_S))
    kept = {0, BATCH, LISTED, 2 * LISTED}
    await yard.make(*kept)
    assert await yard.garbage.collect(Actor()) == Collected(2 * LISTED - 1, 20 * LISTED - 10, 4, 0)
    assert yard.left() == kept
    assert max(len(batch) for batch in yard.store.batches) == BATCH
    assert not {digest(one) for one in kept} & {one for batch in yard.store.batches for one in batch}


async def test_nothing_more_is_removed_once_another_process_may_have_the_database() -> None:
    yard = Yard(dict.fromkeys(range(10), OLD_S))
    yard.store.checks_left = 4
    with pytest.raises(MeshError, match="another registry has begun"):
        await yard.garbage.collect(Actor())
    assert yard.left() == {4, 5, 6, 7, 8, 9}
    assert (await yard.store.list_events(NAME, 0, 10))[0].detail == "4 contents, 40 bytes"
    yard.store.checks_left = 6
    assert (await yard.garbage.collect(Actor())).contents == 6


async def test_what_is_named_after_it_was_looked_up_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    yard = Yard({1: OLD_S, 2: OLD_S})
    unused = yard.store.unused

    async def then_named(sha256s: Sequence[str]) -> set[str]:
        monkeypatch.setattr(yard.store, "unused", unused)
        found = await unused(sha256s)
        await yard.make(1)
        return found

    monkeypatch.setattr(yard.store, "unused", then_named)
    assert await yard.garbage.collect(Actor()) == Collected(1, 10, 1, 0)
    assert yard.left() == {1}


async def test_a_version_that_is_being_committed_keeps_its_contents() -> None:
    yard = Yard({1: OLD_S, 2: OLD_S})
    yard.store.commit.clear()
    making = asyncio.create_task(yard.make(1))
    await reached(yard.store.committing)
    assert (await yard.garbage.collect(Actor())).contents == 1
    assert yard.left() == {1}
    yard.store.commit.set()
    await making
    assert (await yard.garbage.collect(Actor())).contents == 0


async def test_a_commit_whose_caller_left_keeps_its_contents_until_it_is_done() -> None:
    yard = Yard({1: OLD_S})
    yard.store.commit.clear()
    making = asyncio.create_task(yard.make(1))
    await reached(yard.store.committing)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert (await yard.garbage.collect(Actor())).contents == 0
    yard.store.commit.set()
    assert (await yard.garbage.collect(Actor())).contents == 0
    assert yard.left() == {1}


async def test_a_version_that_comes_in_mid_removal_waits_and_finds_the_content_gone() -> None:
    yard = Yard({1: OLD_S, 2: OLD_S})
    yard.contents.go_on.clear()
    collecting = asyncio.create_task(yard.garbage.collect(Actor()))
    await reached(yard.contents.removing)
    making = asyncio.create_task(yard.make(2))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not making.done()
    assert not yard.store.committing.is_set()
    yard.contents.go_on.set()
    assert (await collecting).contents == 2
    with pytest.raises(LookupError):
        await making


async def test_a_collection_whose_caller_left_finishes_its_batch_before_a_version_may_look() -> None:
    yard = Yard({1: OLD_S})
    yard.contents.go_on.clear()
    collecting = asyncio.create_task(yard.garbage.collect(Actor()))
    await reached(yard.contents.removing)
    collecting.cancel()
    making = asyncio.create_task(yard.make(1))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not making.done()
    yard.contents.go_on.set()
    with pytest.raises(LookupError):
        await making
    with pytest.raises(asyncio.CancelledError):
        await collecting
    assert (await yard.store.list_events(NAME, 0, 10))[0].detail == "1 contents, 10 bytes"


async def test_pins_are_counted_and_leave_nothing_behind() -> None:
    pins = Pins()
    async with pins.hold(["a", "b"]):
        async with pins.hold(["b"]):
            with pins.claim(["a", "b", "c"]) as claimed:
                assert claimed == {"c"}
        with pins.claim(["b"]) as claimed:
            assert not claimed
    with pins.claim(["a", "b"]) as claimed:
        assert claimed == {"a", "b"}
    assert not pins._pinned
    assert not pins._claimed


async def test_a_collection_that_failed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    yard = Yard({1: OLD_S}, every_s=0.001)
    failures = [MeshError(Reason.SERVICE_UNAVAILABLE, "away"), RuntimeError("a fault of ours")]
    unused = yard.store.unused
    done = asyncio.Event()

    async def failing(sha256s: Sequence[str]) -> set[str]:
        if failures:
            raise failures.pop()
        done.set()
        return await unused(sha256s)

    monkeypatch.setattr(yard.store, "unused", failing)
    await yard.garbage.start()
    await reached(done)
    await reached(yard.contents.removed)
    await yard.garbage.stop()
