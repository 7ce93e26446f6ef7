"""A real Consul agent of one's own, for tests: started on free ports, stopped and restarted at will.

Knows how to run ``consul agent -dev``, which keeps everything in memory: a restarted agent has forgotten all. Does not
know what is registered with it.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from splitmesh.testing.parts import RealPartMissing, find_consul

_POLL_S = 0.05
_LOG_BYTES = 1 << 16


class ConsulAgent:
    """``async with ConsulAgent() as agent:`` an agent that has elected itself leader, at ``agent.address``.

    Args:
        settings: fragments of Consul's configuration language, such as an ``acl { ... }`` block.
        token: sent when asking whether the agent is ready, where ACLs are on.
        start_timeout_s: seconds an agent has to become ready.
        binary: the program; without it the one on PATH.

    Raises:
        RealPartMissing: there is no Consul on this machine.
    """

    def __init__(
        self,
        *,
        settings: Sequence[str] = (),
        token: str | None = None,
        start_timeout_s: float = 20.0,
        binary: Path | None = None,
    ) -> None:
        found = binary or find_consul()
        if found is None:
            raise RealPartMissing("no consul on PATH: tools/install_real_parts.sh installs it on Debian 12")
        self._binary = found
        self._settings = tuple(settings)
        self._headers = {"X-Consul-Token": token} if token else {}
        self._start_timeout_s = start_timeout_s
        self._ports: list[int] = []
        self._process: asyncio.subprocess.Process | None = None
        self._log = b""
        self._reader: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """``host:port`` of the HTTP API; the same after a restart."""
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def log(self) -> str:
        """The last 64 KiB the agent wrote."""
        return self._log.decode(errors="replace")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Starts the agent, on the ports it had before if it ran before.

        Raises:
            TimeoutError: it is not ready in time.
            RuntimeError: it ended by itself; the message carries the end of its log.
        """
        fixed = bool(self._ports)
        for last in (fixed, fixed, True):
            if not fixed:
                self._ports = _free_ports(4)
            try:
                await self._launch()
                return
            except BaseException as error:
                await self.stop()
                # Between finding a free port and the agent taking it, anyone else may have taken it.
                if last or not isinstance(error, RuntimeError) or "address already in use" not in str(error):
                    raise

    async def stop(self) -> None:
        """Kills the agent, which has nothing to save; nothing happens when it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
            await process.wait()
        if self._reader is not None:
            await self._reader

    def pause(self) -> None:
        """Freezes the agent: connections stay open and nothing is answered."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets a paused agent go on."""
        self._running().send_signal(signal.SIGCONT)

    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError("the agent does not run")
        return self._process

    async def _launch(self) -> None:
        http, server, serf_lan, serf_wan = self._ports
        ports = {"http": http, "server": server, "serf-lan": serf_lan, "serf-wan": serf_wan, "dns": -1, "grpc": -1}
        arguments = ["agent", "-dev", "-bind=127.0.0.1", "-client=127.0.0.1", "-log-level=warn"]
        arguments += [f"-{name}-port={port}" for name, port in ports.items()]
        arguments += [f"-hcl={fragment}" for fragment in ("disable_update_check = true", *self._settings)]
        self._process = await asyncio.create_subprocess_exec(
            self._binary,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        self._log = b""
        self._reader = asyncio.create_task(self._read_log(self._process))
        try:
            async with asyncio.timeout(self._start_timeout_s):
                await self._ready(self._process)
        except TimeoutError:
            raise TimeoutError(f"consul is not ready after {self._start_timeout_s} s:\n{self.log[-2000:]}") from None

    async def _ready(self, process: asyncio.subprocess.Process) -> None:
        # A leader alone is not enough: until the agent has entered its own node, health queries answer nothing.
        url = f"http://{self.address}/v1/health/service/consul?passing=1"
        async with aiohttp.ClientSession(headers=self._headers) as session:
            while process.returncode is None:
                with suppress(aiohttp.ClientError):
                    async with session.get(url) as response:
                        if response.status == 200 and await response.json():
                            return
                await asyncio.sleep(_POLL_S)
        if self._reader is not None:
            await self._reader
        raise RuntimeError(f"consul ended with status {process.returncode}:\n{self.log[-2000:]}")

    async def _read_log(self, process: asyncio.subprocess.Process) -> None:
        if process.stdout is not None:
            while piece := await process.stdout.read(4096):
                self._log = (self._log + piece)[-_LOG_BYTES:]


def _free_ports(count: int) -> list[int]:
    """Ports free for TCP and UDP alike, all different: Consul's gossip speaks both."""
    with ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            tcp = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            tcp.bind(("127.0.0.1", 0))
            port = tcp.getsockname()[1]
            udp = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            with suppress(OSError):
                udp.bind(("127.0.0.1", port))
                ports.append(port)
        return ports
