"""Channels to other services: one per address, with keepalive, capped back-off, size limits, a deadline on every call.

The values were measured (docs/adr/0005): a dead link is seen in about 3 s, and a healed one is used within 1 s.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.discovery import Discovery
from splitmesh.kernel.errors import from_rpc_error

DEFAULT_CALL_DEADLINE_S = 10.0
MESSAGE_HEADROOM_BYTES = 1 << 20
"""A message is a frame plus its header; the transport's limit is this much above the frame limit, so that a frame
slightly too large is refused by us, with a reason."""

IDEMPOTENT = (
    (
        "splitmesh.api.registry.v1.RegistryService",
        (
            "GetUpload",
            "FindMissing",
            "MakeDelta",
            "ApplyDelta",
            "GetVersion",
            "ListModels",
            "ListVersions",
            "HoldVersion",
            "ReleaseVersion",
            "CollectGarbage",
            "AddSignature",
            "SetAlias",
            "ListAliasMoves",
            "PutKeyring",
            "ListKeyrings",
            "ListEvents",
            "PutProfile",
            "ListProfiles",
        ),
    ),
    (
        "splitmesh.api.datasets.v1.DatasetService",
        ("GetDatasetVersion", "ListDatasets", "ListDatasetVersions"),
    ),
    ("splitmesh.api.segment.v1.SegmentService", ("Describe",)),
    ("splitmesh.api.serving.v1.ServingService", ("Assign", "Withdraw", "SetHostPolicy")),
    (
        "splitmesh.api.routing.v1.RoutingService",
        (
            "GetPolicy",
            "SetGoals",
            "GetGoals",
            "Decide",
            "SetSite",
            "GetShares",
            "ReportOutcomes",
            "GetOutcomes",
            "GetDrift",
            "ResolveDrift",
        ),
    ),
    (
        "splitmesh.api.samples.v1.SampleService",
        ("ListSamples", "GetSample", "LabelSample", "GetSampleCounts"),
    ),
    ("splitmesh.api.compression.v1.CompressionService", ("ListCompressions", "CancelCompression", "GetReport")),
    (
        "splitmesh.api.fleet.v1.FleetService",
        (
            "CommitRecords",
            "ListRecords",
            "ListNodes",
            "GetNode",
            "SetNodeLabels",
            "SetHostPolicy",
            "ListTasks",
            "CancelTask",
            "GetDeployment",
            "ListDeployments",
            "PauseDeployment",
        ),
    ),
)
"""Unary methods that may be sent twice; only these are retried, on UNAVAILABLE."""


def transport_options(max_frame_bytes: int) -> list[tuple[str, int]]:
    """Options that client and server share."""
    limit = max_frame_bytes + MESSAGE_HEADROOM_BYTES
    return [
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", limit),
        ("grpc.max_metadata_size", 16 * 1024),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def _service_config() -> str:
    names = [{"service": service, "method": method} for service, methods in IDEMPOTENT for method in methods]
    policy = {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": policy}]})


READ_AHEAD_BYTES = 64 * 1024
PACED = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", READ_AHEAD_BYTES))
"""Without the probe, which finds out what a link can carry and has up to 16 MiB sent before anybody reads (measured: 12 MB
within a second to a reader of 1 MB/s), what is on its way to a slow reader is the message that it waits for and little more."""


WATCHED = (("grpc.http2.ping_timeout_ms", 1500),)
"""For streams whose end must be seen although nobody answers. A ping goes out when nothing came for two seconds, and gRPC waits
60 s for its answer unless told otherwise here, whatever the keepalive's own time-out says: that one bounds the wait for TCP's
acknowledgements, which a proxy or a suspended peer gives (measured with grpcio 1.85: a stream on a link that swallows
everything ends after 3 s with this option and not within 15 s without). Not for uploads: on a narrow link a ping's answer waits
behind what is on its way."""


class _Deadline(grpc.aio.UnaryUnaryClientInterceptor):
    """Gives a deadline to a unary call that has none."""

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        """Called by grpc."""
        if client_call_details.timeout is None:
            client_call_details = client_call_details._replace(timeout=DEFAULT_CALL_DEADLINE_S)
        return await continuation(client_call_details, request)


def open_channel(
    address: str, *, max_frame_bytes: int = 32 * 1024 * 1024, more: Sequence[tuple[str, int]] = ()
) -> grpc.aio.Channel:
    """A channel to ``host:port``, with ``more`` options; connects when first used."""
    options: list[tuple[str, Any]] = [
        *transport_options(max_frame_bytes),
        *more,
        ("grpc.keepalive_time_ms", 2000),
        ("grpc.keepalive_timeout_ms", 1000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 500),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.service_config", _service_config()),
        # Two channels to one address must not share a connection: a test or a second tenant may close one of them.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    return grpc.aio.insecure_channel(address, options=options, interceptors=[_Deadline()])


class _MeshErrors:
    # Not a generator: around a `yield` that is never resumed, a generator's clean-up fails.
    async def __aenter__(self) -> None:
        """Nothing to prepare."""

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Translate."""
        if isinstance(error, grpc.RpcError):
            raise from_rpc_error(error) from error


def mesh_errors() -> AbstractAsyncContextManager[None]:
    """Turns a failed call inside the block into the MeshError behind it."""
    return _MeshErrors()


class Channels:
    """Channels by service name, found through discovery; one channel per address, kept until closed.

    Who keeps a stream to one address holds a channel instead, one for all holders, closed by the last to leave.
    """

    def __init__(
        self,
        discovery: Discovery,
        *,
        max_frame_bytes: int = 32 * 1024 * 1024,
        more: Sequence[tuple[str, int]] = (),
    ) -> None:
        self._discovery = discovery
        self._max_frame_bytes = max_frame_bytes
        self._more = more
        self._paced: Channels | None = None
        self._open: dict[str, grpc.aio.Channel] = {}
        self._held: dict[str, tuple[grpc.aio.Channel, int]] = {}
        self._turn = 0

    @property
    def discovery(self) -> Discovery:
        """Who knows the addresses."""
        return self._discovery

    def paced(self) -> Channels:
        """Channels of their own to the same services, for who reads slowly to spare the link; closed with these."""
        if self._paced is None:
            self._paced = Channels(self._discovery, max_frame_bytes=self._max_frame_bytes, more=PACED)
        return self._paced

    async def to(self, service: str) -> grpc.aio.Channel:
        """A channel to a healthy instance of the service (in turn); SERVICE_UNAVAILABLE when there is none."""
        instances = await self._discovery.resolve(service)
        if not instances:
            raise MeshError(
                Reason.SERVICE_UNAVAILABLE, f"no healthy instance of {service!r} is known", retry_after_s=1.0
            )
        self._turn += 1
        return self.at(instances[self._turn % len(instances)].address)

    def at(self, address: str) -> grpc.aio.Channel:
        """The channel to one address."""
        channel = self._open.get(address)
        if channel is None:
            channel = self._open[address] = self._channel(address)
        return channel

    @asynccontextmanager
    async def hold(self, address: str) -> AsyncIterator[grpc.aio.Channel]:
        """The channel shared by all who hold one to this address, ``WATCHED``; closed when the last block ends."""
        channel, holders = self._held.get(address) or (self._channel(address, WATCHED), 0)
        self._held[address] = (channel, holders + 1)
        try:
            yield channel
        finally:
            _, holders = self._held.pop(address)
            if holders > 1:
                self._held[address] = (channel, holders - 1)
            else:
                await channel.close()

    async def forget(self, addresses: Sequence[str]) -> None:
        """Close the channels to addresses that are gone."""
        for address in addresses:
            channel = self._open.pop(address, None)
            if channel is not None:
                await channel.close()

    async def close(self) -> None:
        """Close all; a held channel too, though its holders have yet to leave."""
        await self.forget(list(self._open))
        for channel, _ in list(self._held.values()):
            await channel.close()
        if self._paced is not None:
            await self._paced.close()

    def _channel(self, address: str, more: Sequence[tuple[str, int]] = ()) -> grpc.aio.Channel:
        return open_channel(address, max_frame_bytes=self._max_frame_bytes, more=(*self._more, *more))
