"""When the head tells the router: at its time, at once where it matters, and not sooner where the router is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from edge.head import report as module
from splitmesh.errors import MeshError, Reason
from splitmesh.routing.gate import Why
from tests.unit.reporting import AWAY, NEVER_S, Reporting


@pytest.fixture
async def world() -> AsyncIterator[Reporting]:
    made = Reporting()
    yield made
    await made.close()


@pytest.fixture
async def running(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Reporting]:
    """An hour between two reports; what is urgent is looked for a hundred times a second."""
    monkeypatch.setattr(module, "EARLY_S", 0.01)
    made = Reporting()
    await made.outcomes.start()
    yield made
    await made.outcomes.stop()
    await made.close()


def refused(world: Reporting) -> None:
    world.outcomes.fallback(world.active.info, Reason.BUDGET_SPENT)


def refused_but_answered_whole(world: Reporting) -> None:
    world.decide(why=Why.UNSURE, refused="the site's budget is spent")


@pytest.mark.parametrize("spend", [refused, refused_but_answered_whole])
async def test_the_first_frame_without_budget_is_told_at_once_and_those_that_follow_are_not(
    running: Reporting, spend: Callable[[Reporting], None]
) -> None:
    spend(running)
    await running.next_call()
    spend(running)
    assert running.outcomes._urgent is False
    tally = running.outcomes._tallies["parts", 1]
    assert not tally.short_of_budget()


async def test_after_a_report_without_such_a_frame_the_next_one_is_told_at_once_again(world: Reporting) -> None:
    for urgent in (True, False):
        refused(world)
        assert world.outcomes._urgent is urgent
        await world.send()
    world.outcomes.edge_exit(world.active.info)
    await world.send()
    refused(world)
    assert world.outcomes._urgent is True


async def test_other_fallbacks_wait_for_their_time(world: Reporting) -> None:
    world.outcomes.fallback(world.active.info, Reason.SERVICE_UNAVAILABLE)
    world.outcomes.refused(world.active.info, Reason.QUEUE_FULL)
    assert not world.outcomes._urgent


async def test_a_back_log_that_grows_by_half_is_told_at_once(running: Reporting) -> None:
    running.link.backlog_ms = 100.0
    running.outcomes.edge_exit(running.active.info)
    assert (await running.next_call()).load_ms == 100.0
    running.link.backlog_ms = 149.0
    assert not running.outcomes._crowded()
    running.link.backlog_ms = 151.0
    running.outcomes.edge_exit(running.active.info)
    assert (await running.next_call()).load_ms == 151.0


async def test_a_back_log_of_next_to_nothing_is_nothing_new(world: Reporting) -> None:
    world.link.backlog_ms = 9.0
    assert not world.outcomes._crowded()


async def test_a_router_that_is_away_is_not_told_sooner_of_what_is_urgent(world: Reporting) -> None:
    refused(world)
    world.router.failures = [AWAY]
    await world.send()
    world.link.backlog_ms = 1000.0
    waiting = asyncio.create_task(world.outcomes._until_due(NEVER_S))
    await asyncio.sleep(2 * module.EARLY_S)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_reports_go_at_their_time_and_what_is_left_goes_at_a_stop() -> None:
    world = Reporting(interval_s=0.01)
    await world.outcomes.start()
    world.outcomes.edge_exit(world.active.info)
    assert (await world.next_call()).sequence == 1
    world.outcomes._interval_s = NEVER_S
    await asyncio.sleep(0.05)
    world.outcomes.edge_exit(world.active.info)
    await world.outcomes.stop()
    assert [call.counts.edge_exit for call in world.router.calls] == [1, 1]
    await world.close()


async def test_a_router_that_asks_for_time_is_not_told_at_the_next_interval() -> None:
    world = Reporting(interval_s=0.01)
    world.router.failures = [MeshError(Reason.QUEUE_FULL, "full", retry_after_s=NEVER_S)]
    await world.outcomes.start()
    world.outcomes.edge_exit(world.active.info)
    await world.next_call()
    await asyncio.sleep(0.1)
    assert len(world.router.calls) == 1
    await world.outcomes.stop()
    await world.close()
