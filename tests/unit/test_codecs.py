"""Codecs: what goes in comes out, and what was not packed by them costs neither memory nor time."""

from __future__ import annotations

import threading
import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from splitmesh.errors import MeshError, Reason
from splitmesh.tensor import CODECS, decode, encode

NAMES = sorted(CODECS)


def reason_of(name: str, data: bytes, size_bytes: int) -> Reason:
    with pytest.raises(MeshError) as caught:
        decode(name, data, size_bytes)
    return caught.value.reason


@pytest.mark.parametrize("name", NAMES)
@given(data=st.binary(max_size=4096))
def test_what_is_packed_comes_back(name: str, data: bytes) -> None:
    assert bytes(decode(name, bytes(encode(name, data)), len(data))) == data


@pytest.mark.parametrize("name", NAMES)
@given(data=st.binary(max_size=200), other=st.integers(0, 300))
def test_another_size_than_expected_is_refused(name: str, data: bytes, other: int) -> None:
    if other != len(data):
        assert reason_of(name, bytes(encode(name, data)), other) is Reason.PAYLOAD_CORRUPT


@given(st.binary(max_size=200), st.integers(0, 200))
def test_bytes_that_are_no_zstd_frame_are_refused(data: bytes, size: int) -> None:
    assert reason_of("zstd", b"no" + data, size) is Reason.PAYLOAD_CORRUPT


@given(st.binary(min_size=1, max_size=500).flatmap(lambda data: st.tuples(st.just(data), st.integers(0, 500))))
def test_a_truncated_zstd_frame_is_refused(case: tuple[bytes, int]) -> None:
    data, kept = case
    packed = bytes(encode("zstd", data))
    if kept < len(packed):
        assert reason_of("zstd", packed[:kept], len(data)) is Reason.PAYLOAD_CORRUPT


def test_bytes_after_the_zstd_frame_are_refused() -> None:
    assert reason_of("zstd", bytes(encode("zstd", b"data")) + b"more", 4) is Reason.PAYLOAD_CORRUPT


def test_a_small_zstd_frame_that_holds_a_gibibyte_is_refused_without_unpacking_it() -> None:
    compressor = zstandard.ZstdCompressor(level=19).compressobj(size=1 << 30)
    zeros = bytes(1 << 24)
    bomb = b"".join(compressor.compress(zeros) for _ in range(64)) + compressor.flush()
    assert len(bomb) < 200_000
    tracemalloc.start()
    try:
        assert reason_of("zstd", bomb, 1024) is Reason.PAYLOAD_CORRUPT
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_zstd_frame_that_does_not_declare_its_size_is_refused() -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    assert reason_of("zstd", compressor.compress(b"x" * 100), 100) is Reason.PAYLOAD_CORRUPT


def test_a_zstd_frame_that_holds_more_than_it_declares_is_refused() -> None:
    honest = bytes(encode("zstd", b"x" * 200))
    parameters = zstandard.get_frame_parameters(honest)
    assert parameters.content_size == 200
    lying = honest[:5] + bytes([100]) + honest[6:]
    assert zstandard.get_frame_parameters(lying).content_size == 100
    assert reason_of("zstd", lying, 100) is Reason.PAYLOAD_CORRUPT


@pytest.mark.parametrize("name", ["", "ZSTD", "gzip", "pickle"])
def test_an_unknown_codec_is_refused(name: str) -> None:
    assert reason_of(name, b"", 0) is Reason.CODEC_UNSUPPORTED
    with pytest.raises(MeshError):
        encode(name, b"")


def test_threads_may_use_one_codec_at_once() -> None:
    failures: list[BaseException] = []

    def use(seed: int) -> None:
        try:
            for size in range(200):
                data = bytes([seed]) * size * 10
                assert bytes(decode("zstd", bytes(encode("zstd", data)), len(data))) == data
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
