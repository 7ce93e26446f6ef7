"""A mesh of real processes with a fleet and one host under it, and commands as its operator gives them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from splitmesh.client.fleet import FleetClient
from splitmesh.client.fleet_nodes import NodeState
from splitmesh.kernel.config import ENV_PREFIX
from splitmesh.testing.mesh import MODULES, LocalMesh, ProcessLauncher
from tests.support.models import exit_version
from tests.support.worlds import ROOT

MODEL, HOST, SITE, LINE = "joints", "mec-1", "plant-a", "line-2"
WAIT_S = 60.0
COMMAND_S = 120.0


@asynccontextmanager
async def fleet_mesh(folder: Path, versions: int = 2) -> AsyncIterator[LocalMesh]:
    """Every service; so many equal versions of ``MODEL``, no alias, and ``HOST`` connected."""
    agent = {"node": HOST, "heads": HOST, "site": SITE, "line": LINE, "camera_groups": "cams"}
    head = {"node": HOST, "site": SITE, "models": MODEL, "segment_threads": "1", "switch_wait_s": "5"}
    launcher, settings = ProcessLauncher(ROOT, folder / "run"), {"agent": agent, "head": head}
    async with LocalMesh(launcher, folder, settings=settings, services=tuple(MODULES)) as running:
        registry = running.registry()
        for _ in range(versions):
            await registry.create_version(MODEL, exit_version(), created_by="push")
        fleet = FleetClient(running.channels)
        async with asyncio.timeout(WAIT_S):
            while not await fleet.nodes(state=NodeState.ONLINE):
                pass  # the question itself takes its time
        yield running


async def shell(command: str, mesh: LocalMesh, folder: Path) -> tuple[int | None, str, str]:
    """Exit code, output and errors of a line for a shell whose environment names the mesh."""
    settings = {f"{ENV_PREFIX}{name.upper()}": value for name, value in mesh.environment().items()}
    own = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{own['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", command),
        cwd=folder,
        env={**own, **settings, "PATH": path, "COLUMNS": "200"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(COMMAND_S):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, out.decode(), err.decode()
