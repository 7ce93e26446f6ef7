"""A stream that is quiet does not hold the last frame that came on it: a request may have 32 MB."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from cloud.tail.assemble import assemble
from edge.head.stream import FrameStreams
from splitmesh.api.inference.v1 import inference_pb2
from splitmesh.api.segment.v1 import segment_pb2
from splitmesh.api.tensor.v1 import tensor_pb2
from splitmesh.kernel.large_fields import RUN_REQUEST, STREAM_INFER_REQUEST
from splitmesh.kernel.wire import LARGE_BYTES, Lifted
from splitmesh.tensor import TensorLimits

LARGE = bytes(2 * LARGE_BYTES)


def run_request() -> Lifted[Any]:
    message = segment_pb2.RunRequest(frame=segment_pb2.SegmentFrame(frame_id=1, payload=LARGE))
    message.frame.header.size_bytes, message.frame.header.codec = len(LARGE), tensor_pb2.CODEC_IDENTITY
    return RUN_REQUEST.parse(message.SerializeToString())


def infer_request() -> Lifted[Any]:
    message = inference_pb2.StreamInferRequest(frame=inference_pb2.InferRequest(image=LARGE))
    return STREAM_INFER_REQUEST.parse(message.SerializeToString())


def read_by_tail(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    return assemble(requests, TensorLimits())


def read_by_head(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    return FrameStreams._items(FrameStreams.__new__(FrameStreams), requests, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("read_by", "made"), [(read_by_tail, run_request), (read_by_head, infer_request)])
async def test_a_frame_is_let_go_before_the_next_one_comes(
    read_by: Callable[[AsyncIterator[Any]], AsyncIterator[Any]], made: Callable[[], Lifted[Any]]
) -> None:
    blobs: list[weakref.ref[Any]] = []

    async def requests() -> AsyncIterator[Any]:
        request = made()
        blobs.append(weakref.ref(request.blobs[0]))
        yield request
        del request
        await asyncio.Event().wait()

    items = read_by(requests())
    await anext(items)
    quiet = asyncio.ensure_future(anext(items))
    await asyncio.sleep(0)
    assert blobs[0]() is None
    quiet.cancel()
    await asyncio.gather(quiet, return_exceptions=True)
