"""The tail in this process, spoken to by hand: everything that can be wrong with a frame, its chunks and an opening."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from splitmesh.api.segment.v1 import segment_pb2, segment_pb2_grpc
from splitmesh.errors import Reason
from splitmesh.kernel.channels import open_channel
from splitmesh.tensor import pack
from splitmesh.tensor.framing import CHUNK_BYTES
from splitmesh.tensor.spec import Array
from tests.support.models import CUT, HARD, features
from tests.support.wire import (
    Raw,
    assert_alive,
    chunk_message,
    ended,
    frame_error,
    frame_messages,
    opening_error,
    packed,
    refusal,
    run_stream,
    scores,
    send,
)
from tests.support.worlds import BIG, BIG_SIDE, MODEL, NO_EXIT, WHOLE_ONLY, World, world

GREY = 1


@pytest.fixture
async def cloud(tmp_path: Path, registered: Path) -> AsyncIterator[World]:
    async with world(tmp_path, registered) as made:
        yield made


@pytest.fixture
async def tail(cloud: World) -> str:
    return (await cloud.start("tail")).address


# frames that are wrong


WRONG: dict[str, tuple[dict[str, Array], Reason]] = {
    "another name": ({"other": features(HARD)}, Reason.TENSOR_SHAPE_MISMATCH),
    "one tensor too many": ({CUT: features(HARD), "more": features(HARD)}, Reason.TENSOR_SHAPE_MISMATCH),
    "another shape": ({CUT: np.zeros((1, 2, 8, 8), np.float32)}, Reason.TENSOR_SHAPE_MISMATCH),
    "another rank": ({CUT: np.zeros((1, 2, 256), np.float32)}, Reason.TENSOR_SHAPE_MISMATCH),
    "two samples": ({CUT: np.zeros((2, 2, 16, 16), np.float32)}, Reason.TENSOR_SHAPE_MISMATCH),
    "another type": ({CUT: np.zeros((1, 2, 16, 16), np.float64)}, Reason.TENSOR_DTYPE_MISMATCH),
    "NaN": ({CUT: np.full((1, 2, 16, 16), np.nan, np.float32)}, Reason.TENSOR_NOT_FINITE),
}


@pytest.mark.parametrize(("tensors", "reason"), WRONG.values(), ids=WRONG.keys())
async def test_a_frame_that_is_not_the_cut_is_refused(tail: str, tensors: dict[str, Array], reason: Reason) -> None:
    async with run_stream(tail, MODEL) as raw:
        assert (await refusal(raw, frame_messages(pack(list(tensors.items()), "zstd")))).reason is reason


async def test_a_frame_that_contradicts_itself_is_refused(tail: str) -> None:
    good = packed(HARD)
    async with run_stream(tail, MODEL) as raw:
        for changes, reason in (
            ({"crc32c": good.header.crc32c ^ 1}, Reason.CHECKSUM_MISMATCH),
            ({"size_bytes": good.header.size_bytes + 1}, Reason.TENSOR_SIZE_MISMATCH),
            ({"codec": 0}, Reason.CODEC_UNSUPPORTED),
            ({"codec": 17}, Reason.CODEC_UNSUPPORTED),
            ({"codec": 1}, Reason.PAYLOAD_CORRUPT),
        ):
            assert (await refusal(raw, frame_messages(good, **changes))).reason is reason, changes


async def test_a_frame_above_the_limit_is_refused_from_its_header_alone(cloud: World) -> None:
    tail = await cloud.start("tail", max_frame_bytes=1 << 20)
    async with run_stream(tail.address, MODEL) as raw:
        for size in (2 << 20, 1 << 40):
            error = await refusal(raw, frame_messages(packed(HARD), size_bytes=size))
            assert error.reason is Reason.FRAME_TOO_LARGE
        big = packed(codec="identity", **{CUT: features(HARD, side=BIG_SIDE)})
        assert (await refusal(raw, frame_messages(big))).reason is Reason.FRAME_TOO_LARGE


# chunks that are wrong


def chunked() -> list[segment_pb2.RunRequest]:
    return frame_messages(packed(codec="identity", **{CUT: features(HARD, side=BIG_SIDE)}))


async def test_chunks_out_of_order_end_the_stream(tail: str) -> None:
    head, first, second, _ = chunked()
    async with run_stream(tail, BIG) as raw:
        await send(raw, [head, second, first])
        assert (await ended(raw)).reason is Reason.PROTOCOL_VIOLATION


async def test_a_frame_amid_the_chunks_of_another_ends_the_stream(tail: str) -> None:
    head, first, *_ = chunked()
    async with run_stream(tail, BIG) as raw:
        await send(raw, [head, first, head])
        assert (await ended(raw)).reason is Reason.PROTOCOL_VIOLATION


async def test_the_end_of_the_stream_amid_chunks_is_a_violation(tail: str) -> None:
    head, first, *_ = chunked()
    async with run_stream(tail, BIG) as raw:
        await send(raw, [head, first])
        await raw.end()
        assert (await ended(raw)).reason is Reason.PROTOCOL_VIOLATION


async def test_a_chunk_without_a_frame_ends_the_stream(tail: str) -> None:
    async with run_stream(tail, MODEL) as raw:
        await raw.write(chunk_message(0, b"stray"))
        assert (await ended(raw)).reason is Reason.PROTOCOL_VIOLATION


async def test_more_chunks_than_bytes_are_refused(tail: str) -> None:
    async with run_stream(tail, MODEL) as raw:
        messages = frame_messages(packed(HARD), chunk_count=5)
        messages += [chunk_message(index, b"x") for index in range(5)]
        assert (await refusal(raw, messages)).reason is Reason.PROTOCOL_VIOLATION


async def test_a_refused_frame_whose_announced_chunks_do_not_follow_does_not_swallow_later_frames(tail: str) -> None:
    async with run_stream(tail, MODEL) as raw:
        await send(raw, frame_messages(packed(HARD), 1, codec=17, chunk_count=1_000_000))
        await send(raw, frame_messages(packed(HARD), 2))
        assert (await ended(raw)).reason is Reason.PROTOCOL_VIOLATION


async def test_chunks_longer_than_announced_are_refused_and_read_past(tail: str) -> None:
    head, first, second, third = chunked()
    async with run_stream(tail, BIG) as raw:
        longer = chunk_message(1, second.chunk.data + b"x" * CHUNK_BYTES)
        await send(raw, [head, first, longer, third])
        assert frame_error(await raw.read())[1].reason is Reason.TENSOR_SIZE_MISMATCH
        await send(raw, [head, first, second, third])
        assert np.argmax(scores(await raw.read())) == GREY


# openings that are wrong


async def test_an_unknown_model_version_or_half_is_refused_at_the_opening(tail: str) -> None:
    assert (await opening_error(tail, "unknown", 1)).reason is Reason.MODEL_NOT_FOUND
    assert (await opening_error(tail, MODEL, 99)).reason is Reason.VERSION_NOT_FOUND
    assert (await opening_error(tail, WHOLE_ONLY, 1)).reason is Reason.MODEL_INCOMPLETE
    async with run_stream(tail, NO_EXIT) as raw:
        await assert_alive(raw)


async def test_a_stream_that_does_not_begin_with_open_is_a_violation(tail: str) -> None:
    async with open_channel(tail) as channel:
        for message in (frame_messages(packed(HARD))[0], chunk_message(0, b""), segment_pb2.RunRequest()):
            raw = Raw(segment_pb2_grpc.SegmentServiceStub(channel).Run())
            await raw.write(message)
            assert (await ended(raw)).reason is Reason.PROTOCOL_VIOLATION
        raw = Raw(segment_pb2_grpc.SegmentServiceStub(channel).Run())
        await raw.end()
        assert (await ended(raw)).reason is Reason.PROTOCOL_VIOLATION


async def test_a_second_opening_ends_the_stream_after_what_was_taken_is_answered(tail: str) -> None:
    async with run_stream(tail, MODEL) as raw:
        await send(raw, frame_messages(packed(HARD), 1))
        await raw.write(segment_pb2.RunRequest(open=segment_pb2.Open(model=MODEL, version=1)))
        assert (await raw.read()).result.frame_id == 1
        assert (await ended(raw)).reason is Reason.PROTOCOL_VIOLATION
