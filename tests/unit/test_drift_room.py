"""More versions than the board has room for, and what becomes of drifts and savings when things happen at the same time."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import numpy as np
import pytest

from services.router.drift import board as drift_board
from services.router.drift.events import State
from services.router.drift.store import MemoryDriftStore
from services.router.goals import Goals
from tests.unit.drift_boards import PLACE, WRONG, GatedStore, Surroundings, board
from tests.unit.drifting import GOALS, UNIT, audit, escalated, report, sight


@pytest.fixture
def around() -> Surroundings:
    return Surroundings()


async def test_of_versions_that_report_in_turn_none_is_forgotten_and_the_one_too_many_is_refused(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(drift_board, "MAX_LINES", 3)
    async with board(around) as made:
        for _ in range(5):
            for version in range(1, 5):
                await made.saw(report(sight(), version=version))
                await made.seen("parts", version)
                around.now += timedelta(minutes=5)
        assert await made.sights("parts") == {1: 5, 2: 5, 3: 5}
        warnings = [one.getMessage() for one in caplog.records if "parts v4" in one.getMessage()]
        assert len(warnings) == 1
        assert "not watched" in warnings[0]
        around.now += timedelta(minutes=50)
        await made.saw(report(sight(), version=4))
        assert list(await made.sights("parts")) == [2, 3, 4]


async def test_a_version_that_is_looked_at_just_now_is_not_forgotten(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift_board, "MAX_LINES", 1)
    asked, let = asyncio.Event(), asyncio.Event()

    async def goals_of(model: str) -> Goals:
        asked.set()
        await let.wait()
        return GOALS

    around.goals_of = goals_of  # type: ignore[method-assign]
    async with board(around) as made:
        await made.saw(WRONG)
        await asked.wait()
        around.now += timedelta(hours=2)
        await made.saw(report(sight(), model="other"))
        let.set()
        await made.seen(*PLACE)
        assert (await made.sights("parts"), await made.sights("other")) == ({1: 20}, {})
        assert [event.number for event in await made.events("parts")] == [1]


async def test_what_somebody_resolved_while_the_disk_was_full_stays_resolved(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift_board, "RETRY_S", 0.01)
    store = GatedStore()
    store.let.set()
    async with board(around, store) as made:
        await made.saw(WRONG)
        await made.seen(*PLACE)
        around.now += timedelta(hours=1)
        store.refusals = 1
        store.asked.clear()
        store.let.clear()
        await made.saw(report(*escalated(np.random.default_rng(1), 900, every=UNIT)))
        await store.asked.wait()
        resolving = asyncio.create_task(made.resolve(1))  # waits for the look that finds the disk full
        store.let.set()
        assert (await resolving).state is State.RESOLVED
        await made.seen(*PLACE)
        assert [event.state for event in await made.events("parts")] == [State.RESOLVED]
        assert made.overrides(*PLACE) == ()


async def test_what_a_person_resolved_and_what_was_looked_at_after_a_save_is_saved_again(around: Surroundings) -> None:
    store = MemoryDriftStore()
    async with board(around, store) as made:
        await made.saw(WRONG)
        await made.seen(*PLACE)
        await made._save()
        assert list((await store.remembered()).lines[PLACE].collected) == [1]
        await made.resolve(1)
        await made._save()
        assert list((await store.remembered()).lines[PLACE].collected) == []


async def test_what_is_looked_at_after_it_was_saved_is_saved_again(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, asked, let = MemoryDriftStore(), asyncio.Event(), asyncio.Event()

    async with board(around, store) as made:
        await made.saw(report(sight()))
        await made.seen(*PLACE)
        await made._save()
        before = (await store.remembered()).lines[PLACE].watches

        async def goals_of(model: str) -> Goals:
            asked.set()
            await let.wait()
            return GOALS

        around.goals_of = goals_of  # type: ignore[method-assign]
        made._goals_of = goals_of
        await made.saw(report(*[audit(wrong=False)] * 5))
        await asked.wait()
        made._unsaved.clear()  # as a save does that comes before the look
        let.set()
        await made.seen(*PLACE)
    assert (await store.remembered()).lines[PLACE].watches != before
