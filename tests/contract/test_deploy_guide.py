"""The operators' guide of the fleet is so: its marked commands run, in their order, against a whole mesh."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from splitmesh.client.fleet import FleetClient
from splitmesh.testing.mesh import LocalMesh
from tests.support.fleet_mesh import HOST, MODEL, fleet_mesh, shell
from tests.support.worlds import ROOT

GUIDE = (ROOT / "docs" / "fleet.md").read_text()

_BLOCK = re.compile(r"^<!-- runs -->\n```console\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.removeprefix("$ ").partition(" #")[0].strip()
    for block in _BLOCK.finditer(GUIDE)
    for line in block["code"].splitlines()
    if line.startswith("$ ")
]

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalMesh]:
    folder = tmp_path_factory.mktemp("guide")
    async with fleet_mesh(folder) as running:
        yield running


@pytest.mark.timeout(600)
async def test_the_guide_s_commands_run_in_their_order(mesh: LocalMesh, tmp_path: Path) -> None:
    said: dict[str, str] = {}
    for command in COMMANDS:
        code, out, err = await shell(command, mesh, tmp_path)
        assert (code, err) == (0, ""), (command, out)
        said[command.removeprefix("splitmesh ")] = out
    assert HOST in said["nodes"]
    first, second = (out for command, out in said.items() if command.startswith("deploy "))
    assert f"{MODEL}:1 done" in first
    assert f"{MODEL}:2 done" in second
    (rollback,) = (out for command, out in said.items() if command.startswith("rollback"))
    assert f"{HOST}: back at 1" in rollback
    (profiled,) = (out for command, out in said.items() if command.startswith("tasks profile"))
    assert "done" in profiled
    assert HOST in said[f"tasks list --node {HOST}"]
    node = await FleetClient(mesh.channels).node(HOST)
    assert [(one.model, one.active_version) for one in node.serving] == [(MODEL, 1)]
    assert node.labels["hall"] == "3"
    assert node.policy is not None
    assert node.policy.shares[0].priority == 5


async def test_every_part_of_the_guide_that_can_run_alone_does() -> None:
    assert {command.split()[1] for command in COMMANDS} == {"nodes", "deploy", "deployments", "rollback", "tasks"}
