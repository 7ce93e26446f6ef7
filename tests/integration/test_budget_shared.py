"""Heads keep to what a real router grants them, also when it is away."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from edge.head.config import HeadSettings
from edge.head.uplink.budget import Budget
from services.router.app import build
from services.router.config import RouterSettings
from splitmesh.client.shares import ApplicationShare, Grant, ShareClient, SiteBudget
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.kernel.lifecycle import Host

WAIT_S = 20.0


class Watched(Budget):
    """Tells the test of grants."""

    def __init__(self, settings: HeadSettings, client: ShareClient) -> None:
        super().__init__(settings, client, list)
        self.grants: asyncio.Queue[Grant] = asyncio.Queue()

    def granted(self, grant: Grant) -> None:
        super().granted(grant)
        self.grants.put_nowait(grant)

    async def until(self, low: float, high: float) -> Grant:
        """The first grant of so many bytes a second."""
        async with asyncio.timeout(WAIT_S):
            while not low <= (grant := await self.grants.get()).bytes_per_s <= high:
                pass
        return grant


@asynccontextmanager
async def router(folder: Path) -> AsyncIterator[ShareClient]:
    settings = RouterSettings(data_dir=folder / "router", drain_s=1.0, share_interval_s=0.02)
    async with Host("router", settings, build) as host:
        channels = Channels(StaticDiscovery({"router": [host.address]}))
        try:
            yield ShareClient(channels)
        finally:
            await channels.close()


def head(folder: Path, client: ShareClient, name: str) -> Watched:
    return Watched(HeadSettings(data_dir=folder / name, node=name, site="line-4"), client)


async def test_two_heads_keep_to_their_site_together_and_one_alone_gets_all(tmp_path: Path) -> None:
    async with router(tmp_path) as client:
        await client.set_site(SiteBudget("line-4", 100_000.0, 0.0, (ApplicationShare("solder", 5.0, 0.1),)))
        first, second = head(tmp_path, client, "head-1"), head(tmp_path, client, "head-2")
        await first.start()
        grant = await first.until(99_990, 100_000)
        assert grant.applications == (ApplicationShare("solder", 5.0, 0.1),)
        assert grant.cloud_ms_per_s == math.inf
        await second.start()
        shared = await second.until(1, 99_000)
        assert (await first.until(1, 100_000 - shared.bytes_per_s)).bytes_per_s > 0
        await second.stop()
        await first.until(99_990, 100_000)
        await first.stop()


async def test_the_next_frame_obeys_a_budget_that_was_just_stated_and_so_does_a_head_alone(tmp_path: Path) -> None:
    async with router(tmp_path) as client:
        budget = head(tmp_path, client, "head-1")
        await budget.start()
        await budget.until(math.inf, math.inf)
        assert budget.refuses("solder", 0.5, 50_000) == ""
        await client.set_site(SiteBudget("line-4", 1.0))
        await budget.until(0.5, 1.0)
        assert "1 bytes/s" in budget.refuses("solder", 0.5, 50_000)
    assert "granted by the router" in budget.refuses("solder", 0.5, 50_000)
    await budget.stop()
    again = head(tmp_path, client, "head-1")
    await again.start()
    assert "granted by the router" in again.refuses("solder", 0.5, 50_000)
    await again.stop()


async def test_the_router_shows_what_a_head_asks_for(tmp_path: Path) -> None:
    async with router(tmp_path) as client:
        await client.set_site(SiteBudget("line-4", 100_000.0))
        budget = head(tmp_path, client, "head-1")
        await budget.start()
        for _ in range(20):
            budget.refuses("solder", 0.75, 1000)
        budget.crossed("solder", cloud_ms=4.0)
        async with asyncio.timeout(WAIT_S):
            while not (shares := [one for site in await client.get_shares("line-4") for one in site.shares]):
                await budget.grants.get()
        assert [(one.node, one.application) for one in shares] == [("head-1", "solder")]
        assert shares[0].asked_per_s > 1
        await budget.stop()
