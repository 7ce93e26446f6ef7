"""A real head keeps what it has to tell while nobody listens, and tells all of it once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from edge.head.spooling import FOLDER
from splitmesh.client import AnsweredBy, Mesh
from splitmesh.errors import Reason
from splitmesh.samples.beside import Beside, folders_of
from splitmesh.samples.kept import Sample
from tests.support.models import EASY, picture
from tests.support.spooling_heads import KeepingFleet, balance_at, hard_frame
from tests.support.told_fleet import told_fleet
from tests.support.worlds import MODEL, WAIT_S, World, answered_by, world


@pytest.fixture
async def edge(tmp_path: Path, registered: Path) -> AsyncIterator[World]:
    async with world(tmp_path, registered) as made:
        yield made


async def hard(mesh: Mesh, first: int, count: int) -> None:
    """So many hard frames, each of a camera of its own, so that none is like another."""
    for number in range(first, first + count):
        answer = await mesh.infer(hard_frame(number), camera=f"camera-{number}")
        assert answer.answered_by in (AnsweredBy.CLOUD_TAIL, AnsweredBy.EDGE_FALLBACK)


async def head(made: World, **settings: Any) -> None:
    """Start it, or start it again: at another port."""
    made.addresses.pop("head", None)
    await made.start("head", **settings)


def kept(made: World) -> list[Sample]:
    return list(Beside(lambda: folders_of(made.folder / "head")).all())


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            if reached():
                return
            await asyncio.sleep(0.01)


async def counted(made: World, wanted: str, count: int) -> None:
    """Wait until the router has exactly so many of an outcome, over all nodes."""
    async with asyncio.timeout(WAIT_S):
        while True:
            nodes = await made.routing.get_outcomes(MODEL, 1)
            found = sum(getattr(node.outcomes, wanted) for node in nodes)
            assert found <= count
            if found == count:
                return
            await asyncio.sleep(0.02)


async def test_the_record_of_every_kept_sample_reaches_the_fleet_once_without_its_picture(edge: World) -> None:
    fleet = KeepingFleet(fail_after=[Reason.SERVICE_UNAVAILABLE, Reason.QUEUE_FULL])
    async with told_fleet(fleet.told()) as address:
        edge.addresses["fleet"] = address
        await edge.start("tail")
        await edge.start("head", tenant="acme", site="lyon")
        await hard(await edge.ready_mesh(), 0, 5)
        await fleet.until(5)
        await edge.stop("head")
    samples = {one.record.id: one.record for one in kept(edge)}
    assert {body["id"] for body in fleet.kept.values()} == set(samples)
    assert all(body["picture"] == samples[body["id"]].picture for body in fleet.kept.values())
    assert all(body["site"] == "lyon" for body in fleet.kept.values())
    assert {(tenant, edge_) for tenant, edge_, _, _ in fleet.kept} == {("acme", "head-1")}
    assert list(fleet.sequences().values()) == [[1, 2, 3, 4, 5]]
    balance = balance_at(edge.folder / "head" / FOLDER)
    assert (balance.queued, balance.holds, dict(balance.dropped)) == (0, True, {})


async def test_without_a_fleet_records_wait_over_lives_and_go_when_there_is_one(edge: World) -> None:
    await edge.start("tail")
    for life in range(2):
        await head(edge)
        await hard(await edge.ready_mesh(), 10 * life, 3)
        await until(lambda: len(kept(edge)) == 3 * (life + 1))  # noqa: B023
        await edge.stop("head")
    fleet = KeepingFleet()
    async with told_fleet(fleet.told()) as address:
        edge.addresses["fleet"] = address
        await edge.start("head")
        await fleet.until(6)
    assert list(fleet.sequences().values()) == [[1, 2, 3]] * 2
    assert fleet.dropped == {}


async def test_a_spool_that_is_full_gives_up_the_oldest_and_the_fleet_hears_how_many(edge: World) -> None:
    await edge.start("tail")
    await edge.start("head", spool_max_records=4)
    await hard(await edge.ready_mesh(), 0, 9)
    await until(lambda: len(kept(edge)) == 9)
    await edge.stop("head")
    balance = balance_at(edge.folder / "head" / FOLDER)
    assert balance.holds
    lost = sum(balance.dropped.values())
    assert lost >= 5
    fleet = KeepingFleet()
    async with told_fleet(fleet.told()) as address:
        edge.addresses["fleet"] = address
        await edge.start("head", spool_max_records=4)
        await fleet.until(9 - lost)
        await edge.stop("head")
    assert fleet.dropped == dict(balance.dropped)


async def test_a_head_that_is_told_not_to_tells_the_fleet_nothing(edge: World) -> None:
    fleet = KeepingFleet()
    async with told_fleet(fleet.told()) as address:
        edge.addresses["fleet"] = address
        await edge.start("tail")
        await edge.start("head", sample_records=False)
        await hard(await edge.ready_mesh(), 0, 2)
        await until(lambda: len(kept(edge)) == 2)
        await edge.stop("head")
    assert fleet.calls == 0
    assert balance_at(edge.folder / "head" / FOLDER).queued == 0


async def test_outcomes_of_a_life_without_a_router_are_counted_once_in_the_next(edge: World) -> None:
    await head(edge, switch_wait_s=0.01, sample_records=False)
    mesh = await edge.ready_mesh()
    await answered_by(mesh, EASY, AnsweredBy.EDGE_EXIT)
    await edge.stop("head")
    await until_counted(edge)
    before = await exits(edge)
    router = edge.addresses["router"]
    await edge.stop("router")
    await head(edge, switch_wait_s=0.01, sample_records=False)
    mesh = await edge.ready_mesh()
    for _ in range(7):
        assert (await mesh.infer(picture(EASY))).answered_by is AnsweredBy.EDGE_EXIT
    await edge.stop("head")
    balance = balance_at(edge.folder / "head" / FOLDER)
    assert 1 <= balance.queued <= 2  # the one that was tried, and one that took up the rest
    assert balance.holds
    await edge.start("router", port=int(router.rpartition(":")[2]))
    await head(edge, switch_wait_s=0.01, sample_records=False)
    await counted(edge, "edge_exit", before + 7)
    await edge.stop("head")
    assert await exits(edge) == before + 7
    balance = balance_at(edge.folder / "head" / FOLDER)
    assert (balance.queued, balance.holds, dict(balance.dropped)) == (0, True, {})


async def exits(made: World) -> int:
    return sum(node.outcomes.edge_exit for node in await made.routing.get_outcomes(MODEL, 1))


async def until_counted(made: World) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            if await exits(made):
                return
            await asyncio.sleep(0.02)
