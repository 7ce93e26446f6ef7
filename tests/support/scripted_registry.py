"""A registry that says what a test tells it to, over a real connection."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc

from splitmesh.api.registry.v1.registry_pb2_grpc import (
    RegistryServiceServicer,
    add_RegistryServiceServicer_to_server,
)
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.discovery_static import StaticDiscovery

if TYPE_CHECKING:

    class Scripted:
        """Answers the calls that a subclass defines; all others are UNIMPLEMENTED."""
else:
    Scripted = RegistryServiceServicer


@asynccontextmanager
async def serving(
    servicer: Any, add: Callable[[Any, grpc.aio.Server], None] = add_RegistryServiceServicer_to_server
) -> AsyncIterator[Channels]:
    """Channels to a registry whose calls a :class:`Scripted` answers; ``add`` puts another service of it on the server."""
    server = grpc.aio.server()
    add(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channels = Channels(StaticDiscovery({"registry": [f"127.0.0.1:{port}"]}))
    try:
        yield channels
    finally:
        await channels.close()
        await server.stop(None)
