"""Messages of a Run stream to whole frames: the order of messages, chunk counts and sizes, before anything is decoded.

A frame that breaks a rule becomes a :class:`Broken` and the stream goes on; a stream that cannot be followed any more
(a chunk without a header, a second open) ends with PROTOCOL_VIOLATION.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from splitmesh.api.segment.v1 import segment_pb2
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.streams import Cancel
from splitmesh.kernel.tensors import header_from_message
from splitmesh.kernel.wire import Lifted
from splitmesh.tensor import Frame, TensorLimits
from splitmesh.tensor.framing import check_header
from splitmesh.tensor.spec import Buffer

CHUNK_TIMEOUT_S = 10.0
"""Between two chunks of one frame."""

Requests = AsyncIterator[Lifted[segment_pb2.RunRequest]]


@dataclass(frozen=True, slots=True)
class Whole:
    """A complete frame, not yet decoded."""

    frame_id: int
    frame: Frame
    """Its header names no tensors where they are what the version states for the cut, one sample of it."""
    trace_context: bytes
    deadline_ms: int


@dataclass(frozen=True, slots=True)
class Broken:
    """A frame that will not be decoded, and why."""

    frame_id: int
    error: MeshError


async def assemble(requests: Requests, limits: TensorLimits) -> AsyncIterator[Whole | Broken | Cancel]:
    """Frames, and what is said about them, in the order of arrival, after ``open`` was read."""
    async for request in requests:
        message = request.message
        kind = message.WhichOneof("message")
        if kind == "cancel":
            yield Cancel(message.cancel.frame_id)
        elif kind == "frame":
            yield await _frame(message.frame, request.blobs[0], requests, limits)
        else:
            raise MeshError(Reason.PROTOCOL_VIOLATION, f"expected a frame, got {kind or 'an empty message'}")
        del request, message  # large: not to be kept until the next one comes


async def _frame(
    message: segment_pb2.SegmentFrame, payload: Buffer, requests: Requests, limits: TensorLimits
) -> Whole | Broken:
    try:
        header = header_from_message(message.header)
        check_header(header, limits)
    except MeshError as error:
        # The chunks that were announced are still under way and have to be read past.
        await _skip(requests, range(message.header.chunk_count))
        return Broken(message.frame_id, error)
    if header.chunk_count:
        chunks: list[Buffer] = []
        size = 0
        for index in range(header.chunk_count):
            chunk = await _chunk(requests, index)
            size += len(chunk)
            if size > header.size_bytes:
                await _skip(requests, range(index + 1, header.chunk_count))
                problem = f"the chunks exceed the {header.size_bytes} bytes announced"
                return Broken(message.frame_id, MeshError(Reason.TENSOR_SIZE_MISMATCH, problem))
            chunks.append(chunk)
        payload = b"".join(chunks)
    return Whole(message.frame_id, Frame(header, payload), message.trace_context, message.deadline_ms)


async def _chunk(requests: Requests, index: int) -> Buffer:
    try:
        async with asyncio.timeout(CHUNK_TIMEOUT_S):
            request = await anext(requests, None)
    except TimeoutError as error:
        raise MeshError(Reason.DEADLINE_EXPIRED, f"chunk {index} did not come within {CHUNK_TIMEOUT_S:g} s") from error
    if request is None or request.message.WhichOneof("message") != "chunk" or request.message.chunk.index != index:
        raise MeshError(Reason.PROTOCOL_VIOLATION, f"expected chunk {index} of the frame announced before")
    return request.blobs[0]


async def _skip(requests: Requests, chunks: range) -> None:
    for index in chunks:
        await _chunk(requests, index)
