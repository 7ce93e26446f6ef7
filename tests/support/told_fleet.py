"""A fleet that says to operators what a test tells it to, over a real connection and with the errors of a real service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from splitmesh.api.fleet.v1 import fleet_pb2, fleet_pb2_grpc
from splitmesh.errors import MeshError
from splitmesh.kernel.config import ServiceSettings
from splitmesh.kernel.lifecycle import App, Host, Kernel
from splitmesh.kernel.server import Binding
from splitmesh.kernel.streams import Drain

SERVICE = "splitmesh.api.fleet.v1.FleetService"


@dataclass
class ToldFleet:
    """Answers by method: a message, an error, or a function of the request; streams are told one after the other."""

    answers: dict[str, Any] = field(default_factory=dict)
    streams: dict[str, list[list[Any]]] = field(default_factory=dict)
    """For each call of a watch what it says: messages, at last an error, or ``...`` when it goes on without news."""
    requests: list[tuple[str, Any]] = field(default_factory=list)

    def asked(self, method: str) -> list[Any]:
        """Requests of one method."""
        return [request for name, request in self.requests if name == method]

    async def unary(self, method: str, request: Any) -> Any:
        """Called by the server."""
        self.requests.append((method, request))
        answer = self.answers[method]
        if isinstance(answer, Callable):  # type: ignore[arg-type]
            answer = answer(request)
        if isinstance(answer, MeshError):
            raise answer
        return answer

    async def stream(self, method: str, request: Any) -> AsyncIterator[Any]:
        """Called by the server."""
        self.requests.append((method, request))
        for one in self.streams[method].pop(0):
            if isinstance(one, MeshError):
                raise one
            if one is ...:
                await asyncio.Event().wait()
            yield one

    def build(self, settings: ServiceSettings, kernel: Kernel) -> App:
        """A ``Build`` for a host."""
        servicer = _servicer(self)

        def add(server: Any) -> None:
            fleet_pb2_grpc.add_FleetServiceServicer_to_server(servicer, server)

        return App("fleet", [Binding(SERVICE, add)], (), Drain())


def _servicer(told: ToldFleet) -> fleet_pb2_grpc.FleetServiceServicer:
    """Every method of the service by the table; a class made here, since the methods are those of the proto."""
    methods: dict[str, Any] = {}
    for method in fleet_pb2.DESCRIPTOR.services_by_name["FleetService"].methods:
        methods[method.name] = (_watching if method.server_streaming else _answering)(told, method.name)
    made: fleet_pb2_grpc.FleetServiceServicer = type("Told", (fleet_pb2_grpc.FleetServiceServicer,), methods)()
    return made


def _answering(told: ToldFleet, method: str) -> Any:
    async def answer(self: Any, request: Any, context: Any) -> Any:
        return await told.unary(method, request)

    return answer


def _watching(told: ToldFleet, method: str) -> Any:
    async def watch(self: Any, request: Any, context: Any) -> AsyncIterator[Any]:
        async for one in told.stream(method, request):
            yield one

    return watch


@asynccontextmanager
async def told_fleet(told: ToldFleet) -> AsyncIterator[str]:
    """The address at which it answers."""
    async with Host("fleet", ServiceSettings(), told.build) as host:
        yield host.address
