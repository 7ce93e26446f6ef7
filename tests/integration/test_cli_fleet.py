"""`splitmesh deploy`, `deployments`, `nodes` and `tasks` against a fleet with a real host: trials, refusals, what hosts say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from splitmesh.client import Answer
from splitmesh.testing.mesh import LocalMesh
from tests.support.fleet_mesh import HOST, MODEL, SITE, fleet_mesh, shell
from tests.support.models import EASY, HARD, picture
from tests.support.worlds import serving

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

FRAMES_PER_S = 50.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalMesh]:
    async with fleet_mesh(tmp_path_factory.mktemp("fleet"), versions=3) as running:
        code, out, err = await shell(f"splitmesh deploy {MODEL}:1 --node {HOST}", running, Path.cwd())
        assert code == 0, (out, err)
        await serving(running.address("head"))
        yield running


async def told(mesh: LocalMesh, folder: Path, command: str) -> Any:
    """A command's one JSON document."""
    code, out, err = await shell(f"splitmesh {command} --json", mesh, folder)
    assert (code, err) == (0, ""), out
    return json.loads(out)


async def refused(mesh: LocalMesh, folder: Path, command: str) -> str:
    """A command's one line of refusal."""
    code, out, err = await shell(f"splitmesh {command}", mesh, folder)
    assert (code, out) == (1, ""), err
    (line,) = err.splitlines()
    return line.removeprefix("splitmesh: ")


@asynccontextmanager
async def under_frames(mesh: LocalMesh) -> AsyncIterator[list[int]]:
    """Easy and hard frames in turn, for as long as the block runs; versions that answered. None may be lost."""
    versions: list[int] = []
    stop = asyncio.Event()

    async def frames() -> AsyncIterator[bytes]:
        number = 0
        while not stop.is_set():
            number += 1
            yield picture((EASY, HARD)[number % 2])
            await asyncio.sleep(1 / FRAMES_PER_S)

    async def run() -> None:
        async with mesh.gateway(deadline_ms=5000) as gateway, gateway.stream("line") as stream:
            async for outcome in stream.run(frames()):
                assert isinstance(outcome, Answer), outcome
                versions.append(outcome.version)

    running = asyncio.create_task(run())
    try:
        yield versions
    finally:
        stop.set()
        await running


async def test_an_equal_version_is_tried_in_the_shadow_and_then_serves_everywhere(
    mesh: LocalMesh, tmp_path: Path
) -> None:
    options = "--shadow --pairs 5 --pair-share 1 --margin 0.5 --alpha 0.2 --canary-share 0.5"
    async with under_frames(mesh) as versions:
        code, out, err = await shell(f"splitmesh deploy {MODEL}:2 --site {SITE} {options}", mesh, tmp_path)
        assert (code, err) == (0, ""), out
    assert "shadow" in out
    assert "pairs: wrong" in out
    assert f"{MODEL}:2 done" in out
    assert {1, 2} <= set(versions)
    (node,) = await told(mesh, tmp_path, "nodes")
    assert node["serving"][0]["active_version"] == 2


async def test_a_paused_trial_waits_and_goes_back_in_one_step(mesh: LocalMesh, tmp_path: Path) -> None:
    made = await told(mesh, tmp_path, f"deploy {MODEL}:3 --all --shadow --detach")
    paused = await told(mesh, tmp_path, f"deployments pause {made['id']} --reason audit")
    assert paused["state"] == "PAUSED"
    code, _, err = await shell(f"splitmesh deployments watch {made['id']}", mesh, tmp_path)
    assert code == 1
    assert f"splitmesh deployments resume {made['id']}" in err
    assert (await refused(mesh, tmp_path, f"deploy {MODEL}:1 --all")).startswith("DEPLOYMENT_ACTIVE: ")
    code, out, err = await shell(f"splitmesh rollback --deployment {made['id']}", mesh, tmp_path)
    assert (code, err) == (0, ""), out
    shown = await told(mesh, tmp_path, f"deployments show {made['id']}")
    assert shown["deployment"]["state"] == "ROLLED_BACK"
    (node,) = await told(mesh, tmp_path, "nodes")
    assert node["serving"][0]["active_version"] == shown["nodes"][0]["from_version"]


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (f"deploy {MODEL}:9 --all", "VERSION_NOT_FOUND"),
        (f"deploy {MODEL}:1 --site nowhere", "NODE_NOT_FOUND"),
        ("deployments show nothing", "DEPLOYMENT_NOT_FOUND"),
        ("deployments watch nothing", "DEPLOYMENT_NOT_FOUND"),
        ("rollback nothing", "MODEL_NOT_FOUND"),
        ("nodes show nobody", "NODE_NOT_FOUND"),
        (f"nodes remove {HOST}", "NODE_ONLINE"),
        ("tasks show nothing", "TASK_NOT_FOUND"),
        ("tasks cancel nothing", "TASK_NOT_FOUND"),
    ],
)
async def test_what_cannot_be_done_is_refused_with_its_reason(
    mesh: LocalMesh, tmp_path: Path, command: str, reason: str
) -> None:
    assert (await refused(mesh, tmp_path, command)).startswith(f"{reason}: ")


async def test_a_host_says_what_it_is_and_what_it_measured(mesh: LocalMesh, tmp_path: Path) -> None:
    node = await told(mesh, tmp_path, f"nodes show {HOST}")
    assert node["capabilities"]["cores"] >= 1
    assert {one["name"] for one in node["capabilities"]["backends"] if not one["unusable"]} >= {"onnxruntime-cpu"}
    code, out, _ = await shell(f"splitmesh nodes show {HOST}", mesh, tmp_path)
    assert code == 0
    assert "onnxruntime-cpu" in out
    assert f"{MODEL}:" in out


async def test_tasks_of_deployments_are_listed_by_what_they_order(mesh: LocalMesh, tmp_path: Path) -> None:
    tasks = await told(mesh, tmp_path, f"tasks list --node {HOST} --kind deploy --state done")
    assert f"{MODEL}:1" in {task["what"] for task in tasks}
    assert all(task["deployment_id"] for task in tasks)
