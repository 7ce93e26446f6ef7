"""The router over gRPC with a real registry: policies, pushes, counts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from services.router.app import build
from services.router.config import RouterSettings
from splitmesh.api.routing.v1 import routing_pb2, routing_pb2_grpc
from splitmesh.client.routing import Goals, Outcomes, PolicyInfo, RoutingClient
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.lifecycle import Host
from splitmesh.model.manifest import OUTCOMES
from tests.integration.small_model import ControlPlane, control_plane, push_small
from tests.support.outcomes import outcomes_of

WAIT_S = 20.0


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    async with control_plane(tmp_path) as made:
        yield made


def settings(plane: ControlPlane, **changes: object) -> RouterSettings:
    values = {"data_dir": plane.folder / "router", "static_addresses": plane.addresses, "drain_s": 5.0}
    return RouterSettings.model_validate(values | changes)


@asynccontextmanager
async def router(plane: ControlPlane, **changes: object) -> AsyncIterator[RoutingClient]:
    async with Host("router", settings(plane, **changes), build) as host:
        yield RoutingClient(plane.channels(router=host.address))


def measured(n: int = 600, wrong: int = 12) -> bytes:
    """An exit whose least confident answers are wrong."""
    confidences = np.linspace(0.4, 1.0, n)
    return outcomes_of(confidences, np.arange(n) >= wrong).to_bytes()


async def first(client: RoutingClient, model: str = "small", version: int = 1) -> PolicyInfo:
    async with asyncio.timeout(WAIT_S), aclosing(client.watch_policy(model, version, "mec-1")) as policies:
        return await anext(policies)


async def test_the_policy_of_a_version_with_outcomes_keeps_the_default_tolerance(plane: ControlPlane) -> None:
    await push_small(plane.registry, "small", artifacts={OUTCOMES: measured()})
    async with router(plane) as client:
        policy = await first(client)
    assert policy.revision == 1
    assert 0.4 < policy.threshold < 0.5
    assert (policy.max_disagreement, policy.delta, policy.calibration_samples) == (0.02, 0.05, 600)
    assert policy.disagreement_bound <= 0.02
    assert policy.coverage > 0.9
    assert "600 calibration samples" in policy.why


async def test_the_policy_of_several_exits_is_of_all_of_them_together(plane: ControlPlane) -> None:
    # Where the first exit is unsure the second is sure and right; alone each leaves half of the samples.
    confidences = np.tile([[0.9, 0.4], [0.4, 0.9]], (300, 1))
    agrees = np.tile([[True, False], [False, True]], (300, 1))
    outcomes = outcomes_of(confidences, agrees).to_bytes()
    await push_small(plane.registry, "small", artifacts={OUTCOMES: outcomes})
    async with router(plane) as client:
        policy = await first(client)
    assert 0.8 < policy.threshold <= 0.9
    assert (policy.coverage, policy.calibration_samples) == (1.0, 600)


@pytest.mark.parametrize(
    ("artifacts", "reason"),
    [
        ({}, "no exit"),
        ({OUTCOMES: measured(20, 0)}, "20 calibration samples are too few"),
        ({OUTCOMES: outcomes_of([1.0] * 200, [False] * 200).to_bytes()}, "disagree too often"),
        ({OUTCOMES: b"{}"}, "calibration outcomes"),
    ],
)
async def test_without_usable_outcomes_everything_escalates_and_the_policy_says_why(
    plane: ControlPlane, artifacts: dict[str, bytes], reason: str
) -> None:
    await push_small(plane.registry, "small", artifacts=artifacts)
    async with router(plane) as client:
        policy = await first(client)
    assert policy.threshold == 2.0
    assert policy.coverage == 0.0
    assert reason in policy.why


async def test_the_log_names_the_node_that_watches(plane: ControlPlane, caplog: pytest.LogCaptureFixture) -> None:
    await push_small(plane.registry, "small")
    with caplog.at_level(logging.INFO, "services.router"):
        async with router(plane) as client:
            await first(client)
    assert "'mec-1' watches the policy of small v1" in caplog.messages


async def test_every_watcher_gets_a_new_tolerance_without_asking(plane: ControlPlane) -> None:
    await push_small(plane.registry, "small", artifacts={OUTCOMES: measured()})
    async with router(plane) as client, asyncio.timeout(WAIT_S):
        watches = [client.watch_policy("small", 1, f"mec-{number}") for number in range(20)]
        before = [await anext(watch) for watch in watches]
        stated = await client.set_goals("small", Goals(0.1, delta=0.01))
        after = [await anext(watch) for watch in watches]
        for watch in watches:
            await watch.aclose()
    assert (stated.max_disagreement, stated.delta) == (0.1, 0.01)
    assert {policy.revision for policy in before} == {1}
    assert {policy.revision for policy in after} == {2}
    assert after[0].threshold < before[0].threshold
    assert (after[0].max_disagreement, after[0].delta) == (0.1, 0.01)


async def test_a_slow_watcher_sees_the_latest_policy_and_not_every_one(plane: ControlPlane) -> None:
    await push_small(plane.registry, "small", artifacts={OUTCOMES: measured()})
    async with Host("router", settings(plane), build) as host, asyncio.timeout(WAIT_S):
        channels = plane.channels(router=host.address)
        stub = routing_pb2_grpc.RoutingServiceStub(await channels.to("router"))
        call = stub.WatchPolicy(routing_pb2.WatchPolicyRequest(model="small", version=1, node="mec-1"))
        assert (await call.read()).policy.revision == 1
        client = RoutingClient(channels)
        for number in range(1, 30):
            await client.set_goals("small", Goals(0.02 + 0.001 * number))
        revisions: list[int] = []
        while not revisions or revisions[-1] < 30:
            revisions.append((await call.read()).policy.revision)
        call.cancel()
    assert revisions == sorted(set(revisions))


async def test_a_tolerance_for_one_model_does_not_touch_another(plane: ControlPlane) -> None:
    for model in ("small", "other"):
        await push_small(plane.registry, model, artifacts={OUTCOMES: measured()})
    async with router(plane) as client:
        await client.set_goals("small", Goals(0.1))
        assert (await first(client, "other")).max_disagreement == 0.02
        assert (await first(client, "small")).max_disagreement == 0.1


async def test_after_a_restart_tolerance_counts_and_revision_are_as_before(plane: ControlPlane) -> None:
    await push_small(plane.registry, "small", artifacts={OUTCOMES: measured()})
    async with router(plane) as client:
        await first(client)
        await client.set_goals("small", Goals(0.1))
        before = await first(client)
        await client.report_outcomes("small", 1, Outcomes(edge_exit=5), node="mec-1", boot_id="b", sequence=1)
    async with router(plane) as client:
        assert await first(client) == before
        await client.report_outcomes("small", 1, Outcomes(edge_exit=5), node="mec-1", boot_id="b", sequence=1)
        (entry,) = await client.get_outcomes("small")
        assert entry.outcomes.edge_exit == 5
        await client.set_goals("small", Goals(0.05))
        assert (await first(client)).revision == before.revision + 1


async def test_a_watch_outlives_a_restart_of_the_router_and_repeats_nothing(plane: ControlPlane) -> None:
    await push_small(plane.registry, "small", artifacts={OUTCOMES: measured()})
    async with asyncio.timeout(WAIT_S):
        async with Host("router", settings(plane), build) as host:
            port = int(host.address.rpartition(":")[2])
            client = RoutingClient(plane.channels(router=host.address))
            watch = client.watch_policy("small", 1, "mec-1")
            assert (await anext(watch)).revision == 1
            following = asyncio.ensure_future(anext(watch))
        async with Host("router", settings(plane, port=port), build):
            await client.set_goals("small", Goals(0.1))
            policy = await following
            await watch.aclose()
    assert (policy.revision, policy.max_disagreement) == (2, 0.1)


async def test_stopping_the_router_does_not_wait_for_its_watchers(plane: ControlPlane) -> None:
    await push_small(plane.registry, "small")
    async with asyncio.timeout(WAIT_S):
        host = Host("router", settings(plane, drain_s=3600.0), build)
        await host.start()
        watch = RoutingClient(plane.channels(router=host.address)).watch_policy("small", 1, "mec-1")
        await anext(watch)
        await host.stop()
        await watch.aclose()


async def test_a_policy_stream_ends_after_its_longest_life_and_the_client_goes_on(plane: ControlPlane) -> None:
    await push_small(plane.registry, "small", artifacts={OUTCOMES: measured()})
    async with router(plane, watch_stream_s=0.05) as client, asyncio.timeout(WAIT_S):
        watch = client.watch_policy("small", 1, "mec-1")
        await anext(watch)
        following = asyncio.ensure_future(anext(watch))
        done, _ = await asyncio.wait([following], timeout=0.5)
        assert not done
        await client.set_goals("small", Goals(0.1))
        assert (await following).revision == 2
        await watch.aclose()


@pytest.mark.parametrize(
    ("model", "version", "reason"),
    [
        ("unknown", 1, Reason.MODEL_NOT_FOUND),
        ("small", 9, Reason.VERSION_NOT_FOUND),
        ("small", 0, Reason.FIELD_INVALID),
        ("../small", 1, Reason.FIELD_INVALID),
        ("", 1, Reason.FIELD_INVALID),
    ],
)
async def test_watching_what_does_not_exist_ends_with_the_reason(
    plane: ControlPlane, model: str, version: int, reason: Reason
) -> None:
    await push_small(plane.registry, "small")
    async with router(plane) as client:
        with pytest.raises(MeshError) as caught:
            await first(client, model, version)
    assert caught.value.reason is reason


async def test_one_watcher_too_many_is_refused_and_a_freed_place_is_taken(plane: ControlPlane) -> None:
    await push_small(plane.registry, "small")
    async with Host("router", settings(plane, max_watchers=1), build) as host, asyncio.timeout(WAIT_S):
        channels = plane.channels(router=host.address)
        client = RoutingClient(channels)
        watch = client.watch_policy("small", 1, "mec-1")
        await anext(watch)
        stub = routing_pb2_grpc.RoutingServiceStub(await channels.to("router"))
        call = stub.WatchPolicy(routing_pb2.WatchPolicyRequest(model="small", version=1, node="mec-2"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        waiting = asyncio.ensure_future(anext(client.watch_policy("small", 1, "mec-2")))
        await watch.aclose()
        assert (await waiting).revision == 1


@pytest.mark.parametrize(
    ("max_disagreement", "delta"), [(0.0, 0.1), (1.0, 0.1), (-0.1, 0.1), (0.1, 1.0), (0.1, -1.0), (float("nan"), 0.1)]
)
async def test_a_tolerance_out_of_range_is_refused_and_changes_nothing(
    plane: ControlPlane, max_disagreement: float, delta: float
) -> None:
    await push_small(plane.registry, "small", artifacts={OUTCOMES: measured()})
    async with router(plane) as client:
        with pytest.raises(MeshError) as caught:
            await client.set_goals("small", Goals(max_disagreement, delta=delta))
        assert caught.value.reason is Reason.FIELD_INVALID
        assert (await first(client)).max_disagreement == 0.02


async def test_a_tolerance_without_a_delta_gets_the_default_one(plane: ControlPlane) -> None:
    async with router(plane, default_delta=0.07) as client:
        assert (await client.set_goals("small", Goals(0.1))).delta == 0.07


async def test_without_a_registry_a_new_watch_waits_and_tolerances_and_counts_go_on(plane: ControlPlane) -> None:
    await push_small(plane.registry, "small", artifacts={OUTCOMES: measured()})
    async with router(plane) as client, asyncio.timeout(WAIT_S):
        watch = client.watch_policy("small", 1, "mec-1")
        await anext(watch)
        await plane.registry_host.stop()
        await client.set_goals("small", Goals(0.1))
        assert (await anext(watch)).max_disagreement == 0.1
        await client.report_outcomes("small", 1, Outcomes(1), node="n", boot_id="b", sequence=1)
        fresh = asyncio.ensure_future(anext(client.watch_policy("small", 2, "mec-1")))
        done, _ = await asyncio.wait([fresh], timeout=0.3)
        assert not done
        fresh.cancel()
        await watch.aclose()
