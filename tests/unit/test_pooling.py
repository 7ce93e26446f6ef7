"""Pooling against a loop anyone can follow, the choice of a grid, and the same numbers from the graph of an exit."""

import itertools
import math
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper
from scipy.special import softmax

from splitmesh.errors import MeshError, Reason
from splitmesh.model.exit_graph import EXIT_OUTPUT, attach_exit
from splitmesh.model.exits import FittedExit, fit_exit
from splitmesh.model.pooling import MAX_FEATURES, POOL_ROWS, STD_EPSILON, choose_grid, pool, pooled_axes
from splitmesh.runtime import open_session
from splitmesh.tensor.spec import TensorSpec

CHANNELS, SIDE = 3, 8
Floats = NDArray[np.floating[Any]]


def _maps(n: int = 5, *, height: int = SIDE, width: int = SIDE, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(2, 3, (n, CHANNELS, height, width)).astype(np.float32)


def _statistics(values: list[float]) -> tuple[float, float, float]:
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
    return mean, max(values), math.sqrt(variance + STD_EPSILON)


def _naive(maps: Floats, grid: int) -> Floats:
    """One cell after the other; all means first, channel by channel, row by row, then maxima, then deviations."""
    n, channels, height, width = maps.shape
    tall, wide = height // grid, width // grid
    rows = []
    for sample in range(n):
        found = []
        for channel, down, across in itertools.product(range(channels), range(grid), range(grid)):
            values = [
                float(maps[sample, channel, y, x])
                for y in range(down * tall, (down + 1) * tall)
                for x in range(across * wide, (across + 1) * wide)
            ]
            found.append(_statistics(values))
        rows.append([statistic[kind] for kind in range(3) for statistic in found])
    return np.array(rows)


@pytest.mark.parametrize(
    ("grid", "height", "width"), [(1, 8, 8), (2, 8, 8), (4, 8, 8), (8, 16, 8), (2, 4, 6), (1, 3, 5)]
)
def test_every_cell_has_its_mean_maximum_and_deviation(grid: int, height: int, width: int) -> None:
    maps = _maps(height=height, width=width)
    pooled = pool(maps, grid)
    assert pooled.shape == (len(maps), 3 * CHANNELS * grid * grid)
    np.testing.assert_allclose(pooled, _naive(maps, grid), rtol=1e-9)


def test_something_seen_in_one_corner_shows_in_that_corner_only() -> None:
    maps = np.zeros((1, 1, 8, 8), dtype=np.float32)
    maps[0, 0, 7, 0] = 16.0
    means = pool(maps, 2)[0, :4]
    np.testing.assert_allclose(means, [0, 0, 1, 0])
    assert pool(maps, 1)[0, 0] == pytest.approx(0.25)


def test_more_samples_than_are_pooled_at_once_come_out_in_order() -> None:
    maps = _maps(2 * POOL_ROWS + 3)
    one_by_one = np.concatenate([pool(maps[row : row + 1], 2) for row in range(len(maps))])
    np.testing.assert_allclose(pool(maps, 2), one_by_one, rtol=1e-12)


def test_no_samples_give_rows_of_the_right_width() -> None:
    assert pool(_maps(0), 4).shape == (0, 3 * CHANNELS * 16)


@pytest.mark.parametrize("grid", [1, 4])
def test_tokens_are_pooled_in_one_cell_whatever_the_grid(grid: int) -> None:
    tokens = _maps().reshape(5, -1, 6)
    pooled = pool(tokens, grid)
    for sample, channel in itertools.product(range(5), range(6)):
        values = [float(value) for value in tokens[sample, :, channel]]
        np.testing.assert_allclose(pooled[sample, channel::6], _statistics(values), rtol=1e-9)


@pytest.mark.parametrize("grid", [1, 8])
def test_flat_features_stay_as_they_are(grid: int) -> None:
    flat = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(pool(flat, grid), flat)
    assert pool(flat, grid).dtype == np.float64


@pytest.mark.parametrize("rank", [0, 1, 5])
def test_other_ranks_are_refused(rank: int) -> None:
    with pytest.raises(MeshError) as caught:
        pooled_axes(rank)
    assert caught.value.reason is Reason.CUT_INVALID
    with pytest.raises(MeshError) as caught:
        pool(np.zeros((2,) * rank, dtype=np.float32))
    assert caught.value.reason is Reason.CUT_INVALID


MANY = 10_000


@pytest.mark.parametrize(
    ("shape", "samples", "grid"),
    [
        ((-1, 8, 16, 16), MANY, 8),  # 3 x 8 x 64 = 1536 features
        ((-1, 9, 16, 16), MANY, 4),  # 1728 would be more than MAX_FEATURES
        ((-1, 33, 16, 16), MANY, 4),  # 1584
        ((-1, 34, 16, 16), MANY, 2),
        ((-1, 134, 16, 16), MANY, 1),  # even 2 x 2 is 1608
        ((-1, 8, 12, 12), MANY, 4),  # 8 does not divide 12
        ((-1, 8, 16, 12), MANY, 4),
        ((-1, 8, 6, 6), MANY, 2),
        ((-1, 8, 7, 7), MANY, 1),
        ((-1, 8, 8, 8), MANY, 4),  # a cell of one pixel pools nothing
        ((-1, 8, 2, 2), MANY, 1),
        ((-1, 8, 16, 16), 1024, 8),  # 1536 features for exactly 1.5 a sample
        ((-1, 8, 16, 16), 1023, 4),
        ((-1, 8, 16, 16), 64, 2),
        ((-1, 8, 16, 16), 63, 1),
        ((-1, 8, -1, 16), MANY, 1),
        ((-1, -1, 16, 16), MANY, 1),
        ((-1, 64, 8), MANY, 1),
        ((-1, 64), MANY, 1),
    ],
)
def test_the_grid_is_the_finest_that_fits_the_tensor_and_the_samples(
    shape: tuple[int, ...], samples: int, grid: int
) -> None:
    assert choose_grid(TensorSpec("t", "float32", shape), samples) == grid
    assert grid == 1 or 3 * shape[1] * grid * grid <= MAX_FEATURES


def _fitted(features: Floats, grid: int) -> FittedExit:
    rng = np.random.default_rng(3)
    answers = softmax(4 * np.eye(3)[rng.integers(0, 3, len(features))], axis=1)
    return fit_exit(features, answers, grid=grid, l2=0.01)


def _head(shape: list[Any], opset: int) -> ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["t"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
@pytest.mark.parametrize(("grid", "height", "width"), [(2, 8, 8), (4, 8, 16), (8, 16, 24)])
def test_the_graph_of_an_exit_pools_on_the_same_grid(grid: int, height: int, width: int, opset: int) -> None:
    features = _maps(80, height=height, width=width)
    fitted = _fitted(features, grid)
    model = attach_exit(_head(["n", CHANNELS, height, width], opset), "t", fitted)
    onnx.checker.check_model(model, full_check=True)
    session = open_session(model.SerializeToString())
    expected = fitted.predict(features)
    assert expected.std(axis=0).min() > 0.01, "an exit that says one thing everywhere shows nothing"
    for batch in (1, 7, 80):
        got = session.run({"x": -features[:batch]})[EXIT_OUTPUT]
        np.testing.assert_allclose(got, expected[:batch], atol=5e-6)


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("shape", [(80, 6, 4), (80, 6)])
def test_tokens_and_flat_features_give_the_same_in_the_graph(shape: tuple[int, ...], opset: int) -> None:
    features = np.random.default_rng(5).normal(size=shape).astype(np.float32)
    fitted = _fitted(features, 1)
    session = open_session(attach_exit(_head(["n", *shape[1:]], opset), "t", fitted).SerializeToString())
    np.testing.assert_allclose(session.run({"x": -features})[EXIT_OUTPUT], fitted.predict(features), atol=5e-6)


@pytest.mark.parametrize(
    "shape",
    [
        ["n", CHANNELS, 8, 6],  # 4 does not divide 6
        ["n", CHANNELS, 8, "width"],
        ["n", "channels", 8, 8],
        ["n", CHANNELS + 1, 8, 8],
        ["n", 64, CHANNELS],
        ["n", CHANNELS],
    ],
)
def test_a_tensor_of_another_shape_cannot_carry_a_gridded_exit(shape: list[Any]) -> None:
    fitted = _fitted(_maps(80), 4)
    with pytest.raises(MeshError) as caught:
        attach_exit(_head(shape, 17), "t", fitted)
    assert caught.value.reason is Reason.TENSOR_SHAPE_MISMATCH
