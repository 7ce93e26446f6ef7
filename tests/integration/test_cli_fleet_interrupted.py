"""Who follows may leave: Ctrl-C ends the command and nothing else, and says how to look again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.config import ENV_PREFIX
from tests.support.told_fleet import ToldFleet, told_fleet

WAIT_S = 30.0


@asynccontextmanager
async def command(fleet: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`splitmesh ARGUMENTS` as a process of its own that runs until it is interrupted."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", "from splitmesh.cli import main; main()", *arguments),
        env={**own, f"{ENV_PREFIX}STATIC_ADDRESSES": f"fleet={fleet}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(WAIT_S):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode()


async def interrupted(process: asyncio.subprocess.Process) -> str:
    """What it says when it is; its standard error."""
    process.send_signal(signal.SIGINT)
    _, said = await process.communicate()
    return said.decode()


@pytest.mark.parametrize("what", ["deployments", "tasks"])
async def test_ctrl_c_leaves_the_work_to_the_fleet_and_says_so(what: str) -> None:
    deployment = pb.Deployment(id="w-1", model="joints", version=4, state=pb.DEPLOYMENT_STATE_ROLLING)
    task = pb.Task(id="w-1", node="mec-1", state=pb.TASK_STATE_RUNNING)
    told = ToldFleet(
        streams={
            "WatchDeployment": [[pb.WatchDeploymentResponse(deployment=deployment), ...]],
            "WatchTask": [[pb.WatchTaskResponse(task=task), ...]],
        }
    )
    async with told_fleet(told) as fleet, command(fleet, what, "watch", "w-1") as process:
        assert "w-1" in await line(process)
        assert await interrupted(process) == f"splitmesh: it goes on in the fleet: splitmesh {what} watch w-1\n"
        assert process.returncode == 130
    assert [method for method, _ in told.requests] == ["WatchDeployment" if what == "deployments" else "WatchTask"]


async def test_a_watched_list_goes_on_over_an_outage_and_ends_without_a_complaint() -> None:
    answers: Iterator[list[str] | MeshError] = iter([["a"], MeshError(Reason.QUEUE_FULL, "busy"), ["a", "b"]])

    def nodes(request: pb.ListNodesRequest) -> pb.ListNodesResponse | MeshError:
        answer = next(answers, ["a", "b"])
        return (
            answer
            if isinstance(answer, MeshError)
            else pb.ListNodesResponse(nodes=[pb.Node(node=one) for one in answer])
        )

    told = ToldFleet(answers={"ListNodes": nodes})
    async with told_fleet(told) as fleet, command(fleet, "nodes", "--watch", "--json") as process:
        assert [(await line(process)).count('"node":') for _ in range(2)] == [1, 2]
        said = await interrupted(process)
        assert said == "splitmesh: the fleet does not answer, trying again: QUEUE_FULL: busy\n"
        assert process.returncode == 0


async def test_a_watched_list_of_nobody_ends_at_once() -> None:
    async with command("127.0.0.1:1", "nodes", "--watch") as process:
        _, said = await process.communicate()
        assert process.returncode == 1
        assert said.startswith(b"splitmesh: SERVICE_UNAVAILABLE")
