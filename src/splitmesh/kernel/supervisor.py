"""Several processes of one app on this host, each an instance of its own: started, watched, started again, drained.

The supervisor serves nothing and opens no channel. Its children are new processes of the same command (spawned, never
forked: gRPC does not survive a fork) with settings of their own, and each registers itself in discovery. A child that ends is
started again at its old address, after a pause that grows while it keeps ending. Children end when the supervisor does,
however that ends: their standard input is a pipe from it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

from pydantic import Field, model_validator

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.config import ENV_PREFIX, ServiceSettings

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 30.0
"""Before a child that ended is started again: doubled each time, from the first to the longest."""
START_S = 120.0
"""A child that is not running after so long is killed, and started again as one that ended."""
STEADY_S = 60.0
"""A child that ran so long ended by chance: its next pause is the first one again."""
LOOP = 5
"""So many ends in a row are told as a crash loop."""
STOP_MARGIN_S = 10.0
"""On top of the drain, before a child that does not end is killed."""
_POLL_S = 0.05


class ReplicaSettings(ServiceSettings):
    """Settings of a service that may run as several processes."""

    fronted: ClassVar[bool] = False
    """Callers know one address only: `port` is shared by all processes, and each has another one for itself."""

    processes: int = Field(default=1, ge=1, le=64)
    """Processes of this service here, each an instance with a port, a name (`node`-1 …) and a folder of its own, and its share of
    what this host has. Ports are `port`, `port` + 1 …, one address more for each in `static_addresses`; of a head `port` is
    shared by all, the kernel spreads connections over them, and `port` + 1 … are each one's own. 0: free ones."""
    supervised: str = Field(default="", pattern=r"^[a-z0-9-]{0,32}$")
    """Set by the process that started this one: what tells this instance from others in discovery, where its successor takes
    its place; and that it ends when standard input does."""

    front_port: int = Field(default=0, ge=0, le=65535)
    """Set by the process that started this one: a port that it shares with its siblings, beside its own."""

    @model_validator(mode="after")
    def _ports_exist(self) -> ReplicaSettings:
        more = self.processes - (0 if self.fronted and self.processes > 1 else 1)
        if self.port and self.port + more > 65535:
            raise ValueError(f"port {self.port} and {more} more go beyond 65535")
        return self

    def replica(self, number: int) -> dict[str, object]:
        """What the settings of one process are instead, by field; ``number`` counts from 1."""
        return {
            "processes": 1,
            "port": self.port + number - (0 if self.fronted else 1) if self.port else 0,
            "node": f"{self.node[:61]}-{number}",
        }


class Supervisor:
    """The processes of one service.

    Args:
        name: the service's, for logs.
        command: program and arguments that run one process.
        settings: of the whole; :meth:`ReplicaSettings.replica` says what each process has instead.
    """

    def __init__(self, name: str, command: Sequence[str], settings: ReplicaSettings) -> None:
        self._name = name
        self._settings = settings
        self._front = _reserved(settings) if settings.fronted else None
        self._folder = Path(tempfile.mkdtemp(prefix=f"splitmesh-{name}-"))
        self._replicas = [self._replica(number, command) for number in range(1, settings.processes + 1)]

    def _replica(self, number: int, command: Sequence[str]) -> _Replica:
        ready_file = self._folder / f"{number}.ready"
        own = {"supervised": f"{uuid4().hex[:8]}-{number}", "ready_file": ready_file}
        own |= {} if self._front is None else {"front_port": self._front.getsockname()[1]}
        return _Replica(f"{self._name} {number}", command, self._settings.replica(number) | own, ready_file)

    async def run(self, stop: asyncio.Event) -> int:
        """Until ``stop``; the exit code.

        0 after a stop. When a process ends before it has been running once, the others are stopped and its code is the
        answer: what is wrong then (a setting, a taken port) no second try heals.
        """
        stopping = asyncio.create_task(stop.wait())
        try:
            code = await self._start(stopping)
            if code is None and not stopping.done():
                addresses = [replica.address for replica in self._replicas]
                log.info("%s runs in %d processes at %s", self._name, len(addresses), ", ".join(addresses))
                self._write_ready_file(addresses)
                keeping = [asyncio.create_task(replica.keep()) for replica in self._replicas]
                await stopping
                for task in keeping:
                    task.cancel()
                await asyncio.gather(*keeping, return_exceptions=True)
            return code or 0
        finally:
            stopping.cancel()
            await asyncio.gather(*(replica.stop(self._settings.drain_s) for replica in self._replicas))
            for path in self._folder.iterdir():
                path.unlink()
            self._folder.rmdir()
            if self._front is not None:
                self._front.close()
            log.info("%s has stopped", self._name)

    async def _start(self, stopping: asyncio.Task[bool]) -> int | None:
        """Every process; the exit code of the first that ends before it is ready, None when all are ready or at a stop."""
        starting = [asyncio.create_task(replica.start()) for replica in self._replicas]
        waiting = {stopping, *starting}
        try:
            while not stopping.done() and len(waiting) > 1:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done - {stopping}:
                    if (code := task.result()) is not None:
                        return int(code) if int(code) > 0 else 1
            return None
        finally:
            for task in starting:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)

    def _write_ready_file(self, addresses: Sequence[str]) -> None:
        path = self._settings.ready_file
        if path is not None:
            temporary = path.with_suffix(".tmp")
            first = addresses[0]
            if self._front is not None:
                first = f"{first.rpartition(':')[0]}:{self._front.getsockname()[1]}"
            content = {"address": first, "pid": os.getpid(), "addresses": addresses}
            temporary.write_text(json.dumps(content))
            temporary.replace(path)


def require_free(host: str, port: int) -> None:
    """SERVICE_UNAVAILABLE where somebody listens at a port: sharing it the way processes of one service do would also share it
    with a stranger. Nothing for port 0."""
    try:
        with socket.socket(_family(host), socket.SOCK_STREAM) as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind((host.strip("[]"), port))
    except OSError as error:
        raise _taken(host, port) from error


def _reserved(settings: ReplicaSettings) -> socket.socket:
    """The port that all processes share, kept while the supervisor lives; SERVICE_UNAVAILABLE where somebody else has it.

    Whoever is only bound gets no connections; the processes, which listen, do.
    """
    host, port = settings.host, settings.port
    require_free(host, port)
    reserved = socket.socket(_family(host), socket.SOCK_STREAM)
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((host.strip("[]"), port))
    except OSError as error:
        reserved.close()
        raise _taken(host, port) from error
    return reserved


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _taken(host: str, port: int) -> MeshError:
    return MeshError(Reason.SERVICE_UNAVAILABLE, f"cannot listen on {host}:{port}; is the port taken?")


class _Replica:
    """One process and its successors."""

    def __init__(self, name: str, command: Sequence[str], settings: Mapping[str, object], ready_file: Path) -> None:
        self.address = ""
        self._name = name
        self._command = command
        self._settings = dict(settings)
        self._ready_file = ready_file
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> int | None:
        """Begin; None once it runs, its exit code when it ended before."""
        self._ready_file.unlink(missing_ok=True)
        environment = dict(os.environ)
        for name, value in self._settings.items():
            environment[f"{ENV_PREFIX}{name.upper()}"] = str(value)
        self._process = await asyncio.create_subprocess_exec(
            *self._command, env=environment, stdin=asyncio.subprocess.PIPE
        )
        deadline = asyncio.get_running_loop().time() + START_S
        while not self._ready_file.exists():
            if self._process.returncode is not None:
                return self._process.returncode
            if asyncio.get_running_loop().time() > deadline:
                log.error("%s was not running after %.0f s; killing it", self._name, START_S)
                self._process.kill()
                return await self._process.wait()
            await asyncio.sleep(_POLL_S)
        self.address = json.loads(self._ready_file.read_text())["address"]
        # Callers know this address by now: its successors are found there too.
        self._settings["port"] = self.address.rpartition(":")[2]
        return None

    async def keep(self) -> None:
        """Start it again whenever it ends, until cancelled."""
        loop = asyncio.get_running_loop()
        ends, began = 0, loop.time()
        while True:
            assert self._process is not None
            code = await self._process.wait()
            ends = 1 if loop.time() - began > STEADY_S else ends + 1
            pause_s = pause_after(ends)
            if ends < LOOP:
                log.warning("%s ended with %s; starting it again in %.1f s", self._name, _told(code), pause_s)
            else:
                log.error(
                    "%s crashes again and again: %d ends in a row, the last with %s; next try in %.1f s",
                    self._name,
                    ends,
                    _told(code),
                    pause_s,
                )
            await asyncio.sleep(pause_s)
            began = loop.time()
            try:
                if await self.start() is None:
                    log.info("%s is running again at %s", self._name, self.address)
            except OSError as error:  # no memory, no process left: it passes, and nobody else would try again
                log.error("%s cannot be started: %s", self._name, error)
            except Exception:
                log.exception("%s cannot be started", self._name)

    async def stop(self, drain_s: float) -> None:
        """SIGTERM, and SIGKILL when the drain takes too long."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):  # it ended just now
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(drain_s + STOP_MARGIN_S):
                await process.wait()
        except TimeoutError:
            log.error("%s does not end; killing it", self._name)
            process.kill()
            await process.wait()


def pause_after(ends: int) -> float:
    """Seconds before a child that ended so many times in a row is started again."""
    doublings = min(ends - 1, 10)  # a crash loop of a night would not fit into a number
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0**doublings)


def _told(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:  # of the real-time ones only the ends have names
        return f"signal {-code}"


def own_command() -> list[str]:
    """What this process was started as."""
    return [sys.executable, *sys.orig_argv[1:]]


def end_with_parent(stop: asyncio.Event) -> None:
    """In a supervised process: set ``stop`` when the supervisor is gone."""
    loop = asyncio.get_running_loop()

    def readable() -> None:
        if not os.read(sys.stdin.fileno(), 1024):
            loop.remove_reader(sys.stdin.fileno())
            stop.set()

    loop.add_reader(sys.stdin.fileno(), readable)
