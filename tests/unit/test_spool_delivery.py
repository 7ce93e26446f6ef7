"""What is spooled reaches whom it is for: in order, however often they are away, and counts there once."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from edge.head.sights import MOST, Seen
from edge.head.spooling import NEVER, OUTCOMES, Delivery
from edge.head.tally import MOST_REASONS, Report
from services.router.store import MAX_BOOTS, Counts, MemoryStore, RouterStore
from services.router.store import Report as RouterReport
from services.router.store_sqlite import SqliteStore
from splitmesh.client.routing import Outcomes as Told
from splitmesh.errors import MeshError, Reason
from splitmesh.routing import audit
from splitmesh.spool.spool import Spool
from splitmesh.spool.store import SpoolStore
from splitmesh.spool.values import Entry, Limits, Record
from tests.unit.reporting import AWAY, Reporting
from tests.unit.spooled import TOPIC, WAIT_S, FullDisk, entry

FAST = (0.001, 0.01, 0.02)
NOW = datetime(2026, 3, 4, 10, 0, tzinfo=UTC)


class Cloud:
    """Keeps each record once; fails before or after it has kept what came, as it is told."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, int], str] = {}
        self.calls: list[list[str]] = []
        self.before: list[Reason] = []
        self.after: list[Reason] = []
        self.poison = ""
        self.changed = asyncio.Event()

    async def take(self, records: Sequence[Record]) -> None:
        """As a client's method."""
        self.calls.append([record.body.decode() for record in records])
        if self.before:
            raise MeshError(self.before.pop(0), "not taken")
        if any(self.poison and self.poison in record.body.decode() for record in records):
            raise MeshError(Reason.FIELD_INVALID, "not a record")
        for record in records:
            assert self.kept.setdefault((record.boot_id, record.sequence), record.body.decode()) == record.body.decode()
        self.changed.set()
        if self.after:
            raise MeshError(self.after.pop(0), "nobody heard that it was taken")

    async def until(self, count: int) -> None:
        """So many records are kept."""
        async with asyncio.timeout(WAIT_S):
            while len(self.kept) < count:
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    made = Spool(tmp_path / "spool")
    made.start()
    yield made
    assert await asyncio.to_thread(made.stop, WAIT_S)


async def note(spool: Spool, *names: str) -> None:
    await asyncio.gather(*(asyncio.wrap_future(spool.note(entry(name))) for name in names))


async def balance_of(spool: Spool) -> tuple[int, int, int, dict[str, int], bool]:
    found = await asyncio.wrap_future(spool.balance())
    return found.captured, found.committed, found.queued, dict(found.dropped), found.holds


async def test_everything_goes_in_order_and_leaves_when_it_is_acknowledged(spool: Spool) -> None:
    cloud = Cloud()
    await note(spool, "a", "b", "c")
    await Delivery(spool, TOPIC, cloud.take, NEVER, most=2).turn()
    assert cloud.calls == [["a", "b"], ["c"]]
    assert await balance_of(spool) == (3, 3, 0, {}, True)


async def test_what_was_taken_and_not_acknowledged_comes_again_and_is_kept_once(spool: Spool) -> None:
    cloud = Cloud()
    cloud.after = [Reason.SERVICE_UNAVAILABLE, Reason.DEADLINE_EXPIRED]
    await note(spool, "a", "b")
    delivery = Delivery(spool, TOPIC, cloud.take, NEVER)
    await delivery.turn()
    assert delivery.behind
    assert (await balance_of(spool))[:3] == (2, 0, 2)
    await delivery.turn()
    await delivery.turn()
    assert (cloud.calls, len(cloud.kept), delivery.behind) == ([["a", "b"]] * 3, 2, False)
    assert await balance_of(spool) == (2, 2, 0, {}, True)


async def test_of_a_batch_only_what_will_never_be_taken_is_dropped(spool: Spool) -> None:
    cloud = Cloud()
    cloud.poison = "bad"
    await note(spool, "a", "bad", "c")
    await Delivery(spool, TOPIC, cloud.take, NEVER).turn()
    assert sorted(cloud.kept.values()) == ["a", "c"]
    assert await balance_of(spool) == (3, 2, 0, {"FIELD_INVALID": 1}, True)


async def test_it_goes_on_by_itself_when_the_other_side_is_back_and_when_there_is_something_new(spool: Spool) -> None:
    cloud = Cloud()
    cloud.before = [Reason.SERVICE_UNAVAILABLE] * 5 + [Reason.QUEUE_FULL]
    delivery = Delivery(spool, TOPIC, cloud.take, NEVER, waits_s=FAST)
    running = asyncio.create_task(delivery.run())
    await note(spool, "a")
    delivery.wake()
    await cloud.until(1)
    assert len(cloud.calls) == 7
    await note(spool, "b")
    delivery.wake()
    await cloud.until(2)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_broken_disk_ends_no_delivery(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.write_text("a file in the way")
    spool, cloud = Spool(folder, reopen_s=0.01), Cloud()
    spool.start()
    delivery = Delivery(spool, TOPIC, cloud.take, NEVER, waits_s=FAST)
    running = asyncio.create_task(delivery.run())
    async with asyncio.timeout(WAIT_S):
        while True:
            await asyncio.sleep(0.001)
            if delivery.behind:
                break
        folder.unlink()
        while not cloud.kept:
            await note(spool, "a")
            delivery.wake()
            await asyncio.sleep(0.005)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await asyncio.to_thread(spool.stop, WAIT_S)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_reports_of_more_lives_than_a_router_remembers_count_once_though_each_comes_twice(
    tmp_path: Path, kind: str
) -> None:
    lives, each = 3 * MAX_BOOTS, 3
    for _ in range(lives):
        life = SpoolStore(tmp_path / "spool", Limits())
        life.open()
        life.note([Entry(OUTCOMES, OUTCOMES, b"1") for _ in range(each)])
        life.close()
    store: RouterStore = MemoryStore() if kind == "memory" else SqliteStore(tmp_path / "router.sqlite")
    await store.start()
    spool = Spool(tmp_path / "spool")
    spool.start()
    came: dict[tuple[str, int], int] = {}

    async def report(records: Sequence[Record]) -> None:
        for record in records:
            counts = Counts(edge_exit=int(record.body))
            await store.add(RouterReport("head-1", record.boot_id, record.sequence, "parts", 1, counts), NOW)
            key = (record.boot_id, record.sequence)
            came[key] = came.get(key, 0) + 1
            if came[key] == 1:
                raise MeshError(Reason.DEADLINE_EXPIRED, "nobody heard that it was taken")

    delivery = Delivery(spool, OUTCOMES, report, NEVER, waits_s=FAST, most=1)
    while (await balance_of(spool))[2]:
        await delivery.turn()
    (sums,) = await store.outcomes("parts")
    assert set(came.values()) == {2}
    assert sums.counts.edge_exit == lives * each
    await store.stop()
    assert await asyncio.to_thread(spool.stop, WAIT_S)


def seen(number: int, *, audited: bool = False) -> Seen:
    return Seen(float(number), f"line-{number % 3}", number % 4, 0.5, None, 0, None, audited)


def report(**fields: object) -> Report:
    values: dict[str, object] = {
        "model": "parts",
        "version": 3,
        "counts": Told(
            edge_exit=2, cloud_tail=1, tail_disagreed=1, edge_fallback={"A": 1}, refused={}, hard={"UNSURE": 2}
        ),
        "seen": (seen(1), seen(2, audited=True)),
        "left_out": 1,
        "audits": {audit.Stratum("line-1", "dark", 6): audit.Counts(10, 2, 1)},
    }
    return Report(**{**values, **fields})  # type: ignore[arg-type]


def test_a_report_is_read_again_as_it_was_written_also_by_another_clock() -> None:
    told = report(seen=(seen(1), Seen(2.0, "line", 3, math.nan, True, 1, 2, True)))
    same = Report.from_json(told.to_json(5.0), None)
    assert (same.counts, same.audits, same.left_out, same.seen[0]) == (told.counts, told.audits, 1, told.seen[0])
    assert math.isnan(same.seen[1].ease)
    later = Report.from_json(told.to_json(5.0), written=1000.0)
    assert [round(sight.age_ms) for sight in later.sights(1007.0)] == [11_000, 10_000]


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"null", b'{"model": "a"}', b"\xff", b'{"clock":1,"seen":[[1]]}'])
def test_what_is_no_report_is_said_to_be_none(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        Report.from_json(body, None)


def test_two_reports_as_one_lose_no_count_and_stay_within_what_a_router_takes() -> None:
    many = tuple(seen(number, audited=number % 100 == 0) for number in range(MOST))
    reasons = {f"REASON_{number}": 1 for number in range(MOST_REASONS)}
    strata = {audit.Stratum(f"line-{number}", "dark", 0): audit.Counts(1, 1, 0) for number in range(200)}
    others = {audit.Stratum(f"row-{number}", "dark", 0): audit.Counts(1, 1, 0) for number in range(200)}
    one = report(seen=many, audits=strata, counts=Told(edge_exit=1, refused=dict(list(reasons.items())[:40])))
    two = report(seen=many, audits=others, counts=Told(edge_exit=5, refused=dict(list(reasons.items())[30:])))
    both = one.plus(two, random.Random(1))
    assert (both.counts.edge_exit, sum(both.counts.refused.values())) == (6, 40 + 34)
    assert len(both.counts.refused) <= MOST_REASONS
    assert len(both.seen) == MOST
    assert len(both.seen) + both.left_out == 2 * MOST + 2
    assert sum(one.audited for one in both.seen) == 20
    assert [one.at for one in both.seen] == sorted(one.at for one in both.seen)
    assert len(both.audits) <= 256
    assert sum(counts.accepted for counts in both.audits.values()) == 400


async def test_a_head_that_was_killed_tells_in_its_next_life_what_it_had_noted_and_how_old_it_is(
    tmp_path: Path,
) -> None:
    first = Reporting(spools=[Spool(None, store=SpoolStore(tmp_path, Limits(), now=lambda: NOW))])
    first.router.failures = [AWAY] * 3
    for _ in range(3):
        first.outcomes.edge_exit(first.active.info)
        first.decide()
        first.now += 1
        await first.send()
    boot = first.spools[0].boot_id
    assert first.router.calls[0].boot_id == boot
    await first.close()  # of its own accord it tells nothing more
    second = Reporting(spools=[Spool(tmp_path)])
    second.outcomes._now = lambda: NOW + timedelta(hours=1)
    second.now = 5.0
    calls = await second.send()
    assert [(call.boot_id, call.sequence, call.counts.edge_exit) for call in calls] == [(boot, 1, 1), (boot, 2, 2)]
    assert all(3_600_000 <= sight.age_ms <= 3_610_000 for call in calls for sight in call.sights)
    second.outcomes.edge_exit(second.active.info)
    (call,) = await second.send()
    assert (call.boot_id, call.sequence) == (second.spools[0].boot_id, 1)
    assert (await balance_of(second.spools[0]))[:3] == (3, 3, 0)
    await second.close()


async def test_where_the_disk_takes_nothing_reports_go_from_memory_and_none_is_counted_twice(tmp_path: Path) -> None:
    disk = FullDisk(tmp_path, Limits())
    world = Reporting(spools=[Spool(tmp_path, store=disk), Spool(None)])
    world.outcomes.edge_exit(world.active.info)
    await world.send()
    disk.fill_up()
    world.now += 100
    for number in range(3000):
        world.decide(number, camera=f"camera-{number:0200d}")
    world.outcomes.edge_exit(world.active.info)
    calls = await world.send()
    assert [call.boot_id for call in calls] == [world.spools[1].boot_id]
    assert sum(call.counts.edge_exit for call in world.router.calls) == 2
    disk.free()
    world.outcomes.edge_exit(world.active.info)
    calls = await world.send()
    assert [(call.boot_id, call.sequence) for call in calls] == [(world.spools[0].boot_id, 2)]
    assert await balance_of(world.spools[0]) == (2, 2, 0, {}, True)
    await world.close()
