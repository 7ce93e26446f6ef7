"""Gateways that decide through the router, and have a site's budget without a stream of their own."""

from __future__ import annotations

import math

import pytest

from services.router.shares.board import RETURN_S
from services.router.shares.gateway import IDLE_S, LARGEST_S, MAX_APPLICATIONS
from services.router.shares.site import SETTLE_S
from services.router.shares.stated import Site
from splitmesh.errors import MeshError, Reason
from splitmesh.routing.sharing import MAX_APPLICATIONS as MAX_DEMANDS
from tests.unit.share_heads import World, asks

BUDGET = 100_000.0
SIZE = 1000


def crossed(world: World, worths: list[float], *, every_s: float = 0.01, size: int = SIZE) -> list[int]:
    """How many samples of each worth crossed, asking for one after the other."""
    counts = [0] * len(worths)
    for turn in range(300):
        for place, worth in enumerate(worths):
            counts[place] += not world.board.refuses("line-4", "solder", worth, size)
        world.go_without_delivery(every_s)
        for head in world.heads:
            head.deliver()
        if turn == 100:
            counts = [0] * len(worths)
    return counts


async def test_a_site_that_nobody_stated_refuses_nothing_and_is_not_remembered() -> None:
    world = World()
    assert world.board.refuses("nowhere", "solder", 0.0, 10**9) == ""
    assert world.board.shares() == []


async def test_a_site_with_heads_and_no_budget_refuses_nothing() -> None:
    world = World()
    world.head().ask(asks(per_s=10))
    assert [world.board.refuses("line-4", "solder", 0.1, 10**6) for _ in range(5)] == [""] * 5


async def test_the_worthier_samples_cross_within_the_budget() -> None:
    world = World()
    await world.state(bytes_per_s=BUDGET)
    poor, rich = crossed(world, [0.2, 0.8])
    assert rich > 150
    assert poor < 20
    assert (poor + rich) * SIZE <= BUDGET * 2.0 * 1.15


async def test_gateways_take_part_as_one_member_beside_the_heads() -> None:
    world = World()
    await world.state(bytes_per_s=BUDGET)
    head = world.head()
    head.ask(asks("solder", per_s=100, size=SIZE, worth=0.5))
    crossed(world, [0.5])  # until the head has given half of it back
    (count,) = crossed(world, [0.5])
    assert count * SIZE == pytest.approx(BUDGET / 2 * 2.0, rel=0.15)
    assert head.bytes_per_s == pytest.approx(BUDGET / 2, rel=0.1)
    (site,) = world.board.shares()
    assert [one.node for one in site.shares] == ["decide", "mec-1"]


async def test_a_refusal_says_for_which_application_and_which_limit() -> None:
    world = World()
    await world.state(bytes_per_s=BUDGET)
    refused = [world.board.refuses("line-4", "solder", 0.5, 90_000) for _ in range(20)]
    assert any("solder: 90000 bytes do not fit now into the" in why for why in refused)
    world.go(1.0)
    why = world.board.refuses("line-4", "solder", 0.0, 90_000)
    assert why.startswith("solder: ")
    assert "100000 bytes/s of uplink" in why


async def test_one_huge_sample_makes_room_for_a_while_and_not_for_good() -> None:
    world = World()
    await world.state(bytes_per_s=BUDGET)
    world.board.refuses("line-4", "solder", 0.9, 50_000_000)
    for _ in range(int(2 * LARGEST_S) + 1):
        world.go(1.0, 0.25)
        world.board.refuses("line-4", "solder", 0.9, SIZE)
    burst = sum(not world.board.refuses("line-4", "solder", 1.0, SIZE) for _ in range(1000))
    assert burst * SIZE <= BUDGET * SETTLE_S


async def test_gateways_keep_to_their_part_of_the_tails_time_where_a_head_tells_how_long_a_sample_takes() -> None:
    world = World()
    await world.state(cloud_ms_per_s=500.0)
    assert crossed(world, [0.5]) == [199]
    world.head().ask(asks("solder", per_s=50, size=SIZE, ms=20.0, worth=0.5))
    crossed(world, [0.5])  # until the gateways have given back what they do not need
    (count,) = crossed(world, [0.5])
    assert count * 20.0 <= 500.0 * 2.0
    assert count > 10
    refused = {world.board.refuses("line-4", "solder", 0.5, SIZE) for _ in range(50)}
    assert any("20 ms do not fit now into the" in why for why in refused)


async def test_a_gateways_application_counts_among_the_demands_of_its_site() -> None:
    world = World()
    await world.state(bytes_per_s=BUDGET)
    head = world.head()
    head.ask(*(asks(f"a{number}", per_s=1) for number in range(MAX_DEMANDS)))
    with pytest.raises(MeshError) as refused:
        world.board.refuses("line-4", "one-more", 0.5, SIZE)
    assert refused.value.reason is Reason.QUEUE_FULL
    world.go(1.0)
    assert head.bytes_per_s == pytest.approx(BUDGET)
    head.ask(*(asks(f"a{number}", per_s=1) for number in range(MAX_DEMANDS - 1)))
    world.board.refuses("line-4", "one-more", 0.5, SIZE)
    world.board.refuses("line-4", "one-more", 0.5, SIZE)


async def test_a_sample_of_unknown_worth_counts_as_the_worthiest() -> None:
    world = World()
    await world.state(bytes_per_s=BUDGET)
    unknown, rich = crossed(world, [math.nan, 0.5])
    assert unknown > 150 > rich


async def test_gateways_that_ask_no_more_give_their_part_back() -> None:
    world = World()
    await world.state(bytes_per_s=BUDGET)
    head = world.head()
    head.ask(asks(per_s=100))
    crossed(world, [0.5])
    for _ in range(int(IDLE_S) + 2):
        head.ask(asks(per_s=100))
        world.go(1.0, 0.25)
    assert head.bytes_per_s == pytest.approx(BUDGET, rel=0.01)
    (site,) = world.board.shares()
    assert [one.node for one in site.shares] == ["mec-1"]


async def test_too_many_applications_are_refused_until_old_ones_are_forgotten() -> None:
    world = World()
    await world.state(bytes_per_s=BUDGET)
    for number in range(MAX_APPLICATIONS):
        world.board.refuses("line-4", f"app-{number}", 0.5, SIZE)
    with pytest.raises(MeshError) as refused:
        world.board.refuses("line-4", "one-more", 0.5, SIZE)
    assert refused.value.reason is Reason.QUEUE_FULL
    world.go_without_delivery(IDLE_S + 1)
    world.board.refuses("line-4", "one-more", 0.5, SIZE)


@pytest.mark.parametrize(("site", "application", "size"), [("no site!", "a", 1), ("s", "A b", 1), ("line-4", "a", -1)])
async def test_impossible_questions_are_refused(site: str, application: str, size: int) -> None:
    world = World()
    await world.state(bytes_per_s=BUDGET)
    with pytest.raises(MeshError) as refused:
        world.board.refuses(site, application, 0.5, size)
    assert refused.value.reason is Reason.FIELD_INVALID


async def test_a_router_that_has_just_started_says_so() -> None:
    world = World()
    await world.board.set_site(Site("line-4", BUDGET))
    later = World(store=world.store)
    await later.board.start()
    await later.board.stop()
    assert "has just started" in later.board.refuses("line-4", "solder", 0.9, SIZE)
    later.go(RETURN_S + 1.0)
    assert later.board.refuses("line-4", "solder", 0.9, SIZE) == ""
