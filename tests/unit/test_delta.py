"""Patches between contents: what they make, how small they are, and that nothing else than a patch of this base is taken."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from splitmesh.blobs.delta import MAX_BYTES, apply_delta, make_delta
from splitmesh.errors import MeshError, Reason

NOISE = random.Random(7)
BASE = NOISE.randbytes(2_000_000)
REGION = NOISE.randbytes(1000)


@pytest.mark.parametrize(
    ("base", "target"),
    [
        (b"", b""),
        (b"", BASE[:99]),
        (BASE, b""),
        (b"1234567", b"1234567890"),
        (BASE[:8], BASE[:100]),
        (BASE, BASE + BASE),
    ],
)
def test_a_patch_of_anything_makes_its_target(base: bytes, target: bytes) -> None:
    assert apply_delta(base, make_delta(base, target), len(target)) == target


@settings(max_examples=60, deadline=None)
@given(base=st.binary(max_size=3000), target=st.binary(max_size=3000), cut=st.integers(0, 3000))
def test_a_patch_of_any_two_contents_makes_the_target(base: bytes, target: bytes, cut: int) -> None:
    for one in (target, base[:cut] + target, base[cut:] + base[:cut]):
        assert apply_delta(base, make_delta(base, one), len(one)) == one


@pytest.mark.parametrize(
    ("target", "most_bytes"),
    [
        (BASE, 400),
        (BASE[:700_000] + REGION + BASE[701_000:], 2000),  # a layer changed
        (BASE[:700_000] + REGION + BASE[700_000:], 2000),  # and all after it moved
        (BASE[1_000_000:] + BASE[:1_000_000], 1000),
        (BASE[:1_500_000], 400),
    ],
)
def test_what_both_have_in_common_costs_next_to_nothing_wherever_it_is(target: bytes, most_bytes: int) -> None:
    delta = make_delta(BASE, target)
    assert len(delta) < most_bytes
    assert apply_delta(BASE, delta, len(target)) == target


def test_contents_without_anything_in_common_cost_no_more_than_the_target() -> None:
    assert len(make_delta(BASE, BASE[::-1])) < len(BASE) + 1000


DELTA = make_delta(BASE, BASE[:700_000] + REGION + BASE[700_000:])
SIZE = len(BASE) + len(REGION)


@pytest.mark.parametrize(
    "delta",
    [b"", b"patch", DELTA[:-1], DELTA[:20], DELTA + b"x", DELTA + DELTA, zstd.compress(b"x" * SIZE)[:-1]],
    ids=["empty", "no-frame", "cut", "header-only", "tail", "twice", "other"],
)
def test_what_is_no_whole_patch_is_refused(delta: bytes) -> None:
    _require_corrupt(BASE, delta, SIZE)


def test_a_patch_with_a_damaged_byte_is_refused_or_makes_its_target_all_the_same() -> None:
    target = BASE[:700_000] + REGION + BASE[700_000:]
    outcomes = [_outcome(position) for position in range(0, len(DELTA), 7)]
    assert set(outcomes) <= {Reason.PAYLOAD_CORRUPT, target}  # some bits of a header mean nothing
    assert outcomes.count(Reason.PAYLOAD_CORRUPT) > 0.9 * len(outcomes)


def _outcome(position: int) -> bytes | Reason:
    broken = bytearray(DELTA)
    broken[position] ^= 0x55
    try:
        return apply_delta(BASE, bytes(broken), SIZE)
    except MeshError as error:
        return error.reason


def test_a_patch_of_another_base_is_refused() -> None:
    _require_corrupt(BASE[:-1] + bytes([BASE[-1] ^ 1]), DELTA, SIZE)
    _require_corrupt(b"", DELTA, SIZE)
    _require_corrupt(BASE[1:], DELTA, SIZE)


@pytest.mark.parametrize("size_bytes", [0, SIZE - 1, SIZE + 1, MAX_BYTES + 1, -1])
def test_another_size_than_announced_is_refused_before_anything_is_made(size_bytes: int) -> None:
    with pytest.raises(MeshError, match=r"it makes 2001000 bytes, expected|it is said to make") as error:
        apply_delta(BASE, DELTA, size_bytes)
    assert error.value.reason is Reason.PAYLOAD_CORRUPT


def test_a_bomb_is_refused_before_it_costs_memory() -> None:
    """A frame of a few kilobytes that makes a gigabyte, with and without saying so, and one that wants a huge window."""
    options: dict[int, int] = {zstd.CompressionParameter.content_size_flag: 0}
    wide: dict[int, int] = {zstd.CompressionParameter.window_log: 31, zstd.CompressionParameter.content_size_flag: 1}
    zeros = bytes(2**24)
    bombs = [zstd.compress(zeros), zstd.compress(zeros, options=options), _windowed(zeros[:1000], wide)]
    for bomb in bombs:
        tracemalloc.start()
        _require_corrupt(b"", bomb, 1000)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**20


def _windowed(data: bytes, options: dict[int, int]) -> bytes:
    """A frame that asks for the window of its options: its size was not known when the header was written."""
    compressor = zstd.ZstdCompressor(options=options)
    return compressor.compress(data, mode=zstd.ZstdCompressor.FLUSH_BLOCK) + compressor.flush()


def test_contents_too_large_to_be_patched_are_refused() -> None:
    class Large(bytes):
        def __len__(self) -> int:
            return MAX_BYTES + 1

    for base, target in ((Large(), b""), (b"", Large())):
        with pytest.raises(MeshError) as error:
            make_delta(base, target)
        assert error.value.reason is Reason.FRAME_TOO_LARGE


def _require_corrupt(base: bytes, delta: bytes, size_bytes: int) -> None:
    with pytest.raises(MeshError) as error:
        apply_delta(base, delta, size_bytes)
    assert error.value.reason is Reason.PAYLOAD_CORRUPT
