"""Tables: what a file must hold to be taken, and how well what was estimated codes what was not seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load, save

from splitmesh.errors import MeshError, Reason
from splitmesh.tensor import TensorSpec
from splitmesh.tensor.entropy import RangeCodec, Tables
from splitmesh.tensor.entropy_fit import TOTAL
from splitmesh.tensor.entropy_steps import alphabet, symbols_of

Codes = NDArray[np.uint8]

RATES = [(6, 1), (3, 8)]
SPEC = TensorSpec("t", "uint8", (-1, 6, 4, 4))


def drawn(samples: int, *, seed: int = 0, shape: tuple[int, ...] = (6, 4, 4), widths: float = 1.0) -> Codes:
    random = np.random.default_rng(seed)
    scale = (widths ** np.arange(shape[0])).reshape(-1, *[1] * (len(shape) - 1))
    return np.clip(np.round(random.laplace(0, scale, (samples, *shape))) + 60, 0, 255).astype(np.uint8)


def made(samples: int = 20, **changes: Any) -> Tables:
    return Tables.build([drawn(samples)], [np.array([60], np.uint8)], changes.pop("rates", RATES), **changes)


def refused(data: bytes) -> str:
    with pytest.raises(MeshError) as caught:
        Tables.from_bytes(data)
    assert caught.value.reason is Reason.MODEL_CORRUPT
    return caught.value.message


# the file


def test_a_file_comes_back_as_it_was_and_is_the_same_for_the_same_tables() -> None:
    tables = made()
    data = tables.to_bytes()
    back = Tables.from_bytes(data)
    assert back.to_bytes() == data == made().to_bytes()
    assert (back.rates, back.axes, back.channels, back.digest) == (tuple(RATES), (1,), (6,), tables.digest)


def test_a_file_with_any_byte_changed_or_cut_short_is_refused() -> None:
    data = made(rates=[(6, 32), (2, 128)]).to_bytes()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        refused(bytes(damaged))
    for kept in range(0, len(data), 7):
        refused(data[:kept])
    refused(data + b"\0")


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_bytes_that_are_no_tables_are_refused(data: bytes) -> None:
    refused(data)


def _set(name: str, value: NDArray[Any]) -> Callable[[dict[str, NDArray[Any]]], None]:
    return lambda arrays: arrays.__setitem__(name, value)


WRONG: dict[str, Callable[[dict[str, NDArray[Any]]], object]] = {
    "a table that is missing": lambda arrays: arrays.pop("frequencies.1.0"),
    "another format": _set("format", np.array([2], np.int32)),
    "no rates": _set("rates", np.zeros((0, 2), np.int32)),
    "rates that are no pairs": _set("rates", np.array([[6, 1, 1], [3, 8, 1]], np.int32)),
    "a step that is no power of two": _set("rates", np.array([[6, 1], [3, 7]], np.int32)),
    "another step than its symbols": _set("rates", np.array([[6, 1], [3, 4]], np.int32)),
    "another number of channels": _set("rates", np.array([[6, 1], [2, 8]], np.int32)),
    "a rate without channels": _set("rates", np.array([[6, 1], [0, 8]], np.int32)),
    "more tensors than tables": _set("axes", np.array([1, 1], np.int32)),
    "channels along the batch": _set("axes", np.array([0], np.int32)),
    "another zero point": _set("zero_points.0", np.array([61], np.uint8)),
    "too many zero points": _set("zero_points.0", np.array([60, 60], np.uint8)),
    "a channel whose table there is not": _set("groups.1.0", np.array([0, 1, 99], np.uint16)),
    "floats": lambda arrays: arrays.update({"frequencies.0.0": arrays["frequencies.0.0"].astype(np.float32)}),
    "a sum that is another": lambda arrays: arrays["frequencies.0.0"].__iadd__(1),
    "a symbol that cannot be coded": lambda arrays: _move(arrays["frequencies.0.0"], 3, 4),
    "frequencies a little otherwise": lambda arrays: _move(arrays["frequencies.0.0"], 60, 61, 1),
}


def _move(table: NDArray[np.uint32], source: int, target: int, amount: int | None = None) -> None:
    taken = table[0, source] if amount is None else np.uint32(amount)
    table[0, source] -= taken
    table[0, target] += taken


def test_tables_wider_than_8_bits_need_are_refused_before_they_take_memory() -> None:
    channels = 20_000
    tables = Tables.build([np.zeros((1, channels, 1), np.uint8)], [np.array([0], np.uint8)], [(channels, 128)])
    arrays = load(tables.to_bytes())
    arrays["frequencies.0.0"] = np.zeros((1, 2_000_000), np.uint32)
    assert "2000000 columns" in refused(save(arrays))


@pytest.mark.parametrize("case", WRONG)
def test_tables_that_contradict_themselves_are_refused(case: str) -> None:
    arrays = {name: array.copy() for name, array in load(made().to_bytes()).items()}
    WRONG[case](arrays)
    # What is still consistent is not what the digest is of.
    assert ("digest" in refused(save(arrays))) == (case in ("another zero point", "frequencies a little otherwise"))


@pytest.mark.parametrize("part", ["probe.symbols", "probe.stream"])
def test_a_library_that_codes_the_probe_otherwise_is_named(part: str) -> None:
    arrays = {name: array.copy() for name, array in load(made().to_bytes()).items()}
    arrays[part][1] ^= 1
    assert "constriction" in refused(save(arrays))


@pytest.mark.parametrize("rates", [[], [(0, 1)], [(6, 3)], [(6, 256)], [(6, 0)], [(6, 1)] * 256])
def test_rates_that_are_none_are_refused(rates: list[tuple[int, int]]) -> None:
    with pytest.raises(MeshError) as caught:
        made(rates=rates)
    assert caught.value.reason is Reason.MODEL_CORRUPT


@pytest.mark.parametrize(("codes", "axis"), [(np.zeros((2, 3), np.int8), 1), (np.zeros((2, 3), np.uint8), 2)])
def test_samples_of_another_kind_are_a_mistake(codes: Codes, axis: int) -> None:
    with pytest.raises((ValueError, IndexError)):
        Tables.build([codes], [np.array([0], np.uint8)], [(3, 1)], axes=[axis])


# steps


@given(st.integers(0, 255), st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128]))
def test_only_symbols_that_a_value_leads_to_are_in_the_alphabet(zero_point: int, step: int) -> None:
    values, symbols = alphabet(zero_point, step), symbols_of(zero_point, step)
    assert set(symbols.tolist()) == set(range(len(values)))
    assert len(set(values.tolist())) == len(values)
    assert np.array_equal(symbols_of(zero_point, step)[values], np.arange(len(values)))
    assert values[symbols[zero_point]] == zero_point
    assert np.abs(values[symbols].astype(int) - np.arange(256)).max() <= step // 2


# frequencies


def bits(tables: Tables, codes: Codes) -> float:
    """Of a payload's symbols, mean over samples."""
    codec = RangeCodec(tables, [TensorSpec("t", "uint8", (-1, *codes.shape[1:]))])
    return float(np.mean([8 * (codec.size_bytes([one[None]], 0) - 5) for one in codes]))


def entropy(codes: Codes) -> float:
    """Of one sample with the best table for exactly these samples and each channel, which nobody can know."""
    total = 0.0
    for channel in range(codes.shape[1]):
        counts = np.bincount(codes[:, channel].reshape(-1), minlength=256)
        shares = counts[counts > 0] / counts.sum()
        total -= float((counts[counts > 0] * np.log2(shares)).sum())
    return total / len(codes)


def test_every_table_sums_to_the_total_and_leaves_nothing_impossible() -> None:
    rng = np.random.default_rng(0)
    points = rng.integers(0, 256, 6, dtype=np.uint8)
    tables = Tables.build([drawn(3)], [points], [(6, 1), (4, 16), (6, 128)])
    for rate, (_, step) in enumerate(tables.rates):
        table = tables.tables[rate][0]
        assert (table.frequencies.astype(np.int64).sum(1) == TOTAL).all()
        for channel, group in enumerate(table.groups):
            assert np.count_nonzero(table.frequencies[group]) == len(alphabet(int(points[channel]), step))


def test_with_many_samples_a_payload_is_near_the_entropy() -> None:
    new = drawn(100, seed=1, shape=(6, 8, 8), widths=2.0)
    tables = Tables.build([drawn(400, shape=(6, 8, 8), widths=2.0)], [np.array([60], np.uint8)], [(6, 1)])
    assert bits(tables, new) < 1.03 * entropy(new) + 8


def test_with_few_samples_channels_lean_on_each_other() -> None:
    few, new = drawn(4, shape=(64, 2, 2)), drawn(200, seed=1, shape=(64, 2, 2))
    tables = Tables.build([few], [np.array([60], np.uint8)], [(64, 1)])
    assert bits(tables, new) < 1.15 * entropy(new)


def test_channels_that_differ_do_not_lean_on_each_other() -> None:
    apart = Tables.build([drawn(200, shape=(6, 6, 6), widths=2.2)], [np.array([60], np.uint8)], [(6, 1)])
    assert len(set(apart.tables[0][0].groups.tolist())) == 6
    mixed = np.random.default_rng(0).permuted(drawn(200, shape=(6, 6, 6), widths=2.2), axis=1)
    together = Tables.build([mixed], [np.array([60], np.uint8)], [(6, 1)])
    new = drawn(100, seed=1, shape=(6, 6, 6), widths=2.2)
    assert bits(apart, new) < 0.9 * bits(together, new)


def test_channels_whose_tables_are_equal_share_one() -> None:
    silent = drawn(10)
    silent[:, 2:] = 60
    tables = Tables.build([silent], [np.array([60], np.uint8)], [(6, 1)])
    assert len(set(tables.tables[0][0].groups[2:].tolist())) == 1


def test_one_sample_is_enough_to_make_tables() -> None:
    codec = RangeCodec(Tables.build([drawn(1)], [np.array([60], np.uint8)], RATES), [SPEC])
    for value in (drawn(1, seed=5), np.full((1, 6, 4, 4), 255, np.uint8)):
        assert codec.decode(codec.encode(value.tobytes()), 96) == value.tobytes()


def test_a_library_that_writes_other_bytes_is_named_though_it_reads_those_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = made().to_bytes()
    monkeypatch.setattr("splitmesh.tensor.entropy_tables.encoded", lambda runs: bytes(len(list(runs))))
    assert "constriction" in refused(data)
