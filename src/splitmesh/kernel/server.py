"""The gRPC server every service runs: limits, health, reflection by switch, interceptors.

Values are from docs/adr/0005. Knows no service: an app hands in what to serve.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import transport_options
from splitmesh.kernel.config import ServiceSettings
from splitmesh.kernel.interceptors import AroundInterceptor, Deserializer, Serializer
from splitmesh.kernel.supervisor import ReplicaSettings, require_free
from splitmesh.kernel.telemetry import Telemetry

HANDSHAKE_TIMEOUT_MS = 10_000
IDLE_CONNECTION_MS = 5 * 60 * 1000
MIN_PING_INTERVAL_MS = 1000
KEEPALIVE_MS = 10_000
KEEPALIVE_TIMEOUT_MS = 5_000


@dataclass(frozen=True)
class Binding:
    """One gRPC service of an app."""

    name: str
    """Full name, such as ``splitmesh.api.registry.v1.RegistryService``."""
    add: Callable[[grpc.aio.Server], None]
    """Adds the servicer to a server."""
    serving_at_start: bool = True
    """False: the app itself reports SERVING to the health control when it can answer."""
    deserializers: Mapping[str, Deserializer] = field(default_factory=dict)
    """By method name, such as ``Run``: instead of the stubs' own, what a handler gets for the bytes of a request."""
    serializers: Mapping[str, Serializer] = field(default_factory=dict)
    """By method name: instead of the stubs' own, the bytes of what a handler gives as a response."""


class HealthControl:
    """Who is SERVING, as grpc.health.v1 reports it; the empty name stands for the whole process."""

    def __init__(self) -> None:
        self.servicer = health_aio.HealthServicer()

    async def set(self, service: str, serving: bool) -> None:
        """Report one service."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self.servicer.set(service, status)

    async def shut_down(self) -> None:
        """Report everything NOT_SERVING, for good."""
        await self.servicer.enter_graceful_shutdown()


def make_server(
    settings: ServiceSettings, bindings: Sequence[Binding], telemetry: Telemetry, health: HealthControl
) -> tuple[grpc.aio.Server, int]:
    """A server that is bound but not started, and its port. SERVICE_UNAVAILABLE when the port is taken."""
    front_port = settings.front_port if isinstance(settings, ReplicaSettings) else 0
    # Calls that came and are not begun. Above 1,000 gRPC cancels some (measured: 1,047 of 3,500 at once); how many may be at
    # work is bounded below.
    pending = max(1000, settings.max_concurrent_rpcs)
    options = [
        *transport_options(settings.max_frame_bytes),
        # Off, so that a second server on a taken port fails instead of silently sharing it; on where that is meant.
        ("grpc.so_reuseport", int(bool(front_port))),
        ("grpc.max_concurrent_streams", settings.max_concurrent_streams),
        ("grpc.server.max_pending_requests", pending),
        ("grpc.server.max_pending_requests_hard_limit", 3 * pending),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
        ("grpc.max_connection_idle_ms", IDLE_CONNECTION_MS),
        # A client that vanished without closing holds streams and credit until it is noticed.
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        # Must ship with the client's keepalive, or its pings end in GOAWAY.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
    ]
    around = AroundInterceptor(
        telemetry,
        settings.default_deadline_s,
        deserializers={f"/{one.name}/{method}": use for one in bindings for method, use in one.deserializers.items()},
        serializers={f"/{one.name}/{method}": use for one in bindings for method, use in one.serializers.items()},
    )
    server = grpc.aio.server(
        options=options,
        interceptors=[around],
        maximum_concurrent_rpcs=settings.max_concurrent_rpcs,
    )
    for binding in bindings:
        binding.add(server)
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    if settings.reflection:
        names = [binding.name for binding in bindings]
        reflection.enable_server_reflection(
            [*names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME], server
        )
    if front_port:
        # The server may share its front port, and with it any other.
        require_free(settings.host, settings.port)
        _listen(server, settings.host, front_port)
    return server, _listen(server, settings.host, settings.port)


def _listen(server: grpc.aio.Server, host: str, port: int) -> int:
    try:
        return int(server.add_insecure_port(f"{host}:{port}"))
    except RuntimeError as error:
        raise MeshError(Reason.SERVICE_UNAVAILABLE, f"cannot listen on {host}:{port}; is the port taken?") from error
