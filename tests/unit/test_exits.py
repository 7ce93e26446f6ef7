"""Exits: fitted to a model's own answers, and the same numbers in numpy and in the graph."""

import math
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper
from scipy.special import softmax

from splitmesh.errors import MeshError, Reason
from splitmesh.model.exit_graph import attach_exit
from splitmesh.model.exits import FittedExit, choose_feature, fit_exit, split_samples
from splitmesh.model.plan_limits import EXIT_OPERATORS
from splitmesh.model.pooling import pool
from splitmesh.model.quantize import calibrate, quantise_cut
from splitmesh.runtime import open_session
from splitmesh.tensor.spec import Array, TensorSpec


def _data(n: int = 300, *, classes: int = 3, channels: int = 6, seed: int = 0, noise: float = 0.3) -> tuple[Any, Any]:
    """Feature maps whose channel means carry the class, and a whole model's soft answers."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, n)
    level = np.eye(classes, channels)[label] * 2 + rng.normal(0, noise, (n, channels))
    maps = level[:, :, None, None] + rng.normal(0, 1, (n, channels, 4, 5))
    return maps.astype(np.float32), softmax(6 * np.eye(classes)[label] + rng.normal(0, 0.5, (n, classes)), axis=1)


@pytest.fixture(scope="module")
def fitted() -> FittedExit:
    return fit_exit(*_data())


def _head(shape: list[Any], *, opset: int = 17, dtype: int = TensorProto.FLOAT, output_shape: Any = None) -> ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["minus"]), helper.make_node("Neg", ["minus"], ["t"])],
        "g",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("t", dtype, output_shape or shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _exit_of(model: ModelProto, features: Array, name: str = "exit_probabilities") -> Array:
    onnx.checker.check_model(model, full_check=True)
    return open_session(model.SerializeToString()).run({"x": features})[name]


def test_an_exit_learns_to_say_what_the_whole_model_says(fitted: FittedExit) -> None:
    assert fitted.holdout_agreement > 0.97
    assert (fitted.fit_samples, fitted.holdout_samples) == (168, 90)
    assert fitted.holdout_confidences.shape == fitted.holdout_agrees.shape == (90,)


def test_the_parts_are_disjoint_and_complete(fitted: FittedExit) -> None:
    parts = [fitted.fit_indices, fitted.validation_indices, fitted.holdout_indices]
    assert sorted(np.concatenate(parts).tolist()) == list(range(300))


def test_the_hold_out_decides_nothing_about_the_exit(fitted: FittedExit) -> None:
    features, answers = _data()
    features, answers = features.copy(), answers.copy()
    features[fitted.holdout_indices] = 99.0
    answers[fitted.holdout_indices] = [0.1, 0.1, 0.8]
    other = fit_exit(features, answers)
    np.testing.assert_array_equal(other.weights, fitted.weights)
    np.testing.assert_array_equal(other.mean, fitted.mean)
    assert (other.temperature, other.l2) == (fitted.temperature, fitted.l2)
    assert other.holdout_agreement < fitted.holdout_agreement


def test_the_same_seed_gives_the_same_exit_and_another_seed_another(fitted: FittedExit) -> None:
    again, other = fit_exit(*_data(), seed=0), fit_exit(*_data(), seed=1)
    np.testing.assert_array_equal(again.weights, fitted.weights)
    np.testing.assert_array_equal(again.holdout_indices, fitted.holdout_indices)
    assert other.holdout_indices.tolist() != fitted.holdout_indices.tolist()


def test_hold_out_confidences_are_those_of_predict(fitted: FittedExit) -> None:
    features, answers = _data()
    held = fitted.holdout_indices
    predicted = fitted.predict(features[held])
    np.testing.assert_allclose(predicted.max(axis=1), fitted.holdout_confidences, rtol=1e-9)
    np.testing.assert_array_equal(predicted.argmax(axis=1) == answers[held].argmax(axis=1), fitted.holdout_agrees)


def test_on_noise_the_strongest_penalty_wins_and_confidence_stays_modest() -> None:
    rng = np.random.default_rng(0)
    answers = softmax(6 * np.eye(3)[rng.integers(0, 3, 200)], axis=1)
    noise = fit_exit(rng.normal(size=(200, 60)), answers)
    assert noise.l2 >= 1.0
    assert np.median(noise.holdout_confidences) < 0.6
    assert noise.holdout_agreement < 0.6


def test_temperature_makes_confidence_match_agreement() -> None:
    features, answers = _data(3000, noise=1.5)
    fitted = fit_exit(features, answers)
    assert fitted.holdout_confidences.mean() == pytest.approx(fitted.holdout_agreement, abs=0.04)


def test_a_given_penalty_is_used() -> None:
    assert fit_exit(*_data(), l2=0.5).l2 == 0.5


def test_the_weights_are_where_the_penalised_likelihood_has_no_slope() -> None:
    features, answers = _data()
    fitted = fit_exit(features, answers, l2=0.05)
    rows = fitted.fit_indices
    standard = (pool(features[rows]) - fitted.mean) / fitted.scale
    error = softmax(standard @ fitted.weights + fitted.bias, axis=1) - answers[rows] / answers[rows].sum(1)[:, None]
    np.testing.assert_allclose(standard.T @ error / len(rows) + 0.05 * fitted.weights, 0, atol=1e-3)
    np.testing.assert_allclose(error.mean(axis=0), 0, atol=1e-3)


def test_a_perfect_validation_part_proves_no_certainty(fitted: FittedExit) -> None:
    assert fitted.holdout_confidences.max() < 1.0
    assert fitted.temperature > 0.1


def test_constant_features_change_nothing() -> None:
    features, answers = _data()
    pooled = pool(features)
    constant = np.concatenate([pooled, np.full((300, 2), 1e6), np.zeros((300, 1))], axis=1)
    plain, padded = fit_exit(pooled, answers), fit_exit(constant, answers)
    np.testing.assert_allclose(padded.holdout_confidences, plain.holdout_confidences, atol=1e-3)
    assert np.isfinite(padded.weights).all()


@given(n=st.integers(150, 300), groups=st.integers(40, 80), seed=st.integers(0, 1000))
@settings(max_examples=40)
def test_pictures_of_one_unit_stay_in_one_part(n: int, groups: int, seed: int) -> None:
    unit = np.random.default_rng(seed).integers(0, groups, n)
    fit, validation, held = split_samples(n, holdout=0.3, seed=seed, groups=[f"unit {u}" for u in unit])
    sets = [set(unit[rows]) for rows in (fit, validation, held)]
    assert sum(map(len, sets)) == len(set(unit))
    assert len(fit) + len(validation) + len(held) == n
    assert 0.1 < len(held) / n < 0.5


@pytest.mark.parametrize("n", [0, 1, 30])
def test_too_few_samples_are_refused(n: int) -> None:
    with pytest.raises(MeshError) as caught:
        split_samples(n, holdout=0.3, seed=0)
    assert caught.value.reason is Reason.CALIBRATION_INSUFFICIENT
    assert caught.value.metadata["samples"] == str(n)


def test_a_single_unit_cannot_be_divided() -> None:
    with pytest.raises(MeshError) as caught:
        split_samples(500, holdout=0.3, seed=0, groups=np.zeros(500))
    assert caught.value.reason is Reason.CALIBRATION_INSUFFICIENT


def test_a_model_that_always_gives_one_class_teaches_nothing() -> None:
    features, _ = _data()
    with pytest.raises(MeshError) as caught:
        fit_exit(features, np.tile([0.9, 0.05, 0.05], (300, 1)))
    assert caught.value.reason is Reason.CALIBRATION_INSUFFICIENT
    assert "class 0 for all" in caught.value.message


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"whole_probabilities": np.ones((299, 3)) / 3}, Reason.TENSOR_SHAPE_MISMATCH),
        ({"whole_probabilities": np.ones((300, 3))}, Reason.FIELD_INVALID),
        ({"whole_probabilities": np.ones((300, 1))}, Reason.FIELD_INVALID),
        ({"whole_probabilities": np.full((300, 3), math.nan)}, Reason.TENSOR_NOT_FINITE),
        ({"features": np.full((300, 4), math.nan)}, Reason.TENSOR_NOT_FINITE),
        ({"features": np.zeros((300,))}, Reason.CUT_INVALID),
        ({"features": np.zeros((300, 1, 1, 1, 1))}, Reason.CUT_INVALID),
        ({"holdout": 0.0}, Reason.FIELD_INVALID),
        ({"holdout": 1.0}, Reason.FIELD_INVALID),
        ({"l2": 0.0}, Reason.FIELD_INVALID),
        ({"groups": [1, 2]}, Reason.FIELD_INVALID),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Any], reason: Reason) -> None:
    features, answers = _data()
    with pytest.raises(MeshError) as caught:
        fit_exit(**{"features": features, "whole_probabilities": answers} | change)
    assert caught.value.reason is reason


def test_pooling_is_mean_maximum_and_deviation_per_channel() -> None:
    maps = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    first = maps[0, 0]
    pooled = pool(maps)[0]
    np.testing.assert_allclose(pooled[[0, 2, 4]], [first.mean(), first.max(), first.std()], rtol=1e-6)
    many = np.random.default_rng(0).normal(size=(200, 2, 3, 4))
    np.testing.assert_allclose(pool(many)[:, :2], many.mean(axis=(2, 3)))
    assert pool(many[:0]).shape == (0, 6)
    tokens = maps.reshape(1, 6, 4)
    np.testing.assert_allclose(pool(tokens)[0, 4:8], tokens[0].max(axis=0))
    np.testing.assert_array_equal(pool(maps.reshape(3, 8)), maps.reshape(3, 8))


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 21])
def test_the_graph_computes_what_the_reference_does(fitted: FittedExit, opset: int) -> None:
    features, _ = _data(50, seed=9)
    model = attach_exit(_head(["n", 6, 4, 5], opset=opset), "t", fitted)
    got = _exit_of(model, features)
    np.testing.assert_allclose(got, fitted.predict(features), atol=2e-6)
    assert {node.op_type for node in model.graph.node} - {"Neg"} <= EXIT_OPERATORS
    assert [output.name for output in model.graph.output] == ["t", "exit_probabilities"]


@pytest.mark.parametrize("shape", [(90, 7, 5), (90, 5)])
@pytest.mark.parametrize("opset", [13, 18])
def test_tokens_and_flat_features_carry_an_exit_too(shape: tuple[int, ...], opset: int) -> None:
    rng = np.random.default_rng(2)
    features = rng.normal(size=shape).astype(np.float32)
    answers = softmax(8 * np.eye(2)[(features.reshape(90, -1).mean(axis=1) > 0).astype(int)], axis=1)
    fitted = fit_exit(features, answers)
    model = attach_exit(_head(["n", *shape[1:]], opset=opset), "t", fitted)
    np.testing.assert_allclose(_exit_of(model, features), fitted.predict(features), atol=2e-6)


def test_large_offsets_do_not_cancel(fitted: FittedExit) -> None:
    features, answers = _data(200, seed=4)
    shifted = features + np.float32(1000)
    moved = fit_exit(shifted, answers)
    model = attach_exit(_head(["n", 6, 4, 5]), "t", moved)
    np.testing.assert_allclose(_exit_of(model, shifted), moved.predict(shifted), atol=5e-3)


def test_float16_features_are_read_as_float32(fitted: FittedExit) -> None:
    features = _data(20, seed=9)[0].astype(np.float16)
    model = attach_exit(_head(["n", 6, 4, 5], dtype=TensorProto.FLOAT16), "t", fitted)
    got = _exit_of(model, features)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, fitted.predict(features), atol=2e-6)


def test_the_exit_reads_the_features_before_they_are_rounded(fitted: FittedExit) -> None:
    features, _ = _data(40, seed=9)
    head, tail = _head(["n", 6, 4, 5]), _head(["n", 6, 4, 5])
    tail.graph.node[0].input[0] = "t"
    tail.graph.input[0].name = "t"
    tail.graph.node[1].output[0] = "y"
    tail.graph.output[0].name = "y"
    ranges = calibrate(head.SerializeToString(), [{"x": features}])
    exit_first = quantise_cut(attach_exit(head, "t", fitted), tail, ranges)[0]
    exit_last = attach_exit(quantise_cut(head, tail, ranges)[0], "t", fitted)
    for model in (exit_first, exit_last):
        assert {output.name for output in model.graph.output} == {"t.q8", "exit_probabilities"}
        np.testing.assert_allclose(_exit_of(model, features), fitted.predict(features), atol=2e-6)


def test_names_that_are_taken_are_avoided(fitted: FittedExit) -> None:
    features, _ = _data(10, seed=9)
    twice = attach_exit(attach_exit(_head(["n", 6, 4, 5]), "t", fitted), "t", fitted, output="second")
    np.testing.assert_array_equal(_exit_of(twice, features, "second"), _exit_of(twice, features))


def test_the_head_given_stays_as_it_is(fitted: FittedExit) -> None:
    head = _head(["n", 6, 4, 5])
    before = head.SerializeToString()
    attach_exit(head, "t", fitted)
    assert head.SerializeToString() == before


def test_an_inner_tensor_without_a_written_shape_can_carry_the_exit(fitted: FittedExit) -> None:
    features, _ = _data(10, seed=9)
    model = attach_exit(_head(["n", 6, 4, 5]), "minus", fitted)
    np.testing.assert_allclose(_exit_of(model, features), fitted.predict(-features), atol=2e-6)


@pytest.mark.parametrize(
    ("head", "arguments", "reason"),
    [
        (_head(["n", 6, 4, 5]), {"feature_tensor": "nothing"}, Reason.CUT_INVALID),
        (_head(["n", 6, 4, 5]), {"output": "minus"}, Reason.FIELD_INVALID),
        (_head(["n", 7, 4, 5]), {}, Reason.TENSOR_SHAPE_MISMATCH),
        (_head(["n", 18, 4]), {}, Reason.TENSOR_SHAPE_MISMATCH),
        (_head(["n", 6]), {}, Reason.TENSOR_SHAPE_MISMATCH),
        (_head(["n", 6, 4, 5, 1]), {}, Reason.CUT_INVALID),
        (_head(["n", 6, 4, 5], dtype=TensorProto.INT32), {}, Reason.CUT_INVALID),
        (_head(["n", 6, 4, 5], opset=6), {}, Reason.MODEL_OPERATOR_UNSUPPORTED),
    ],
)
def test_heads_that_cannot_carry_the_exit_are_refused(
    fitted: FittedExit, head: ModelProto, arguments: dict[str, str], reason: Reason
) -> None:
    with pytest.raises(MeshError) as caught:
        attach_exit(head, **{"feature_tensor": "t", "fitted": fitted} | arguments)
    assert caught.value.reason is reason


def test_a_feature_of_unknown_rank_is_refused(fitted: FittedExit) -> None:
    head = _head(["n", 6, 4, 5])
    head.graph.node[0].op_type = "Unknown"
    head.graph.node[0].domain = "elsewhere"
    head.opset_import.append(helper.make_opsetid("elsewhere", 1))
    head.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(MeshError) as caught:
        attach_exit(head, "t", fitted)
    assert caught.value.reason is Reason.MODEL_SHAPE_UNKNOWN


def test_the_tensor_with_most_channels_carries_the_exit() -> None:
    specs = [
        TensorSpec("wide", "float32", (-1, 16, 32, 32)),
        TensorSpec("deep", "float32", (-1, 64, 8, 8)),
        TensorSpec("larger", "float32", (-1, 64, 16, 16)),
        TensorSpec("tokens", "float32", (-1, 500, 32)),
        TensorSpec("ids", "int64", (-1, 900)),
        TensorSpec("scalar", "float32", (-1,)),
    ]
    assert choose_feature(specs).name == "larger"
    with pytest.raises(MeshError) as caught:
        choose_feature(specs[4:])
    assert caught.value.reason is Reason.CUT_INVALID
