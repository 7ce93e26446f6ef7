"""Speaking the protocols by hand, as no client of ours would: raw streams to a head and to a tail, and broken pictures."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest

from splitmesh.api.inference.v1 import inference_pb2, inference_pb2_grpc
from splitmesh.api.segment.v1 import segment_pb2, segment_pb2_grpc
from splitmesh.errors import MeshError
from splitmesh.kernel.channels import open_channel
from splitmesh.kernel.errors import ended_stream_error, from_status
from splitmesh.kernel.tensors import header_to_message
from splitmesh.tensor import Frame, chunks, pack
from splitmesh.tensor.spec import Array
from tests.support.models import CUT, HARD, features

_GREY = 1

WAIT_S = 20.0


def bomb_png(width: int, height: int) -> bytes:
    """A small PNG whose header declares a huge picture."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks_ = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks_)
    return b"\x89PNG\r\n\x1a\n" + body


@dataclass
class Raw:
    """A stream held by hand; every wait has a deadline."""

    call: Any

    async def write(self, message: Any) -> None:
        async with asyncio.timeout(WAIT_S):
            await self.call.write(message)

    async def read(self) -> Any:
        """The next message. Raises the MeshError that ended the stream."""
        async with asyncio.timeout(WAIT_S):
            try:
                message = await self.call.read()
            except grpc.RpcError:
                message = grpc.aio.EOF
            if message is grpc.aio.EOF:
                raise await ended_stream_error(self.call, "the server")
            return message

    async def end(self) -> None:
        """Half-close."""
        async with asyncio.timeout(WAIT_S):
            await self.call.done_writing()


@asynccontextmanager
async def run_stream(
    address: str,
    model: str,
    version: int = 1,
    *,
    segment: int = 0,
    priority: int = 0,
    max_frame_bytes: int = 32 << 20,
) -> AsyncIterator[Raw]:
    """A Run stream that the tail has accepted."""
    async with open_channel(address, max_frame_bytes=max_frame_bytes) as channel:
        raw = Raw(segment_pb2_grpc.SegmentServiceStub(channel).Run())
        opening = segment_pb2.Open(model=model, version=version, node="test", segment=segment, priority=priority)
        await raw.write(segment_pb2.RunRequest(open=opening))
        accepted = await raw.read()
        assert accepted.WhichOneof("message") == "accepted"
        yield raw
        raw.call.cancel()


@asynccontextmanager
async def infer_stream(address: str, *, max_frame_bytes: int = 32 << 20) -> AsyncIterator[Raw]:
    """A StreamInfer stream, accepted."""
    async with open_channel(address, max_frame_bytes=max_frame_bytes) as channel:
        raw = Raw(inference_pb2_grpc.InferenceServiceStub(channel).StreamInfer())
        assert (await raw.read()).WhichOneof("message") == "accepted"
        yield raw
        raw.call.cancel()


def packed(brightness: float = HARD, *, codec: str = "zstd", **other: Array) -> Frame:
    """The features of a picture as a frame, or other tensors by name."""
    return pack(list((other or {CUT: features(brightness)}).items()), codec)


def frame_messages(
    frame: Frame, frame_id: int = 1, *, deadline_ms: int = 10_000, trace_context: bytes = b"", **changes: Any
) -> list[segment_pb2.RunRequest]:
    """What a head would send for a frame; ``changes`` overwrite fields of its header."""
    header = header_to_message(frame.header)
    for name, value in changes.items():
        setattr(header, name, value)
    head = segment_pb2.SegmentFrame(
        frame_id=frame_id,
        header=header,
        payload=b"" if frame.header.chunk_count else bytes(frame.payload),
        trace_context=trace_context,
        deadline_ms=deadline_ms,
    )
    pieces = [chunk_message(index, data) for index, data in enumerate(chunks(frame))]
    return [segment_pb2.RunRequest(frame=head), *pieces]


def chunk_message(index: int, data: bytes) -> segment_pb2.RunRequest:
    """A piece of a payload."""
    return segment_pb2.RunRequest(chunk=segment_pb2.Chunk(index=index, data=data))


async def send(raw: Raw, messages: Iterable[segment_pb2.RunRequest]) -> None:
    """Write them all."""
    for message in messages:
        await raw.write(message)


def frame_error(message: Any) -> tuple[int, MeshError]:
    """Frame and error of a refusal, of head or tail."""
    kind = message.WhichOneof("message")
    assert kind in ("error", "frame_error"), message
    refusal = getattr(message, kind)
    return refusal.frame_id, from_status(refusal.status)


def scores(message: segment_pb2.RunResponse) -> Array:
    """The only output of a result."""
    assert message.WhichOneof("message") == "result", message
    (tensor,) = message.result.outputs
    return np.frombuffer(tensor.data, dtype=np.float32)


def image_frame(image: bytes, frame_id: int = 0, **fields: Any) -> inference_pb2.StreamInferRequest:
    """A picture as a stream's message."""
    return inference_pb2.StreamInferRequest(frame=inference_pb2.InferRequest(image=image, frame_id=frame_id, **fields))


async def refusal(raw: Raw, messages: list[segment_pb2.RunRequest]) -> MeshError:
    """The error a frame gets; checks that a good one after it is answered."""
    await send(raw, messages)
    frame_id, error = frame_error(await raw.read())
    assert frame_id == messages[0].frame.frame_id
    await assert_alive(raw)
    return error


async def assert_alive(raw: Raw) -> None:
    await send(raw, frame_messages(packed(HARD), 1000))
    response = await raw.read()
    assert response.result.frame_id == 1000
    assert np.argmax(scores(response)) == _GREY


async def ended(raw: Raw) -> MeshError:
    """The error that ends a stream."""
    try:
        while True:
            await raw.read()
    except MeshError as error:
        return error


async def opening_error(address: str, model: str, version: int, *, segment: int = 0, priority: int = 0) -> MeshError:
    with pytest.raises(MeshError) as caught:
        async with run_stream(address, model, version, segment=segment, priority=priority):
            pass
    return caught.value
