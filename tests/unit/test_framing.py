"""Frames: packing and unpacking are inverse, chunks cover the payload, and every count and sum is checked."""

from __future__ import annotations

from dataclasses import replace

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from splitmesh.api.tensor.v1 import tensor_pb2
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.tensors import header_from_message, header_to_message
from splitmesh.tensor import CODECS, DTYPES, Frame, FrameHeader, TensorLimits, TensorSpec, chunks, pack, unpack
from splitmesh.tensor.framing import CHUNK_BYTES, check_header
from splitmesh.tensor.spec import Array

any_array = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda name: arrays.arrays(DTYPES[name], arrays.array_shapes(min_dims=0, max_dims=4, max_side=5))
)
any_tensors = st.lists(any_array, min_size=1, max_size=4).map(
    lambda found: [(f"t{index}", array) for index, array in enumerate(found)]
)
codec = st.sampled_from(sorted(CODECS))


def features(count: int = 1000) -> Array:
    return np.random.default_rng(0).normal(size=(1, count)).astype(np.float32)


def refused(frame: Frame, limits: TensorLimits | None = None) -> Reason:
    with pytest.raises(MeshError) as caught:
        unpack(frame, limits) if limits else unpack(frame)
    return caught.value.reason


def changed(frame: Frame, **changes: object) -> Frame:
    return Frame(replace(frame.header, **changes), frame.payload)  # type: ignore[arg-type]


@given(any_tensors, codec)
def test_what_is_packed_comes_back_in_order(tensors: list[tuple[str, Array]], name: str) -> None:
    frame = pack(tensors, name)
    back = unpack(frame)
    assert [spec.name for spec in frame.header.tensors] == [name for name, _ in tensors]
    for (_, array), found in zip(tensors, back, strict=True):
        assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())


@given(any_tensors, codec)
def test_a_header_survives_the_wire(tensors: list[tuple[str, Array]], name: str) -> None:
    header = pack(tensors, name).header
    sent = header_to_message(header).SerializeToString()
    assert header_from_message(tensor_pb2.FrameHeader.FromString(sent)) == header


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 3 * CHUNK_BYTES + 5))
def test_chunks_cover_the_payload_and_small_frames_have_none(size: int) -> None:
    frame = (
        pack([("t", np.zeros(size, np.uint8))], "identity") if size else pack([("t", np.zeros((1,), "u1"))], "identity")
    )
    pieces = list(chunks(frame))
    assert len(pieces) == frame.header.chunk_count
    if size <= CHUNK_BYTES:
        assert pieces == []
    else:
        assert b"".join(pieces) == frame.payload
        assert {len(piece) for piece in pieces[:-1]} == {CHUNK_BYTES}
        assert 0 < len(pieces[-1]) <= CHUNK_BYTES


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"crc32c": 1}, Reason.CHECKSUM_MISMATCH),
        ({"size_bytes": 3999}, Reason.TENSOR_SIZE_MISMATCH),
        ({"size_bytes": 4001}, Reason.TENSOR_SIZE_MISMATCH),
        ({"codec": "zstd"}, Reason.PAYLOAD_CORRUPT),
        ({"codec": "lzma"}, Reason.CODEC_UNSUPPORTED),
        ({"chunk_count": 2}, Reason.PROTOCOL_VIOLATION),
        ({"chunk_count": -1}, Reason.PROTOCOL_VIOLATION),
        ({"tensors": (TensorSpec("t", "float32", (1, 999)),)}, Reason.PAYLOAD_CORRUPT),
        ({"tensors": (TensorSpec("t", "float32", (1, 0)),)}, Reason.TENSOR_SHAPE_MISMATCH),
        ({"tensors": (TensorSpec("t", "float32", (1, 2**40)),)}, Reason.TENSOR_SHAPE_MISMATCH),
        ({"tensors": (TensorSpec("t", "str", (1,)),)}, Reason.TENSOR_DTYPE_MISMATCH),
        ({"tensors": ()}, Reason.PAYLOAD_CORRUPT),
    ],
)
def test_a_header_that_does_not_fit_its_payload_is_refused(changes: dict[str, object], reason: Reason) -> None:
    assert refused(changed(pack([("t", features())], "identity"), **changes)) is reason


@given(st.integers(0, 3999), st.integers(1, 255))
def test_every_changed_byte_is_noticed(position: int, change: int) -> None:
    frame = pack([("t", features())], "identity")
    payload = bytearray(frame.payload)
    payload[position] ^= change
    assert refused(Frame(frame.header, bytes(payload))) is Reason.CHECKSUM_MISMATCH


def test_the_sum_of_many_small_tensors_counts_against_the_limit() -> None:
    limits = TensorLimits(max_size_bytes=1000)
    frame = pack([(f"t{index}", np.zeros(200, np.uint8)) for index in range(6)], "zstd")
    assert frame.header.size_bytes < 1000
    assert refused(frame, limits) is Reason.FRAME_TOO_LARGE


def test_a_payload_above_the_limit_is_refused_from_its_header() -> None:
    header = FrameHeader((TensorSpec("t", "uint8", (10,)),), "zstd", 1 << 40, 0, 0)
    with pytest.raises(MeshError) as caught:
        check_header(header)
    assert caught.value.reason is Reason.FRAME_TOO_LARGE


def test_the_checksum_is_the_one_of_the_contract() -> None:
    frame = pack([("t", features())], "zstd")
    assert frame.header.crc32c == google_crc32c.value(frame.payload)
    assert google_crc32c.value(b"123456789") == 0xE3069283  # the check value of CRC-32C


@pytest.mark.parametrize("value", [0, 17])
def test_a_codec_outside_the_contract_is_refused(value: int) -> None:
    message = header_to_message(pack([("t", features())], "zstd").header)
    message.codec = value  # type: ignore[assignment]
    with pytest.raises(MeshError) as caught:
        header_from_message(message)
    assert caught.value.reason is Reason.CODEC_UNSUPPORTED
