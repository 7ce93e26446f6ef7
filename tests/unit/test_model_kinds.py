"""Models of every kind: several inputs, old and new operator sets, 8 bits, odd names, sizes that are not known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from splitmesh.errors import MeshError, Reason
from splitmesh.model.artifacts import split_bytes
from splitmesh.model.cuts import frontiers, list_cuts, resolve_cut
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model
from splitmesh.model.split import split_model
from splitmesh.model.verify import (
    EXACT_TOLERANCE,
    ROUNDED_TOLERANCE,
    Reference,
    compare,
    random_inputs,
    verify_chain,
)
from splitmesh.runtime import open_session
from splitmesh.tensor import TensorSpec
from tests.unit.onnx_nets import (
    data,
    ints,
    late_input,
    model,
    node,
    quantised_net,
    residual,
    siamese,
    two_branches,
    value,
    weight,
)
from tests.unit.test_model_split import check_every_cut


def graph_of(net: onnx.ModelProto) -> Graph:
    return Graph(load_model(data(net)))


def cuts_of(net: onnx.ModelProto) -> list[tuple[str, ...]]:
    return [cut.tensors for cut in list_cuts(graph_of(net))]


def refused(net: onnx.ModelProto, *at: str) -> MeshError:
    with pytest.raises(MeshError) as caught:
        resolve_cut(graph_of(net), at)
    return caught.value


# --- several inputs --------------------------------------------------------------------------------------------------


def test_one_branch_of_a_siamese_net_may_run_before_the_other_begins() -> None:
    assert cuts_of(siamese()) == [
        ("right", "left_hidden"),
        ("right", "left_code"),
        ("left_code", "right_hidden"),
        ("left_code", "right_code"),
        ("gap",),
    ]
    assert check_every_cut(siamese()) == 5


def test_an_input_in_the_cut_crosses_as_it_is() -> None:
    graph = graph_of(siamese())
    split = split_model(graph, resolve_cut(graph, ["left_code", "right"]))
    assert [entry.name for entry in split.head.graph.input] == ["left", "right"]
    assert [entry.name for entry in split.head.graph.output] == ["left_code", "right"]
    feeds = random_inputs(graph, 3, np.random.default_rng(0))
    crossed = open_session(data(split.head)).run(feeds)
    np.testing.assert_array_equal(crossed["right"], feeds["right"])
    manifest, _ = split_bytes(data(siamese()), ["left_code", "right"])
    assert manifest.split is not None
    assert [tensor.name for tensor in manifest.split.wire] == ["left_code", "right"]
    assert {tensor.name for tensor in manifest.split.head.inputs} == {"left", "right"}


def test_an_input_that_is_read_late_crosses_and_one_that_is_no_row_per_sample_is_refused() -> None:
    assert cuts_of(late_input("N", 4)) == [("gain", "a"), ("gain", "b")]
    assert check_every_cut(late_input("N", 4)) == 2
    assert cuts_of(late_input(1)) == []
    error = refused(late_input(1), "b", "gain")
    assert error.reason is Reason.MODEL_SHAPE_UNKNOWN
    assert "'gain' does not have the batch" in error.message


def test_an_input_both_sides_read_crosses_when_a_person_asks_for_it() -> None:
    net = model(
        [node("MatMul", "x w", "noise"), node("Tanh", "noise", "bounded"), node("Sub", "x bounded", "y")],
        [value("x", ["N", 4])],
        [value("y", ["N", 4])],
        [weight("w", 4, 4)],
    )
    graph = graph_of(net)
    assert list_cuts(graph) == []
    split = split_model(graph, resolve_cut(graph, ["x", "bounded"]))
    feeds = [random_inputs(graph, batch, np.random.default_rng(0)) for batch in (1, 4)]
    verify_chain(data(net), [data(split.head), data(split.tail)], feeds)


@pytest.mark.parametrize("at", [["left"], ["left", "right"]])
def test_inputs_alone_are_no_cut(at: list[str]) -> None:
    assert refused(siamese(), *at).reason is Reason.CUT_INVALID


def test_frontiers_hold_every_candidate_and_what_cannot_cross() -> None:
    graph = graph_of(late_input(1))
    assert frontiers(graph) == [("gain", "a"), ("gain", "b")]
    graph = graph_of(two_branches())
    assert [cut.tensors for cut in list_cuts(graph)] == frontiers(graph)


# --- operator sets ---------------------------------------------------------------------------------------------------


def _opset_7() -> onnx.ModelProto:
    nodes = [
        node("BatchNormalization", "x s b m v", "n"),
        node("Clip", "n", "c", min=-1.0, max=1.0),
        node("Pad", "c", "p", pads=[0, 0, 1, 1, 0, 0, 1, 1], mode="constant", value=0.5),
        node("Upsample", "p", "u", scales=[1.0, 1.0, 2.0, 2.0], mode="nearest"),
        node("Slice", "u", "sl", axes=[2], starts=[0], ends=[4]),
        node("Dropout", "sl", "d"),
        node("Unsqueeze", "d", "e", axes=[1]),
        node("Squeeze", "e", "f", axes=[1]),
        node("Shape", "f", "shape"),
        node("Slice", "shape", "first", axes=[0], starts=[0], ends=[1]),
        node("Concat", "first rest", "target", axis=0),
        node("Reshape", "f target", "y"),
    ]
    ones = [numpy_helper.from_array(np.ones(3, dtype=np.float32), name) for name in ("s", "v")]
    constants = [*ones, weight("b", 3), weight("m", 3), ints("rest", -1)]
    return model(nodes, [value("x", ["N", 3, 4, 4])], [value("y", ["N", None])], constants, opset=7, ir_version=4)


def _opset_9() -> onnx.ModelProto:
    net = _opset_7()
    net.opset_import[0].version = 9
    upsample = net.graph.node[3]
    del upsample.attribute[:]
    upsample.attribute.append(helper.make_attribute("mode", "nearest"))
    upsample.input.append("scales")
    net.graph.initializer.append(numpy_helper.from_array(np.asarray([1, 1, 2, 2], dtype=np.float32), "scales"))
    return net


@pytest.mark.parametrize("build", [_opset_7, _opset_9])
def test_old_forms_of_operators_are_cut_and_equal(build: Callable[[], onnx.ModelProto]) -> None:
    assert check_every_cut(build()) == 8


def test_initialisers_of_old_files_that_are_inputs_too_stay_weights() -> None:
    net = residual(opset=9)
    net.ir_version = 3
    for init in net.graph.initializer:
        net.graph.input.append(helper.make_tensor_value_info(init.name, init.data_type, init.dims))
    assert graph_of(net).inputs == ("x",)
    assert check_every_cut(net) == 9


# --- 8 bits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_quantised_net_is_cut_everywhere_also_between_quantise_and_dequantise(per_channel: bool) -> None:
    net = quantised_net(per_channel=per_channel)
    cuts = {cut.tensors: cut for cut in list_cuts(graph_of(net))}
    assert check_every_cut(net) == len(cuts) >= 12
    assert cuts["sum_q",].size_bytes * 4 == cuts["sum",].size_bytes
    assert cuts["sum_q",].specs[0].dtype == "int8"


def stepping(bias: float) -> onnx.ModelProto:
    """Rounds ``x + bias`` to steps of 1, so that a small bias moves values that lie between two steps."""
    nodes = [
        node("Add", "x bias", "a"),
        node("QuantizeLinear", "a scale zero", "q"),
        node("DequantizeLinear", "q scale zero", "y"),
    ]
    constants = [
        numpy_helper.from_array(np.asarray(bias, dtype=np.float32), "bias"),
        numpy_helper.from_array(np.asarray(1.0, dtype=np.float32), "scale"),
        numpy_helper.from_array(np.asarray(0, dtype=np.int8), "zero"),
    ]
    return model(nodes, [value("x", ["N", 4])], [value("y", ["N", 4])], constants)


def test_a_model_that_rounds_must_still_be_equal_without_fusing() -> None:
    feeds = [{"x": np.asarray([[0.499, 5, 10, 20]], dtype=np.float32)}]
    with pytest.raises(MeshError) as caught:
        verify_chain(data(stepping(0)), [data(stepping(0.01))], feeds)
    assert caught.value.reason is Reason.SPLIT_NOT_EQUAL


def test_a_difference_that_only_fusing_makes_is_allowed_to_a_model_that_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    feeds = [{"x": np.asarray([[0.499, 5, 10, 20]], dtype=np.float32)}]
    whole, fused = data(stepping(0)), data(stepping(0.01))

    def opened(content: bytes, **options: object) -> object:
        return open_session(fused if content == b"segment" and options["optimise"] else whole)

    monkeypatch.setattr("splitmesh.model.verify.open_session", opened)
    found = compare(Reference(whole, feeds), [b"segment"])
    assert found.tolerance == ROUNDED_TOLERANCE
    assert found.max_abs_error == pytest.approx(1 / 20)
    assert verify_chain(whole, [whole], feeds).tolerance == EXACT_TOLERANCE


# --- operators of the runtime ----------------------------------------------------------------------------------------


def test_tensors_behind_operators_of_the_runtimes_own_are_cut_too() -> None:
    own = "com.microsoft"
    nodes = [
        helper.make_node("FusedConv", ["x", "w"], ["a"], domain=own, activation="Relu"),
        helper.make_node("Gelu", ["a"], ["b"], domain=own),
        node("Flatten", "b", "c"),
        helper.make_node("FusedMatMul", ["c", "v"], ["y"], domain=own, transB=1, alpha=0.5),
    ]
    weights = [weight("w", 8, 3, 3, 3), weight("v", 5, 32)]
    net = model(nodes, [value("x", ["N", 3, 4, 4])], [value("y", ["N", 5])], weights, domains=[own])
    graph = graph_of(net)
    assert [cut.tensors for cut in list_cuts(graph)] == [("a",), ("b",), ("c",)]
    assert graph.spec("b") == TensorSpec("b", "float32", (-1, 8, 2, 2))
    assert check_every_cut(net) == 3


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ["a b", "/c/d:0", "ü 漢", "e,f"],
        ["splitmesh/shape/0", "splitmesh/batch/0", "splitmesh/scaled/0", "splitmesh/first/0"],
        ["x" * 5000, "y" * 5000, "z" * 5000, "q" * 5000],
        ["head", "tail.q8", "..", "-1"],
        ["a\nb", "\t", "'", '"'],
    ],
)
def test_tensors_may_have_any_name(names: list[str]) -> None:
    first, second, third, last = names
    nodes = [
        helper.make_node("Relu", [first], [second]),
        helper.make_node("Tanh", [second], [third]),
        helper.make_node("Shape", [first], ["size"]),
        helper.make_node("Reshape", [third, "size"], [last]),
    ]
    net = model(nodes, [value(first, ["N", 4])], [value(last, ["N", 4])])
    assert check_every_cut(net) == 2
    manifest, _ = split_bytes(data(net), [second])
    assert type(manifest).from_json(manifest.to_json()) == manifest


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_an_open_height_is_refused_with_the_input_and_dimension_to_fix() -> None:
    net = model(
        [node("Relu", "x", "a"), node("Tanh", "a", "y")],
        [value("x", ["N", 3, "H", 8])],
        [value("y", ["N", 3, "H", 8])],
    )
    error = refused(net, "a")
    assert error.reason is Reason.MODEL_SHAPE_UNKNOWN
    assert "fixed dimension 2 of input 'x'" in error.message


def test_a_batch_that_is_not_the_first_dimension_is_refused_with_the_reason() -> None:
    net = model(
        [node("Transpose", "x", "a", perm=[1, 0, 2]), node("Relu", "a", "b"), node("Tanh", "b", "y")],
        [value("x", ["N", 6, 4])],
        [value("y", [6, "N", 4])],
    )
    error = refused(net, "b")
    assert error.reason is Reason.MODEL_SHAPE_UNKNOWN
    assert "batch as its first" in error.message


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_is_split_as_it_is(batch: int) -> None:
    assert check_every_cut(siamese(batch=batch)) == 5


# --- verification ----------------------------------------------------------------------------------------------------


def answering(*, last: float) -> onnx.ModelProto:
    """A float output that holds NaN for negative inputs, and an integer one."""
    nodes = [
        node("Mul", "x one", "a"),
        node("Log", "a", "logarithm"),
        node("Mul", "a large", "b"),
        node("Cast", "b", "count", to=TensorProto.INT64),
    ]
    constants = [
        numpy_helper.from_array(np.asarray(1.0, dtype=np.float32), "one"),
        numpy_helper.from_array(np.asarray(last, dtype=np.float32), "large"),
    ]
    outputs = [value("logarithm", ["N", 4]), value("count", ["N", 4], TensorProto.INT64)]
    return model(nodes, [value("x", ["N", 4])], outputs, constants)


FEED = {"x": np.asarray([[-1.0, 0.5, 1, 1]], dtype=np.float32)}


def test_equal_nans_are_equal() -> None:
    found = verify_chain(data(answering(last=1e6)), [data(answering(last=1e6))], [FEED])
    assert found.max_abs_error == 0


def test_integers_must_be_exactly_equal() -> None:
    whole, other = data(answering(last=1e6)), data(answering(last=1_000_001))
    with pytest.raises(MeshError) as caught:
        verify_chain(whole, [other], [FEED])
    assert caught.value.reason is Reason.SPLIT_NOT_EQUAL
    assert "integers" in caught.value.message
    assert verify_chain(whole, [other], [FEED], None).max_abs_error < EXACT_TOLERANCE


def test_a_split_is_verified_on_batch_sizes_of_all_kinds_and_says_so() -> None:
    manifest, _ = split_bytes(data(residual()), ["b"])
    assert manifest.split is not None
    found = manifest.split.verification
    assert (found.batch_sizes, found.inputs, found.tolerance) == ((1, 2, 5), 8, EXACT_TOLERANCE)
    assert 0 <= found.max_abs_error <= EXACT_TOLERANCE
