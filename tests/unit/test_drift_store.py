"""One conformance suite for the stores of drifts, and what only the durable one promises."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.router.drift.events import MAX_EVENTS, DriftEvent, Place, State, too_many
from services.router.drift.store import MAX_LINES, DriftStore, MemoryDriftStore, SavedLine
from services.router.drift.store_sqlite import SqliteDriftStore
from services.router.drift.watches import Kind
from splitmesh.errors import MeshError, Reason
from tests.unit.drifting import NOW

EVENT = DriftEvent(
    number=1,
    model="parts",
    version=3,
    kind=Kind.UNUSUAL,
    place=Place("line-2", 4),
    label="scratch",
    before=0.01,
    now=0.2,
    samples=77,
    time=NOW,
    state=State.TIGHTENED,
    threshold=2.0,
    why="class scratch of camera line-2: …",
    since=NOW,
    collected=12,
    needed=200,
    looks=1,
    looked_at=10,
    basis="abc",
)
LINE = SavedLine(b"\x00watches", "abc", "[]", 1234, 5, {1: b"\x01\x02"})


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[DriftStore]:
    made: DriftStore = (
        MemoryDriftStore() if request.param == "memory" else SqliteDriftStore(tmp_path / "new" / "d.sqlite")
    )
    await made.start()
    yield made
    await made.stop()
    await made.stop()


async def test_events_are_as_they_were_put_and_later_ones_replace_earlier_ones(store: DriftStore) -> None:
    everywhere = replace(EVENT, number=2, place=Place(), label="")
    await store.put([everywhere, EVENT])
    await store.put([EVENT.resolved("seen to")])
    remembered = await store.remembered()
    assert remembered.events == (EVENT.resolved("seen to"), everywhere)
    assert remembered.last == 2


async def test_a_number_is_not_given_twice_even_when_its_event_is_forgotten(store: DriftStore) -> None:
    await store.put([EVENT, replace(EVENT, number=7)])
    await store.put([], [7])
    remembered = await store.remembered()
    assert [event.number for event in remembered.events] == [1]
    assert remembered.last == 7


async def test_what_a_version_has_learned_is_as_it_was_saved_last(store: DriftStore) -> None:
    await store.save("parts", 3, LINE)
    await store.save("parts", 4, replace(LINE, collected={}))
    await store.save("parts", 3, replace(LINE, sights=9, collected={2: b"\x03"}))
    remembered = await store.remembered()
    assert remembered.lines == {
        ("parts", 4): replace(LINE, collected={}),
        ("parts", 3): replace(LINE, sights=9, collected={2: b"\x03"}),
    }
    assert list(remembered.lines) == [("parts", 4), ("parts", 3)]


async def test_of_many_versions_the_ones_saved_last_are_kept(store: DriftStore) -> None:
    for version in range(1, MAX_LINES + 4):
        await store.save("parts", version, LINE)
    versions = [version for _, version in (await store.remembered()).lines]
    assert versions == list(range(4, MAX_LINES + 4))


def test_of_many_events_the_oldest_resolved_ones_go_first() -> None:
    still = [replace(EVENT, number=number) for number in range(1, 11)]
    over = [replace(EVENT, number=number).resolved("") for number in range(11, MAX_EVENTS + 6)]
    assert too_many([*still, *over]) == [11, 12, 13, 14, 15]
    assert too_many(over) == []


async def test_what_was_put_is_there_after_the_process_was_killed(tmp_path: Path) -> None:
    first = SqliteDriftStore(tmp_path / "d.sqlite")
    await first.start()
    await first.put([EVENT])
    await first.save("parts", 3, LINE)
    shutil.copytree(tmp_path, tmp_path / "copy")  # the files as a kill leaves them: the log is not folded in
    await first.stop()
    second = SqliteDriftStore(tmp_path / "copy" / "d.sqlite")
    await second.start()
    remembered = await second.remembered()
    await second.stop()
    assert remembered.events == (EVENT,)
    assert remembered.lines == {("parts", 3): LINE}


async def test_a_failure_in_the_middle_leaves_nothing_of_it(tmp_path: Path) -> None:
    store = SqliteDriftStore(tmp_path / "d.sqlite")
    await store.start()
    try:
        with sqlite3.connect(tmp_path / "d.sqlite") as other:
            other.execute("CREATE TRIGGER full BEFORE UPDATE ON last_event BEGIN SELECT raise(ABORT, 'full'); END")
        with pytest.raises(MeshError):
            await store.put([EVENT])
        assert (await store.remembered()).events == ()
    finally:
        await store.stop()


async def test_files_that_are_none_and_stores_that_are_closed_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d.sqlite").write_bytes(b"no database" * 100)
    broken = SqliteDriftStore(tmp_path / "d.sqlite")
    with pytest.raises(MeshError) as caught:
        await broken.start()
    assert caught.value.reason is Reason.SERVICE_UNAVAILABLE
    await broken.stop()
    with pytest.raises(MeshError) as caught:
        await broken.put([EVENT])
    assert caught.value.reason is Reason.NOT_READY
    with sqlite3.connect(tmp_path / "later.sqlite") as other:
        other.execute("PRAGMA user_version = 9")
    later = SqliteDriftStore(tmp_path / "later.sqlite")
    with pytest.raises(MeshError, match="schema 9"):
        await later.start()
    await later.stop()


async def test_an_event_that_cannot_be_read_is_left_out_and_the_others_are_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SqliteDriftStore(tmp_path / "d.sqlite")
    await store.start()
    await store.put([EVENT, replace(EVENT, number=2)])
    with sqlite3.connect(tmp_path / "d.sqlite") as other:
        other.execute("UPDATE events SET event = '{}' WHERE number = 1")
    remembered = await store.remembered()
    await store.stop()
    assert [event.number for event in remembered.events] == [2]
    assert "drift event 1 cannot be read" in caplog.text
