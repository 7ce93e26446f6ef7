"""The codec ``range``: what is coded comes back as its rate says, and nothing else is ever taken for a payload."""

from __future__ import annotations

import hashlib
import multiprocessing
import threading
from collections.abc import Callable
from functools import partial

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from splitmesh.errors import MeshError, Reason
from splitmesh.tensor import TensorSpec, codecs, pack, unpack
from splitmesh.tensor.entropy import HEADER_BYTES, RangeCodec, Tables
from splitmesh.tensor.entropy_fit import TOTAL
from splitmesh.tensor.entropy_steps import alphabet, symbols_of
from splitmesh.tensor.entropy_stream import decoded, encoded
from splitmesh.tensor.entropy_tables import Table

Codes = NDArray[np.uint8]

RATES = [(4, 1), (4, 4), (2, 16), (1, 128)]
SHAPES = [((4, 3, 3), 1), ((4,), 1), ((5, 4), 2), ((6,), 1), ((3, 2, 4), 3)]
"""Of one sample without the batch, and the axis of its channels."""


def drawn(seed: int, samples: int, shape: tuple[int, ...], centre: int = 100, spread: float = 4.0) -> Codes:
    noise = np.random.default_rng(seed).laplace(0, spread, (samples, *shape))
    return np.clip(np.round(noise) + centre, 0, 255).astype(np.uint8)


def coder(seed: int = 0, samples: int = 24, centre: int = 100) -> RangeCodec:
    tables = Tables.build([drawn(seed, samples, (4, 3, 3), centre)], [np.array([centre], np.uint8)], RATES)
    return RangeCodec(tables, [TensorSpec("cut", "uint8", (-1, 4, 3, 3))])


def reason_of(codec: codecs.Codec, data: bytes, size: int = 36) -> Reason:
    with pytest.raises(MeshError) as caught:
        codec.decode(data, size)
    return caught.value.reason


def expected(array: Codes, axis: int, points: Codes, channels: int, step: int) -> Codes:
    """The contract of a rate, element by element and in whole numbers."""
    result = np.empty_like(array)
    for place in np.ndindex(*array.shape):
        channel = place[axis]
        zero = int(points[channel] if len(points) > 1 else points[0])
        away = int(array[place]) - zero
        number = (2 * abs(away) + step) // (2 * step) * (1 if away >= 0 else -1)
        result[place] = zero if channel >= channels else min(255, max(0, zero + number * step))
    return result


@st.composite
def cuts(draw: st.DrawFn) -> tuple[RangeCodec, list[Codes], list[Codes], list[tuple[int, int]], list[int]]:
    """Tables from some samples, and one other sample to code with them."""
    chosen = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3))
    rates = draw(st.lists(st.tuples(st.integers(1, 7), st.sampled_from([1, 2, 4, 8, 32, 128])), min_size=1, max_size=3))
    seed, samples = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 5))
    random = np.random.default_rng(seed)
    fits, points, values = [], [], []
    for shape, axis in chosen:
        each = draw(st.booleans())
        points.append(random.integers(0, 256, shape[axis - 1] if each else 1, dtype=np.uint8))
        fits.append(drawn(seed, samples, shape, int(points[-1][0])))
        kind = draw(st.sampled_from(["alike", "anything", "zero", "ends"]))
        values.append(
            {
                "alike": drawn(seed + 1, 1, shape, int(points[-1][0])),
                "anything": random.integers(0, 256, (1, *shape), dtype=np.uint8),
                "zero": np.full((1, *shape), points[-1][0], np.uint8),
                "ends": random.choice(np.array([0, 255], np.uint8), (1, *shape)),
            }[kind]
        )
    axes = [axis for _, axis in chosen]
    tables = Tables.build(fits, points, rates, axes=axes)
    specs = [TensorSpec(f"t{index}", "uint8", (-1, *shape)) for index, (shape, _) in enumerate(chosen)]
    return RangeCodec(tables, specs), values, points, rates, axes


@settings(deadline=None, max_examples=80)
@given(cuts())
def test_what_comes_back_is_what_the_rate_says(
    case: tuple[RangeCodec, list[Codes], list[Codes], list[tuple[int, int]], list[int]],
) -> None:
    codec, values, points, rates, axes = case
    plain = b"".join(value.tobytes() for value in values)
    for rate, (channels, step) in enumerate(rates):
        payload = codec.at(rate).encode(plain)
        back = codec.decode(payload, len(plain))
        wanted = [expected(*one, channels, step) for one in zip(values, axes, points, strict=True)]
        assert back == b"".join(one.tobytes() for one in wanted)
        assert all(map(np.array_equal, codec.coarse(values, rate), wanted))
        assert len(payload) == codec.size_bytes(values, rate)
        assert payload[0] == rate


def test_all_channels_and_step_one_is_lossless_for_every_value_there_is() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 4, 64)
    for zero_point in (0, 1, 127, 128, 254, 255):
        tables = Tables.build([drawn(0, 8, (4, 64), zero_point)], [np.array([zero_point], np.uint8)], [(4, 1)])
        codec = RangeCodec(tables, [TensorSpec("t", "uint8", (1, 4, 64))])
        assert codec.decode(codec.encode(values.tobytes()), 256) == values.tobytes()


def test_coarse_takes_many_samples_at_once() -> None:
    codec, many = coder(), drawn(3, 10, (4, 3, 3))
    for rate in range(len(RATES)):
        (together,) = codec.coarse([many], rate)
        assert np.array_equal(together, np.concatenate([codec.coarse([one[None]], rate)[0] for one in many]))


def test_what_was_coarse_already_crosses_unchanged() -> None:
    codec, value = coder(), drawn(3, 1, (4, 3, 3))
    for rate in range(len(RATES)):
        once = codec.coarse([value], rate)
        assert np.array_equal(codec.coarse(once, rate)[0], once[0])


def test_a_lower_rate_takes_fewer_bytes_and_what_is_usual_fewer_than_what_is_not() -> None:
    codec = coder(samples=200)
    usual, odd = drawn(7, 1, (4, 3, 3)), np.random.default_rng(0).integers(0, 256, (1, 4, 3, 3), np.uint8)
    sizes = [codec.size_bytes([usual], rate) for rate in range(len(RATES))]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] < 36 + HEADER_BYTES < codec.size_bytes([odd], 0)


def pinned() -> tuple[Tables, Codes]:
    """Tables and a sample of whole numbers only, the same on every machine."""
    points = np.array([100, 7], np.uint8)
    row = []
    for _, step in RATES[:3]:
        sizes = [len(alphabet(int(point), step)) for point in points]
        frequencies = np.zeros((2, max(sizes)), np.uint32)
        for channel, (point, size) in enumerate(zip(points, sizes, strict=True)):
            zero = int(symbols_of(int(point), step)[point])
            frequencies[channel, :size] = [max(1, 1 << 20 >> abs(symbol - zero)) for symbol in range(size)]
            frequencies[channel, zero] += TOTAL - frequencies[channel].sum()
        row.append((Table(np.array([0, 1], np.uint16), frequencies),))
    tables = Tables(((2, 1), (2, 4), (2, 16)), (1,), (2,), (points,), tuple(row))
    chance = np.frombuffer(hashlib.shake_256(b"golden").digest(60), np.uint8).reshape(1, 2, 30)
    return tables, (points[:, None] + chance % 9 - 4).astype(np.uint8)


def test_the_bytes_are_those_of_the_first_release() -> None:
    tables, value = pinned()
    codec = RangeCodec(Tables.from_bytes(tables.to_bytes()), [TensorSpec("t", "uint8", (-1, 2, 30))])
    assert [codec.at(rate).encode(value.tobytes()).hex() for rate in range(3)] == GOLDEN
    assert hashlib.sha256(tables.to_bytes()).hexdigest() == GOLDEN_TABLES


@pytest.mark.parametrize("rate", range(len(RATES)))
def test_every_changed_byte_is_refused(rate: int) -> None:
    codec = coder()
    payload = codec.at(rate).encode(drawn(1, 1, (4, 3, 3)).tobytes())
    for position in range(len(payload)):
        for change in range(1, 256):
            damaged = bytearray(payload)
            damaged[position] ^= change
            assert reason_of(codec, bytes(damaged)) is Reason.PAYLOAD_CORRUPT


@pytest.mark.parametrize("rate", range(len(RATES)))
def test_a_payload_cut_short_or_with_something_behind_it_is_refused(rate: int) -> None:
    codec = coder()
    payload = codec.at(rate).encode(drawn(1, 1, (4, 3, 3)).tobytes())
    for kept in range(len(payload)):
        assert reason_of(codec, payload[:kept]) is Reason.PAYLOAD_CORRUPT
    for more in (b"\0", b"\1", b"\xff", bytes(4), bytes(8), b"\0\0\0\1", payload):
        assert reason_of(codec, payload + more) is Reason.PAYLOAD_CORRUPT


@settings(deadline=None)
@given(st.binary(max_size=120), st.integers(0, len(RATES)))
def test_bytes_that_are_no_payload_are_refused(data: bytes, rate: int) -> None:
    assert reason_of(coder_once(), bytes([rate]) + data) is Reason.PAYLOAD_CORRUPT


def test_the_tables_of_another_version_are_refused() -> None:
    value = drawn(1, 1, (4, 3, 3)).tobytes()
    for rate in range(len(RATES)):
        payload = coder(0).at(rate).encode(value)
        for other in (coder(1), coder(0, centre=101), coder(0, samples=25)):
            assert reason_of(other, payload) is Reason.PAYLOAD_CORRUPT


def test_a_payload_far_too_long_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = coder()
    monkeypatch.setattr("splitmesh.tensor.entropy.decoded", lambda *_: pytest.fail("was decoded"))
    assert reason_of(codec, bytes(1 << 20)) is Reason.PAYLOAD_CORRUPT


def test_another_size_than_the_tensors_take_is_refused() -> None:
    codec = coder()
    payload = codec.encode(drawn(1, 1, (4, 3, 3)).tobytes())
    assert reason_of(codec, payload, 35) is Reason.PAYLOAD_CORRUPT
    with pytest.raises(MeshError) as caught:
        codec.encode(bytes(35))
    assert caught.value.reason is Reason.TENSOR_SIZE_MISMATCH


@pytest.mark.parametrize(
    ("specs", "reason"),
    [
        ([], Reason.MODEL_CORRUPT),
        ([TensorSpec("t", "int8", (-1, 4, 3, 3))], Reason.MODEL_CORRUPT),
        ([TensorSpec("t", "uint8", (-1, 5, 3, 3))], Reason.MODEL_CORRUPT),
        ([TensorSpec("t", "uint8", (-1,))], Reason.MODEL_CORRUPT),
    ],
)
def test_tables_for_other_tensors_are_refused(specs: list[TensorSpec], reason: Reason) -> None:
    with pytest.raises(MeshError) as caught:
        RangeCodec(coder().tables, specs)
    assert caught.value.reason is reason


def test_a_rate_that_there_is_not_is_refused() -> None:
    with pytest.raises(MeshError) as caught:
        coder().at(len(RATES))
    assert caught.value.reason is Reason.FIELD_INVALID


# the end of a message


def two_symbols(*shares: float) -> object:
    return constriction.stream.model.Categorical(np.array(shares), perfect=False, lazy=False)


MODELS = [
    two_symbols(0.5, 0.5),
    two_symbols(1 - 2**-22, 2**-22),
    two_symbols(2**-22, 1 - 2**-22),
    two_symbols(0.3, 0.7),
]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(1, 70)), max_size=8))
def test_a_message_cut_to_its_shortest_is_still_read(runs: list[tuple[int, int, int]]) -> None:
    # A one and many zeros, halves each, leave the coder on both sides of a carry for as long as they go on.
    for lead in ([], [(0, 1, 1)], [(0, 0, 1)]):
        sent = [(MODELS[model], np.full(count, symbol, np.int32)) for model, symbol, count in lead + runs]
        data = encoded(sent)
        back = decoded(data, [(model, len(symbols)) for model, symbols in sent])
        assert back is not None
        assert np.array_equal(back, np.concatenate([symbols for _, symbols in sent]) if sent else [])
        assert not data.endswith(b"\0")


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("last", [0, 1])
def test_carries_are_written_wherever_the_message_ends(first: int, last: int) -> None:
    for length in range(200):
        symbols = np.array([first] + [1 - first] * length + [last] * 3, np.int32)
        back = decoded(encoded([(MODELS[0], symbols)]), [(MODELS[0], len(symbols))])
        assert back is not None
        assert np.array_equal(back, symbols)


def test_no_longer_than_the_library_writes_it() -> None:
    symbols = np.random.default_rng(0).integers(0, 2, 1000).astype(np.int32)
    saved = []
    for count in range(1000):
        encoder = constriction.stream.queue.RangeEncoder()
        encoder.encode(symbols[:count], MODELS[0])
        saved.append(4 * encoder.num_words() - len(encoded([(MODELS[0], symbols[:count])])))
    assert min(saved) >= 0
    assert np.mean(saved) > 1.5


# frames


def test_a_frame_is_packed_and_unpacked_with_the_codec_of_its_version() -> None:
    codec, value = coder(), drawn(2, 1, (4, 3, 3))
    for rate in range(len(RATES)):
        frame = pack([("cut", value)], codec.at(rate))
        (back,) = unpack(frame, codecs={"range": codec})
        assert frame.header.codec == "range"
        assert np.array_equal(back, codec.coarse([value], rate)[0])


def test_without_tables_a_frame_is_refused_and_cannot_be_made() -> None:
    frame = pack([("cut", drawn(2, 1, (4, 3, 3)))], coder())
    for refused in (lambda: unpack(frame), lambda: unpack(frame, codecs={}), lambda: pack([], "range")):
        assert _reason(refused) is Reason.CODEC_UNSUPPORTED


def _reason(call: Callable[[], object]) -> Reason:
    with pytest.raises(MeshError) as caught:
        call()
    return caught.value.reason


def test_a_frame_of_other_tensors_than_the_cuts_is_refused() -> None:
    codec, value = coder(), drawn(2, 1, (4, 3, 3))
    frame = pack([("cut", value)], codec)
    for other in (value.reshape(1, 4, 9), value.reshape(1, 3, 4, 3), value.astype(np.int8), drawn(2, 2, (4, 3, 3))):
        assert _reason(partial(pack, [("cut", other)], codec)) in (
            Reason.TENSOR_SHAPE_MISMATCH,
            Reason.TENSOR_DTYPE_MISMATCH,
        )
    assert _reason(lambda: pack([("a", value), ("b", value)], codec)) is Reason.TENSOR_SHAPE_MISMATCH
    assert np.array_equal(unpack(frame, codecs={"range": codec})[0], value)


def test_sizes_that_vary_come_from_the_frame() -> None:
    tables = Tables.build([drawn(0, 8, (6, 4))], [np.array([100], np.uint8)], [(4, 1), (2, 4)], axes=[2])
    codec = RangeCodec(tables, [TensorSpec("tokens", "uint8", (-1, -1, 4))])
    for tokens in (1, 6, 50):
        value = drawn(tokens, 1, (tokens, 4))
        (back,) = unpack(pack([("tokens", value)], codec.at(1)), codecs={"range": codec})
        assert np.array_equal(back, codec.coarse([value], 1)[0])
    assert _reason(lambda: codec.encode(bytes(24))) is Reason.TENSOR_SHAPE_MISMATCH


# the same everywhere

_ONCE: list[RangeCodec] = []


def coder_once() -> RangeCodec:
    if not _ONCE:
        _ONCE.append(coder())
    return _ONCE[0]


def _digest(tables: bytes) -> str:
    """Of everything coded, and decoded again."""
    codec, found = RangeCodec(Tables.from_bytes(tables), [TensorSpec("t", "uint8", (-1, 4, 3, 3))]), hashlib.sha256()
    for seed in range(50):
        for rate in range(len(RATES)):
            payload = codec.at(rate).encode(drawn(seed, 1, (4, 3, 3)).tobytes())
            found.update(payload + codec.decode(payload, 36))
    return found.hexdigest()


def test_threads_that_share_a_codec_and_other_processes_get_the_same_bytes() -> None:
    tables = coder().tables.to_bytes()
    wanted = _digest(tables)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_digest, (tables,)) == wanted
    codec, failures = RangeCodec(Tables.from_bytes(tables), [TensorSpec("t", "uint8", (-1, 4, 3, 3))]), []

    def use(seed: int) -> None:
        try:
            for turn in range(100):
                value = drawn(seed + turn, 1, (4, 3, 3))
                rate = turn % len(RATES)
                back = codec.decode(codec.at(rate).encode(value.tobytes()), 36)
                assert back == codec.coarse([value], rate)[0].tobytes()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=use, args=(1000 * index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


GOLDEN = [
    "00c7b6bf3f1210c9e865d07d4e62a72cba27ea45126d57cf461221aa18202d6f46f2a7",
    "01cc59675d2b9739c7bc236bbf254ad1b19efd4ea15c",
    "02d647d4a27f0df8bb3c94",
]
GOLDEN_TABLES = "f552d66c2e73a9cfdababc12d9c57ed4fb8ab49e6554d349359ea80e636a182d"
