"""The board of policies: who asks once is told what holds, few answers are kept, and drifts change policies at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import pytest

from services.router import push
from services.router.goals import Goals, PolicyOverride
from services.router.push import PolicyBoard
from services.router.store import MemoryStore
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.streams import Drain
from splitmesh.routing.gate import ESCALATE_ALL
from tests.support.outcomes import outcomes_of

DEFAULT = Goals(0.02, 0.05, 0.015)
OUTCOMES = outcomes_of(np.linspace(0.4, 1.0, 600), np.arange(600) >= 12).to_bytes()
TIGHT = PolicyOverride("cam-1", "", ESCALATE_ALL, "its ease has dropped")


class World:
    """A board, what it fetched, and which overrides drifts have put in force."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.fetched: list[tuple[str, int]] = []
        self.overrides: tuple[PolicyOverride, ...] = ()
        self.under: list[Goals] = []
        self.during_fetch: Callable[[], None] = lambda: None
        self.store = store or MemoryStore()
        self.board = PolicyBoard(
            self.store,
            self._fetch,
            DEFAULT,
            overrides=self._overrides,
            max_watchers=4,
            watch_stream_s=60.0,
            drain=Drain(),
        )

    async def _fetch(self, model: str, version: int) -> bytes | None:
        self.fetched.append((model, version))
        self.during_fetch()
        await asyncio.sleep(0)
        if version == 9:
            raise MeshError(Reason.VERSION_NOT_FOUND, "no such version")
        return OUTCOMES

    def _overrides(self, model: str, version: int, goals: Goals) -> tuple[PolicyOverride, ...]:
        self.under.append(goals)
        return self.overrides


async def test_a_policy_that_is_asked_for_again_is_not_fetched_again() -> None:
    world = World()
    found = await asyncio.gather(*(world.board.get("joints", 1) for _ in range(5)))
    assert world.fetched == [("joints", 1)]
    assert {policy.revision for policy in found} == {1}
    assert await world.board.get("joints", 1) == found[0]


async def test_few_policies_that_nobody_watches_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "MAX_ASKED", 2)
    world = World()
    for version in (1, 2, 1, 3, 1, 2):
        await world.board.get("joints", version)
    assert [version for _, version in world.fetched] == [1, 2, 3, 2]


async def test_a_version_that_cannot_be_fetched_is_asked_for_again() -> None:
    world = World()
    for _ in range(2):
        with pytest.raises(MeshError, match="no such version"):
            await world.board.get("joints", 9)
    assert len(world.fetched) == 2


async def test_who_asks_sees_what_who_watches_sees_and_fetches_nothing_for_it() -> None:
    world = World()
    async with aclosing(world.board.watch("joints", 1)) as watch:
        watched = await anext(watch)
        assert await world.board.get("joints", 1) == watched
        assert len(world.fetched) == 1


async def test_new_goals_hold_for_the_next_who_asks_and_for_no_other_model() -> None:
    world = World()
    before, other = await world.board.get("joints", 1), await world.board.get("seams", 1)
    await world.board.set_goals("joints", replace(DEFAULT, max_disagreement=0.1))
    after = await world.board.get("joints", 1)
    assert (after.max_disagreement, after.revision) == (0.1, before.revision + 1)
    assert after.threshold < before.threshold
    assert await world.board.get("seams", 1) == other
    assert world.fetched.count(("seams", 1)) == 1


async def test_a_policy_computed_while_the_goals_changed_is_not_kept() -> None:
    world = World()
    change: list[asyncio.Task[None]] = []
    goals = replace(DEFAULT, max_disagreement=0.1)
    world.during_fetch = lambda: change.append(asyncio.ensure_future(world.board.recompute("joints", 1)))
    await world.board.get("joints", 1)
    await asyncio.gather(*change)
    world.during_fetch = lambda: None
    await world.store.set_goals("joints", goals.to_json())
    assert (await world.board.get("joints", 1)).max_disagreement == 0.1


async def test_a_drift_changes_the_policy_of_who_watches_and_of_who_asks() -> None:
    world = World()
    async with asyncio.timeout(20), aclosing(world.board.watch("joints", 1)) as watch:
        before = await anext(watch)
        assert before.overrides == (await world.board.get("joints", 2)).overrides == ()
        world.overrides = (TIGHT,)
        await world.board.recompute("joints", 1)
        after = await anext(watch)
        assert (after.overrides, after.revision) == ((TIGHT,), before.revision + 1)
        assert after.threshold == before.threshold
        await world.board.recompute("joints", 2)
        assert (await world.board.get("joints", 2)).overrides == (TIGHT,)
        world.overrides = ()
        await world.board.recompute("joints", 1)
        assert (await anext(watch)).overrides == ()


async def test_overrides_are_asked_for_under_the_goals_in_force() -> None:
    world = World()
    stated = replace(DEFAULT, max_disagreement=0.1)
    await world.board.set_goals("joints", stated)
    await world.board.get("joints", 1)
    assert world.under == [stated]


async def test_goals_that_cannot_be_read_are_an_error_and_no_default() -> None:
    store = MemoryStore()
    await store.set_goals("joints", "{}")
    world = World(store)
    with pytest.raises(MeshError) as caught:
        await world.board.get("joints", 1)
    assert caught.value.reason is Reason.SERVICE_UNAVAILABLE
    assert await world.board.goals_of("seams") == DEFAULT


async def test_nothing_changes_when_a_recomputed_policy_is_the_same() -> None:
    world = World()
    async with aclosing(world.board.watch("joints", 1)) as watch:
        await anext(watch)
        following = asyncio.ensure_future(anext(watch))
        await world.board.recompute("joints", 1)
        await world.board.set_goals("joints", replace(DEFAULT, audit_share=0.2))
        assert ((await following).audit_share, (await following).revision) == (0.2, 2)
