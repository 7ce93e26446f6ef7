"""Services as processes of this machine, run from a checkout (``python -m services.registry``): a wheel alone has none.

Knows how a process is started, awaited, ended. Does not know which services belong together (``mesh``).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Protocol

from splitmesh.kernel.config import ENV_PREFIX

MODULES = {
    "registry": "services.registry",
    "router": "services.router",
    "compressor": "services.compressor",
    "fleet": "services.fleet",
    "tail": "cloud.tail",
    "head": "edge.head",
    "agent": "edge.agent",
    "partitioner": "services.partitioner",
}
"""Every service by its short name, in the order of starting."""
WITHOUT_FLEET = tuple(name for name in MODULES if name not in ("fleet", "agent"))
"""Those of a single host whose versions follow aliases."""

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
_POLL_S = 0.02


class Running(Protocol):
    """A launched service."""

    address: str

    async def stop(self) -> None:
        """Gracefully, as SIGTERM does."""
        ...

    async def kill(self) -> None:
        """At once, as a power cut does."""
        ...


class Launcher(Protocol):
    """Starts one service with settings by field name; returns when it is running."""

    async def launch(self, service: str, settings: Mapping[str, str]) -> Running:
        """The service."""
        ...


class ServiceProcess:
    """A service as a process of its own."""

    def __init__(self, service: str, process: asyncio.subprocess.Process, log: IO[bytes]) -> None:
        self.address = ""
        self.process = process
        self._service = service
        self._log = log

    async def wait_ready(self, ready_file: Path) -> None:
        """Until the service has written its ready file. RuntimeError with the end of its log when it fails."""
        async with asyncio.timeout(READY_TIMEOUT_S):
            while not ready_file.exists():
                if self.process.returncode is not None:
                    raise RuntimeError(f"{self._service} ended with {self.process.returncode}:\n{self._log_end()}")
                await asyncio.sleep(_POLL_S)
        self.address = json.loads(ready_file.read_text())["address"]

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL when it takes too long."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await self.process.wait()
            except TimeoutError:
                await self.kill()
        self._log.close()

    async def kill(self) -> None:
        """SIGKILL."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        self._log.close()

    def _log_end(self) -> str:
        return "\n".join(Path(self._log.name).read_text(errors="replace").splitlines()[-20:])


class ProcessLauncher:
    """Launches services as processes from the checkout at ``root``; logs and ready files go to ``work_dir``."""

    def __init__(self, root: Path, work_dir: Path) -> None:
        self._root = root
        self._work_dir = work_dir
        self._count = 0

    async def launch(self, service: str, settings: Mapping[str, str]) -> ServiceProcess:
        """Start and wait until it runs."""
        self._count += 1
        self._work_dir.mkdir(parents=True, exist_ok=True)
        ready_file = self._work_dir / f"{service}-{self._count}.ready"
        environment = {key: value for key, value in os.environ.items() if not key.startswith(ENV_PREFIX)}
        environment |= {f"{ENV_PREFIX}{name.upper()}": value for name, value in settings.items()}
        environment[f"{ENV_PREFIX}READY_FILE"] = str(ready_file)
        log = (self._work_dir / f"{service}-{self._count}.log").open("wb")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", MODULES[service], cwd=self._root, env=environment, stdout=log, stderr=log
        )
        running = ServiceProcess(service, process, log)
        try:
            await running.wait_ready(ready_file)
        except BaseException:
            await running.kill()
            raise
        return running
