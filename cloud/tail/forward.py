"""On to the next hop of a chain: a node in the middle packs what its segment gave and asks a node that runs the next.

One link per stream that was accepted, so that the heads of a middle node do not take each other's credit, and so that
"accepted" means that everything behind this node has accepted too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from opentelemetry.trace import Span as OtelSpan

from cloud.tail.config import TailSettings
from cloud.tail.segments import Loaded
from splitmesh.api.segment.v1 import segment_pb2
from splitmesh.client.segment import SegmentLink
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.signals import Attr, Span
from splitmesh.kernel.telemetry import Telemetry, trace_context_of
from splitmesh.tensor import pack
from splitmesh.tensor.spec import Array

INLINE_BYTES = 64 * 1024
"""More is packed, checked and unpacked in a thread: other streams and health checks must not wait for it."""


@dataclass(frozen=True, slots=True)
class Relayed:
    """The chain's outputs for one frame, and what every later segment did for it."""

    outputs: Mapping[str, Array]
    hops: tuple[segment_pb2.Hop, ...]


class Onward:
    """From one stream's frames to the next segment."""

    def __init__(self, link: SegmentLink, loaded: Loaded, codec: str, telemetry: Telemetry) -> None:
        self._link = link
        self._names = [spec.name for spec in loaded.onward]
        self._codec = codec
        self._telemetry = telemetry

    async def run(self, outputs: Mapping[str, Array], *, parent: OtelSpan, expires: float) -> Relayed:
        """The end of the chain for one frame; ``expires`` is on the loop's clock.

        Raises what :meth:`SegmentLink.run` raises: the reason is that of the node that failed, however far behind.
        """
        loop = asyncio.get_running_loop()
        with self._telemetry.span(Span.TAIL_FORWARD, parent=parent) as span:
            tensors = [(name, outputs[name]) for name in self._names]
            begun = loop.time()
            if sum(array.nbytes for _, array in tensors) > INLINE_BYTES:
                frame = await asyncio.to_thread(pack, tensors, self._codec)
            else:
                frame = pack(tensors, self._codec)
            packing_ms = (loop.time() - begun) * 1000
            left_s = expires - loop.time()
            if left_s <= 0:
                raise MeshError(Reason.DEADLINE_EXPIRED, "no time is left to ask the next segment")
            span.set_attribute(Attr.UPLINK_BYTES, len(frame.payload))
            result = await self._link.run(frame, trace_context=trace_context_of(span), deadline_s=left_s)
        hop = segment_pb2.Hop(
            node=result.node,
            link_ms=packing_ms + max(0.0, result.links_ms - sum(later.link_ms for later in result.onward)),
            queue_ms=result.queue_ms,
            compute_ms=result.compute_ms,
            uplink_bytes=len(frame.payload),
        )
        return Relayed(result.outputs, (hop, *result.onward))


@asynccontextmanager
async def onward(
    loaded: Loaded, channels: Channels, settings: TailSettings, telemetry: Telemetry, *, priority: int
) -> AsyncIterator[Onward | None]:
    """The way on from a segment, accepted by a next node; None where the segment is the last. ``priority`` is that of the
    stream's frames here, and holds there too.

    Raises MeshError NOT_READY when no next node accepts within ``next_wait_s``.
    """
    if not loaded.onward:
        yield None
        return
    link = SegmentLink(
        channels,
        loaded.model,
        loaded.version,
        settings.node,
        service=settings.next_service,
        segment=loaded.segment + 1,
        wire=loaded.onward,
        priority=priority,
    )
    try:
        await link.start()
        if not await link.wait_accepted(settings.next_wait_s):
            raise MeshError(
                Reason.NOT_READY,
                f"no {settings.next_service!r} accepts segment {loaded.segment + 1} of {loaded.model} version "
                f"{loaded.version}",
                retry_after_s=1.0,
            )
        yield Onward(link, loaded, settings.codec, telemetry)
    finally:
        await link.stop()
