"""A registry in a process of its own, with the files of two versions, for benchmarks."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from examples.solder_joints.demo import ROOT
from splitmesh.client.registry import RegistryClient
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.testing.mesh import ProcessLauncher, ServiceProcess


@dataclass
class World:
    """A registry process and a client of it."""

    folder: Path
    """For files; the registry's own state is below it too."""
    running: ServiceProcess
    channels: Channels
    registry: RegistryClient

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


@asynccontextmanager
async def registry_world() -> AsyncIterator[World]:
    """An empty registry."""
    folder = Path(tempfile.mkdtemp(prefix="splitmesh-bench-"))
    running = await ProcessLauncher(ROOT, folder).launch("registry", {"data_dir": str(folder / "registry")})
    channels = Channels(StaticDiscovery({"registry": [running.address]}))
    try:
        yield World(folder, running, channels, RegistryClient(channels))
    finally:
        await channels.close()
        await running.stop()
        shutil.rmtree(folder, ignore_errors=True)
