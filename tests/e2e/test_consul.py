"""Services that find each other through a real Consul agent: they come, they die, they are replaced."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from splitmesh.client import AnsweredBy, Mesh
from splitmesh.kernel.discovery import Instance
from splitmesh.kernel.discovery_consul import ConsulDiscovery
from splitmesh.testing.consul import ConsulAgent
from splitmesh.testing.mesh import ProcessLauncher, ServiceProcess
from splitmesh.testing.parts import find_consul, require_part
from tests.support.models import HARD, HARD_EXIT_LABEL, HARD_LABEL
from tests.support.worlds import MODEL, ROOT, answered_by, serving

pytestmark = pytest.mark.asyncio(loop_scope="session")

WAIT_S = 30.0


async def until(
    discovery: ConsulDiscovery, service: str, wanted: Callable[[tuple[Instance, ...]], bool]
) -> tuple[Instance, ...]:
    """The first set of instances that is as wanted."""
    async with asyncio.timeout(WAIT_S):
        async for found in discovery.watch(service):
            if wanted(found):
                return found
    raise AssertionError("the watch ended")


async def test_a_second_tail_takes_over_from_a_killed_one_without_touching_the_head(
    tmp_path: Path, registered: Path
) -> None:
    require_part("consul", find_consul() is not None)
    shutil.copytree(registered, tmp_path / "registry")
    launcher = ProcessLauncher(ROOT, tmp_path / "run")
    async with AsyncExitStack() as stack:
        agent = await stack.enter_async_context(ConsulAgent())
        discovery = ConsulDiscovery(agent.address)
        stack.push_async_callback(discovery.close)

        async def start(service: str, name: str = "", **settings: str) -> ServiceProcess:
            values = {
                "discovery": "consul",
                "consul_address": agent.address,
                "consul_check_interval_s": "1",
                "data_dir": str(tmp_path / (name or service)),
                "node": name or service,
                **settings,
            }
            running = await launcher.launch(service, values)
            stack.push_async_callback(running.stop)
            return running

        await start("registry")
        first = await start("tail", "tail-a")
        head = await start("head", models=MODEL)
        for service in ("registry", "tail", "head"):
            (instance,) = await until(discovery, service, bool)
            assert instance.instance_id.startswith(f"{service}-")
        await serving(head.address)
        async with Mesh(head.address, deadline_ms=2000) as mesh:
            assert (await answered_by(mesh, HARD, AnsweredBy.CLOUD_TAIL)).label.name == HARD_LABEL
            await first.kill()
            assert (await answered_by(mesh, HARD, AnsweredBy.EDGE_FALLBACK)).label.name == HARD_EXIT_LABEL
            await until(discovery, "tail", lambda found: found == ())
            second = await start("tail", "tail-b")
            (listed,) = await until(discovery, "tail", bool)
            assert listed.address == second.address != first.address
            assert (await answered_by(mesh, HARD, AnsweredBy.CLOUD_TAIL)).label.name == HARD_LABEL
        await second.stop()
        await until(discovery, "tail", lambda found: found == ())
