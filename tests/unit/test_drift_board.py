"""The board of drifts: stored first, then in force, then told; nothing forgotten by a crash, nobody kept waiting, all bounded."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from services.router.drift import board as drift_board
from services.router.drift import inbox as drift_inbox
from services.router.drift import teller as drift_teller
from services.router.drift.board import DriftBoard
from services.router.drift.events import State
from services.router.drift.store_sqlite import SqliteDriftStore
from services.router.goals import Goals
from splitmesh.errors import MeshError, Reason
from splitmesh.routing.audit import Counts, Stratum
from splitmesh.routing.gate import ESCALATE_ALL
from tests.unit.drift_boards import PLACE, WRONG, GatedStore, Surroundings, board
from tests.unit.drifting import GOALS, NOW, UNIT, audit, escalated, line_of_eases, report, sight


@pytest.fixture
def around() -> Surroundings:
    return Surroundings()


def thresholds(made: DriftBoard) -> list[tuple[str, str, float]]:
    return [(one.camera, one.label, one.threshold) for one in made.overrides(*PLACE)]


async def test_a_drift_is_stored_then_in_force_and_then_told(around: Surroundings) -> None:
    store = GatedStore()
    async with board(around, store) as made:
        await made.saw(WRONG)
        await store.asked.wait()
        assert (made.overrides(*PLACE), around.told) == ((), [])
        store.let.set()
        await around.heard.wait()
        assert thresholds(made) == [("a", "", ESCALATE_ALL)]
        assert around.told == [PLACE]
        (event,) = await made.events("parts")
        assert (event.number, event.time, event.state) == (1, NOW, State.TIGHTENED)


async def test_a_full_disk_delays_a_drift_and_loses_nothing(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift_board, "RETRY_S", 0.01)
    store = GatedStore()
    store.refusals = 3
    store.let.set()
    async with board(around, store) as made:
        await made.saw(WRONG)
        await around.heard.wait()
        await made.seen(*PLACE)
        assert [event.number for event in await made.events("parts")] == [1]
        assert len((await store.remembered()).events) == 1


async def test_heads_are_told_again_until_they_hear(around: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift_teller, "BACKOFF_S", (0.001, 0.001))
    around.refusals = [MeshError(Reason.SERVICE_UNAVAILABLE, "away")] * 3
    async with board(around) as made:
        await made.saw(WRONG)
        await around.heard.wait()
        assert around.told == [PLACE]
        assert thresholds(made) == [("a", "", ESCALATE_ALL)]


async def test_goals_that_cannot_be_read_now_are_asked_for_again(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift_board, "RETRY_S", 0.01)
    refused = 0

    async def goals_of(model: str) -> Goals:
        nonlocal refused
        refused += 1
        if refused < 3:
            raise MeshError(Reason.STORAGE_FULL, "busy")
        return GOALS

    around.goals_of = goals_of  # type: ignore[method-assign]
    async with board(around) as made:
        await made.saw(WRONG)
        await around.heard.wait()


async def test_a_place_is_let_go_by_samples_and_heads_hear_of_that_too(around: Surroundings) -> None:
    async with board(around) as made:
        await made.saw(WRONG)
        await made.seen(*PLACE)
        around.now += timedelta(hours=1)
        await made.saw(report(*escalated(np.random.default_rng(1), 150, every=UNIT)))
        await made.seen(*PLACE)
        (event,) = await made.events("parts")
        assert (event.state, event.collected) == (State.TIGHTENED, 150)
        await made.saw(report(*escalated(np.random.default_rng(2), 900, every=UNIT)))
        await made.seen(*PLACE)
        (event,) = await made.events("parts", 1)
        assert event.state is State.RECALIBRATED
        assert thresholds(made) == [("a", "", event.threshold)]
        assert around.told == [PLACE, PLACE]
        assert made.overrides(*PLACE, replace(GOALS, delta=0.01))[0].threshold == ESCALATE_ALL


async def test_a_killed_router_knows_its_drifts_when_it_comes_back(around: Surroundings, tmp_path: Path) -> None:
    async with board(around, SqliteDriftStore(tmp_path / "first" / "d.sqlite")) as made:
        await made.saw(WRONG)
        await made.seen(*PLACE)
        shutil.copytree(tmp_path / "first", tmp_path / "second")  # as a kill leaves it, between storing and telling
    async with board(around, SqliteDriftStore(tmp_path / "second" / "d.sqlite")) as made:
        assert thresholds(made) == [("a", "", ESCALATE_ALL)]
        around.now += timedelta(hours=1)
        await made.saw(report(*escalated(np.random.default_rng(3), 900, every=UNIT)))
        await made.saw(report(*[audit("b", wrong=True)] * 20))
        await made.seen(*PLACE)
        assert [(event.number, event.state) for event in await made.events("parts")] == [
            (2, State.TIGHTENED),
            (1, State.RECALIBRATED),
        ]


async def test_what_was_learned_and_collected_is_there_after_a_stop(around: Surroundings, tmp_path: Path) -> None:
    counts = {Stratum("a", "OK", 3): Counts(100, 10, 1)}
    async with board(around, SqliteDriftStore(tmp_path / "d.sqlite")) as made:
        await made.saw(WRONG)
        await made.seen(*PLACE)
        around.now += timedelta(hours=1)
        await made.saw(report(*escalated(np.random.default_rng(4), 150, every=UNIT), audits=counts))
    async with board(around, SqliteDriftStore(tmp_path / "d.sqlite")) as made:
        assert await made.sights("parts") == {1: 170}
        assert [(one.camera, one.estimate.n_audited) for one in await made.audits("parts")] == [("", 10), ("a", 10)]
        await made.saw(report(*escalated(np.random.default_rng(5), 60, every=UNIT)))
        await made.seen(*PLACE)
        (event,) = await made.events("parts")
        assert event.collected == 210
        assert event.state is State.RECALIBRATED


async def test_what_is_usual_is_still_known_after_a_restart(around: Surroundings, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    async with board(around, SqliteDriftStore(tmp_path / "d.sqlite")) as made:
        await made.saw(report(*[sight(ease=float(ease)) for ease in line_of_eases(rng, 9000)]))
    async with board(around, SqliteDriftStore(tmp_path / "d.sqlite")) as made:
        await made.saw(report(*[sight(ease=float(ease)) for ease in line_of_eases(rng, 2000, 0.7)]))
        await made.seen(*PLACE)
        (event,) = await made.events("parts")
        assert event.before > event.now


async def test_audits_alone_are_saved_too(around: Surroundings, tmp_path: Path) -> None:
    for _ in range(2):
        async with board(around, SqliteDriftStore(tmp_path / "d.sqlite")) as made:
            await made.saw(report(audits={Stratum("a", "OK", 3): Counts(100, 10, 1)}, left_out=3))
    async with board(around, SqliteDriftStore(tmp_path / "d.sqlite")) as made:
        (over_all, _) = await made.audits("parts")
    assert (over_all.estimate.n_accepted, over_all.estimate.n_audited) == (200, 20)
    assert over_all.estimate.rate == 0.1


async def test_resolving_ends_what_was_tightened_and_can_be_repeated(around: Surroundings) -> None:
    async with board(around) as made:
        await made.saw(WRONG)
        await made.seen(*PLACE)
        event = await made.resolve(1)
        assert (event.state, made.overrides(*PLACE)) == (State.RESOLVED, ())
        assert around.told == [PLACE, PLACE]
        assert await made.resolve(1) == event
        assert len(around.told) == 2
        for number in (0, 2, 2**63):
            with pytest.raises(MeshError) as caught:
                await made.resolve(number)
            assert caught.value.reason is Reason.DRIFT_NOT_FOUND


async def test_resolving_on_a_full_disk_changes_nothing(around: Surroundings) -> None:
    store = GatedStore()
    store.let.set()
    async with board(around, store) as made:
        await made.saw(WRONG)
        await made.seen(*PLACE)
        store.refusals = 1
        with pytest.raises(MeshError) as caught:
            await made.resolve(1)
        assert caught.value.reason is Reason.STORAGE_FULL
        assert thresholds(made) == [("a", "", ESCALATE_ALL)]


async def test_above_the_limit_the_oldest_samples_give_way_and_no_report_is_refused(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift_inbox, "MAX_WAITING", 50)
    inbox = drift_inbox.Inbox()
    inbox.take(report(*[sight(ease=0.1, age_ms=age) for age in range(40)]), NOW)
    inbox.take(report(*[sight(ease=0.2, age_ms=5.0)] * 30, left_out=7), NOW)
    assert (len(inbox), inbox.sights, inbox.left_out) == (50, 70, 27)
    seen = inbox.next()
    assert [one.sight.age_ms for one in seen[:20]] == list(range(19, -1, -1))
    assert seen[0].at == NOW - timedelta(milliseconds=19)
    async with board(around) as made:
        for _ in range(20):
            await made.saw(report(*[sight()] * 1000))
        await made.seen(*PLACE)
        assert await made.sights("parts") == {1: 20_000}


async def test_of_many_versions_what_the_silent_ones_learned_is_forgotten_and_their_drifts_hold(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift_board, "MAX_LINES", 3)
    async with board(around) as made:
        await made.saw(WRONG)
        await made.seen(*PLACE)
        for version in range(2, 6):
            around.now += timedelta(hours=1)
            await made.saw(report(sight(), version=version))
            await made.seen(*PLACE)
        assert list(await made.sights("parts")) == [3, 4, 5]
        assert thresholds(made) == [("a", "", ESCALATE_ALL)]
        around.now += timedelta(hours=1)
        await made.saw(WRONG)
        await made.seen(*PLACE)
        assert [event.number for event in await made.events("parts")] == [1]


async def test_a_fault_in_looking_is_logged_and_the_next_samples_are_looked_at(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(drift_board, "RETRY_S", 0.01)
    async with board(around) as made:
        await made.saw(report(replace(sight(), ease=7.0), *[sight()] * 20))
        await made.seen(*PLACE)
        assert "could not be looked at" in caplog.text
        await made.saw(WRONG)
        await around.heard.wait()
