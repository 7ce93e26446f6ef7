"""Where the router's objects meet."""

from __future__ import annotations

from datetime import UTC, datetime

from services.router.config import RouterSettings
from services.router.push import FetchOutcomes, PolicyBoard
from services.router.servicer import RoutingServicer
from services.router.store import Tolerance
from services.router.store_sqlite import SqliteStore
from splitmesh.api.routing.v1 import routing_pb2, routing_pb2_grpc
from splitmesh.client.registry import RegistryClient
from splitmesh.kernel.lifecycle import App, Kernel
from splitmesh.kernel.server import Binding
from splitmesh.kernel.streams import Drain
from splitmesh.model.manifest import OUTCOMES

ABOUT = "Computes exit thresholds from a stated tolerance, pushes them to heads and keeps their counts."

SERVICE_NAME = routing_pb2.DESCRIPTOR.services_by_name["RoutingService"].full_name


def build(settings: RouterSettings, kernel: Kernel) -> App:
    """The router, not started."""
    store = SqliteStore(settings.data_dir / "router.sqlite")
    default = Tolerance(settings.default_max_disagreement, settings.default_delta)
    drain = Drain()
    board = PolicyBoard(
        store,
        _fetch_from(RegistryClient(kernel.channels)),
        default,
        max_watchers=settings.max_watchers,
        watch_stream_s=settings.watch_stream_s,
        drain=drain,
    )
    servicer = RoutingServicer(board, store, settings.default_delta, lambda: datetime.now(UTC))
    binding = Binding(
        SERVICE_NAME, lambda server: routing_pb2_grpc.add_RoutingServiceServicer_to_server(servicer, server)
    )
    return App("router", [binding], [store], drain)


def _fetch_from(registry: RegistryClient) -> FetchOutcomes:
    async def fetch(model: str, version: int) -> bytes | None:
        info = await registry.get_version(model, version)
        return await registry.fetch(info, OUTCOMES) if OUTCOMES in info.artifacts else None

    return fetch
