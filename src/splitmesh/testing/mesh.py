"""A whole mesh on this machine: the six services, with a link relay before each tail and each node of a chain's middle.

One layout, several worlds: a :class:`Launcher` decides whether a service is a process (here) or lives in the test's own
process. Services are run from a checkout (``python -m services.registry``), so a wheel alone cannot launch them. Used
by the demo, the benchmarks and the tests.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from typing import IO, Protocol

from splitmesh.client import Mesh
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.config import ENV_PREFIX
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.testing.links import PROFILES, LinkProfile
from splitmesh.testing.relay import LinkRelay

MODULES = {
    "registry": "services.registry",
    "router": "services.router",
    "compressor": "services.compressor",
    "tail": "cloud.tail",
    "head": "edge.head",
    "partitioner": "services.partitioner",
}
"""Every service by its short name, in the order of starting."""

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


class LocalMesh:
    """The services and the relay, started in order and stopped in reverse."""

    def __init__(
        self,
        launcher: Launcher,
        work_dir: Path,
        *,
        link: LinkProfile = PROFILES["loopback"],
        otlp_endpoint: str = "",
        settings: Mapping[str, Mapping[str, str]] | None = None,
        services: Collection[str] = MODULES,
        middle: Sequence[str] = (),
        tails: int = 1,
    ) -> None:
        """Nothing runs yet.

        Args:
            launcher: starts each service.
            work_dir: where services keep their state.
            link: profile of every relay, uplink and round trip.
            otlp_endpoint: where every service sends its spans.
            settings: more settings by service and field name; those of the tail are every tail's.
            services: which to start, always in the order of ``MODULES``; the tail is one of them.
            middle: names of nodes between head and tail, nearest to the head first; each runs the tail's program.
            tails: how many nodes run the last segment, each behind a relay of its own: `tail`, `tail-2`, `tail-3` …
        """
        self._launcher = launcher
        self._work_dir = work_dir
        self._link = link
        self._otlp_endpoint = otlp_endpoint
        self._extra = settings or {}
        self._chain = [*middle, "tail"]
        self._wanted = [service for service in MODULES if service in services]
        behind = self._wanted.index("tail") + 1
        self._tails = ["tail", *(f"tail-{number}" for number in range(2, tails + 1))]
        self._wanted[behind:behind] = [*self._tails[1:], *reversed(middle)]
        self._services: dict[str, Running] = {}
        self._addresses: dict[str, str] = {}
        self._stack = AsyncExitStack()
        self.relays: dict[str, LinkRelay] = {}
        """By the service they lead to: the tails, and nodes in the middle."""
        self.channels: Channels

    async def __aenter__(self) -> LocalMesh:
        """Start everything."""
        try:
            for service in self._wanted:
                await self.start(service)
                if self._behind_a_relay(service):
                    relay = LinkRelay(self._addresses[service], self._link)
                    self.relays[service] = await self._stack.enter_async_context(relay)
            table = {service: [address] for service, address in self._addresses.items() if service not in self._tails}
            table["tail"] = [self._addresses[tail] for tail in self._tails]
            self.channels = Channels(StaticDiscovery(table))
            self._stack.push_async_callback(self.channels.close)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop everything."""
        await self._close()

    async def _close(self) -> None:
        await self._stack.aclose()
        for service in reversed(list(self._services)):
            await self._services.pop(service).stop()

    def address(self, service: str) -> str:
        """``host:port`` of a service."""
        return self._addresses[service]

    async def start(self, service: str, more: Mapping[str, str] | None = None) -> None:
        """Start a service; one that ran before comes back at its old port with its old state.

        ``more`` settings are for this life of it only.
        """
        known = {name: address for name, address in self._addresses.items() if not self._behind_a_relay(name)}
        if service == "partitioner":
            # It measures on every node, not across the links; one tail speaks for all.
            known = {name: address for name, address in self._addresses.items() if name not in self._tails[1:]}
        following = self._behind(service)
        relays = [self.relays[name].address for name in self._alike(following) if name in self.relays]
        if relays:
            known[following] = ";".join(relays)
        settings = {
            "node": service if service in self._tails[1:] else f"{service}-1",
            "static_addresses": ",".join(f"{name}={address}" for name, address in known.items()),
            "otlp_endpoint": self._otlp_endpoint,
            "data_dir": str(self._work_dir / service),
            "reflection": "true",
            **self._place(service, following),
            **(self._extra.get("tail", {}) if service in self._tails else {}),
            **self._extra.get(service, {}),
            **(more or {}),
        }
        if service in self._addresses:
            settings["port"] = self._addresses[service].rpartition(":")[2]
        program = "tail" if self._behind_a_relay(service) else service
        running = await self._launcher.launch(program, settings)
        self._services[service] = running
        self._addresses[service] = running.address

    def _behind_a_relay(self, service: str) -> bool:
        return service in self._chain or service in self._tails

    def _alike(self, service: str) -> list[str]:
        """Everyone who does a service's work."""
        return self._tails if service == "tail" else [service]

    def _behind(self, service: str) -> str:
        """Who takes a service's features; empty when nobody does."""
        if service == "head":
            return self._chain[0]
        return dict(pairwise(self._chain)).get(service, "")

    def _place(self, service: str, following: str) -> dict[str, str]:
        """Settings by which a chain's nodes find each other; none for a head and a tail alone."""
        if service == "partitioner" and len(self._chain) > 1:
            return {"profiled_services": ",".join(["head", *self._chain])}
        if service == "head" and following != "tail":
            return {"tail_service": following}
        if following and service != "head":
            return {"service": service, "next_service": following}
        return {}

    @property
    def relay(self) -> LinkRelay:
        """The one before the first tail."""
        return self.relays["tail"]

    async def stop(self, service: str) -> None:
        """Stop one service gracefully."""
        await self._services.pop(service).stop()

    async def kill(self, service: str) -> None:
        """Kill one service, as a power cut would."""
        await self._services.pop(service).kill()

    def gateway(self, **options: object) -> Mesh:
        """A camera gateway's connection to the head."""
        return Mesh(self._addresses["head"], otlp_endpoint=self._otlp_endpoint, **options)  # type: ignore[arg-type]
