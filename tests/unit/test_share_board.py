"""What heads of a site are granted, when they hear of it, and what an operator sees."""

from __future__ import annotations

import asyncio
import math

import pytest

from edge.head.uplink.stream import AGAIN_S
from services.router.shares.board import MAX_SITES, RETURN_S
from services.router.shares.site import LEFT_S, LOST_S, SETTLE_S
from services.router.shares.stated import Place, Site
from splitmesh.client.shares import BACKOFF_S
from splitmesh.errors import MeshError, Reason
from tests.unit.share_heads import INTERVAL_S, World, asks, in_force, load

BUDGET = 100_000.0


@pytest.mark.parametrize("turns", range(6))
async def test_stopping_never_waits_whenever_news_came_just_before(turns: int) -> None:
    world = World()
    board = world.board
    await board.start()
    await world.state(bytes_per_s=BUDGET)
    world.head().ask(asks(per_s=10))
    for _ in range(50):  # the board's clock stands still: it waits now until the grant may be looked at again
        await asyncio.sleep(0)
    board.join("mec-2", "line-4")
    for _ in range(turns):
        await asyncio.sleep(0)
    async with asyncio.timeout(10.0):
        await board.stop()


async def test_a_site_without_a_budget_limits_nobody() -> None:
    world = World()
    head = world.head()
    head.ask(asks(per_s=1e6))
    world.go(0.1)
    assert (head.bytes_per_s, head.cloud_ms_per_s) == (math.inf, math.inf)
    assert head.why == "site line-4 has no limit now"


async def test_a_lone_head_gets_the_whole_budget_at_its_first_word() -> None:
    world = World()
    await world.state(bytes_per_s=BUDGET, cloud_ms_per_s=500.0)
    head = world.head()
    head.ask(asks(per_s=10))
    world.board.turn()
    head.deliver()
    assert head.bytes_per_s == pytest.approx(BUDGET)
    assert head.cloud_ms_per_s == pytest.approx(500.0)


async def test_equal_heads_get_equal_parts_and_all_of_the_budget_together() -> None:
    world = World()
    await world.state(bytes_per_s=BUDGET)
    heads = [world.head(f"mec-{number}") for number in range(3)]
    for head in heads:
        head.ask(asks(per_s=100))
    world.go(2.0)
    assert [head.bytes_per_s for head in heads] == pytest.approx([BUDGET / 3] * 3, rel=0.01)
    assert in_force(heads)[0] <= BUDGET


async def test_the_worthier_samples_cross_on_whichever_head_they_are() -> None:
    world = World()
    await world.state(bytes_per_s=BUDGET)
    worthy, other = world.head("a"), world.head("b")
    worthy.ask(asks(per_s=80, worth=0.9))
    other.ask(asks(per_s=80, worth=0.3))
    world.go(2.0)
    assert worthy.bytes_per_s == pytest.approx(80_000, rel=0.01)
    assert other.bytes_per_s == pytest.approx(20_000, rel=0.01)


async def test_a_weight_counts_for_the_samples_of_its_application() -> None:
    world = World()
    await world.state(bytes_per_s=BUDGET, applications=(Place("faces", weight=5.0),))
    solder, faces = world.head("a"), world.head("b")
    solder.ask(asks("solder", per_s=80, worth=0.9))
    faces.ask(asks("faces", per_s=80, worth=0.3))
    world.go(2.0)
    assert faces.bytes_per_s == pytest.approx(80_000, rel=0.01)
    assert solder.bytes_per_s == pytest.approx(20_000, rel=0.01)


async def test_a_minimum_crosses_however_little_it_is_worth() -> None:
    world = World()
    await world.state(bytes_per_s=BUDGET, applications=(Place("faces", min_share=0.25),))
    solder, faces = world.head("a"), world.head("b")
    solder.ask(asks("solder", per_s=200, worth=0.9))
    faces.ask(asks("faces", per_s=80, worth=0.1))
    world.go(2.0)
    assert faces.bytes_per_s == pytest.approx(20_000, rel=0.02)


async def test_what_nobody_needs_is_left_to_those_who_ask_most_and_an_idle_head_can_send_its_first_sample() -> None:
    world = World()
    await world.state(bytes_per_s=BUDGET)
    busy, idle = world.head("a"), world.head("b")
    busy.ask(asks(per_s=20))
    idle.ask(asks(per_s=0))
    world.go(2.0)
    assert busy.bytes_per_s > 90_000
    assert idle.bytes_per_s > 1000
    assert in_force([busy, idle])[0] <= BUDGET


async def test_the_winner_hears_only_after_the_loser_took_its_message_and_a_second_passed() -> None:
    world = World()
    await world.state(bytes_per_s=BUDGET)
    first, second = world.head("a"), world.head("b")
    first.ask(asks(per_s=100))
    world.board.turn()
    first.deliver()
    second.ask(asks(per_s=100))
    world.go_without_delivery(3.0)
    second.deliver()
    assert second.bytes_per_s < 1.0
    first.deliver()
    taken_s = world.clock.now_s
    world.go_without_delivery(SETTLE_S - 0.01)
    second.deliver()
    assert second.bytes_per_s < 1.0
    world.go(0.02, 0.01)
    assert second.bytes_per_s == pytest.approx(BUDGET / 2, rel=0.01)
    assert world.clock.now_s - taken_s < SETTLE_S + INTERVAL_S


@pytest.mark.parametrize(("took_its_leave", "counts_s"), [(True, LEFT_S), (False, LOST_S)])
async def test_a_head_that_left_counts_for_a_second_and_one_that_was_lost_until_it_may_be_back(
    took_its_leave: bool, counts_s: float
) -> None:
    world = World()
    await world.state(bytes_per_s=BUDGET)
    first, second = world.head("a"), world.head("b")
    for head in (first, second):
        head.ask(asks(per_s=100))
    world.go(2.0)
    first.member.leaving = took_its_leave
    world.board.leave(first.member)
    world.go(counts_s / 2)
    second.ask(asks(per_s=100))
    world.go(counts_s / 2 - 0.1)
    assert second.bytes_per_s < 0.6 * BUDGET
    world.go(0.2)
    assert second.bytes_per_s == pytest.approx(BUDGET)


def test_a_head_is_back_before_what_it_holds_is_given_to_others() -> None:
    connects_s = 1.0
    assert connects_s + BACKOFF_S[1] + AGAIN_S < min(LOST_S, RETURN_S)


async def test_a_head_that_is_back_goes_on_with_what_it_holds_and_counts_once() -> None:
    world = World()
    await world.state(bytes_per_s=BUDGET)
    first, second = world.head("a"), world.head("b")
    for head in (first, second):
        head.ask(asks(per_s=100))
    world.go(2.0)
    world.board.leave(first.member)
    world.heads.remove(first)
    world.go(LOST_S / 2)
    again = world.head("a")
    again.ask(asks(per_s=100))
    second.ask(asks(per_s=100))
    world.go(0.1)
    assert again.bytes_per_s == pytest.approx(BUDGET / 2, rel=0.01)
    world.go(LOST_S)
    assert in_force([again, second])[0] == pytest.approx(BUDGET, rel=0.01)


async def test_a_silent_head_counts_with_its_last_word_and_after_ten_seconds_not_at_all() -> None:
    world = World()
    await world.state(bytes_per_s=BUDGET)
    silent, other = world.head("a"), world.head("b")
    silent.ask(asks(per_s=100))
    other.ask(asks(per_s=100))
    for _ in range(9):
        world.go(1.0)
        other.ask(asks(per_s=100))
    assert silent.bytes_per_s == pytest.approx(BUDGET / 2, rel=0.01)
    world.go(2.0 + SETTLE_S)
    assert silent.bytes_per_s == 0.0
    assert other.bytes_per_s == pytest.approx(BUDGET)


async def test_a_lower_budget_is_told_at_once_and_a_higher_one_too() -> None:
    world = World()
    await world.state(bytes_per_s=BUDGET)
    head = world.head()
    head.ask(asks(per_s=100))
    world.go(1.0)
    for budget in (BUDGET / 10, BUDGET * 2, 0.0):
        await world.board.set_site(Site("line-4", bytes_per_s=budget))
        world.board.turn()
        head.deliver()
        assert head.bytes_per_s == pytest.approx(budget or math.inf)
        world.go(1.0)


async def test_crowded_tails_lower_the_share_within_a_second_and_it_comes_back() -> None:
    world = World()
    heads = [world.head("a"), world.head("b")]

    def speak(backlog_ms: float) -> None:
        for head in heads:
            head.ask(asks(per_s=100, ms=10), load=load(backlog_ms))

    speak(0.0)
    world.go(1.0)
    assert in_force(heads)[1] == math.inf
    for _ in range(10):
        speak(400.0)
        world.go(0.1)
    assert in_force(heads)[1] < 1000.0
    (site,) = world.board.shares()
    assert "back-log is 400 ms" in site.why
    assert site.usable.cloud_ms_per_s == pytest.approx(in_force(heads)[1], rel=0.05)
    for _ in range(600):
        speak(0.0)
        world.go(0.1, 0.1)
    assert in_force(heads)[1] > 2000.0


async def test_one_free_tail_seen_by_anybody_is_enough_to_go_on() -> None:
    world = World()
    far, near = world.head("a"), world.head("b")
    for _ in range(10):
        far.ask(asks(per_s=100), load=load(900.0))
        near.ask(asks(per_s=100), load=load(5.0))
        world.go(0.1)
    assert in_force([far, near])[1] == math.inf


async def test_an_operator_sees_each_node_and_application_with_the_processes_of_a_node_together() -> None:
    world = World()
    await world.state(bytes_per_s=BUDGET)
    heads = [world.head("mec-1"), world.head("mec-1"), world.head("mec-2")]
    for head in heads:
        head.ask(asks("solder", per_s=100), load=load(0.0, goodput_mbps=0.2))
    world.go(2.0)
    (site,) = world.board.shares("line-4")
    assert [(one.node, one.application, one.asked_per_s) for one in site.shares] == [
        ("mec-1", "solder", 200.0),
        ("mec-2", "solder", 100.0),
    ]
    assert sum(one.bytes_per_s for one in site.shares) == pytest.approx(BUDGET, rel=0.01)
    assert site.price_per_byte > 0
    assert site.usable.bytes_per_s == pytest.approx(75_000.0)
    assert "the heads' links together carry 7.5e+04 bytes/s" in site.why
    assert world.board.shares("elsewhere") == []


async def test_a_site_without_budget_and_heads_is_forgotten() -> None:
    world = World()
    head = world.head(site="passing")
    world.go(0.1)
    world.board.leave(head.member)
    world.go(LOST_S + 1.0)
    assert world.board.shares() == []


async def test_too_many_streams_sites_and_demands_are_refused() -> None:
    world = World(max_sharers=2)
    head = world.head("a")
    world.head("b")
    with pytest.raises(MeshError) as refused:
        world.head("c")
    assert refused.value.reason is Reason.QUEUE_FULL
    for number in range(MAX_SITES):
        await world.board.set_site(Site(f"s{number}", bytes_per_s=1.0))
    with pytest.raises(MeshError) as refused:
        await world.board.set_site(Site("one-more"))
    assert refused.value.reason is Reason.QUEUE_FULL
    await world.board.set_site(Site("s5", bytes_per_s=2.0))
    with pytest.raises(MeshError) as refused:
        head.ask(*(asks(f"a{number}", per_s=1) for number in range(1001)))
    assert refused.value.reason is Reason.QUEUE_FULL


async def test_budgets_outlive_the_router_and_the_next_one_waits_for_the_heads_before_it_grants() -> None:
    world = World()
    stated = Site("line-4", BUDGET, 0.0, (Place("solder", 5.0, 0.1),))
    await world.board.set_site(stated)
    later = World(store=world.store)
    await later.board.start()
    await later.board.stop()
    (site,) = later.board.shares()
    assert site.stated == stated
    early = later.head("a")
    early.ask(asks(per_s=100))
    later.go(RETURN_S - 0.1)
    assert early.heard == 0
    other = later.head("b")
    other.ask(asks(per_s=100))
    later.go(0.2)
    assert early.bytes_per_s == other.bytes_per_s == pytest.approx(BUDGET / 2)
