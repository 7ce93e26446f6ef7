"""One conformance suite for the router's stores, and what only the durable one promises."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.router import store as store_module
from services.router.goals import Goals
from services.router.store import MAX_REASONS, OTHER, Counts, Load, MemoryStore, Report, RouterStore, Sight
from services.router.store_sqlite import SCHEMA_VERSION, SqliteStore
from splitmesh.errors import MeshError, Reason
from splitmesh.routing import audit

NOW = datetime(2025, 1, 2, 3, 4, 5, 678901, UTC)
REPORT = Report(
    node="mec-1",
    boot_id="b1",
    sequence=1,
    model="joints",
    version=3,
    counts=Counts(10, 4, 1, {"LINK": 2}, {"BAD": 1}, 5, {"UNSURE": 4}),
)


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RouterStore]:
    made: RouterStore = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "new" / "router.sqlite")
    await made.start()
    yield made
    await made.stop()


async def test_goals_are_none_until_stated_and_then_the_last_ones(store: RouterStore) -> None:
    assert await store.goals("joints") is None
    await store.set_goals("joints", "few")
    await store.set_goals("joints", "fewer")
    assert await store.goals("joints") == "fewer"
    assert await store.goals("other") is None


async def test_each_site_is_as_it_was_stated_last(store: RouterStore) -> None:
    assert await store.sites() == {}
    await store.set_site("south", "10 MB/s")
    await store.set_site("north", "1 MB/s")
    await store.set_site("south", "2 MB/s")
    assert await store.sites() == {"north": "1 MB/s", "south": "2 MB/s"}


async def test_a_revision_grows_with_each_change_of_the_text_and_only_then(store: RouterStore) -> None:
    revisions = [await store.revision("joints", 3, text) for text in ("a", "a", "b", "a")]
    assert revisions == [1, 1, 2, 3]
    assert await store.revision("joints", 4, "a") == 1


async def test_reports_add_up_by_version_and_node(store: RouterStore) -> None:
    later = NOW + timedelta(seconds=5)
    assert await store.add(REPORT, NOW)
    assert await store.add(replace(REPORT, sequence=2), later)
    assert await store.add(replace(REPORT, node="mec-2"), NOW)
    assert await store.add(replace(REPORT, sequence=3, version=4), NOW)
    assert await store.add(replace(REPORT, sequence=4, model="other"), NOW)
    found = await store.outcomes("joints")
    assert [(entry.node, entry.version) for entry in found] == [("mec-1", 3), ("mec-1", 4), ("mec-2", 3)]
    assert found[0].counts == Counts(20, 8, 2, {"LINK": 4}, {"BAD": 2}, 10, {"UNSURE": 8})
    assert found[0].last_report_time == later
    assert [entry.version for entry in await store.outcomes("joints", 4)] == [4]
    assert await store.outcomes("unknown") == []


async def test_the_load_of_the_last_report_is_kept_with_its_sums(store: RouterStore) -> None:
    first, last = Load(12.5, 40.0, 11.0, 0.01, 2), Load(90.0, 0.0, 0.0, 0.0, 1)
    await store.add(replace(REPORT, load=first), NOW)
    await store.add(replace(REPORT, sequence=2, load=last), NOW)
    await store.add(replace(REPORT, sequence=1, load=first), NOW)
    await store.add(replace(REPORT, node="mec-2"), NOW)
    assert [entry.load for entry in await store.outcomes("joints")] == [last, None]
    await store.add(replace(REPORT, sequence=3), NOW)
    assert [entry.load for entry in await store.outcomes("joints")] == [None, None]


async def test_a_repeated_report_adds_nothing(store: RouterStore) -> None:
    assert await store.add(REPORT, NOW)
    assert not await store.add(REPORT, NOW)
    assert not await store.add(replace(REPORT, counts=Counts(99)), NOW + timedelta(hours=1))
    (entry,) = await store.outcomes("joints")
    assert entry.counts == REPORT.counts
    assert entry.last_report_time == NOW


async def test_the_same_sequence_of_another_boot_or_node_is_another_report(store: RouterStore) -> None:
    assert await store.add(REPORT, NOW)
    assert await store.add(replace(REPORT, boot_id="b2"), NOW)
    assert await store.add(replace(REPORT, node="mec-2"), NOW)


async def test_reports_that_come_out_of_order_are_each_added_once(store: RouterStore) -> None:
    added = [await store.add(replace(REPORT, sequence=n), NOW) for n in (3, 1, 3, 2, 1, 4, 2)]
    assert added == [True, True, False, True, False, True, False]
    (entry,) = await store.outcomes("joints")
    assert entry.counts.edge_exit == 40


async def test_a_gap_is_given_up_after_many_later_reports(store: RouterStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_EARLY", 3)
    for sequence in (1, 3, 4, 5, 6):
        assert await store.add(replace(REPORT, sequence=sequence), NOW)
    assert not await store.add(replace(REPORT, sequence=2), NOW)
    assert await store.add(replace(REPORT, sequence=7), NOW)


async def test_a_report_that_comes_late_within_the_gap_counts(store: RouterStore) -> None:
    for sequence in range(3, 20):
        assert await store.add(replace(REPORT, sequence=sequence), NOW)
    assert await store.add(replace(REPORT, sequence=2), NOW)


async def test_only_the_most_recent_boots_of_a_node_are_remembered(store: RouterStore) -> None:
    for boot in range(20):
        assert await store.add(replace(REPORT, boot_id=f"b{boot}"), NOW)
    assert not await store.add(replace(REPORT, boot_id="b19"), NOW)
    assert not await store.add(replace(REPORT, boot_id="b4"), NOW)
    assert await store.add(replace(REPORT, boot_id="b0"), NOW)


async def test_reasons_beyond_the_limit_are_counted_together(store: RouterStore) -> None:
    for sequence in range(1, 4):
        reasons = {f"R{sequence}_{n}": 1 for n in range(40)}
        await store.add(replace(REPORT, sequence=sequence, counts=Counts(edge_fallback=reasons)), NOW)
    (entry,) = await store.outcomes("joints")
    assert len(entry.counts.edge_fallback) == MAX_REASONS + 1
    assert entry.counts.edge_fallback[OTHER] == 120 - MAX_REASONS
    assert sum(entry.counts.edge_fallback.values()) == 120


async def test_everything_survives_closing_and_opening(tmp_path: Path) -> None:
    path = tmp_path / "router.sqlite"
    first = SqliteStore(path)
    await first.start()
    await first.set_goals("joints", "fewer")
    await first.set_site("south", "2 MB/s")
    await first.revision("joints", 3, "a")
    await first.add(REPORT, NOW)
    await first.stop()
    second = SqliteStore(path)
    await second.start()
    try:
        assert await second.goals("joints") == "fewer"
        assert await second.sites() == {"south": "2 MB/s"}
        assert await second.revision("joints", 3, "a") == 1
        assert await second.revision("joints", 3, "b") == 2
        assert not await second.add(REPORT, NOW)
        (entry,) = await second.outcomes("joints")
        assert (entry.counts, entry.last_report_time) == (REPORT.counts, NOW)
    finally:
        await second.stop()


async def test_sights_and_audits_of_a_report_do_not_change_what_is_stored(store: RouterStore) -> None:
    sight = Sight("cam-1", 1, 0.5, None, None, audited=False, exit=0, age_ms=3.0)
    counts = {audit.Stratum("cam-1", "NG", 1): audit.Counts(10, 2, 1)}
    assert await store.add(replace(REPORT, sights=(sight,), audits=counts, sights_left_out=4), NOW)
    assert not await store.add(REPORT, NOW)
    (entry,) = await store.outcomes("joints")
    assert entry.counts == REPORT.counts


async def test_counts_written_before_there_were_whole_or_hard_ones_are_read_with_none_of_them(tmp_path: Path) -> None:
    path = tmp_path / "router.sqlite"
    store = SqliteStore(path)
    await store.start()
    try:
        await store.add(REPORT, NOW)
        with sqlite3.connect(path) as other:
            other.execute("UPDATE outcomes SET counts = json_remove(counts, '$.edge_whole', '$.hard')")
        (entry,) = await store.outcomes("joints")
        assert entry.counts == replace(REPORT.counts, edge_whole=0, hard={})
    finally:
        await store.stop()


async def test_what_was_acknowledged_is_seen_by_another_reader_at_once(tmp_path: Path) -> None:
    path = tmp_path / "router.sqlite"
    store = SqliteStore(path)
    await store.start()
    try:
        await store.add(REPORT, NOW)
        with sqlite3.connect(path) as reader:
            assert reader.execute("SELECT count(*) FROM outcomes").fetchone() == (1,)
            assert reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    finally:
        await store.stop()


async def test_a_failure_in_the_middle_of_a_report_leaves_nothing_of_it(tmp_path: Path) -> None:
    path = tmp_path / "router.sqlite"
    store = SqliteStore(path)
    await store.start()
    try:
        with sqlite3.connect(path) as other:
            other.execute(
                "CREATE TRIGGER full BEFORE INSERT ON outcomes BEGIN SELECT raise(ABORT, 'disk I/O error'); END"
            )
        with pytest.raises(MeshError):
            await store.add(REPORT, NOW)
        with sqlite3.connect(path) as other:
            other.execute("DROP TRIGGER full")
        assert await store.add(REPORT, NOW)
    finally:
        await store.stop()


async def test_a_store_of_the_first_schema_is_upgraded_with_everything_in_it(tmp_path: Path) -> None:
    path = tmp_path / "router.sqlite"
    with sqlite3.connect(path) as database:
        for table in ("tolerances (model, max_disagreement, delta)", "policies (model, version, revision, policy)"):
            database.execute(f"CREATE TABLE {table}")
        database.execute("INSERT INTO tolerances VALUES ('joints', 0.04, 0.1)")
        database.execute("INSERT INTO policies VALUES ('joints', 3, 7, 'old')")
        database.execute(
            "CREATE TABLE seen (node TEXT, boot_id TEXT, floor, early, touched, PRIMARY KEY (node, boot_id))"
        )
        database.execute(
            "CREATE TABLE outcomes (model TEXT, version INTEGER, node TEXT, counts TEXT NOT NULL,"
            " last_report_us INTEGER NOT NULL, PRIMARY KEY (model, version, node)) STRICT"
        )
        database.execute("INSERT INTO outcomes VALUES ('joints', 3, 'mec-1', '{\"edge_exit\": 7}', 1000000)")
        database.execute("PRAGMA user_version = 1")
    database.close()
    for _ in range(2):
        store = SqliteStore(path)
        await store.start()
        await store.add(replace(REPORT, load=Load(5.0, tails=1)), NOW)
        (entry,) = await store.outcomes("joints")
        assert (entry.counts.edge_exit, entry.load) == (17, Load(5.0, tails=1))
        goals = Goals.from_json(await store.goals("joints") or "", Goals(0.02, 0.05, 0.015))
        assert goals == Goals(0.04, 0.1, 0.015)
        assert await store.sites() == {}
        assert await store.revision("joints", 3, "old") == 7
        await store.stop()


async def test_tolerances_of_the_second_schema_become_goals_that_can_be_stated_anew(tmp_path: Path) -> None:
    path = tmp_path / "router.sqlite"
    with sqlite3.connect(path) as database:
        database.execute(
            "CREATE TABLE tolerances (model TEXT PRIMARY KEY, max_disagreement REAL NOT NULL, delta REAL NOT NULL) STRICT"
        )
        database.executemany("INSERT INTO tolerances VALUES (?, ?, ?)", [("joints", 0.1, 0.2), ("seams", 0.3, 0.4)])
        database.execute("PRAGMA user_version = 2")
    database.close()
    store, default = SqliteStore(path), Goals(0.02, 0.05, 0.25)
    await store.start()
    try:
        assert Goals.from_json(await store.goals("seams") or "", default) == Goals(0.3, 0.4, 0.25)
        await store.set_goals("joints", default.to_json())
        await store.set_site("south", "2 MB/s")
        assert Goals.from_json(await store.goals("joints") or "", default) == default
    finally:
        await store.stop()
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        assert database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'tolerances'").fetchone() == (0,)
    database.close()


async def test_a_file_that_is_no_database_or_of_a_later_schema_is_refused(tmp_path: Path) -> None:
    damaged, later = tmp_path / "damaged", tmp_path / "later"
    damaged.write_bytes(b"not a database, really not" * 100)
    with sqlite3.connect(later) as database:
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    for path in (damaged, later):
        store = SqliteStore(path)
        with pytest.raises(MeshError) as caught:
            await store.start()
        assert caught.value.reason is Reason.SERVICE_UNAVAILABLE
        await store.stop()


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "router.sqlite")
    await store.start()
    await store.stop()
    await store.stop()
    with pytest.raises(MeshError) as caught:
        await store.goals("joints")
    assert caught.value.reason is Reason.NOT_READY
