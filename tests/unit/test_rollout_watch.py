"""Watching, listing and the worker: what those see who only look."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.errors import MeshError, Reason
from tests.support.rollout_world import MODEL, World, world

MANY = [f"h{number:04}" for number in range(2_500)]
LATE_S = 20.0


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as found:
        yield found


async def next_of(messages: AsyncIterator[pb.WatchDeploymentResponse]) -> pb.WatchDeploymentResponse:
    async with asyncio.timeout(LATE_S):
        return await anext(messages)


async def test_a_watch_begins_with_every_host_in_messages_of_at_most_a_thousand(fleet: World) -> None:
    fleet.add(*MANY, serves=1)
    made = await fleet.deploy(2)
    async with aclosing(fleet.rollouts.watch(pb.WatchDeploymentRequest(id=made))) as messages:
        first = [await next_of(messages) for _ in range(3)]
        assert [len(one.nodes) for one in first] == [1000, 1000, 500]
        assert {node.node for one in first for node in one.nodes} == set(MANY)


async def test_later_messages_have_the_hosts_that_changed_and_the_last_one_the_end(fleet: World) -> None:
    fleet.add("h1", "h2", "h3", serves=1)
    made = await fleet.deploy(2)
    async with aclosing(fleet.rollouts.watch(pb.WatchDeploymentRequest(id=made))) as messages:
        assert len((await next_of(messages)).nodes) == 3
        await fleet.turn()  # that they are connected
        await next_of(messages)
        fleet.deliver("h2")
        await fleet.turn()
        changed = await next_of(messages)
        assert [(node.node, node.state.phase) for node in changed.nodes] == [("h2", serving_pb2.PHASE_SERVING)]
        assert changed.deployment.counts.serving == 1
        await fleet.settle()
        async with asyncio.timeout(LATE_S):
            last = [message async for message in messages]
        assert last[-1].deployment.state == pb.DEPLOYMENT_STATE_DONE
        assert {node.node for one in last for node in one.nodes} >= {"h1", "h3"}


async def test_progress_of_a_download_is_news_though_nothing_is_written(fleet: World) -> None:
    fleet.add("h1", serves=1)
    made = await fleet.deploy(2)
    async with aclosing(fleet.rollouts.watch(pb.WatchDeploymentRequest(id=made))) as messages:
        await next_of(messages)
        state = fleet.nodes.heads["h1"].state
        state.generation = 1
        state.wanted.CopyFrom(
            serving_pb2.VersionState(version=2, phase=serving_pb2.PHASE_DOWNLOADING, done_bytes=40, total_bytes=100)
        )
        fleet.say("h1")
        await fleet.turn()
        shown = (await next_of(messages)).nodes[0].state
        assert (shown.phase, shown.done_bytes, shown.total_bytes) == (serving_pb2.PHASE_DOWNLOADING, 40, 100)


async def test_a_watch_of_one_that_has_ended_says_so_and_ends(fleet: World) -> None:
    fleet.add("h1", serves=1)
    made = await fleet.deploy(2)
    await fleet.rollback(made)
    await fleet.settle()
    async with asyncio.timeout(LATE_S):
        messages = [one async for one in fleet.rollouts.watch(pb.WatchDeploymentRequest(id=made))]
    assert [one.deployment.state for one in messages] == [pb.DEPLOYMENT_STATE_ROLLED_BACK]
    assert messages[0].nodes[0].rolled_back


async def test_a_watch_ends_with_not_ready_when_the_service_stops(fleet: World) -> None:
    fleet.add("h1", serves=1)
    made = await fleet.deploy(2)
    messages = fleet.rollouts.watch(pb.WatchDeploymentRequest(id=made))
    await next_of(messages)
    stopping = asyncio.create_task(fleet.drain.drain(LATE_S))
    with pytest.raises(MeshError) as caught:
        await next_of(messages)
    assert caught.value.reason is Reason.NOT_READY
    await stopping


async def test_nobody_watches_what_does_not_exist(fleet: World) -> None:
    with pytest.raises(MeshError) as caught:
        await anext(fleet.rollouts.watch(pb.WatchDeploymentRequest(id="nothing")))
    assert caught.value.reason is Reason.DEPLOYMENT_NOT_FOUND


async def test_lists_have_pages_and_count_hosts_also_of_what_ended_long_ago(fleet: World) -> None:
    fleet.add("h1", "h2", serves=1)
    made = []
    for version in (2, 3, 4):
        made.append(await fleet.deploy(version))
        await fleet.settle()
    await fleet.restart()
    first = await fleet.rollouts.list(pb.ListDeploymentsRequest(page_size=2, model=MODEL))
    rest = await fleet.rollouts.list(
        pb.ListDeploymentsRequest(page_size=2, model=MODEL, page_token=first.next_page_token)
    )
    found = [*first.deployments, *rest.deployments]
    assert [one.id for one in found] == made[::-1]
    assert [one.state for one in found] == [pb.DEPLOYMENT_STATE_DONE, *[pb.DEPLOYMENT_STATE_SUPERSEDED] * 2]
    assert [(one.counts.total, one.counts.serving) for one in found] == [(2, 2)] * 3
    assert not rest.next_page_token


async def test_hosts_of_a_deployment_come_in_pages_by_wave_and_name(fleet: World) -> None:
    fleet.add("h1", "h2", "h3", serves=1)
    made = await fleet.deploy(2, wave_percents=[34, 100])
    first = await fleet.rollouts.get(pb.GetDeploymentRequest(id=made, page_size=2))
    rest = await fleet.rollouts.get(pb.GetDeploymentRequest(id=made, page_size=2, page_token=first.next_page_token))
    assert [(one.node, one.wave) for one in [*first.nodes, *rest.nodes]] == [("h1", 1), ("h2", 2), ("h3", 2)]
    for token in ("garbage", "ZGVwbG95bWVudDp4L2gx"):
        with pytest.raises(MeshError) as caught:
            await fleet.rollouts.get(pb.GetDeploymentRequest(id=made, page_token=token))
        assert caught.value.reason is Reason.FIELD_INVALID


async def test_the_worker_takes_turns_by_itself_and_asks_the_registry(fleet: World) -> None:
    fleet.add("h1", "h2", serves=1)
    await fleet.rollouts.start()
    try:
        made = await fleet.deploy(2, alias="production")
        async with asyncio.timeout(LATE_S):
            while fleet.registry.aliases.get("production") != 2:
                fleet.deliver()
                await asyncio.sleep(0)
        assert await fleet.state(made) == "DONE"
    finally:
        await fleet.rollouts.stop()


async def test_the_worker_goes_on_after_turns_that_failed(fleet: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.fleet.rollout.controller.RETRY_S", 0.0)
    fleet.add("h1", serves=1)
    fleet.tasks.full = True
    await fleet.rollouts.start()
    try:
        made = await fleet.deploy(2)
        assert await fleet.state(made) == "ROLLING"
        fleet.tasks.full = False
        async with asyncio.timeout(LATE_S):
            while await fleet.state(made) != "DONE":
                fleet.deliver()
                await asyncio.sleep(0)
    finally:
        await fleet.rollouts.stop()


async def test_thousands_of_hosts_are_told_in_few_transactions(fleet: World) -> None:
    fleet.add(*MANY, serves=1)
    await fleet.turn()
    writes = 0
    write = fleet.database.write

    async def counted(work):  # type: ignore[no-untyped-def]
        nonlocal writes
        writes += 1
        return await write(work)

    fleet.database.write = counted  # type: ignore[method-assign]
    await fleet.deploy(2, max_parallel=10_000)
    await fleet.settle()
    assert set(fleet.active().values()) == {2}
    assert writes < 10
