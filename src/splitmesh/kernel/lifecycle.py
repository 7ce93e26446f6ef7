"""How a service lives: New → Starting → Running → Stopping → Terminated | Failed.

Start: telemetry, discovery, build the app, start its parts, bind, SERVING, register, ready file.
Stop (SIGTERM, SIGINT, or a part that gives up): NOT_SERVING, deregister, drain, close, flush. Used by the processes and, in
tests, in-process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, TypeVar
from uuid import uuid4

import grpc
from pydantic import ValidationError

from splitmesh.errors import MeshError
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.config import ServiceSettings, describe_settings
from splitmesh.kernel.discovery import Discovery, Instance
from splitmesh.kernel.discovery_consul import ConsulDiscovery, GrpcCheck
from splitmesh.kernel.discovery_static import StaticDiscovery, parse_static
from splitmesh.kernel.memory import keep_freed_memory, settle
from splitmesh.kernel.registering import Registering
from splitmesh.kernel.server import Binding, HealthControl, make_server
from splitmesh.kernel.streams import Drain
from splitmesh.kernel.supervisor import ReplicaSettings, Supervisor, end_with_parent, own_command
from splitmesh.kernel.telemetry import Telemetry, configure_logging

log = logging.getLogger(__name__)

S = TypeVar("S", bound=ServiceSettings)
SettingsT = TypeVar("SettingsT", bound=ServiceSettings, contravariant=True)


class State(StrEnum):
    """Where a service stands."""

    NEW = "new"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    TERMINATED = "terminated"
    FAILED = "failed"


class Part(Protocol):
    """Something of an app with a life of its own: a store, a watcher, a batcher."""

    async def start(self) -> None:
        """Ready when it returns."""
        ...

    async def stop(self) -> None:
        """Finishes what it has accepted, then lets go; safe to call after a failed start."""
        ...


@dataclass(frozen=True)
class Kernel:
    """What the kernel gives to an app."""

    telemetry: Telemetry
    channels: Channels
    health: HealthControl
    give_up: Callable[[MeshError], None] = lambda _error: None
    """For a part that can never go on: the service stops and its process ends with 1, so that whoever runs it starts it anew."""


@dataclass(frozen=True)
class App:
    """What a service's ``build`` returns."""

    name: str
    """Short name: the folder, the Consul name without prefix, the OTel service.name without prefix."""
    bindings: Sequence[Binding]
    parts: Sequence[Part] = field(default_factory=tuple)
    """Started in this order before the port is bound, stopped in reverse after the server has drained."""
    drain: Drain = field(default_factory=Drain)
    """What long-lived streams of this app listen to, so that they end by themselves at a stop."""


class Build(Protocol[SettingsT]):
    """The only place where an app's objects meet."""

    def __call__(self, settings: SettingsT, kernel: Kernel) -> App:
        """The app, not started."""
        ...


def make_discovery(settings: ServiceSettings) -> Discovery:
    """The discovery the settings ask for."""
    if settings.discovery == "consul":
        check = GrpcCheck(interval_s=settings.consul_check_interval_s)
        return ConsulDiscovery(settings.consul_address, token=settings.consul_token or None, check=check)
    return StaticDiscovery(parse_static(settings.static_addresses))


class Host:
    """One service in this process; ``async with Host(...) as host: host.address``."""

    def __init__(self, name: str, settings: S, build: Build[S], *, telemetry: Telemetry | None = None) -> None:
        self.state = State.NEW
        self.address = ""
        self._name = name
        self._settings = settings
        self._build: Callable[[Kernel], App] = lambda kernel: build(settings, kernel)
        self._telemetry = telemetry
        self._stop_steps: list[Callable[[], Awaitable[None]]] = []
        self._given_up = asyncio.Event()

    async def start(self) -> None:
        """Running when it returns; on failure everything started so far is stopped again."""
        self.state = State.STARTING
        try:
            await self._start()
        except BaseException:
            await self._unwind()
            self.state = State.FAILED
            raise
        self.state = State.RUNNING
        log.info("%s is running at %s", self._name, self.address)

    async def _start(self) -> None:
        settings = self._settings
        if self._telemetry is None:
            telemetry = Telemetry(self._name, node=settings.node, otlp_endpoint=settings.otlp_endpoint)
            self._stop_steps.append(lambda: asyncio.to_thread(telemetry.shutdown))
        else:
            telemetry = self._telemetry
        discovery = make_discovery(settings)
        self._stop_steps.append(discovery.close)
        channels = Channels(discovery, max_frame_bytes=settings.max_frame_bytes)
        self._stop_steps.append(channels.close)
        health = HealthControl()
        app = self._build(Kernel(telemetry, channels, health, self._give_up))
        for binding in app.bindings:
            await health.set(binding.name, False)
        for part in app.parts:
            self._stop_steps.append(part.stop)
            await part.start()
        server, port = make_server(settings, app.bindings, telemetry, health)
        await server.start()
        self._stop_steps.append(lambda: _stop_server(server, app.drain, settings.drain_s))
        self.address = f"{_reachable_host(settings)}:{port}"
        await health.set("", True)
        for binding in app.bindings:
            if binding.serving_at_start:
                await health.set(binding.name, True)
        own = (isinstance(settings, ReplicaSettings) and settings.supervised) or uuid4().hex[:8]
        instance = Instance(app.name, f"{app.name}-{settings.node}-{own}", self.address)
        registering = Registering(discovery, instance)
        self._stop_steps.append(registering.stop)
        self._stop_steps.append(health.shut_down)
        await registering.start()

    async def given_up(self) -> None:
        """Returns when a part has given up."""
        await self._given_up.wait()

    def _give_up(self, error: MeshError) -> None:
        if not self._given_up.is_set():
            log.error("%s cannot go on and stops: %s", self._name, error)
            self._given_up.set()

    async def stop(self) -> None:
        """Drain and stop; safe to call twice."""
        if self.state is State.RUNNING:
            self.state = State.STOPPING
            await self._unwind()
            self.state = State.TERMINATED
            log.info("%s has stopped", self._name)

    async def _unwind(self) -> None:
        # Reverse order of starting: NOT_SERVING, deregister, drain, parts, channels, discovery, telemetry.
        while self._stop_steps:
            step = self._stop_steps.pop()
            try:
                await step()
            except Exception:
                log.exception("a step of stopping %s failed; going on", self._name)

    async def __aenter__(self) -> Host:
        """Start."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop."""
        await self.stop()


async def _stop_server(server: grpc.aio.Server, drain: Drain, drain_s: float) -> None:
    """Streams end by themselves, then calls; both within the one ``drain_s``."""
    loop = asyncio.get_running_loop()
    until = loop.time() + drain_s
    await drain.drain(drain_s)
    await server.stop(max(0.0, until - loop.time()))


def _reachable_host(settings: ServiceSettings) -> str:
    if settings.advertise_host:
        return settings.advertise_host
    return socket.gethostname() if settings.host in ("0.0.0.0", "::", "[::]") else settings.host


def _write_ready_file(settings: ServiceSettings, address: str) -> None:
    if settings.ready_file is not None:
        temporary = settings.ready_file.with_suffix(".tmp")
        temporary.write_text(json.dumps({"address": address, "pid": os.getpid()}))
        temporary.replace(settings.ready_file)


async def _serve(name: str, settings: S, build: Build[S]) -> int:
    """Until a signal says to stop; the exit code."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if isinstance(settings, ReplicaSettings):
        if settings.processes > 1:
            return await Supervisor(name, own_command(), settings).run(stop)
        if settings.supervised:
            end_with_parent(stop)
    host = Host(name, settings, build)
    starting = asyncio.create_task(host.start())
    await _until_one_is_done(starting, asyncio.create_task(stop.wait()))
    if stop.is_set() and host.state is not State.RUNNING:
        log.info("%s was stopped before it ran", name)
        return 0
    starting.result()
    try:
        settle()
        _write_ready_file(settings, host.address)
        giving_up = asyncio.create_task(host.given_up())
        await _until_one_is_done(giving_up, asyncio.create_task(stop.wait()))
        return 1 if giving_up.done() and not giving_up.cancelled() else 0
    finally:
        await host.stop()


async def _until_one_is_done(*tasks: asyncio.Task[Any]) -> None:
    """Those that are not done by then are cancelled, and over when it returns."""
    _, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def main(name: str, settings_type: type[S], build: Build[S], about: str) -> None:
    """Entry point of ``python -m services.NAME``: settings come from the environment. Exits 2 on bad settings.

    A service whose settings are :class:`ReplicaSettings` runs in as many processes as they say.
    """
    parser = argparse.ArgumentParser(
        prog=name,
        description=about + "\n\nSettings (environment):\n" + describe_settings(settings_type),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    try:
        settings = settings_type()
    except ValidationError as error:
        print(f"{name}: bad settings\n{error}", file=sys.stderr)
        raise SystemExit(2) from error
    configure_logging(name, settings.log_level)
    keep_freed_memory()
    try:
        code = asyncio.run(_serve(name, settings, build))
    except MeshError as error:
        log.error("%s cannot run: %s", name, error)
        raise SystemExit(1) from error
    if code:
        raise SystemExit(code)
