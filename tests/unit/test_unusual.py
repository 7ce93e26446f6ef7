"""The distance of unusual samples on every frame, and its file: what is strange, what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load, save

from splitmesh.errors import MeshError, Reason
from splitmesh.routing.projection import Projection
from splitmesh.routing.unusual import MAX_BYTES, VERSION, Unusual, samples_needed

FEATURES = arrays.arrays(np.float64, (4, 3), elements=st.floats(allow_nan=True, allow_infinity=True))


def measure(limit: float = 3.0, held: int = 200) -> Unusual:
    """Wide along the first axis, narrow along the others."""
    axis = np.array([[1.0], [0.0], [0.0]])
    return Unusual(
        projection=Projection(np.array([10.0, 0.0, 0.0]), np.array([2.0, 1.0, 1.0]), axis),
        variances=np.array([4.0]),
        rest=0.25,
        limit=limit,
        share=0.01,
        fit_samples=100,
        held_samples=held,
    )


def test_distance_is_in_standard_deviations_of_each_direction() -> None:
    rows = np.array([[10.0, 0.0, 0.0], [14.0, 0.0, 0.0], [10.0, 0.0, 1.0], [14.0, 0.5, 0.0]])
    np.testing.assert_allclose(measure().distance(rows), [0.0, 1.0, 2.0, math.sqrt(2.0)])


def test_only_what_is_beyond_the_limit_is_strange() -> None:
    rows = np.array([[22.0, 0.0, 0.0], [22.001, 0.0, 0.0], [10.0, 1.5, 0.0], [10.0, 1.6, 0.0]])
    assert measure().strange(rows).tolist() == [False, True, False, True]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_infinitely_far_and_strange_even_without_a_limit(bad: float) -> None:
    rows = np.array([[10.0, bad, 0.0], [10.0, 0.0, 0.0]])
    for one in (measure(), measure(limit=math.inf, held=10)):
        assert one.distance(rows).tolist() == [math.inf, 0.0]
        assert one.strange(rows).tolist() == [True, False]


def test_without_a_limit_the_measure_says_why_and_how_many_samples_it_takes() -> None:
    assert measure().why == ""
    assert "10 held-out samples are too few for a share of 0.01: at least 99" in measure(math.inf, held=10).why


@pytest.mark.parametrize(("share", "needed"), [(0.01, 99), (0.05, 19), (0.1, 9), (0.5, 1), (0.003, 333), (1 / 3, 2)])
def test_samples_needed_are_one_less_than_the_false_alarms_are_rare(share: float, needed: int) -> None:
    assert samples_needed(share) == needed


@given(FEATURES)
def test_whatever_comes_the_distance_is_a_number_of_at_least_nothing(rows: np.ndarray) -> None:
    found = measure().distance(rows)
    assert (found >= 0).all()
    assert np.isinf(found[~np.isfinite(rows).all(axis=1)]).all()
    assert (measure().strange(rows) == ~(found <= 3.0)).all()


@given(st.integers(0, 2**32), st.floats(0.0, 1.0))
def test_further_from_the_mean_in_the_same_direction_is_never_nearer(seed: int, part: float) -> None:
    away = np.random.default_rng(seed).normal(size=(5, 3))
    mean = measure().projection.mean
    near, far = measure().distance(mean + part * away), measure().distance(mean + away)
    assert (near <= far + 1e-9).all()
    np.testing.assert_allclose(near, part * far, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8"])
def test_features_of_any_numbers_are_measured_alike(dtype: str) -> None:
    np.testing.assert_allclose(measure().distance(np.array([[14, 1, 0]], dtype=dtype)), math.sqrt(5.0))


def test_no_samples_have_no_distance() -> None:
    assert measure().distance(np.zeros((0, 3))).shape == (0,)
    assert measure().strange(np.zeros((0, 3))).shape == (0,)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (np.zeros((1, 2)), Reason.TENSOR_SHAPE_MISMATCH),
        (np.zeros(3), Reason.TENSOR_SHAPE_MISMATCH),
        (np.zeros((1, 3), dtype=bool), Reason.TENSOR_DTYPE_MISMATCH),
        (np.array([["a", "b", "c"]]), Reason.TENSOR_DTYPE_MISMATCH),
    ],
)
def test_features_of_another_shape_or_type_are_refused(rows: np.ndarray, reason: Reason) -> None:
    for method in (measure().distance, measure().strange):
        with pytest.raises(MeshError) as error:
            method(rows)
        assert error.value.reason is reason


@pytest.mark.parametrize("limit", [3.0, math.inf])
def test_a_measure_read_back_says_the_same_and_writes_the_same(limit: float) -> None:
    written = measure(limit).to_bytes()
    read = Unusual.from_bytes(written)
    rows = np.random.default_rng(0).normal(size=(50, 3)) * 10
    np.testing.assert_array_equal(read.distance(rows), measure().distance(rows))
    assert read.to_bytes() == written
    assert (read.limit, read.share, read.fit_samples, read.held_samples) == (limit, 0.01, 100, 200)
    assert read.why == measure(limit).why


def changed(change: Callable[[dict[str, Any]], Any]) -> bytes:
    content = {name: array.copy() for name, array in load(measure().to_bytes()).items()}
    change(content)
    return bytes(save(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("limit"), "not what was expected"),
        (lambda c: c.update(extra=np.zeros(1)), "not what was expected"),
        (lambda c: c.update(version=np.array([VERSION + 1])), f"version is {VERSION + 1}"),
        (lambda c: c.update(version=np.array([VERSION], np.int32)), "no version"),
        (lambda c: c.update(rest=np.ones(1, np.float32)), "rest is float32, expected float64"),
        (lambda c: c.update(variances=np.ones(2)), r"variances has shape \[2\], expected \[1\]"),
        (lambda c: c.update({"features.scale": np.ones(2)}), r"features.scale has shape \[2\], expected \[3\]"),
        (lambda c: c.update(samples=np.array([1])), "samples has shape"),
        (lambda c: c.update(limit=np.array([np.nan])), "not finite"),
        (lambda c: c.update(rest=np.array([np.inf])), "not finite"),
        (lambda c: c.update(limit=np.array([-1.0])), "limit of -1"),
        (lambda c: c.update(limit=np.array([-np.inf])), "limit of -inf"),
        (lambda c: c.update(share=np.array([1.0])), "share of 1"),
        (lambda c: c.update(rest=np.zeros(1)), "variance"),
        (lambda c: c.update(variances=-np.ones(1)), "variance"),
        (lambda c: c.update({"features.scale": np.zeros(3)}), "scale"),
        (lambda c: c.update(samples=np.array([0, 5])), "0 and 5 samples"),
        (lambda c: c["features.directions"].__setitem__((1, 0), 0.5), "not orthonormal"),
        (lambda c: c["features.directions"].__setitem__((1, 0), 3e38), "not orthonormal"),
        (lambda c: c.update({"features.directions": np.zeros((3, 0), np.float32), "variances": np.ones(0)}), "none"),
    ],
)
def test_a_damaged_file_is_refused_with_what_is_wrong(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    with pytest.raises(MeshError, match=message) as error:
        Unusual.from_bytes(changed(change))
    assert error.value.reason is Reason.MODEL_CORRUPT


def test_no_file_or_a_part_of_one_or_far_too_large_a_one_is_refused() -> None:
    whole = measure().to_bytes()
    for data in (b"", whole[:-1], whole[:40], b"nonsense" * 20):
        with pytest.raises(MeshError) as error:
            Unusual.from_bytes(data)
        assert error.value.reason is Reason.MODEL_CORRUPT
    with pytest.raises(MeshError, match=f"at most {MAX_BYTES} are read") as error:
        Unusual.from_bytes(bytes(MAX_BYTES + 1))
    assert error.value.reason is Reason.MODEL_CORRUPT


@given(st.binary(max_size=100), st.integers(0, 700))
def test_any_bytes_over_a_good_file_are_read_or_refused_and_nothing_else(noise: bytes, start: int) -> None:
    whole = bytearray(measure().to_bytes())
    whole[start : start + len(noise)] = noise
    read = read_or_refused(bytes(whole))
    if read is not None:
        assert (read.distance(np.zeros((2, read.projection.width))) >= 0).all()


def read_or_refused(data: bytes) -> Unusual | None:
    try:
        return Unusual.from_bytes(data)
    except MeshError as error:
        if error.reason is not Reason.MODEL_CORRUPT:
            raise
        return None
