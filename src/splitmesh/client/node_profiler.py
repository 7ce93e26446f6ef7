"""The client of who can measure: finds heads and tails by name and has pieces of models timed on them."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from splitmesh.api.segment.v1 import segment_pb2, segment_pb2_grpc
from splitmesh.client.transfer import PIECE_BYTES
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels, mesh_errors
from splitmesh.runtime.timing import Timing

DESCRIBE_TIMEOUT_S = 3.0
PROFILE_MARGIN_S = 90.0
"""On top of a piece's budget: its upload, the start of a process, loading it."""


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A head or a tail, as it describes itself."""

    node: str
    service: str
    address: str
    threads: int
    """Inside one operator, unless a caller asks for others."""
    backend: str
    segments: tuple[segment_pb2.LoadedSegment, ...]


class NodeProfiler:
    """Finds nodes and has pieces timed on them."""

    def __init__(self, channels: Channels, services: Sequence[str]) -> None:
        """``services``: names under which nodes that can time pieces are discovered."""
        self._channels = channels
        self._services = tuple(services)

    async def nodes(self) -> list[NodeInfo]:
        """Every node that answers, by name. SERVICE_UNAVAILABLE when discovery does not answer."""
        found = []
        for service in self._services:
            instances = await self._channels.discovery.resolve(service)
            found += [self._describe(service, address) for address in {one.address for one in instances}]
        answers = await asyncio.gather(*found)
        return sorted((info for info in answers if info is not None), key=lambda info: info.node)

    async def find(self, node: str) -> NodeInfo:
        """The node of this name; NODE_NOT_FOUND, with the names there are."""
        known = await self.nodes()
        for info in known:
            if info.node == node:
                return info
        names = ", ".join(info.node for info in known) or "none"
        raise MeshError(
            Reason.NODE_NOT_FOUND,
            f"no {' or '.join(self._services)} named {node!r} answers; known: {names}",
            metadata={"node": node, "known": names},
        )

    async def time_piece(
        self,
        address: str,
        piece: bytes,
        *,
        batch: int,
        threads: int = 0,
        backend: str = "",
        repeats: int = 0,
        budget_s: float = 0.0,
    ) -> tuple[Timing, str]:
        """Times of one ONNX model on the node at ``address``, and its host. Zero and empty: as the node computes.

        Raises what the node refuses with, see SegmentService.Profile, and SERVICE_UNAVAILABLE.
        """
        start = segment_pb2.ProfileStart(
            sha256=(await asyncio.to_thread(hashlib.sha256, piece)).hexdigest(),
            size_bytes=len(piece),
            batch=batch,
            threads=threads,
            backend=backend,
            repeats=repeats,
            budget_s=budget_s,
        )
        async with mesh_errors():
            stub = segment_pb2_grpc.SegmentServiceStub(self._channels.at(address))
            answer = await stub.Profile(_messages(start, piece), timeout=budget_s + PROFILE_MARGIN_S)
        if not all(0 <= ms < math.inf for ms in (answer.median_ms, answer.p90_ms, answer.p99_ms)):
            raise MeshError(
                Reason.PROTOCOL_VIOLATION, f"the node at {address} timed {answer.median_ms} and {answer.p90_ms} ms"
            )
        timing = Timing(answer.median_ms, answer.p90_ms, answer.runs, answer.backend, answer.threads, answer.p99_ms)
        return timing, answer.host

    async def _describe(self, service: str, address: str) -> NodeInfo | None:
        stub = segment_pb2_grpc.SegmentServiceStub(self._channels.at(address))
        try:
            async with mesh_errors():
                answer = await stub.Describe(segment_pb2.DescribeRequest(), timeout=DESCRIBE_TIMEOUT_S)
        except MeshError:
            return None
        return NodeInfo(answer.node, service, address, answer.threads, answer.backend, tuple(answer.segments))


async def _messages(start: segment_pb2.ProfileStart, piece: bytes) -> AsyncIterator[segment_pb2.ProfileRequest]:
    yield segment_pb2.ProfileRequest(start=start)
    for offset in range(0, len(piece), PIECE_BYTES):
        yield segment_pb2.ProfileRequest(data=piece[offset : offset + PIECE_BYTES])
