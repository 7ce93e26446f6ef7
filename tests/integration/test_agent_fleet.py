"""The real fleet, an agent, a real head, with registry and tail: an operator's word becomes what frames are answered with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge.agent.app import build as build_agent
from edge.agent.config import AgentSettings
from services.fleet.app import build as build_fleet
from services.fleet.config import FleetSettings
from splitmesh.client.fleet import FleetClient
from splitmesh.client.fleet_deployments import DeploymentInfo, DeploymentState
from splitmesh.client.fleet_nodes import AppShare, HostPolicy, NodeInfo, NodeState, Target
from splitmesh.client.fleet_tasks import ProfileWork, TaskInfo, TaskState
from splitmesh.errors import MeshError
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.kernel.lifecycle import Host
from tests.support.worlds import MODEL, WAIT_S, World, answered_by_version, world

HERE = Target(nodes=("mec-1",))


@dataclass
class Edge:
    """A world with a fleet and an agent."""

    world: World
    client: FleetClient
    fleet: Host
    agent: Host
    folder: Path

    async def start_fleet(self) -> None:
        """Again, at the same port."""
        port = int(self.fleet.address.rpartition(":")[2])
        self.fleet = await self.world.stack.enter_async_context(Host("fleet", self._fleet_settings(port), build_fleet))

    async def start_agent(self) -> None:
        """Anew."""
        self.agent = await self.world.stack.enter_async_context(Host("agent", self._agent_settings(), build_agent))

    def _fleet_settings(self, port: int = 0) -> FleetSettings:
        known = ",".join(f"{name}={address}" for name, address in self.world.addresses.items())
        return FleetSettings(
            data_dir=self.folder / "fleet", port=port, static_addresses=known, heartbeat_s=1.0, lease_s=5.0, drain_s=1.0
        )

    def _agent_settings(self) -> AgentSettings:
        known = ",".join(f"{name}={address}" for name, address in self.world.addresses.items())
        return AgentSettings(
            data_dir=self.folder / "agent",
            node="mec-1",
            site="lyon",
            heads="head-1",
            static_addresses=f"{known},fleet={self.fleet.address}",
        )

    async def node(self, so: Callable[[NodeInfo], bool]) -> NodeInfo:
        """The host once it is so; asks again and again."""
        async with asyncio.timeout(WAIT_S):
            while True:
                with suppress(MeshError):
                    found = await self.client.node("mec-1")
                    if so(found):
                        return found
                await asyncio.sleep(0.05)

    async def deployed(self, version: int) -> DeploymentInfo:
        """A deployment to this host, over."""
        made = await self.client.deploy(MODEL, version, HERE)
        newest = made
        async with asyncio.timeout(WAIT_S), aclosing(self.client.watch_deployment(made.id)) as states:
            async for news in states:
                newest = news.deployment
        return newest

    async def done(self, task: TaskInfo) -> TaskInfo:
        """A task, over."""
        async with asyncio.timeout(WAIT_S), aclosing(self.client.watch_task(task.id)) as states:
            return [state async for state in states][-1]


@pytest.fixture
async def edge(tmp_path: Path, registered: Path) -> AsyncIterator[Edge]:
    async with world(tmp_path, registered) as made:
        await made.start("tail")
        await made.start("head", switch_wait_s=0)
        nothing = Host("none", FleetSettings(), build_fleet)
        edge = Edge(made, FleetClient(Channels(StaticDiscovery({}))), nothing, nothing, tmp_path)
        edge.fleet = await made.stack.enter_async_context(Host("fleet", edge._fleet_settings(), build_fleet))
        channels = Channels(StaticDiscovery({"fleet": [edge.fleet.address]}))
        made.stack.push_async_callback(channels.close)
        edge.client = FleetClient(channels)
        await edge.start_agent()
        await edge.node(lambda node: node.state is NodeState.ONLINE)
        yield edge


async def test_an_operators_deployment_is_what_frames_are_answered_with(edge: Edge) -> None:
    mesh = await edge.world.ready_mesh()
    assert (await answered_by_version(mesh, 1)).version == 1
    assert (await edge.deployed(2)).state is DeploymentState.DONE
    assert (await answered_by_version(mesh, 2)).version == 2
    node = await edge.node(lambda one: any(state.active_version == 2 for state in one.serving))
    assert (node.site, node.capabilities.cores >= 1) == ("lyon", True)


async def test_a_task_runs_on_the_host_and_its_result_is_told(edge: Edge) -> None:
    made = await edge.client.submit(ProfileWork(MODEL, 1, budget_s=2.0), node="mec-1")
    over = await edge.done(made)
    assert over.state is TaskState.DONE, over.message
    assert over.result["node"] == "head-1"
    profiles = await edge.world.registry.list_profiles(MODEL, 1)
    assert [profile.key.node for profile in profiles] == ["head-1"]


async def test_a_host_policy_reaches_the_head(edge: Edge) -> None:
    assert await edge.client.set_policy(HERE, HostPolicy(shares=(AppShare(MODEL, priority=5),))) == ["mec-1"]
    node = await edge.node(lambda one: one.metrics.policy_generation > 0)
    assert node.policy is not None
    assert node.metrics.policy_generation == node.policy.generation


async def test_a_deployment_that_is_made_while_the_agent_is_away_is_done_when_it_comes_back(edge: Edge) -> None:
    mesh = await edge.world.ready_mesh()
    await edge.agent.stop()
    await edge.node(lambda node: node.state is NodeState.OFFLINE)
    made = await edge.client.deploy(MODEL, 2, HERE)
    await edge.start_agent()
    assert (await answered_by_version(mesh, 2)).version == 2
    async with asyncio.timeout(WAIT_S), aclosing(edge.client.watch_deployment(made.id)) as states:
        async for news in states:
            made = news.deployment
    assert made.state is DeploymentState.DONE


async def test_a_fleet_that_restarts_finds_its_host_again_and_goes_on(edge: Edge) -> None:
    assert (await edge.deployed(2)).state is DeploymentState.DONE
    await edge.fleet.stop()
    await edge.start_fleet()
    await edge.node(lambda node: node.state is NodeState.ONLINE and bool(node.serving))
    assert (await edge.deployed(1)).state is DeploymentState.DONE
    mesh = await edge.world.ready_mesh()
    assert (await answered_by_version(mesh, 1)).version == 1
