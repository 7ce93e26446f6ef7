"""What the head tells the router: once, in full, however long that is away."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from edge.head.decided import TailSaid
from edge.head.report import AWAIT_S, LONGEST_AGE_S, MOST_VERSIONS, WAITS_S
from edge.head.sights import MOST
from edge.head.spooling import OUTCOMES, Journal
from edge.head.tally import Report
from splitmesh.client.registry import VersionInfo
from splitmesh.client.routing import Outcomes as Told
from splitmesh.errors import MeshError, Reason
from splitmesh.routing.audit import Counts, Stratum
from splitmesh.routing.costs import NO_ANSWER
from splitmesh.routing.gate import Why
from splitmesh.spool.spool import Spool
from splitmesh.spool.values import Limits
from tests.unit.decided_frames import decided
from tests.unit.reporting import AWAY, Reporting
from tests.unit.spooled import WAIT_S, FullDisk, SlowDisk


@pytest.fixture
async def world() -> AsyncIterator[Reporting]:
    made = Reporting()
    yield made
    await made.close()


def version(number: int) -> VersionInfo:
    return VersionInfo("parts", number, 0, {}, "push", "", (), datetime(2026, 1, 1, tzinfo=UTC))


async def test_what_became_of_frames_is_counted_and_told_once(world: Reporting) -> None:
    info, outcomes = world.active.info, world.outcomes
    for _ in range(3):
        outcomes.edge_exit(info)
    outcomes.cloud_tail(info, disagreed=True)
    outcomes.cloud_tail(info, disagreed=False)
    outcomes.edge_whole(info)
    outcomes.fallback(info, Reason.DEADLINE_EXPIRED)
    outcomes.refused(info, Reason.IMAGE_UNDECODABLE)
    (call,) = await world.send()
    assert call.counts == Told(
        edge_exit=3,
        cloud_tail=2,
        tail_disagreed=1,
        edge_whole=1,
        edge_fallback={"DEADLINE_EXPIRED": 1},
        refused={"IMAGE_UNDECODABLE": 1},
    )
    assert await world.send() == []


async def test_hard_frames_are_counted_by_reason_and_sure_ones_are_not_hard(world: Reporting) -> None:
    for why in (Why.SURE, Why.UNSURE, Why.UNSURE, Why.UNUSUAL, Why.DRIFTED):
        world.decide(why=why)
    (call,) = await world.send()
    assert call.counts.hard == {"UNSURE": 2, "UNUSUAL": 1, "DRIFTED": 1}


async def test_a_sight_says_what_was_seen_and_how_long_ago(world: Reporting) -> None:
    world.now += 1
    world.decide(
        why=Why.UNSURE,
        camera="line-2",
        label=1,
        ease=0.4,
        unusual=False,
        exit=1,
        tail=TailSaid(2, 0.8, disagreed=True),
        arrived=datetime.now(UTC) - timedelta(seconds=2),
    )
    world.now += 3
    ((sight,),) = (call.sights for call in await world.send())
    assert sight.age_ms == pytest.approx(5000, abs=500)
    assert (sight.camera, sight.exit_class, sight.ease, sight.unusual) == ("line-2", 1, 0.4, False)
    assert (sight.tail_class, sight.audited, sight.exit) == (2, False, 1)


@pytest.mark.parametrize("jump_s", [-1e6, 1e6])
async def test_a_wall_clock_that_jumps_makes_no_absurd_age(world: Reporting, jump_s: float) -> None:
    world.decide(arrived=datetime.now(UTC) + timedelta(seconds=jump_s))
    world.now += 1
    ((sight,),) = (call.sights for call in await world.send())
    assert 1000 <= sight.age_ms <= LONGEST_AGE_S * 1e3 + 1000


async def test_an_audited_frame_is_told_once_with_the_tails_answer_or_without_after_its_time(world: Reporting) -> None:
    frame = decided(world.active, 1, audited=True, label=0)
    world.outcomes.decided(frame)
    world.decide(2, audited=True)
    world.now += 1
    assert await world.send() == []
    world.outcomes.audited(frame, TailSaid(1, 0.9, disagreed=True))
    world.now += 1
    (call,) = await world.send()
    assert [(sight.audited, sight.exit_class, sight.tail_class) for sight in call.sights] == [(True, 0, 1)]
    world.now += AWAIT_S
    (call,) = await world.send()
    assert [(sight.audited, sight.tail_class) for sight in call.sights] == [(False, None)]


async def test_a_frame_without_a_distribution_is_told_by_the_class_it_is_nearest_to(world: Reporting) -> None:
    world.decide(label=NO_ANSWER, why=Why.UNDEFINED, ease=float("nan"), row=[0.1, np.nan, 0.3])
    world.now += 1
    (call,) = await world.send()
    assert call.sights[0].exit_class == 2
    assert np.isnan(call.sights[0].ease)


async def test_a_report_that_was_not_taken_is_sent_again_as_it_was_but_for_its_age(world: Reporting) -> None:
    stratum = Stratum("line-1", "dark", 6)
    world.audits["parts", 1] = {stratum: Counts(100, 2, 1)}
    world.outcomes.edge_exit(world.active.info)
    world.now += 1
    world.decide()
    world.router.failures = [AWAY]
    (first,) = await world.send()
    world.audits["parts", 1] = {stratum: Counts(50, 1, 0)}
    world.outcomes.edge_exit(world.active.info)
    world.decide()
    world.now += 60
    again, new = await world.send()
    assert (again.sequence, again.boot_id, again.counts) == (first.sequence, first.boot_id, first.counts)
    assert again.audits == first.audits == {stratum: Counts(100, 2, 1)}
    assert [sight.age_ms - 60_000 for sight in again.sights] == pytest.approx([one.age_ms for one in first.sights])
    assert (new.sequence, new.counts.edge_exit) == (first.sequence + 1, 1)
    assert new.audits == {stratum: Counts(50, 1, 0)}


async def test_while_the_router_is_away_one_report_waits_as_it_was_and_one_takes_up_the_rest(world: Reporting) -> None:
    world.router.failures = [AWAY] * 20
    for _ in range(20):
        for number in range(200):
            world.outcomes.edge_exit(world.active.info)
            world.decide(number)
        world.now += 1
        assert len(await world.send()) == 1
    _, rest = await world.send()
    first = world.router.calls[0]
    assert {call.sequence for call in world.router.calls[:-1]} == {first.sequence}
    assert first.counts.edge_exit + rest.counts.edge_exit == 20 * 200
    assert len(first.sights) + first.left_out == 200
    assert len(rest.sights) <= MOST
    assert len(rest.sights) + rest.left_out == 19 * 200


async def test_audits_alone_make_a_report_of_a_version_that_was_seen(world: Reporting) -> None:
    world.outcomes.edge_exit(world.active.info)
    await world.send()
    world.audits["parts", 1] = {Stratum("line-1", "dark", 6): Counts(0, 1, 1)}
    (call,) = await world.send()
    assert (call.counts, len(call.audits)) == (Told(), 1)


async def test_each_version_has_a_report_of_its_own(world: Reporting) -> None:
    for number in (1, 2):
        world.outcomes.edge_exit(version(number))
    calls = await world.send()
    assert [(call.version, call.counts.edge_exit) for call in calls] == [(1, 1), (2, 1)]
    assert [call.sequence for call in calls] == [1, 2]
    # Only of version 1 a link is known.
    assert [call.load_ms for call in calls] == [0.0, None]


async def test_versions_with_nothing_to_tell_are_forgotten_where_there_are_many(world: Reporting) -> None:
    for number in range(MOST_VERSIONS + 10):
        world.outcomes.edge_exit(version(number))
    await world.send()
    world.outcomes.edge_exit(version(3))
    await world.send()
    assert list(world.outcomes._tallies) == [("parts", 3)]


async def test_what_the_router_will_never_take_is_dropped_and_the_rest_is_told(
    world: Reporting, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        world.outcomes.edge_exit(version(number))
    world.router.failures = [MeshError(Reason.FIELD_INVALID, "a camera's name is too long")]
    with caplog.at_level(logging.ERROR):
        calls = await world.send()
    assert [call.version for call in calls] == [1, 2]
    assert "dropped" in caplog.text
    assert await world.send() == []


@pytest.mark.parametrize(("asked_s", "waited_s"), [(2.5, 2.5), (1e6, WAITS_S[2]), (None, 0.0)])
async def test_a_router_that_is_full_is_left_alone_as_long_as_it_asks_within_bounds(
    world: Reporting, asked_s: float | None, waited_s: float
) -> None:
    world.outcomes.edge_exit(world.active.info)
    world.router.failures = [MeshError(Reason.QUEUE_FULL, "full", retry_after_s=asked_s)]
    await world.send()
    assert world.held_s == waited_s


async def test_a_stop_while_the_disk_syncs_loses_no_outcome_of_any_version() -> None:
    store = SlowDisk(None, Limits())
    world = Reporting(0.0, spools=[Spool(None, store=store)])
    for number in range(1, 5):
        world.outcomes.edge_exit(version(number))
    await world.outcomes.start()
    assert await asyncio.to_thread(store.hangs.wait, WAIT_S)
    for number in range(1, 5):  # while what came before is on its way to the disk
        world.outcomes.edge_exit(version(number))
    stopping = asyncio.create_task(world.outcomes.stop())
    await asyncio.sleep(0)  # it has begun
    store.goes_on.set()
    await stopping
    told = [(call.version, call.counts.edge_exit) for call in world.router.calls]
    assert {number: sum(n for of, n in told if of == number) for number in range(1, 5)} == dict.fromkeys(range(1, 5), 2)
    await world.close()


async def test_a_report_whose_keeping_was_cancelled_is_not_written_over() -> None:
    store = SlowDisk(None, Limits())
    spool = Spool(None, store=store)
    spool.start()
    journal = Journal(spool, random.Random(1), lambda: 1.0)
    store.goes_on.set()
    assert await journal.keep(exits(1))
    store.goes_on.clear()
    store.hangs.clear()
    keeping = asyncio.create_task(journal.keep(exits(10)))
    assert await asyncio.to_thread(store.hangs.wait, WAIT_S)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    store.goes_on.set()
    assert await journal.keep(exits(100))
    records = await asyncio.wrap_future(spool.take(OUTCOMES, 10, 1 << 20))
    assert [Report.from_json(one.body, None).counts.edge_exit for one in records] == [11, 100]
    await asyncio.to_thread(spool.stop)


def exits(count: int) -> Report:
    return Report("parts", 1, Told(edge_exit=count), (), 0, {})


async def test_what_neither_disk_nor_memory_takes_is_told_with_what_comes_later() -> None:
    store = FullDisk(None, Limits())
    world = Reporting(spools=[Spool(None, store=store)])
    world.outcomes.edge_exit(world.active.info)
    await world.send()
    store.fill_up()
    for number in range(3):
        world.outcomes.edge_exit(world.active.info)
        for _ in range(300):
            world.decide(camera=f"camera-{number:0200d}")
        world.now += 10
        assert await world.send() == []
    store.free()
    (call,) = await world.send()
    assert (call.counts.edge_exit, len(call.sights) + call.left_out) == (3, 900)
    await world.close()


async def test_sights_with_very_long_names_go_as_far_as_there_is_room_and_every_count_goes() -> None:
    world = Reporting()
    for _ in range(2):  # the second one is merged into the first
        world.router.failures = [AWAY]
        world.outcomes.edge_exit(world.active.info)
        for number in range(MOST):
            world.now += 0.03
            world.decide(number, camera="\U0001f3ed" * 400)
        await world.send()
    calls = (await world.send())[-2:]
    assert sum(call.counts.edge_exit for call in calls) == 2
    assert all(len(call.sights) > 100 for call in calls)
    assert sum(len(call.sights) + call.left_out for call in calls) == 2 * MOST
    await world.close()
