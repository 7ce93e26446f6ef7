"""Rounding at the cut: the rule, the graphs and what they refuse."""

import math
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import ModelProto, TensorProto, helper, numpy_helper

from splitmesh.errors import MeshError, Reason
from splitmesh.model.plan_limits import ROUNDING_OPERATORS
from splitmesh.model.quantize import calibrate, quantise_cut
from splitmesh.model.ranges import Affine, RangeCollector, Ranges, affine, dequantise, quantise
from splitmesh.runtime import open_session
from splitmesh.tensor.spec import Array

CHANNELS, SIDE = 4, 6


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[str | int]]],
    outputs: dict[str, tuple[int, list[str | int]]],
    weights: dict[str, Array] | None = None,
    opset: int = 17,
) -> ModelProto:
    def infos(entries: dict[str, tuple[int, list[str | int]]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, *entry) for name, entry in entries.items()]

    graph = helper.make_graph(
        nodes,
        "g",
        infos(inputs),
        infos(outputs),
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _pair(opset: int = 17, *, relu: bool = True, dtype: int = TensorProto.FLOAT) -> tuple[ModelProto, ModelProto]:
    """Head: a convolution (and ReLU) to ``t``; tail: mean over space to ``y``."""
    shape: list[str | int] = ["n", CHANNELS, SIDE, SIDE]
    rng = np.random.default_rng(3)
    kernel = rng.standard_normal((CHANNELS, 1, 3, 3)) * np.array([0.01, 0.1, 1, 10]).reshape(-1, 1, 1, 1)
    weights = {"w": kernel.astype(helper.tensor_dtype_to_np_dtype(dtype))}
    last = "Relu" if relu else "Identity"
    head = _model(
        [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), helper.make_node(last, ["c"], ["t"])],
        {"x": (dtype, ["n", 1, SIDE, SIDE])},
        {"t": (dtype, shape)},
        weights,
        opset,
    )
    pool = helper.make_node("GlobalAveragePool", ["t"], ["y"])
    tail = _model([pool], {"t": (dtype, shape)}, {"y": (dtype, ["n", CHANNELS, 1, 1])}, opset=opset)
    return head, tail


def _feeds(count: int = 8, dtype: type = np.float32) -> list[dict[str, Array]]:
    rng = np.random.default_rng(5)
    return [{"x": rng.standard_normal((2, 1, SIDE, SIDE)).astype(dtype)} for _ in range(count)]


def _run(model: ModelProto, feed: dict[str, Array]) -> dict[str, Array]:
    return open_session(model.SerializeToString()).run(feed)


def _ranges(low: list[float], high: list[float], axis: int | None = 1) -> Ranges:
    return Ranges(axis, np.array(low, float), np.array(high, float), 1)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("opset", [11, 13, 17, 21])
def test_the_cut_crosses_as_uint8_and_returns_within_half_a_scale(opset: int, per_channel: bool, relu: bool) -> None:
    head, tail = _pair(opset, relu=relu)
    ranges = calibrate(head.SerializeToString(), _feeds())
    new_head, new_tail, (entry,) = quantise_cut(head, tail, ranges, per_channel=per_channel)
    onnx.checker.check_model(new_head, full_check=True)
    onnx.checker.check_model(new_tail, full_check=True)
    assert (entry.tensor, entry.wire_tensor, entry.dtype) == ("t", "t.q8", "uint8")
    added = {node.op_type for node in new_head.graph.node} - {node.op_type for node in head.graph.node}
    assert added == ROUNDING_OPERATORS
    assert entry.axis == (1 if per_channel and opset >= 13 else None)
    assert len(entry.scale) == (CHANNELS if entry.axis == 1 else 1)
    for feed in _feeds():
        real, wire = _run(head, feed)["t"], _run(new_head, feed)["t.q8"]
        assert wire.dtype == np.uint8
        shape = (1, -1, 1, 1) if entry.axis == 1 else (1, 1, 1, 1)
        scale = np.array(entry.scale).reshape(shape)
        back = (wire.astype(float) - np.array(entry.zero_point).reshape(shape)) * scale
        assert (np.abs(back - real) <= scale * 0.5001).all()
        exact, rounded = _run(tail, {"t": real})["y"], _run(new_tail, {"t.q8": wire})["y"]
        assert (np.abs(exact - rounded) <= scale * 0.5001).all()


def test_the_graph_rounds_as_the_reference_does() -> None:
    head, tail = _pair(relu=False)
    ranges = calibrate(head.SerializeToString(), _feeds())
    new_head, _, _ = quantise_cut(head, tail, ranges)
    for feed in _feeds():
        expected = quantise(_run(head, feed)["t"], affine(ranges["t"], per_channel=True))
        assert np.abs(_run(new_head, feed)["t.q8"].astype(int) - expected.astype(int)).max() <= 1


def test_values_after_a_relu_use_the_full_range_from_zero() -> None:
    rule = affine(_ranges([0.0, 0.5], [51.0, 102.0]), per_channel=True)
    assert rule.zero_point.tolist() == [0, 0]
    np.testing.assert_allclose(rule.scale, [0.2, 0.4], rtol=1e-6)


def test_channels_of_different_size_get_scales_of_their_own() -> None:
    head, tail = _pair()
    ranges = calibrate(head.SerializeToString(), _feeds())
    _, _, (entry,) = quantise_cut(head, tail, ranges)
    assert entry.scale[3] > 100 * entry.scale[0]


def test_values_outside_the_calibrated_range_saturate() -> None:
    rule = affine(_ranges([-1.0], [1.0], None), per_channel=False)
    assert quantise(np.array([-50.0, 50.0], np.float32), rule).tolist() == [0, 255]


def test_a_channel_that_never_moved_takes_the_rule_of_the_tensor() -> None:
    rule = affine(_ranges([0.0, 0.0], [0.0, 10.0]), per_channel=True)
    assert rule.scale[0] == rule.scale[1]


def test_a_constant_tensor_comes_back_as_it_is() -> None:
    for value in (0.0, 7.5, -7.5, 1e-40, 3e38):
        rule = affine(_ranges([value], [value], None), per_channel=False)
        back = dequantise(quantise(np.full(3, value, np.float32), rule), rule)
        np.testing.assert_allclose(back, value, rtol=1e-5, atol=1e-30)


@given(
    hnp.arrays(np.float32, (3, 2, 5), elements=st.floats(-1e6, 1e6, width=32)),
    st.booleans(),
)
def test_inside_the_range_the_error_is_at_most_half_a_scale(values: Array, per_channel: bool) -> None:
    collector = RangeCollector("t")
    collector.add(values)
    rule = affine(collector.ranges(), per_channel=per_channel)
    error = np.abs(dequantise(quantise(values, rule), rule).astype(float) - values)
    assert (error <= rule.scale.astype(float) * 0.5 * (1 + 1e-4) + 1e-30).all()


@given(hnp.arrays(np.float32, (2, 3, 2, 2), elements=st.floats(-1e3, 1e3, width=32)))
def test_zero_crosses_unchanged(values: Array) -> None:
    collector = RangeCollector("t")
    collector.add(values)
    rule = affine(collector.ranges(), per_channel=True)
    assert not dequantise(quantise(np.zeros_like(values), rule), rule).any()


def test_tokens_are_scaled_along_their_last_axis() -> None:
    collector = RangeCollector("t")
    collector.add(np.ones((2, 7, 3), np.float32) * np.array([1, 2, 3], np.float32))
    ranges = collector.ranges()
    assert ranges.axis == 2
    assert ranges.high.tolist() == [1, 2, 3]


def test_a_percentile_leaves_outliers_out() -> None:
    values = np.linspace(-1, 1, 2000, dtype=np.float32).reshape(1, 1, 2000, 1).repeat(2, axis=1)
    values[0, 0, 1999] = 1e6
    collector = RangeCollector("t", 99.0)
    collector.add(values)
    ranges = collector.ranges()
    np.testing.assert_allclose(ranges.high, 0.98, atol=0.01)
    np.testing.assert_allclose(ranges.low, -0.98, atol=0.01)


def test_a_percentile_over_many_values_keeps_a_bounded_sample() -> None:
    collector = RangeCollector("t", 99.0)
    for _ in range(3):
        collector.add(np.random.default_rng(0).uniform(0, 1, (1, 1, 300, 300)).astype(np.float32))
    assert collector.ranges().high[0] == pytest.approx(0.99, abs=0.01)


@pytest.mark.parametrize("percentile", [50.0, 100.1, -1.0, math.nan])
def test_a_percentile_that_clips_no_tail_is_refused(percentile: float) -> None:
    with pytest.raises(MeshError) as caught:
        RangeCollector("t", percentile)
    assert caught.value.reason is Reason.FIELD_INVALID


def test_samples_with_nan_do_not_count() -> None:
    collector = RangeCollector("t")
    batch = np.ones((3, 2, 2, 2), np.float32)
    batch[1, 0, 0, 0] = np.nan
    batch[1, 1] = 1e6
    batch[2, 0, 0, 0] = np.inf
    collector.add(batch)
    assert collector.ranges().high.tolist() == [1, 1]
    assert collector.ranges().samples == 1


@pytest.mark.parametrize("feeds", [[], [{"x": np.full((2, 1, SIDE, SIDE), np.nan, np.float32)}]])
def test_calibration_without_a_usable_sample_is_refused(feeds: list[dict[str, Array]]) -> None:
    head, _ = _pair()
    with pytest.raises(MeshError) as caught:
        calibrate(head.SerializeToString(), feeds)
    assert caught.value.reason is Reason.CALIBRATION_INSUFFICIENT


def test_a_number_of_channels_that_varies_is_refused() -> None:
    collector = RangeCollector("t")
    collector.add(np.ones((1, 2, 4), np.float32))
    with pytest.raises(MeshError) as caught:
        collector.add(np.ones((1, 2, 5), np.float32))
    assert caught.value.reason is Reason.TENSOR_SHAPE_MISMATCH


def test_a_float_tensor_without_a_range_is_refused() -> None:
    head, tail = _pair()
    with pytest.raises(MeshError) as caught:
        quantise_cut(head, tail, {})
    assert caught.value.reason is Reason.CALIBRATION_INSUFFICIENT


def test_a_range_with_another_number_of_channels_is_refused() -> None:
    head, tail = _pair()
    with pytest.raises(MeshError) as caught:
        quantise_cut(head, tail, {"t": _ranges([0.0] * 3, [1.0] * 3)})
    assert caught.value.reason is Reason.TENSOR_SHAPE_MISMATCH


def test_halves_that_share_no_tensor_are_refused() -> None:
    head, tail = _pair()
    with pytest.raises(MeshError) as caught:
        quantise_cut(tail, head, {})
    assert caught.value.reason is Reason.CUT_INVALID


def test_models_older_than_the_operator_are_refused() -> None:
    head, tail = _pair(9)
    with pytest.raises(MeshError) as caught:
        quantise_cut(head, tail, {"t": _ranges([0.0] * 4, [1.0] * 4)})
    assert caught.value.reason is Reason.MODEL_OPERATOR_UNSUPPORTED


def test_names_that_are_taken_are_avoided() -> None:
    head, tail = _pair()
    tail.graph.node[0].name = "t.q8"
    head.graph.node[0].output[0] = "t.q8.scale"
    head.graph.node[1].input[0] = "t.q8.scale"
    ranges = calibrate(head.SerializeToString(), _feeds())
    new_head, new_tail, (entry,) = quantise_cut(head, tail, ranges)
    assert entry.wire_tensor == "t.q8_2"
    wire = _run(new_head, _feeds()[0])
    assert wire.keys() == {"t.q8_2"}
    assert _run(new_tail, wire).keys() == {"y"}


def test_integer_tensors_other_outputs_and_the_arguments_stay_as_they_are() -> None:
    floats, integers = (TensorProto.FLOAT, ["n", 3]), (TensorProto.INT64, ["n", 3])
    head = _model(
        [
            helper.make_node("Relu", ["x"], ["t"]),
            helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
            helper.make_node("Neg", ["x"], ["extra"]),
        ],
        {"x": floats},
        {"i": integers, "extra": floats, "t": floats},
    )
    tail = _model(
        [helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT), helper.make_node("Add", ["f", "t"], ["y"])],
        {"t": floats, "i": integers},
        {"y": floats},
    )
    before = head.SerializeToString(), tail.SerializeToString()
    ranges = calibrate(before[0], [{"x": np.arange(6, dtype=np.float32).reshape(2, 3)}])
    new_head, new_tail, entries = quantise_cut(head, tail, ranges)
    assert [entry.tensor for entry in entries] == ["t"]
    assert [output.name for output in new_head.graph.output] == ["i", "extra", "t.q8"]
    assert [entry.name for entry in new_tail.graph.input] == ["t.q8", "i"]
    assert (head.SerializeToString(), tail.SerializeToString()) == before
    out = _run(new_head, {"x": np.ones((1, 3), np.float32)})
    y = _run(new_tail, {"t.q8": out["t.q8"], "i": out["i"]})["y"]
    np.testing.assert_allclose(y, 2, atol=0.02)


def test_float16_features_are_rounded_through_float32() -> None:
    head, tail = _pair(dtype=TensorProto.FLOAT16)
    feeds = _feeds(dtype=np.float16)
    ranges = calibrate(head.SerializeToString(), feeds)
    new_head, new_tail, _ = quantise_cut(head, tail, ranges)
    out = _run(new_tail, _run(new_head, feeds[0]))["y"]
    expected = _run(tail, _run(head, feeds[0]))["y"]
    assert out.dtype == np.float16
    np.testing.assert_allclose(out, expected, atol=float(np.abs(expected).max()) * 0.02)


def test_a_rule_per_tensor_covers_every_channel() -> None:
    rule = affine(_ranges([-1.0, 0.0], [0.0, 3.0]), per_channel=False)
    assert isinstance(rule, Affine)
    assert rule.axis is None
    assert rule.scale.tolist() == pytest.approx([4 / 255])
    assert rule.zero_point.tolist() == [64]
