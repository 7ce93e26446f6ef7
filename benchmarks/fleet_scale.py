"""What thousands of hosts cost a fleet: all of them saying hello, hearing of a policy, and being told to deploy.

Agents are real streams, one connection each, in one process beside the fleet's on the same cores; processor time and memory are
those of the fleet's process, and what the agents' process takes is told beside them. *hello*: from opening the stream until
welcome, when all come within 5 s, as agents do after a restart of the fleet (their back-off is spread so far). *policy* and
*deploy*: from the moment the operator asks until an agent has the message, the transaction on disk included. *ended*: until an
agent has the acknowledgement of the end of its task; it says within 2 s of the offer that the version serves. *deployed*: until
the fleet says that the deployment is done. *resting*: heartbeats only. There is no baseline: 200 agents stand beside the others
to show how it grows.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

import numpy as np
from rich.progress import Progress

from benchmarks.fleet_agents import CPU, DEPLOY, ENDED, POLICY, STOP, WELCOMED, Crowd, serve
from benchmarks.harness import Result, arguments, publish
from examples.solder_joints.demo import ROOT, SHIPPED_MODEL
from splitmesh.cli.model_parts import version_parts
from splitmesh.client.fleet import FleetClient
from splitmesh.client.fleet_deployments import DeploymentState, Strategy
from splitmesh.client.fleet_nodes import AppShare, HostPolicy, Target
from splitmesh.client.registry import RegistryClient
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.testing.mesh import ProcessLauncher, ServiceProcess

MODEL = "joints"
ROUNDS = 5
"""Policies and deployments per number of agents."""
REST_S = 20.0
MAX_P99_S = 2.0
STOP_S = 20.0
"""Agents that have not ended by then are killed."""
EVERYWHERE = Target(every=True)


@dataclass
class World:
    """A fleet process, a registry with versions to deploy, and a crowd of agents."""

    running: ServiceProcess
    fleet: FleetClient
    pipe: Connection | None = None
    crowd: SpawnProcess | None = None

    @property
    def memory_mb(self) -> float:
        """Resident now, 10^6 bytes."""
        status = Path(f"/proc/{self.running.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024 / 1e6

    @property
    def cpu_s(self) -> float:
        """Processor time since its start."""
        fields = Path(f"/proc/{self.running.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def agents_cpu_s(self) -> float:
        """Processor time of the agents since their start."""
        (taken_ns,) = await self.when(CPU)
        return taken_ns / 1e9

    def gather(self, agents: int) -> None:
        """Start the agents, in a process of their own."""
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.crowd = context.Process(target=serve, args=(Crowd(self.running.address, agents), theirs), daemon=True)
        self.crowd.start()
        theirs.close()  # so that its end is seen

    async def when(self, what: str) -> list[int]:
        """When each agent came to know it, nanoseconds; EOFError: their process has failed."""
        if self.pipe is None:
            raise AssertionError("there are no agents yet")
        self.pipe.send(what)
        return list(await asyncio.to_thread(self.pipe.recv))

    def dismiss(self) -> None:
        """Ends the agents, also those that have failed."""
        if self.pipe is None or self.crowd is None:
            return
        with suppress(OSError):
            self.pipe.send(STOP)
        self.crowd.join(STOP_S)
        if self.crowd.is_alive():
            self.crowd.kill()
            self.crowd.join()
        self.pipe.close()


@asynccontextmanager
async def fleet_world(agents: int) -> AsyncIterator[World]:
    """An empty fleet, and a registry with as many versions as there are rounds."""
    async with AsyncExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="splitmesh-bench-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        launcher = ProcessLauncher(ROOT, folder)
        registry = await launcher.launch("registry", {"data_dir": str(folder / "registry")})
        stack.push_async_callback(registry.stop)
        limits = {"max_concurrent_rpcs": str(agents + 1000), "max_agents": str(agents + 100)}
        settings = {"data_dir": str(folder / "fleet"), "static_addresses": f"registry={registry.address}", **limits}
        running = await launcher.launch("fleet", settings)
        stack.push_async_callback(running.stop)
        channels = Channels(StaticDiscovery({"registry": [registry.address], "fleet": [running.address]}))
        stack.push_async_callback(channels.close)
        parts = version_parts(SHIPPED_MODEL / "model.onnx", None, SHIPPED_MODEL / "preprocess.json", None)
        for _ in range(ROUNDS):
            await RegistryClient(channels).create_version(MODEL, parts, created_by="benchmark")
        world = World(running, FleetClient(channels))
        stack.push_async_callback(asyncio.to_thread, world.dismiss)
        yield world


async def scaled(agents: int, progress: Progress) -> list[dict[str, object]]:
    """The rows of one number of agents."""
    task = progress.add_task(f"{agents} agents", total=2 * ROUNDS + 2)
    async with fleet_world(agents) as world:
        empty_mb, before = world.memory_mb, (world.cpu_s, 0.0)
        world.gather(agents)
        hello_s = [took / 1e9 for took in await world.when(WELCOMED)]
        rows = [_row(agents, "hello", hello_s, before, await _now(world))]
        progress.advance(task)

        began, before = time.monotonic(), await _now(world)
        await asyncio.sleep(REST_S)
        rested_s, after = time.monotonic() - began, await _now(world)
        resting = {
            **_row(agents, "resting", [], before, after),
            "cores": (after[0] - before[0]) / rested_s,
            "memory_mb": world.memory_mb,
            "kb_each": (world.memory_mb - empty_mb) * 1e3 / agents,
        }
        progress.advance(task)

        policy_s, before = [], await _now(world)
        for number in range(1, ROUNDS + 1):
            waiting = asyncio.create_task(world.when(f"{POLICY}-{number}"))
            asked = time.monotonic_ns()
            await world.fleet.set_policy(EVERYWHERE, HostPolicy((AppShare(MODEL, number),)))
            policy_s += [(moment - asked) / 1e9 for moment in await waiting]
            progress.advance(task)
        rows.append(_row(agents, "policy", policy_s, before, await _now(world)))

        told_s, ended_s, deployed_s, before = [], [], [], await _now(world)
        for version in range(1, ROUNDS + 1):
            waiting = asyncio.create_task(world.when(f"{DEPLOY}-{version}"))
            asked = time.monotonic_ns()
            await _deploy(world.fleet, version, agents)
            deployed_s.append((time.monotonic_ns() - asked) / 1e9)
            told_s += [(moment - asked) / 1e9 for moment in await waiting]
            ended_s += [(moment - asked) / 1e9 for moment in await world.when(f"{ENDED}-{version}")]
            progress.advance(task)
        rows.append(_row(agents, "deploy", told_s, before, await _now(world)))
        rows.append(_row(agents, "ended", ended_s))
        rows.append(_row(agents, "deployed", deployed_s))
        return [*rows, {**resting, "memory_mb": max(world.memory_mb, float(str(resting["memory_mb"])))}]


async def _now(world: World) -> tuple[float, float]:
    """Processor time of the fleet and of the agents."""
    return world.cpu_s, await world.agents_cpu_s()


async def _deploy(fleet: FleetClient, version: int, agents: int) -> None:
    """Until it is done."""
    made = await fleet.deploy(MODEL, version, EVERYWHERE, Strategy(max_failed_share=1.0, max_parallel=agents))
    async with aclosing(fleet.watch_deployment(made.id)) as news:
        async for one in news:
            last = one.deployment
    if last.state is not DeploymentState.DONE:
        raise RuntimeError(f"the deployment of version {version} is {last.state}: {last.message}")


def _row(
    agents: int,
    what: str,
    took_s: Sequence[float],
    before: tuple[float, float] | None = None,
    after: tuple[float, float] = (0.0, 0.0),
) -> dict[str, object]:
    """With the processor time between ``before`` and ``after``, if it is given, for each agent and message."""
    each = 1e3 / max(1, len(took_s) or agents)
    return {
        "what": f"{agents} agents, {what}",
        "n": len(took_s),
        "p50_s": float(np.percentile(took_s, 50)) if took_s else "",
        "p99_s": float(np.percentile(took_s, 99)) if took_s else "",
        "worst_s": max(took_s, default=""),
        "cpu_ms_each": (after[0] - before[0]) * each if before else "",
        "agent_cpu_ms_each": (after[1] - before[1]) * each if before else "",
        "cores": "",
        "memory_mb": "",
        "kb_each": "",
    }


_JUDGED = ("hello", "policy", "deploy")


async def compare(counts: Sequence[int]) -> None:
    """Every row."""
    with Progress(transient=True) as progress:
        rows = [row for count in counts for row in await scaled(count, progress)]
    judged = [row for row in rows if str(row["what"]).endswith(_JUDGED)]
    worst = max(judged, key=lambda row: float(str(row["p99_s"])))
    publish(
        Result(
            name="fleet_scale",
            n=sum(int(str(row["n"])) for row in rows),
            baseline=f"{counts[0]} agents",
            goal=f"p99 of hello, policy and deploy <= {MAX_P99_S:g} s",
            measured=f"worst p99 {worst['p99_s']:.2f} s ({worst['what']})",
            met=float(str(worst["p99_s"])) <= MAX_P99_S,
            rows=rows,
        )
    )


def main() -> None:
    """The command line."""
    given = arguments(__doc__)
    asyncio.run(compare((200,) if given.quick else (200, 1000, 5000)))


if __name__ == "__main__":
    main()
