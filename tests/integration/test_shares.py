"""Sites and shares over gRPC: heads that ask, an operator who states and looks, a router that goes and comes back."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.router.app import build
from services.router.config import RouterSettings
from services.router.shares import board
from services.router.shares.site import LiveSite
from splitmesh.api.routing.v1 import routing_pb2 as pb
from splitmesh.api.routing.v1 import routing_pb2_grpc
from splitmesh.client.routing import UplinkLoad
from splitmesh.client.shares import ApplicationShare, Demand, Grant, ShareClient, SiteBudget, Update
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels, mesh_errors
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.kernel.lifecycle import Host

WAIT_S = 20.0
BUDGET = SiteBudget("line-4", 100_000.0, 500.0, (ApplicationShare("solder", 5.0, 0.1),))


def settings(folder: Path, **changes: object) -> RouterSettings:
    values = {"data_dir": folder / "router", "drain_s": 5.0, "share_interval_s": 0.02}
    return RouterSettings.model_validate(values | changes)


@asynccontextmanager
async def connected(host: Host) -> AsyncIterator[Channels]:
    channels = Channels(StaticDiscovery({"router": [host.address]}))
    try:
        yield channels
    finally:
        await channels.close()


@asynccontextmanager
async def router(folder: Path, **changes: object) -> AsyncIterator[Channels]:
    async with Host("router", settings(folder, **changes), build) as host, connected(host) as channels:
        yield channels


class Head:
    """One stream; says what the test wants and keeps the newest grant."""

    def __init__(self, channels: Channels, node: str, site: str = "line-4") -> None:
        self._says: asyncio.Queue[Update] = asyncio.Queue()
        self._changed = asyncio.Event()
        self.grants: list[Grant] = []
        self._task = asyncio.create_task(self._run(ShareClient(channels), node, site))

    async def _run(self, client: ShareClient, node: str, site: str) -> None:
        async for grant in client.share_uplink(node, site, self._updates()):
            self.grants.append(grant)
            self._changed.set()

    async def _updates(self) -> AsyncGenerator[Update]:
        while True:
            yield await self._says.get()

    def ask(self, per_s: float, *, application: str = "solder", load: UplinkLoad | None = None) -> None:
        demand = Demand(application, (0.0, per_s), 1000.0, 1.0)
        self._says.put_nowait(Update((demand,), load))

    async def until(self, low: float, high: float) -> Grant:
        """The first grant of so many bytes a second."""
        async with asyncio.timeout(WAIT_S):
            while not (self.grants and low <= self.grants[-1].bytes_per_s <= high):
                self._changed.clear()
                await self._changed.wait()
        return self.grants[-1]

    async def leave(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def refused(self) -> MeshError:
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(MeshError) as error:
                await self._task
        return error.value


async def test_a_head_hears_its_grant_and_the_stated_weights_and_a_change_at_once(tmp_path: Path) -> None:
    async with router(tmp_path) as channels:
        head = Head(channels, "mec-1")
        head.ask(10)
        assert (await head.until(math.inf, math.inf)).cloud_ms_per_s == math.inf
        await ShareClient(channels).set_site(BUDGET)
        grant = await head.until(99_000, 100_000)
        assert grant.cloud_ms_per_s == pytest.approx(500.0)
        assert grant.applications == BUDGET.applications
        assert "100000 bytes/s" in grant.why
        await head.leave()


async def test_two_heads_share_and_the_one_that_stays_gets_all_when_the_other_leaves(tmp_path: Path) -> None:
    async with router(tmp_path) as channels:
        await ShareClient(channels).set_site(BUDGET)
        heads = [Head(channels, "mec-1"), Head(channels, "mec-2")]
        for head in heads:
            head.ask(200)
        for head in heads:
            await head.until(49_000, 51_000)
        await heads[0].leave()
        await heads[1].until(99_000, 100_000)
        await heads[1].leave()


async def test_an_operator_sees_who_gets_what(tmp_path: Path) -> None:
    async with router(tmp_path) as channels:
        client = ShareClient(channels)
        await client.set_site(BUDGET)
        head = Head(channels, "mec-1")
        head.ask(200, load=UplinkLoad(0.0, 0.4, 10.0, 0.0, 1))
        await head.until(99_000, 100_000)
        (found,) = await client.get_shares("line-4")
        (share,) = found.shares
        assert (share.node, share.application, share.weight, share.min_share) == ("mec-1", "solder", 5.0, 0.1)
        assert (share.asked_per_s, round(share.allowed_per_s)) == (200.0, 100)
        assert share.least_worth == 0.5
        assert (found.bytes_per_s, found.cloud_ms_per_s, found.applications) == (100_000.0, 500.0, BUDGET.applications)
        assert found.usable_bytes_per_s == pytest.approx(50_000.0)
        assert found.price_per_byte > 0
        assert await client.get_shares("elsewhere") == []
        await head.leave()


async def test_a_head_that_stops_takes_its_leave_and_one_whose_stream_breaks_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: asyncio.Queue[bool] = asyncio.Queue()
    monkeypatch.setattr(LiveSite, "leave", lambda site, member, now_s: left.put_nowait(member.leaving))
    async with router(tmp_path) as channels, asyncio.timeout(WAIT_S):
        head = Head(channels, "mec-1")
        await head.until(math.inf, math.inf)
        await head.leave()
        assert await left.get()
        stub = routing_pb2_grpc.RoutingServiceStub(await channels.to("router"))
        call = stub.ShareUplink(never_ending(pb.ShareUplinkRequest(node="mec-2", site="line-4")))
        await call.read()
        call.cancel()
        assert not await left.get()


async def test_a_stream_outlives_a_restart_of_the_router_and_its_site_keeps_its_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "RETURN_S", 0.5)
    async with Host("router", settings(tmp_path), build) as host, connected(host) as channels:
        await ShareClient(channels).set_site(BUDGET)
        head = Head(channels, "mec-1")
        head.ask(200)
        await head.until(99_000, 100_000)
        port = int(host.address.rpartition(":")[2])
        await host.stop()
        head.ask(300)
        async with Host("router", settings(tmp_path, port=port), build):
            client = ShareClient(channels)
            async with asyncio.timeout(WAIT_S):
                while not (shares := (await client.get_shares("line-4"))[0].shares):
                    continue
            assert shares[0].asked_per_s == 300.0
            await client.set_site(SiteBudget("line-4", 50_000.0))
            await head.until(49_000, 50_000)
            await head.leave()


async def test_streams_that_broke_leave_no_task_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broke: asyncio.Queue[object] = asyncio.Queue()
    monkeypatch.setattr("splitmesh.client.shares.log.info", lambda *said: broke.put_nowait(said))
    async with Host("router", settings(tmp_path), build) as host, connected(host) as channels:
        before = asyncio.all_tasks()
        head = Head(channels, "mec-1")
        head.ask(10)
        await head.until(math.inf, math.inf)
        await host.stop()
        async with asyncio.timeout(WAIT_S):
            for _ in range(3):
                await broke.get()
        await head.leave()
    assert not [task for task in asyncio.all_tasks() - before if "request_iterator" in repr(task)]


async def test_stopping_the_router_does_not_wait_for_its_heads(tmp_path: Path) -> None:
    async with Host("router", settings(tmp_path, drain_s=60.0), build) as host, connected(host) as channels:
        head = Head(channels, "mec-1")
        head.ask(10)
        await head.until(math.inf, math.inf)
        async with asyncio.timeout(5.0):
            await host.stop()
        await head.leave()


async def test_one_head_too_many_waits_for_a_place(tmp_path: Path) -> None:
    async with router(tmp_path, max_sharers=1) as channels:
        first = Head(channels, "mec-1")
        first.ask(10)
        await first.until(math.inf, math.inf)
        second = Head(channels, "mec-2")
        second.ask(10)
        with pytest.raises(MeshError) as refused:
            await speak(channels, pb.ShareUplinkRequest(node="mec-3", site="line-4"))
        assert refused.value.reason is Reason.QUEUE_FULL
        await first.leave()
        await second.until(math.inf, math.inf)
        await second.leave()


DEMAND = {"application": "solder", "rates": [1.0, 2.0], "bytes": 1000.0, "cloud_ms": 1.0, "deadline_ok": True}


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("node", {"site": "line-4"}),
        ("node", {"node": "x" * 129, "site": "line-4"}),
        ("site", {"node": "mec-1"}),
        ("site", {"node": "mec-1", "site": "a b"}),
        ("demands.application", {"demands": [DEMAND | {"application": ""}]}),
        ("rates", {"demands": [DEMAND | {"rates": []}]}),
        ("rates", {"demands": [DEMAND | {"rates": [math.nan]}]}),
        ("rates", {"demands": [DEMAND | {"rates": [1.0] * 257}]}),
        ("bytes", {"demands": [DEMAND | {"bytes": -1.0}]}),
        ("cloud_ms", {"demands": [DEMAND | {"cloud_ms": math.inf}]}),
        ("demands", {"demands": [DEMAND, DEMAND]}),
        ("demands", {"demands": [DEMAND | {"application": f"a{number}"} for number in range(65)]}),
        ("load.backlog_ms", {"load": {"backlog_ms": math.nan}}),
        ("load.loss", {"load": {"loss": 1.5}}),
    ],
)
async def test_an_impossible_message_ends_the_stream_and_names_the_field(
    tmp_path: Path, field: str, message: dict[str, object]
) -> None:
    names = {} if field in ("node", "site") else {"node": "mec-1", "site": "line-4"}
    async with router(tmp_path) as channels:
        with pytest.raises(MeshError) as refused:
            await speak(channels, pb.ShareUplinkRequest(**(names | message)))  # type: ignore[arg-type]
    assert refused.value.reason is Reason.FIELD_INVALID
    assert [name for name, _ in refused.value.fields] == [field]


async def test_a_stream_that_ends_before_it_says_anything_is_refused(tmp_path: Path) -> None:
    async with router(tmp_path) as channels:
        with pytest.raises(MeshError) as refused:
            await speak(channels)
    assert refused.value.reason is Reason.FIELD_INVALID


async def test_an_impossible_site_ends_the_client_too(tmp_path: Path) -> None:
    async with router(tmp_path) as channels:
        head = Head(channels, "mec-1", site="no site!")
        assert (await head.refused()).reason is Reason.FIELD_INVALID


async def test_what_feeds_the_stream_ends_it_when_it_fails(tmp_path: Path) -> None:
    async def broken() -> AsyncGenerator[Update]:
        yield Update(())
        raise RuntimeError("no more figures")

    async def hear(channels: Channels) -> None:
        async for _ in ShareClient(channels).share_uplink("mec-1", "line-4", broken()):
            pass

    async with router(tmp_path) as channels, asyncio.timeout(WAIT_S):
        with pytest.raises(RuntimeError, match="no more figures"):
            await hear(channels)


@pytest.mark.parametrize(
    "budget",
    [
        SiteBudget("a b"),
        SiteBudget("line-4", math.nan),
        SiteBudget("line-4", -1.0),
        SiteBudget("line-4", 1.0, 0.0, (ApplicationShare("solder", -1.0),)),
        SiteBudget("line-4", 1.0, 0.0, (ApplicationShare("solder"), ApplicationShare("solder"))),
    ],
)
async def test_an_impossible_budget_is_refused_and_changes_nothing(tmp_path: Path, budget: SiteBudget) -> None:
    async with router(tmp_path) as channels:
        client = ShareClient(channels)
        await client.set_site(BUDGET)
        with pytest.raises(MeshError) as refused:
            await client.set_site(budget)
        (kept,) = await client.get_shares()
    assert refused.value.reason is Reason.FIELD_INVALID
    assert kept.bytes_per_s == 100_000.0


async def never_ending(message: pb.ShareUplinkRequest) -> AsyncGenerator[pb.ShareUplinkRequest]:
    yield message
    await asyncio.Event().wait()


async def speak(channels: Channels, *messages: pb.ShareUplinkRequest) -> None:
    """A stream by hand, until it ends."""

    async def requests() -> AsyncGenerator[pb.ShareUplinkRequest]:
        for message in messages:
            yield message
        if messages:
            await asyncio.sleep(WAIT_S)

    async with asyncio.timeout(WAIT_S), mesh_errors():
        stub = routing_pb2_grpc.RoutingServiceStub(await channels.to("router"))
        async for _ in stub.ShareUplink(requests()):
            pass
