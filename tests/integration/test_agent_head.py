"""An agent beside a real head, with registry and tail: what a fleet asks for is what frames are answered with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge.agent.app import build
from edge.agent.config import AgentSettings
from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.kernel.lifecycle import Host
from tests.support import fake_fleet
from tests.support.fake_fleet import FakeFleet, deploy_task
from tests.support.worlds import MODEL, World, answered_by_version, world

DONE, FAILED = pb.TASK_STATE_DONE, pb.TASK_STATE_FAILED


@pytest.fixture
async def edge(tmp_path: Path, registered: Path) -> AsyncIterator[World]:
    """Registry, router, tail and head."""
    async with world(tmp_path, registered) as made:
        await made.start("tail")
        await made.start("head", switch_wait_s=0)
        yield made


@pytest.fixture
async def fleet(edge: World) -> FakeFleet:
    fleet = await edge.stack.enter_async_context(fake_fleet.served(FakeFleet()))
    addresses = ",".join(f"{name}={address}" for name, address in {**edge.addresses, "fleet": fleet.address}.items())
    settings = AgentSettings(data_dir=edge.folder / "agent", node="mec-1", heads="head-1", static_addresses=addresses)
    await edge.stack.enter_async_context(Host("agent", settings, build))
    await fleet.until(lambda: bool(fleet.sessions))
    return fleet


async def end_of(fleet: FakeFleet, task: pb.Task) -> pb.TaskUpdate:
    await fleet.offer(task)
    await fleet.until(lambda: task.id in fleet.ended)
    return fleet.ended[task.id]


async def test_a_deployment_decides_which_version_answers_and_its_withdrawal_gives_that_back_to_the_alias(
    edge: World, fleet: FakeFleet
) -> None:
    mesh = await edge.ready_mesh()
    assert (await answered_by_version(mesh, 1)).version == 1
    end = await end_of(fleet, deploy_task("t-1", MODEL, 2, 1))
    assert end.state == DONE, end.message
    assert end.result["heads"] == "1"
    assert end.result["backend"]
    assert (await answered_by_version(mesh, 2)).version == 2
    await fleet.until(lambda: fleet.states()[MODEL, "head-1"].active_version == 2)
    assert (await end_of(fleet, deploy_task("t-2", MODEL, 0, 2))).state == DONE
    assert (await answered_by_version(mesh, 1)).version == 1


async def test_a_version_that_is_not_in_the_registry_fails_and_the_one_before_goes_on(
    edge: World, fleet: FakeFleet
) -> None:
    mesh = await edge.ready_mesh()
    assert (await end_of(fleet, deploy_task("t-1", MODEL, 2, 1))).state == DONE
    end = await end_of(fleet, deploy_task("t-2", MODEL, 99, 2))
    assert (end.state, end.reason) == (FAILED, "VERSION_NOT_FOUND")
    assert (await answered_by_version(mesh, 2)).version == 2


async def test_a_candidate_is_tried_beside_the_version_that_answers(edge: World, fleet: FakeFleet) -> None:
    end = await end_of(fleet, deploy_task("t-1", MODEL, 1, 1, candidate=2))
    assert end.state == DONE, end.message
    await fleet.until(lambda: fleet.states()[MODEL, "head-1"].candidate.version == 2)
    assert fleet.states()[MODEL, "head-1"].counts.trial_id == "trial"


async def test_a_head_that_restarts_keeps_its_assignment_and_one_that_lost_its_disk_gets_it_again(
    edge: World, fleet: FakeFleet
) -> None:
    assert (await end_of(fleet, deploy_task("t-1", MODEL, 2, 1))).state == DONE
    port = int(edge.addresses["head"].rpartition(":")[2])
    for name in ("head", "head-new"):
        await edge.stop("head")
        edge.hosts["head"] = await edge.start("head", name=name, switch_wait_s=0, port=port, node="head-1")
        mesh = await edge.ready_mesh()
        assert (await answered_by_version(mesh, 2)).version == 2
