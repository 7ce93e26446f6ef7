"""Power cuts: the fleet is killed with SIGKILL wherever it writes; no task is lost, none is given twice under one try."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.errors import MeshError
from splitmesh.testing.processes import ProcessLauncher, ServiceProcess
from tests.support.fake_agent import WAIT_S, FakeAgent, FleetDesk

ROOT = Path(__file__).parents[2]
RUNNING, DONE = pb.TASK_STATE_RUNNING, pb.TASK_STATE_DONE


async def fleet_process(folder: Path, life: int) -> tuple[ServiceProcess, FleetDesk]:
    settings = {"data_dir": str(folder / "fleet"), "static_addresses": "registry=127.0.0.1:1", "node": "fleet"}
    (folder / str(life)).mkdir()
    process = await ProcessLauncher(ROOT, folder / str(life)).launch("fleet", settings)
    return process, FleetDesk(process)


async def gone(agent: FakeAgent) -> None:
    """The stream ends with the process."""
    with pytest.raises((MeshError, grpc.aio.AioRpcError, EOFError)):
        await agent.expect("nothing")


@pytest.mark.parametrize("moment", ["submitted", "offered", "running", "finished"])
async def test_a_killed_fleet_goes_on_with_every_task_where_it_was(tmp_path: Path, moment: str) -> None:
    process, fleet = await fleet_process(tmp_path, 1)
    try:
        agent = await fleet.connect() if moment != "submitted" else None
        made = await fleet.submit()
        if agent is not None:
            task = await agent.expect("offer")
            if moment == "running":
                await agent.update(task, RUNNING)
                await fleet.until_task(made.id, lambda one: one.state == RUNNING)
            if moment == "finished":
                await agent.finish(task, result={"profile": "p"})
        await process.kill()
        if agent is not None:
            await gone(agent)
    finally:
        await fleet.close()
        await process.kill()
    process, fleet = await fleet_process(tmp_path, 2)
    try:
        began = moment in ("running", "finished")
        held = [pb.HeldTask(task_id=made.id, attempt=1)] if began else []
        agent = await fleet.connect(held=held)
        if not began:
            task = await agent.expect("offer")
            assert (task.id, task.attempt) == (made.id, 1)
        elif moment == "running":
            assert await agent.quiet() == []
        await agent.finish(task, result={"profile": "p"})
        ended = await fleet.task(made.id)
        assert (ended.state, ended.attempt, dict(ended.result)) == (DONE, 1, {"profile": "p"})
    finally:
        await fleet.close()
        await process.stop()


async def test_whatever_was_acknowledged_before_a_kill_is_kept(tmp_path: Path) -> None:
    process, fleet = await fleet_process(tmp_path, 1)
    submitted: list[str] = []
    finished: list[str] = []
    enough = asyncio.Event()

    async def submits() -> None:
        while True:
            submitted.append((await fleet.submit()).id)

    async def works(agent: FakeAgent) -> None:
        while True:
            task = await agent.expect("offer")
            await agent.finish(task)
            finished.append(task.id)
            if len(finished) == 30:
                enough.set()

    try:
        tasks = [asyncio.create_task(works(await fleet.connect())), asyncio.create_task(submits())]
        async with asyncio.timeout(WAIT_S):
            await enough.wait()
        await process.kill()
        for task in tasks:
            with pytest.raises((MeshError, grpc.aio.AioRpcError, EOFError)):
                await task
    finally:
        await fleet.close()
        await process.kill()
    process, fleet = await fleet_process(tmp_path, 2)
    try:
        found, token = {}, ""
        while True:
            some = await fleet.call("ListTasks", pb.ListTasksRequest(page_size=1000, page_token=token))
            found.update({one.id: one.state for one in some.tasks})
            if not (token := some.next_page_token):
                break
        assert set(submitted) <= set(found)
        assert {found[one] for one in finished} == {DONE}
    finally:
        await fleet.close()
        await process.stop()
