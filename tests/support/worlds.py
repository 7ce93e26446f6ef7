"""Services in the test's own process: a launcher for whole meshes, and registry, router, tail and head one by one."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloud.tail.app import build as build_tail
from cloud.tail.config import TailSettings
from edge.agent.app import build as build_agent
from edge.agent.config import AgentSettings
from edge.head.app import SERVICE as HEAD_SERVICE
from edge.head.app import build as build_head
from edge.head.config import HeadSettings
from services.compressor.app import build as build_compressor
from services.compressor.config import CompressorSettings
from services.fleet.app import build as build_fleet
from services.fleet.config import FleetSettings
from services.partitioner.app import build as build_partitioner
from services.partitioner.config import PartitionerSettings
from services.registry.app import build as build_registry
from services.registry.config import RegistrySettings
from services.router.app import build as build_router
from services.router.config import RouterSettings
from splitmesh.client import Answer, AnsweredBy, Mesh
from splitmesh.client.registry import RegistryClient
from splitmesh.client.routing import RoutingClient
from splitmesh.kernel.channels import Channels, open_channel
from splitmesh.kernel.config import ServiceSettings
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.kernel.lifecycle import Build, Host
from tests.support.models import (
    EASY,
    LABELS,
    OTHER_LABELS,
    SECOND_CUT,
    exit_version,
    picture,
    split_version,
    whole_version,
)

ROOT = Path(__file__).parents[2]
MODEL = "parts"
"""Model with an exit: version 1, and version 2 whose labels differ; `production` is version 1."""
NO_EXIT = "no-exit"
WHOLE_ONLY = "whole-only"
BIG = "big"
BIG_SIDE = 544
"""Side of the pictures of `big`, whose features take 2.3 MiB and so travel in three chunks."""
CHAIN = "chain"
"""As `parts` version 1, but in three segments."""
CHAIN_NO_EXIT = "chain-no-exit"
WAIT_S = 20.0

SERVICES: dict[str, tuple[type[ServiceSettings], Build[Any]]] = {
    "registry": (RegistrySettings, build_registry),
    "router": (RouterSettings, build_router),
    "partitioner": (PartitionerSettings, build_partitioner),
    "compressor": (CompressorSettings, build_compressor),
    "fleet": (FleetSettings, build_fleet),
    "tail": (TailSettings, build_tail),
    "head": (HeadSettings, build_head),
    "agent": (AgentSettings, build_agent),
}


class HostedService:
    """A service in this process, as a launcher hands it out."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.address = host.address

    async def stop(self) -> None:
        """Gracefully."""
        await self._host.stop()

    async def kill(self) -> None:
        """As near to a power cut as one process allows: a stop. Tests of real kills use processes."""
        await self._host.stop()


class InProcessLauncher:
    """A :class:`splitmesh.testing.mesh.Launcher` over hosts in this process."""

    async def launch(self, service: str, settings: Mapping[str, str]) -> HostedService:
        """Start it; returns when it runs."""
        settings_type, build = SERVICES[service]
        # As with environment variables, a service ignores settings that are not its own.
        known = {name: value for name, value in settings.items() if name in settings_type.model_fields}
        host = Host(service, settings_type(**known), build)  # type: ignore[arg-type]
        await host.start()
        return HostedService(host)


@dataclass
class World:
    """A control plane with registered models, and whatever a test adds to it."""

    folder: Path
    stack: AsyncExitStack
    addresses: dict[str, str] = field(default_factory=dict)
    hosts: dict[str, Host] = field(default_factory=dict)
    registry: RegistryClient = field(init=False)
    routing: RoutingClient = field(init=False)

    async def start(self, service: str, /, *, name: str = "", **settings: Any) -> Host:
        """Start one service with short time-outs; `name` tells several of one service apart.

        A tail with the setting `service`, as in the middle of a chain, is known to others by that.
        """
        name = name or service
        settings_type, build = SERVICES[service]
        values: dict[str, Any] = {
            "data_dir": self.folder / name,
            "node": f"{name}-1",
            "static_addresses": ",".join(f"{other}={address}" for other, address in self.addresses.items()),
            "drain_s": 2.0,
        }
        if service == "head":
            values |= {"models": MODEL, "default_deadline_ms": 5000, "report_interval_s": 0.1, "switch_wait_s": 5.0}
            values["segment_threads"] = 1  # measuring takes a second of every start; tests of it ask for it
        values = {field: value for field, value in values.items() if field in settings_type.model_fields}
        host = Host(service, settings_type(**{**values, **settings}), build)
        await self.stack.enter_async_context(host)
        self.hosts[name] = host
        self.addresses.setdefault(settings.get("service", service), host.address)
        return host

    async def stop(self, name: str) -> None:
        """Stop one; its address stays known, as in a table."""
        await self.hosts.pop(name).stop()

    async def mesh(self, **options: Any) -> Mesh:
        """A gateway's connection to the head, closed at the end."""
        options = {"deadline_ms": 5000, **options}
        return await self.stack.enter_async_context(Mesh(self.addresses["head"], **options))

    async def ready_mesh(self, **options: Any) -> Mesh:
        """The same, once the head has a model."""
        mesh = await self.mesh(**options)
        await serving(self.addresses["head"])
        return mesh


async def serving(address: str, service: str = HEAD_SERVICE) -> None:
    """Wait until a server reports a service as SERVING."""
    async with open_channel(address) as channel, asyncio.timeout(WAIT_S):
        stub = health_pb2_grpc.HealthStub(channel)
        call = stub.Watch(health_pb2.HealthCheckRequest(service=service), wait_for_ready=True)
        async for response in call:
            if response.status == health_pb2.HealthCheckResponse.SERVING:
                call.cancel()
                return


async def answered_by_version(mesh: Mesh, version: int) -> Answer:
    """The first answer that a version gave; asks again and again."""
    async with asyncio.timeout(WAIT_S):
        while True:
            answer = await mesh.infer(picture(EASY))
            if answer.version == version:
                return answer


async def answered_by(mesh: Mesh, brightness: float, who: AnsweredBy) -> Answer:
    """The first answer to a picture that came from there; asks again and again."""
    async with asyncio.timeout(WAIT_S):
        while True:
            answer = await mesh.infer(picture(brightness))
            if answer.answered_by is who:
                return answer


@asynccontextmanager
async def world(folder: Path, registered: Path | None = None) -> AsyncIterator[World]:
    """Room for services; with ``registered``, a copy of that registry and a router run."""
    async with AsyncExitStack() as stack:
        made = World(folder, stack)
        if registered is not None:
            shutil.copytree(registered, folder / "registry")
            await made.start("registry")
            await made.start("router")
            channels = Channels(StaticDiscovery({name: [address] for name, address in made.addresses.items()}))
            stack.push_async_callback(channels.close)
            made.registry, made.routing = RegistryClient(channels), RoutingClient(channels)
        yield made


async def register_models(folder: Path) -> None:
    """Fill a registry's folder with the models of these tests."""
    async with Host("registry", RegistrySettings(data_dir=folder, min_free_bytes=0), build_registry) as host:
        channels = Channels(StaticDiscovery({"registry": [host.address]}))
        registry = RegistryClient(channels)
        versions = [
            (MODEL, exit_version(labels=LABELS)),
            (MODEL, exit_version(labels=OTHER_LABELS)),
            (NO_EXIT, split_version()),
            (WHOLE_ONLY, whole_version()),
            (BIG, exit_version(BIG_SIDE)),
            (CHAIN, exit_version(further=[[SECOND_CUT]])),
            (CHAIN_NO_EXIT, split_version(further=[[SECOND_CUT]])),
        ]
        for model, artifacts in versions:
            await registry.create_version(model, artifacts, created_by="push")
        for model in (MODEL, NO_EXIT, WHOLE_ONLY, BIG, CHAIN, CHAIN_NO_EXIT):
            await registry.set_alias(model, "production", 1)
        await channels.close()
