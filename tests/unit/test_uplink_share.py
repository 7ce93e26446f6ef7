"""A head tells the router what it asks for, at once when that changes, and holds on to what it heard."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from edge.head.config import HeadSettings
from edge.head.uplink.budget import Budget
from edge.head.uplink.stream import LEAST_S, MOST_S, UplinkShare, far, moved
from splitmesh.client.routing import UplinkLoad
from splitmesh.client.shares import Demand, Grant, Update
from splitmesh.errors import MeshError, Reason

LOAD = UplinkLoad(backlog_ms=20.0, goodput_mbps=5.0, rtt_ms=10.0, loss=0.0, tails=2)


def update(rate: float = 10.0, *, place: int = 0, load: UplinkLoad | None = LOAD, **fields: Any) -> Update:
    rates = [0.0, 0.0, 0.0, 0.0]
    rates[place] = rate
    given = {"bytes": 1000.0, "cloud_ms": 5.0, "deadline_ok": True} | fields
    return Update((Demand("solder", tuple(rates), **given),), load)


class Router:
    """What ``ShareClient`` does: one stream per call, until the test breaks it."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[Update] = asyncio.Queue()
        self.grants: asyncio.Queue[Grant | MeshError] = asyncio.Queue()
        self.opened: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.left = asyncio.Event()

    async def share_uplink(self, node: str, site: str, updates: AsyncIterator[Update]) -> AsyncGenerator[Grant]:
        self.opened.put_nowait((node, site))

        async def listen() -> None:
            async for one in updates:
                self.heard.put_nowait(one)

        listening = asyncio.create_task(listen())
        try:
            while True:
                grant = await self.grants.get()
                if isinstance(grant, MeshError):
                    raise grant
                yield grant
        finally:
            self.left.set()
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


async def soon(queue: asyncio.Queue[Any]) -> Any:
    async with asyncio.timeout(5):
        return await queue.get()


def share(router: Router, granted: Any = lambda grant: None) -> UplinkShare:
    return UplinkShare(cast(Any, router), "head-1", "line-3", granted, again_s=0.0)


async def test_an_update_is_told_at_once_and_again_only_when_it_moved_or_is_old() -> None:
    router = Router()
    uplink = share(router)
    await uplink.start()
    assert await soon(router.opened) == ("head-1", "line-3")
    uplink.offer(update(10.0), 0.0)
    assert await soon(router.heard) == update(10.0)
    uplink.offer(update(10.2), 0.2)
    uplink.offer(update(12.0), 0.4)
    assert await soon(router.heard) == update(12.0)
    uplink.offer(update(12.0), 0.4 + MOST_S)
    assert await soon(router.heard) == update(12.0)
    assert router.heard.empty()
    await uplink.stop()


async def test_of_updates_that_nobody_takes_the_newest_is_kept() -> None:
    router = Router()
    uplink = share(router)
    for number in range(50):
        uplink.offer(update(float(2**number)), number * LEAST_S)
    await uplink.start()
    assert await soon(router.heard) == update(float(2**49))
    assert router.heard.empty()
    await uplink.stop()


def test_updates_are_due_ten_times_a_second_at_most() -> None:
    uplink = share(Router())
    assert uplink.due(5.0)
    uplink.offer(update(), 5.0)
    assert not uplink.due(5.0 + 0.9 * LEAST_S)
    assert uplink.due(5.0 + LEAST_S)
    assert uplink.due(1.0)  # the clock was set back


async def test_a_router_that_comes_back_hears_the_newest_update_and_grants_anew() -> None:
    router, grants = Router(), asyncio.Queue[Grant]()
    uplink = share(router, grants.put_nowait)
    await uplink.start()
    await soon(router.opened)
    uplink.offer(update(), 0.0)
    await soon(router.heard)
    router.grants.put_nowait(MeshError(Reason.UNIMPLEMENTED, "an old router"))
    await soon(router.opened)
    assert await soon(router.heard) == update()
    router.grants.put_nowait(Grant(5.0, 6.0, (), ""))
    assert await soon(grants) == Grant(5.0, 6.0, (), "")
    await uplink.stop()


async def test_an_unforeseen_failure_does_not_end_the_sharing(caplog: pytest.LogCaptureFixture) -> None:
    router = Router()
    told = asyncio.Event()

    def granted(grant: Grant) -> None:
        if grant.bytes_per_s == 1:
            raise ZeroDivisionError
        told.set()

    uplink = share(router, granted)
    await uplink.start()
    router.grants.put_nowait(Grant(1.0, 1.0, (), ""))
    router.grants.put_nowait(Grant(2.0, 2.0, (), ""))
    async with asyncio.timeout(5):
        await told.wait()
    assert "ZeroDivisionError" in caplog.text
    await uplink.stop()


async def test_a_broken_grant_is_logged_once_and_the_one_before_holds(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    router = Router()
    budget = Budget(HeadSettings(data_dir=tmp_path, site="line-3"), cast(Any, router), list)
    await budget.start()
    assert (await soon(router.opened))[1] == "line-3"
    router.grants.put_nowait(Grant(0.0, math.inf, (), "first"))
    with caplog.at_level(logging.ERROR):
        for broken in (math.nan, -1.0, math.nan):
            router.grants.put_nowait(Grant(broken, 1.0, (), "broken"))
        router.grants.put_nowait(MeshError(Reason.FIELD_INVALID, "away for a while"))
        async with asyncio.timeout(5):
            await router.left.wait()
    assert caplog.text.count("not kept to") == 1
    assert "first" in budget.refuses("solder", 1.0, 1000)
    await budget.stop()


async def test_a_head_that_restarts_without_a_router_keeps_to_what_was_granted(tmp_path: Path) -> None:
    settings = HeadSettings(data_dir=tmp_path, site="line-3")
    router = Router()
    budget = Budget(settings, cast(Any, router), list)
    await budget.start()
    router.grants.put_nowait(Grant(0.0, math.inf, (), "the site is closed"))
    router.grants.put_nowait(MeshError(Reason.FIELD_INVALID, "away for a while"))
    async with asyncio.timeout(5):
        await router.left.wait()
    await budget.stop()
    again = Budget(settings, cast(Any, Router()), list)
    assert again.refuses("solder", 1.0, 1000) == ""
    await again.start()
    assert "the site is closed" in again.refuses("solder", 1.0, 1000)
    await again.stop()


async def test_a_look_that_fails_does_not_end_the_looking(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.head.uplink.budget.AGAIN_S", 0.0)
    looks = 0
    twice = asyncio.Event()

    def loaded() -> list[Any]:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise ZeroDivisionError
        twice.set()
        return []

    budget = Budget(HeadSettings(data_dir=tmp_path), cast(Any, Router()), loaded)
    await budget.start()
    async with asyncio.timeout(5):
        await twice.wait()
    assert "ZeroDivisionError" in caplog.text
    await budget.stop()


@pytest.mark.parametrize(
    ("after", "differs"),
    [
        (update(), False),
        (update(10.9), False),
        (update(11.5), True),
        (update(place=1), True),
        (update(bytes=1050.0), False),
        (update(bytes=1200.0), True),
        (update(cloud_ms=6.0), True),
        (update(deadline_ok=False), True),
        (update(load=None), True),
        (update(load=UplinkLoad(23.0, 5.0, 10.0, 0.0, 2)), False),
        (update(load=UplinkLoad(40.0, 5.0, 10.0, 0.0, 2)), True),
        (update(load=UplinkLoad(20.0, 4.0, 10.0, 0.0, 2)), True),
        (update(load=UplinkLoad(20.0, 5.0, 10.0, 0.0, 1)), True),
        (Update((), LOAD), True),
    ],
)
def test_what_moved_by_a_tenth_is_told(after: Update, differs: bool) -> None:
    assert moved(update(), after) is differs


def test_no_limit_is_far_from_every_limit_and_not_from_itself() -> None:
    assert far(math.inf, 5.0, 0.2, 1.0)
    assert far(5.0, math.inf, 0.2, 1.0)
    assert not far(math.inf, math.inf, 0.2, 1.0)
