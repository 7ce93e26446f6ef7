"""Whole models in 16-bit floats and 8-bit integers, and cutting them again."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from splitmesh.compress import precision
from splitmesh.compress.recipe import Budget, Fp16, Int8
from splitmesh.compress.recut import as_whole, recut
from splitmesh.compress.whole_model import compared
from splitmesh.errors import MeshError, Reason
from splitmesh.model.verify import run_chain
from splitmesh.runtime import open_session
from tests.unit import whole_model_nets as nets
from tests.unit.onnx_nets import data, model, node, quantised, value


def _types(content: bytes) -> set[int]:
    return {entry.data_type for entry in onnx.load_model_from_string(content).graph.initializer}


def _scaled(name: str, factor: float, net: onnx.ModelProto) -> onnx.ModelProto:
    for entry in net.graph.initializer:
        if entry.name == name:
            entry.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(entry) * np.float32(factor), name))
    return net


@pytest.mark.parametrize("net", [nets.resnet(), nets.mobile(), nets.mlp()], ids=["resnet", "mobile", "mlp"])
def test_fp16_halves_the_weights_and_keeps_inputs_and_outputs(net: onnx.ModelProto, tmp_path: Path) -> None:
    work = nets.whole_work(net)
    context = nets.context(work, tmp_path)
    made = precision.apply_fp16(work, Fp16(), context)
    assert TensorProto.FLOAT not in _types(made.whole())
    assert made.manifest == work.manifest
    assert context.figures["bytes_after"] == len(made.whole()) < 0.7 * len(work.whole())
    assert context.figures["validation_agreement"] == 1
    close = compared(work.whole(), made.whole(), context.samples, context.samples.holdout, "scores")
    assert 0 < close.output_error < 5e-3


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("net", [nets.resnet(), nets.mobile()], ids=["resnet", "mobile"])
def test_int8_quarters_the_weights_and_keeps_the_answers(
    net: onnx.ModelProto, per_channel: bool, tmp_path: Path
) -> None:
    work = nets.whole_work(net)
    context = nets.context(work, tmp_path)
    made = precision.apply_int8(work, Int8(per_channel=per_channel), context)
    assert made.manifest == work.manifest
    assert TensorProto.INT8 in _types(made.whole())
    operators = [entry.op_type for entry in onnx.load_model_from_string(made.whole()).graph.node]
    assert "QuantizeLinear" in operators
    close = compared(work.whole(), made.whole(), context.samples, context.samples.holdout, "scores")
    assert close.agreement is not None
    assert close.agreement > 0.9
    assert {"latency_ms_before", "latency_ms_after", "bytes_before", "bytes_after"} <= set(context.figures)
    assert list(tmp_path.iterdir()) == []


def test_weights_of_int8_leave_a_bit_for_kernels_that_overflow(tmp_path: Path) -> None:
    work = nets.whole_work(nets.resnet())
    made = onnx.load_model_from_string(precision.apply_int8(work, Int8(), nets.context(work, tmp_path)).whole())
    kernels = [numpy_helper.to_array(w) for w in made.graph.initializer if w.data_type == TensorProto.INT8 and w.dims]
    assert any(kernel.ndim == 4 for kernel in kernels)
    assert max(int(np.abs(kernel.astype(int)).max()) for kernel in kernels if kernel.ndim == 4) <= 64


@pytest.mark.parametrize(("apply", "step"), [(precision.apply_fp16, Fp16()), (precision.apply_int8, Int8())])
def test_a_chain_is_cut_again_at_the_same_tensors(apply: object, step: object, tmp_path: Path) -> None:
    work = nets.split_work(nets.resnet(), ["block0"], ["block1"])
    assert callable(apply)
    made = apply(work, step, nets.context(work, tmp_path))
    assert made.manifest.split is not None
    cuts = [[info.name for info in hop.cut] for hop in made.manifest.split.hops()]
    assert cuts == [["block0"], ["block1"]]
    feed = {"x": nets.pictures(4)}
    sessions = [open_session(segment) for segment in made.segments()]
    want = open_session(made.whole()).run(feed)["scores"]
    np.testing.assert_allclose(run_chain(sessions, feed)["scores"], want, atol=0.01 * np.abs(want).max())


def test_values_beyond_16_bits_stay_float32_and_are_named(tmp_path: Path) -> None:
    net = _scaled("wa1", 1e5, nets.resnet())
    for part, factor in (("n1_var", 1e10), ("n1_mean", 1e5)):
        _scaled(part, factor, net)
    work = nets.whole_work(net)
    context = nets.context(work, tmp_path)
    made = precision.apply_fp16(work, Fp16(), context)
    assert _types(made.whole()) >= {TensorProto.FLOAT, TensorProto.FLOAT16}
    assert context.figures["operators_kept_float32"] >= 2
    assert any("c1" in text and "too large" in text for text in context.remarks)
    close = compared(work.whole(), made.whole(), context.samples, context.samples.holdout, "scores")
    assert close.agreement == 1


def test_answers_beyond_16_bits_are_refused(tmp_path: Path) -> None:
    work = nets.whole_work(_scaled("wc", 1e6, nets.resnet()))
    with pytest.raises(MeshError, match="'scores' holds values up to") as caught:
        precision.apply_fp16(work, Fp16(), nets.context(work, tmp_path))
    assert caught.value.reason is Reason.MODEL_OPERATOR_UNSUPPORTED


@pytest.mark.parametrize(("apply", "step"), [(precision.apply_fp16, Fp16()), (precision.apply_int8, Int8())])
def test_a_model_that_is_quantised_already_is_refused(apply: object, step: object, tmp_path: Path) -> None:
    work = nets.whole_work(quantised(), labels=())
    context = nets.context(work, tmp_path, samples=np.ones((120, 4), np.float32))
    assert callable(apply)
    with pytest.raises(MeshError, match="quantised already") as caught:
        apply(work, step, context)
    assert caught.value.reason is Reason.MODEL_OPERATOR_UNSUPPORTED


@pytest.mark.parametrize(("apply", "step"), [(precision.apply_fp16, Fp16()), (precision.apply_int8, Int8())])
def test_a_model_of_16_bits_already_is_refused(apply: object, step: object, tmp_path: Path) -> None:
    first = nets.whole_work(nets.resnet())
    work = precision.apply_fp16(first, Fp16(), nets.context(first, tmp_path))
    assert callable(apply)
    with pytest.raises(MeshError, match="16-bit weights already"):
        apply(work, step, nets.context(work, tmp_path))


def test_a_model_without_layers_to_quantise_is_refused(tmp_path: Path) -> None:
    scale = numpy_helper.from_array(np.array([2.0], np.float32), "two")
    net = model([node("Mul", "x two", "y")], [value("x", ["N", 4])], [value("y", ["N", 4])], [scale])
    work = nets.whole_work(net, labels=())
    context = nets.context(work, tmp_path, samples=np.ones((120, 4), np.float32))
    with pytest.raises(MeshError, match="nothing to quantise"):
        precision.apply_int8(work, Int8(), context)


def test_layers_that_lose_too_much_stay_in_float32(tmp_path: Path) -> None:
    # Channels of very different size, which the next layer evens out again: with one scale the small ones are lost.
    net = nets.resnet()
    for entry in net.graph.initializer:
        weight = numpy_helper.to_array(entry).copy()
        if entry.name in ("n1_scale", "n1_shift"):
            weight[::2] *= 3000
        elif entry.name == "wb1":
            weight[:, ::2] /= 3000
        entry.CopyFrom(numpy_helper.from_array(weight, entry.name))
    work = nets.whole_work(net, labels=())
    context = nets.context(work, tmp_path, budget=Budget(max_output_error=0.03))
    made = precision.apply_int8(work, Int8(per_channel=False), context)
    assert any("layers left in float32" in text for text in context.remarks)
    close = compared(work.whole(), made.whole(), context.samples, context.samples.holdout, "")
    careless = nets.context(work, tmp_path, budget=Budget(max_output_error=1.0))
    plain = precision.apply_int8(work, Int8(per_channel=False), careless)
    worse = compared(work.whole(), plain.whole(), context.samples, context.samples.holdout, "")
    assert close.output_error < 0.3 * worse.output_error


def test_a_renamed_tensor_is_found_by_what_it_holds(tmp_path: Path) -> None:
    work = nets.split_work(nets.resnet(), ["block1"])
    renamed = nets.resnet()
    for entry in renamed.graph.node:
        for names in (entry.input, entry.output):
            names[:] = ["else" if name == "block1" else name for name in names]
    context = nets.context(work, tmp_path)
    made = recut(work, data(renamed), context)
    assert made.manifest.split is not None
    assert [info.name for info in made.manifest.split.cut] == ["else"]
    assert context.remarks == ["the cut's tensor block1 is called else in the changed model"]


def test_a_place_that_is_gone_is_refused(tmp_path: Path) -> None:
    work = nets.split_work(nets.resnet(), ["block1"])
    other = nets.mlp()
    with pytest.raises(MeshError, match="no tensor that holds the same") as caught:
        recut(work, data(other), nets.context(work, tmp_path))
    assert caught.value.reason is Reason.CUT_INVALID


def test_another_interface_is_refused(tmp_path: Path) -> None:
    work = nets.whole_work(nets.resnet())
    other = nets.resnet()
    other.graph.node[-1].output[0] = "answer"
    other.graph.output[0].CopyFrom(helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["N", nets.CLASSES]))
    with pytest.raises(MeshError, match="the changed model has the outputs") as caught:
        recut(work, data(other), nets.context(work, tmp_path))
    assert caught.value.reason is Reason.CUT_INVALID


def test_what_sat_on_the_old_segments_goes(tmp_path: Path) -> None:
    from splitmesh.model.artifacts import quantise_split

    exact = nets.split_work(nets.resnet(), ["block1"])
    manifest, artifacts = quantise_split(exact.manifest, exact.artifacts, [{"x": nets.pictures(16)}])
    work = type(exact)(manifest, artifacts)
    context = nets.context(work, tmp_path)
    made = recut(work, data(nets.resnet()), context)
    assert made.manifest.split is not None
    assert made.manifest.split.quantisation == ()
    assert made.manifest.split.wire == made.manifest.split.cut
    assert any("rounding" in text for text in context.remarks)


def test_a_student_makes_the_version_whole_again(tmp_path: Path) -> None:
    work = nets.split_work(nets.resnet(), ["block1"])
    context = nets.context(work, tmp_path)
    made = as_whole(work, data(nets.resnet(8)), context)
    assert made.manifest.split is None
    assert set(made.artifacts) == {made.manifest.whole.artifact}
    assert any("cut it anew" in text for text in context.remarks)


def test_a_fixed_batch_is_kept(tmp_path: Path) -> None:
    work = nets.split_work(nets.resnet(batch=3), ["block1"])
    half = precision.apply_fp16(work, Fp16(), nets.context(work, tmp_path))
    for made in (half, precision.apply_int8(work, Int8(), nets.context(work, tmp_path))):
        assert made.manifest.whole.inputs == work.manifest.whole.inputs
        assert made.manifest.split is not None
