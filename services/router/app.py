"""Where the router's objects meet."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from services.router.config import RouterSettings
from services.router.drift.board import DriftBoard
from services.router.drift.store_sqlite import SqliteDriftStore
from services.router.goals import Goals
from services.router.parts import PartsCache, parts_from
from services.router.push import FetchOutcomes, PolicyBoard
from services.router.servicer import RoutingServicer
from services.router.shares.board import ShareBoard
from services.router.store_sqlite import SqliteStore
from splitmesh.api.routing.v1 import routing_pb2, routing_pb2_grpc
from splitmesh.client.registry import RegistryClient
from splitmesh.client.trust import registry_client
from splitmesh.kernel.lifecycle import App, Kernel
from splitmesh.kernel.server import Binding
from splitmesh.kernel.streams import Drain
from splitmesh.model.manifest import OUTCOMES

ABOUT = (
    "Computes from stated goals which samples are hard, pushes that to heads, shares their uplinks, watches for drift, and keeps "
    "their counts."
)

SERVICE_NAME = routing_pb2.DESCRIPTOR.services_by_name["RoutingService"].full_name


def build(settings: RouterSettings, kernel: Kernel) -> App:
    """The router, not started."""
    registry = registry_client(settings, kernel.channels)
    store = SqliteStore(settings.data_dir / "router.sqlite")
    parts = PartsCache(parts_from(registry))
    default = Goals(settings.default_max_disagreement, settings.default_delta, settings.default_audit_share)
    drain = Drain()
    board = PolicyBoard(
        store,
        _fetch_from(registry),
        default,
        overrides=lambda model, version, goals: drift.overrides(model, version, goals),
        max_watchers=settings.max_watchers,
        watch_stream_s=settings.watch_stream_s,
        drain=drain,
    )
    drift = DriftBoard(
        SqliteDriftStore(settings.data_dir / "drift.sqlite"),
        board.goals_of,
        board.recompute,
        now=_now,
        max_watchers=settings.max_watchers,
        watch_stream_s=settings.watch_stream_s,
        drain=drain,
        labels_of=parts.labels_of,
    )
    shares = ShareBoard(
        store,
        interval_s=settings.share_interval_s,
        max_backlog_ms=settings.max_backlog_ms,
        max_sharers=settings.max_sharers,
        clock=time.monotonic,
    )
    servicer = RoutingServicer(board, parts, shares, drift, store, default=default, now=_now, drain=drain)
    binding = Binding(
        SERVICE_NAME, lambda server: routing_pb2_grpc.add_RoutingServiceServicer_to_server(servicer, server)
    )
    return App("router", [binding], [store, drift, shares], drain)


def _now() -> datetime:
    return datetime.now(UTC)


def _fetch_from(registry: RegistryClient) -> FetchOutcomes:
    async def fetch(model: str, version: int) -> bytes | None:
        info = await registry.get_version(model, version)
        return await registry.fetch(info, OUTCOMES) if OUTCOMES in info.artifacts else None

    return fetch
