"""Reports of outcomes over gRPC: counts add up once, sights and audits are told once, what makes no sense is refused."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest

from services.router import servicer
from services.router.app import build
from services.router.config import RouterSettings
from services.router.store_sqlite import SqliteStore
from splitmesh.api.routing.v1 import routing_pb2
from splitmesh.client.routing import Outcomes, RoutingClient, Sight, UplinkLoad
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.lifecycle import Host
from splitmesh.kernel.streams import Drain
from splitmesh.routing.audit import REST, Counts, Stratum
from tests.integration.small_model import LABELS, ControlPlane, control_plane, push_small

WAIT_S = 20.0
DEFECT = LABELS[1]


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    async with control_plane(tmp_path) as made:
        yield made


@asynccontextmanager
async def router(plane: ControlPlane, **changes: object) -> AsyncIterator[RoutingClient]:
    values = {"data_dir": plane.folder / "router", "static_addresses": plane.addresses, "drain_s": 5.0}
    async with Host("router", RouterSettings.model_validate(values | changes), build) as host:
        yield RoutingClient(plane.channels(router=host.address))


async def test_reported_counts_add_up_and_a_repetition_adds_nothing(plane: ControlPlane) -> None:
    counts = Outcomes(
        edge_exit=10,
        cloud_tail=4,
        edge_fallback={"DEADLINE_EXPIRED": 2},
        tail_disagreed=1,
        refused={"IMAGE_UNDECODABLE": 3},
        edge_whole=5,
        hard={"UNSURE": 6},
    )
    async with router(plane) as client:
        for sequence in (1, 2, 2, 1):
            await client.report_outcomes("small", 3, counts, node="mec-1", boot_id="b1", sequence=sequence)
        load = UplinkLoad(12.5, 40.0, 11.0, 0.25, 2)
        await client.report_outcomes("small", 4, counts, node="mec-2", boot_id="b2", sequence=1, load=load)
        first_entry, second_entry = await client.get_outcomes("small")
        assert [entry.version for entry in await client.get_outcomes("small", 4)] == [4]
        assert await client.get_outcomes("other") == []
    assert (first_entry.node, first_entry.version) == ("mec-1", 3)
    assert first_entry.outcomes == Outcomes(
        20, 8, {"DEADLINE_EXPIRED": 4}, 2, {"IMAGE_UNDECODABLE": 6}, 10, {"UNSURE": 12}
    )
    assert second_entry.outcomes == counts
    assert first_entry.last_report_time.tzinfo is not None
    assert (first_entry.load, second_entry.load) == (None, load)


async def test_a_report_that_is_cancelled_while_it_is_stored_is_looked_at_all_the_same() -> None:
    storing, stored, seen = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def add(*_: object) -> bool:
        storing.set()
        return await stored.wait()

    store: Any = SimpleNamespace(add=add)
    drift: Any = SimpleNamespace(saw=AsyncMock(side_effect=lambda report: seen.set()))
    none: Any = None
    router = servicer.RoutingServicer(
        none, none, none, drift, store, default=none, now=lambda: datetime.now(UTC), drain=Drain()
    )
    request = routing_pb2.ReportOutcomesRequest(node="mec-1", boot_id="b", sequence=1, model="small", version=1)
    caller = asyncio.create_task(router.ReportOutcomes(request, None))
    async with asyncio.timeout(WAIT_S):
        await storing.wait()
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    stored.set()
    async with asyncio.timeout(WAIT_S):
        await seen.wait()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"node": ""}, "node"),
        ({"boot_id": ""}, "boot_id"),
        ({"sequence": 0}, "sequence"),
        ({"model": "Small!"}, "model"),
        ({"version": 0}, "version"),
        ({"outcomes": Outcomes(cloud_tail=1, tail_disagreed=2)}, "counts.tail_disagreed"),
        ({"outcomes": Outcomes(edge_fallback={"no reason": 1})}, "counts.edge_fallback"),
        ({"outcomes": Outcomes(refused={f"R{n}": 1 for n in range(65)})}, "counts.refused"),
        ({"outcomes": Outcomes(edge_exit=2**63)}, "counts"),
        ({"outcomes": Outcomes(edge_whole=2**63)}, "counts"),
        ({"load": UplinkLoad(-1.0, 0, 0, 0, 1)}, "load.backlog_ms"),
        ({"load": UplinkLoad(0, float("nan"), 0, 0, 1)}, "load.goodput_mbps"),
        ({"load": UplinkLoad(0, 0, 0, 1.5, 1)}, "load.loss"),
    ],
)
async def test_a_report_that_makes_no_sense_is_refused_and_names_the_field(
    plane: ControlPlane, change: dict[str, object], field: str
) -> None:
    values: dict[str, object] = {
        "model": "small",
        "version": 1,
        "outcomes": Outcomes(1),
        "node": "n",
        "boot_id": "b",
        "sequence": 1,
    }
    async with router(plane) as client:
        with pytest.raises(MeshError) as caught:
            await client.report_outcomes(**(values | change))  # type: ignore[arg-type]
        assert [name for name, _ in caught.value.fields] == [field]
        assert await client.get_outcomes("small") == []


async def test_sights_and_audits_of_a_report_are_told_of_once(plane: ControlPlane) -> None:
    sights = [Sight("cam-1", 1, math.nan), Sight("cam-1", 0, 0.9, unusual=True, tail_class=1, audited=True, age_ms=5.0)]
    audits = {Stratum("cam-1", DEFECT, 2): Counts(100, 10, 1), REST: Counts(5, 0, 0)}
    await push_small(plane.registry, "small")
    async with router(plane) as client:
        for _ in range(2):
            await client.report_outcomes(
                "small", 1, Outcomes(2), node="mec-1", boot_id="b", sequence=1, sights=sights, audits=audits
            )
        stub = await client._stub()
        found = await stub.GetDrift(routing_pb2.GetDriftRequest(model="small"))
        assert dict(found.sights) == {1: 2}
        assert (found.audits[0].accepted, found.audits[0].audited) == (105, 10)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"sights": [Sight("x" * 129, 0, 0.5)]}, "sights.camera"),
        ({"sights": [Sight("cam", 0, 1.5)]}, "sights.ease"),
        ({"sights": [Sight("cam", 0, 0.5, age_ms=-1.0)]}, "sights.age_ms"),
        ({"sights": [Sight("cam", 0, 0.5)] * 1001}, "sights"),
        ({"sights_left_out": 2**63}, "sights_left_out"),
        ({"audits": {Stratum("cam", "NG", 8): Counts(1)}}, "audits.ease_bin"),
        ({"audits": {Stratum("cam", "NG", -1): Counts(1)}}, "audits.ease_bin"),
        ({"audits": {Stratum("x" * 257, "NG", 1): Counts(1)}}, "audits.camera"),
        ({"audits": {Stratum("cam", str(n), 1): Counts(1) for n in range(257)}}, "audits"),
        ({"audits": {Stratum("cam", "NG", 1): Counts(2**50)}}, "audits.accepted"),
        ({"outcomes": Outcomes(hard={"unsure": 1})}, "counts.hard"),
    ],
)
async def test_a_report_whose_samples_make_no_sense_is_refused_whole(
    plane: ControlPlane, change: dict[str, object], field: str
) -> None:
    values = {"model": "small", "version": 1, "outcomes": Outcomes(1), "node": "n", "boot_id": "b", "sequence": 1}
    async with router(plane) as client:
        with pytest.raises(MeshError) as caught:
            await client.report_outcomes(**(values | change))  # type: ignore[arg-type]
        assert [name for name, _ in caught.value.fields] == [field]
        assert await client.get_outcomes("small") == []


async def test_reports_beyond_those_in_progress_are_refused_with_a_time_to_try_again(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servicer, "MAX_REPORTS", 2)
    writing, go_on = asyncio.Semaphore(0), asyncio.Event()
    add = SqliteStore.add

    async def held(*arguments: object) -> bool:
        writing.release()
        await go_on.wait()
        return await add(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(SqliteStore, "add", held)
    async with router(plane) as client, asyncio.timeout(WAIT_S):

        def report(sequence: int) -> asyncio.Task[None]:
            counts = client.report_outcomes("small", 1, Outcomes(1), node="n", boot_id="b", sequence=sequence)
            return asyncio.ensure_future(counts)

        taken = [report(1), report(2)]
        for _ in taken:
            await writing.acquire()
        with pytest.raises(MeshError) as caught:
            await report(3)
        assert (caught.value.reason, caught.value.retry_after_s) == (Reason.QUEUE_FULL, 1.0)
        go_on.set()
        await asyncio.gather(*taken)
        await report(3)
        (entry,) = await client.get_outcomes("small")
        assert entry.outcomes.edge_exit == 3
