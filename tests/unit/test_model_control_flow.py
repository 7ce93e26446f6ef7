"""``If``, ``Loop`` and ``Scan``: one node that runs on one side, with limits that hold inside its bodies."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from splitmesh.errors import MeshError, Reason
from splitmesh.model.control import MAX_DEPTH
from splitmesh.model.cuts import list_cuts, resolve_cut
from splitmesh.model.graph import Graph
from splitmesh.model.load import ModelLimits, load_model
from splitmesh.model.split import split_model
from splitmesh.runtime import open_session
from tests.unit.onnx_nets import branching, data, ints, looping, model, node, scanning, value, weight
from tests.unit.test_model_split import check_every_cut


def refused(net: onnx.ModelProto, limits: ModelLimits | None = None) -> MeshError:
    with pytest.raises(MeshError) as caught:
        load_model(data(net), limits or ModelLimits())
    return caught.value


def branch(net: onnx.ModelProto, name: str) -> onnx.GraphProto:
    return next(attribute.g for attribute in net.graph.node[4].attribute if attribute.g.name == name)


@pytest.mark.parametrize(
    ("build", "cuts"),
    [
        (branching, [("a",), ("b",), ("d",), ("e",)]),
        (looping, [("a",), ("b",), ("c",)]),
        (scanning, [("a",), ("b",)]),
    ],
)
def test_nets_with_control_flow_are_cut_before_and_after_it(
    build: Callable[[], onnx.ModelProto], cuts: list[tuple[str, ...]]
) -> None:
    net = build()
    assert [cut.tensors for cut in list_cuts(Graph(load_model(data(net))))] == cuts
    assert check_every_cut(net) == len(cuts)


def test_a_condition_that_depends_on_the_input_crosses_or_stays_with_its_branches() -> None:
    net = branching()
    net.graph.node[2].input[0] = "x"  # the flag is now the input's sum over the batch: not one row per sample
    graph = Graph(load_model(data(net)))
    assert [cut.tensors for cut in list_cuts(graph)] == [("d",), ("e",)]
    with pytest.raises(MeshError) as caught:
        resolve_cut(graph, ["b", "c"])
    assert caught.value.reason is Reason.MODEL_SHAPE_UNKNOWN
    assert check_every_cut(net) == 2


def test_what_a_branch_captures_counts_as_read() -> None:
    graph = Graph(load_model(data(branching())))
    assert graph.reads[graph.producers["d"]] == ("c", "b", "w")
    assert graph.consumers["b"] == (graph.producers["d"],)


def test_a_weight_that_only_a_branch_reads_goes_with_it() -> None:
    net = branching()
    net.graph.node[-1].CopyFrom(node("Tanh", "e", "y"))
    graph = Graph(load_model(data(net)))
    split = split_model(graph, resolve_cut(graph, ["d"]))
    assert "w" in {init.name for init in split.head.graph.initializer}
    assert "w" not in {init.name for init in split.tail.graph.initializer}


@pytest.mark.parametrize("inside", ["t0", "e1"])
def test_a_cut_inside_a_branch_is_refused_with_the_reason(inside: str) -> None:
    with pytest.raises(MeshError) as caught:
        resolve_cut(Graph(load_model(data(branching()))), [inside])
    assert caught.value.reason is Reason.CUT_INVALID
    assert "inside control flow" in caught.value.message


def test_a_name_the_splitter_would_invent_may_be_taken_inside_a_branch() -> None:
    net = branching()
    then = branch(net, "then")
    then.node[0].output[0] = then.node[1].input[0] = "splitmesh/batch/0"
    nodes = [node("Shape", "x", "shape"), *net.graph.node, node("Reshape", "y shape", "z")]
    del net.graph.node[:]
    net.graph.node.extend(nodes)
    net.graph.output[0].name = "z"
    assert check_every_cut(net) == 5


# --- limits inside bodies --------------------------------------------------------------------------------------------


def test_operators_of_bodies_count_towards_the_limit() -> None:
    assert refused(branching(), ModelLimits(max_nodes=9)).reason is Reason.MODEL_TOO_LARGE
    load_model(data(branching()), ModelLimits(max_nodes=10))


def test_an_operator_outside_the_list_is_refused_inside_a_body_too() -> None:
    error = refused(looping([node("RandomNormalLike", "v", "v_next")]))
    assert error.reason is Reason.MODEL_OPERATOR_UNSUPPORTED
    assert error.metadata["operators"] == "RandomNormalLike"


def test_a_large_tensor_inside_a_branch_is_refused() -> None:
    net = branching()
    then = branch(net, "then")
    then.node.insert(0, node("ConstantOfShape", "huge", "zeros"))
    then.initializer.append(ints("huge", 50_000, 60_000))
    assert refused(net).reason is Reason.MODEL_TOO_LARGE


def test_a_size_that_follows_from_values_inside_a_branch_is_refused() -> None:
    net = branching()
    branch(net, "then").node.insert(0, node("ConstantOfShape", "wanted", "zeros"))
    net.graph.input.append(value("wanted", [2], TensorProto.INT64))
    error = refused(net)
    assert (error.reason, error.metadata["operator"]) == (Reason.MODEL_SHAPE_UNKNOWN, "ConstantOfShape")


def test_a_loop_whose_value_doubles_at_each_turn_is_refused() -> None:
    doubling = helper.make_node("Concat", ["v", "v"], ["v_next"], axis=1)
    error = refused(looping([doubling], turns=40))
    assert (error.reason, error.metadata["operator"]) == (Reason.MODEL_SHAPE_UNKNOWN, "Loop")


def test_bodies_nested_too_deep_are_refused() -> None:
    def nested(levels: int) -> onnx.ModelProto:
        body = [node("Tanh", "b", "o0")]
        for level in range(levels):
            inner = helper.make_graph(body, "inner", [], [value(f"o{level}", ["N", 4])])
            other = helper.make_graph([node("Neg", "b", f"p{level}")], "other", [], [value(f"p{level}", ["N", 4])])
            body = [helper.make_node("If", ["c"], [f"o{level + 1}"], then_branch=inner, else_branch=other)]
        net = branching()
        net.graph.node[4].CopyFrom(body[0])
        net.graph.node[4].output[0] = "d"
        return net

    assert check_every_cut(nested(MAX_DEPTH)) == 4
    assert refused(nested(MAX_DEPTH + 1)).reason is Reason.MODEL_OPERATOR_UNSUPPORTED


def test_a_scan_of_the_oldest_form_is_refused() -> None:
    net = scanning()
    net.opset_import[0].version = 8
    assert refused(net).reason is Reason.MODEL_OPERATOR_UNSUPPORTED


def test_a_loop_without_end_is_stopped_by_the_watchdog() -> None:
    net = looping(turns=np.iinfo(np.int64).max)
    load_model(data(net))
    session = open_session(data(net), max_run_s=0.3)
    with pytest.raises(MeshError) as caught:
        session.run({"x": np.ones((1, 4), np.float32)})
    assert caught.value.reason is Reason.DEADLINE_EXPIRED


def test_a_branch_of_another_shape_leaves_no_cut_behind_it() -> None:
    net = branching()
    other = branch(net, "else")
    del other.node[:]
    other.node.append(node("MatMul", "b wide", "e1"))
    net.graph.initializer.append(weight("wide", 4, 7))
    del net.graph.node[5:]
    net.graph.node.extend([node("Neg", "d", "e"), node("Relu", "e", "y")])
    net.graph.output[0].CopyFrom(value("y", ["N", None]))
    for attribute in net.graph.node[4].attribute:
        attribute.g.output[0].type.tensor_type.ClearField("shape")
    graph = Graph(load_model(data(net)))
    assert [cut.tensors for cut in list_cuts(graph)] == [("a",), ("b",)]
    with pytest.raises(MeshError) as caught:
        resolve_cut(graph, ["d"])
    assert caught.value.reason is Reason.MODEL_SHAPE_UNKNOWN


def test_models_whose_graph_is_all_control_flow_load() -> None:
    branch = helper.make_graph([node("Identity", "x", "o")], "branch", [], [value("o", [3])])
    net = model(
        [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)],
        [value("x", [3]), value("c", [], TensorProto.BOOL)],
        [value("y", [3])],
    )
    assert list_cuts(Graph(load_model(data(net)))) == []
