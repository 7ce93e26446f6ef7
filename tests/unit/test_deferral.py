"""The deferral score on every frame, and its file: what is undefined, what cannot change it, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load, save

from splitmesh.errors import MeshError, Reason
from splitmesh.routing.deferral import CERTAIN, MAX_BYTES, VERSION, Deferral, Logistic
from splitmesh.routing.projection import Projection
from splitmesh.routing.scores import distributions

EVEN, TORN, SURE = [1 / 3] * 3, [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]
ROWS = st.lists(
    st.sampled_from([EVEN, TORN, SURE, [0.2, 0.7, 0.1], [0.2] * 3, [np.nan, 0.5, 0.5], [2.0, -1.0, 0.0]]),
    min_size=4,
    max_size=4,
).map(np.array)
NUMBERS = st.sampled_from([np.nan, np.inf, -np.inf, 1e308]) | st.floats(-100, 100)
FEATURES = arrays.arrays(np.float64, (4, 2), elements=NUMBERS)


def score(features: bool = True) -> Deferral:
    """The exit is right where it is sure and feature 0 is small; the tail always."""
    width = 5 + 2 * features
    return Deferral(
        classes=3,
        mean=np.zeros(5),
        scale=np.ones(5),
        projection=Projection(np.array([1.0, 2.0]), np.array([1.0, 0.5]), np.eye(2)) if features else None,
        exit=Logistic(np.array([0.5, 0.1, 0.0, 4.0, -1.0, -2.0, 0.0])[:width], 0.2),
        tail=Logistic(np.zeros(width), CERTAIN),
        samples=100,
    )


def usual(n: int) -> np.ndarray:
    return np.tile([1.0, 2.0], (n, 1))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_surer_the_exit_the_less_is_gained(dtype: str) -> None:
    sure, torn, even = score().worth(np.array([SURE, TORN, EVEN], dtype=dtype), usual(3))
    assert 0 < sure < torn
    assert sure < even < 1


def test_a_feature_that_speaks_against_the_exit_makes_the_tail_worth_asking() -> None:
    rows = np.array([TORN, TORN])
    calm, odd = score().worth(rows, np.array([[1.0, 2.0], [3.0, 2.0]]))
    assert odd > calm + 0.2


def test_the_worth_is_the_difference_of_the_two_probabilities_of_each_model() -> None:
    both = Deferral(3, np.zeros(5), np.ones(5), None, Logistic(np.zeros(5), 1.0), Logistic(np.zeros(5), -1.0), 40)
    rows = np.array([SURE, EVEN])
    np.testing.assert_allclose(both.exit_right(rows), 1 / (1 + np.exp(-1.0)))
    np.testing.assert_allclose(both.tail_right(rows), 1 / (1 + np.exp(1.0)))
    assert (both.worth(rows) == both.tail_right(rows) - both.exit_right(rows)).all()
    assert (both.worth(rows) < 0).all()


@given(ROWS, FEATURES)
def test_whatever_comes_the_worth_is_within_its_range_or_undefined_exactly_where_the_sample_is(
    rows: np.ndarray, features: np.ndarray
) -> None:
    found = score().worth(rows, features)
    defined = distributions(rows)[1] & np.isfinite(features).all(axis=1)
    assert (np.isfinite(found) == defined).all()
    assert (np.abs(found[defined]) <= 1).all()


@given(st.integers(0, 2**32), st.permutations(range(3)))
def test_neither_the_order_of_the_classes_nor_the_company_of_other_samples_matters(seed: int, order: list[int]) -> None:
    random = np.random.default_rng(seed)
    rows, features = random.dirichlet(np.ones(3), size=4), random.normal(size=(4, 2))
    found = score().worth(rows, features)
    np.testing.assert_array_equal(found, score().worth(rows[:, order], features))
    np.testing.assert_allclose(found, [score().worth(rows[i : i + 1], features[i : i + 1])[0] for i in range(4)])


def test_equal_samples_have_equal_worth() -> None:
    found = score().worth(np.array([TORN] * 5), usual(5))
    assert len(set(found.tolist())) == 1


def test_a_feature_far_beyond_all_that_was_seen_counts_as_ten_deviations_away() -> None:
    far = score().worth(np.array([TORN] * 3), np.array([[11.0, 2.0], [1e6, 2.0], [1e308, 2.0]]))
    assert far[0] == far[1] == far[2]


def test_no_samples_give_no_worth() -> None:
    assert score().worth(np.zeros((0, 3)), np.zeros((0, 2))).shape == (0,)


def test_a_score_without_features_ignores_them() -> None:
    assert np.isfinite(score(False).worth(np.array([TORN]), np.full((1, 9), np.nan))).all()


@pytest.mark.parametrize(
    ("rows", "features", "reason"),
    [
        (np.ones((1, 2)) / 2, usual(1), Reason.TENSOR_SHAPE_MISMATCH),
        (np.ones(3) / 3, usual(1), Reason.TENSOR_SHAPE_MISMATCH),
        (np.array([TORN]), None, Reason.FIELD_INVALID),
        (np.array([TORN]), usual(2), Reason.TENSOR_SHAPE_MISMATCH),
        (np.array([TORN]), np.zeros((1, 3)), Reason.TENSOR_SHAPE_MISMATCH),
        (np.array([TORN]), np.zeros(2), Reason.TENSOR_SHAPE_MISMATCH),
        (np.array([TORN]), np.array([["a", "b"]]), Reason.TENSOR_DTYPE_MISMATCH),
    ],
)
def test_arguments_that_do_not_fit_the_score_are_refused(
    rows: np.ndarray, features: np.ndarray | None, reason: Reason
) -> None:
    for method in (score().worth, score().exit_right, score().tail_right):
        with pytest.raises(MeshError) as error:
            method(rows, features)
        assert error.value.reason is reason


@pytest.mark.parametrize("features", [True, False])
def test_a_score_read_back_says_the_same_and_writes_the_same(features: bool) -> None:
    written = score(features).to_bytes()
    read = Deferral.from_bytes(written)
    rows = np.random.default_rng(0).dirichlet(np.ones(3), size=50)
    seen = np.random.default_rng(1).normal(size=(50, 2))
    np.testing.assert_array_equal(read.worth(rows, seen), score(features).worth(rows, seen))
    assert read.to_bytes() == written
    assert (read.classes, read.samples) == (3, 100)


def changed(change: Callable[[dict[str, Any]], Any]) -> bytes:
    content = {name: array.copy() for name, array in load(score().to_bytes()).items()}
    change(content)
    return bytes(save(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("tail.bias"), "not what was expected"),
        (lambda c: c.update(more=np.zeros(1)), "not what was expected"),
        (lambda c: c.pop("features.scale"), "not what was expected"),
        (lambda c: c.pop("version"), "no version"),
        (lambda c: c.update(version=np.array([VERSION + 1])), f"version is {VERSION + 1}, expected {VERSION}"),
        (lambda c: c.update({"exit.bias": np.zeros(1, np.float32)}), "exit.bias is float32, expected float64"),
        (lambda c: c.update({"tail.weights": np.zeros(6)}), r"tail.weights has shape \[6\], expected \[7\]"),
        (lambda c: c.update({"features.mean": np.zeros((2, 1))}), "features.mean has shape"),
        (lambda c: c.update({"exit.weights": np.zeros(4), "tail.weights": np.zeros(4)}), "take 7 weights"),
        (lambda c: c.update(classes=np.array([2])), "2 classes take 6 weights"),
        (lambda c: c.update(classes=np.array([1])), "too few"),
        (lambda c: c.update(samples=np.array([0])), "too few"),
        (lambda c: c["rows.mean"].__setitem__(0, np.nan), "not finite"),
        (lambda c: c["features.directions"].__setitem__((0, 0), np.inf), "not finite"),
        (lambda c: c["rows.scale"].__setitem__(0, 0.0), "scale"),
        (lambda c: c["features.scale"].__setitem__(0, -1.0), "scale"),
        (lambda c: c.update({"features.directions": np.zeros((2, 3), np.float32)}), "3 directions of 2 features"),
    ],
)
def test_a_damaged_file_is_refused_with_what_is_wrong(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    with pytest.raises(MeshError, match=message) as error:
        Deferral.from_bytes(changed(change))
    assert error.value.reason is Reason.MODEL_CORRUPT


def test_no_file_or_a_part_of_one_or_far_too_large_a_one_is_refused() -> None:
    whole = score().to_bytes()
    for data in (b"", b"\x00" * 8, whole[:-1], whole[:40], b"nonsense" * 20):
        with pytest.raises(MeshError) as error:
            Deferral.from_bytes(data)
        assert error.value.reason is Reason.MODEL_CORRUPT
    with pytest.raises(MeshError, match=f"at most {MAX_BYTES} are read") as error:
        Deferral.from_bytes(bytes(MAX_BYTES + 1))
    assert error.value.reason is Reason.MODEL_CORRUPT


@given(st.binary(max_size=200), st.integers(0, 400))
def test_any_bytes_over_a_good_file_are_read_or_refused_and_nothing_else(noise: bytes, start: int) -> None:
    whole = bytearray(score().to_bytes())
    whole[start : start + len(noise)] = noise
    read = read_or_refused(bytes(whole))
    if read is not None and read.classes <= 1000:
        found = read.worth(np.array([[1 / read.classes] * read.classes]), usual(1))
        assert np.isnan(found[0]) or abs(found[0]) <= 1


def read_or_refused(data: bytes) -> Deferral | None:
    try:
        return Deferral.from_bytes(data)
    except MeshError as error:
        if error.reason is not Reason.MODEL_CORRUPT:
            raise
        return None
