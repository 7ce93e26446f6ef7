"""A converted model that answers otherwise is found out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from splitmesh.convert.compare import ROUNDS, compare
from splitmesh.errors import MeshError
from splitmesh.tensor.spec import Array, TensorSpec
from tests.unit.onnx_nets import data, model, node, value

X = TensorSpec("x", "float32", (-1, 5))


@pytest.fixture
def doubling(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(data(model([node("Add", "x x", "y")], [value("x", ["N", 5])], [value("y", ["N", 5])])))
    return path


def test_equal_models_pass_and_say_on_how_many_samples(doubling: Path) -> None:
    found = compare(lambda feed: [feed["x"] * np.float32(2)], doubling, [X], (1, 3), 1e-6)
    assert (found.samples, found.largest_difference) == (4 * ROUNDS, 0.0)


def test_the_difference_is_a_share_of_the_largest_value(doubling: Path) -> None:
    found = compare(lambda feed: [feed["x"] * np.float32(2.02)], doubling, [X], (3,), 0.1)
    assert found.largest_difference == pytest.approx(0.02 / 2.02, rel=1e-3)


def _nothing(feed: Mapping[str, Array]) -> Sequence[Array]:
    return [np.full_like(feed["x"], np.nan)]


@pytest.mark.parametrize(
    ("original", "complaint"),
    [
        (lambda feed: [feed["x"] * np.float32(2.02)], "differs by 0.0099"),
        (lambda feed: [feed["x"].sum(axis=1)], r"in shape: \[1, 5\] instead of \[1\]"),
        (lambda feed: [np.where(feed["x"] > 0, np.inf, feed["x"])], "not finite"),
        (_nothing, "not finite"),
    ],
)
def test_other_answers_are_refused(doubling: Path, original: object, complaint: str) -> None:
    with pytest.raises(MeshError, match=complaint):
        compare(original, doubling, [X], (1, 3), 1e-3)  # type: ignore[arg-type]


def test_values_between_0_and_1_are_among_the_inputs(doubling: Path) -> None:
    seen: list[Array] = []

    def watching(feed: Mapping[str, Array]) -> Sequence[Array]:
        seen.append(feed["x"])
        return [feed["x"] * np.float32(2)]

    compare(watching, doubling, [X], (3,), 1e-3)
    inside = [bool(((feed >= 0) & (feed <= 1)).all()) for feed in seen]
    assert inside.count(True) == inside.count(False) == ROUNDS // 2


def test_a_size_that_varies_beside_the_batch_is_refused(doubling: Path) -> None:
    wide = TensorSpec("x", "float32", (-1, -1))
    with pytest.raises(MeshError, match="no input can be made up"):
        compare(lambda feed: [feed["x"]], doubling, [wide], (1,), 1e-3)
