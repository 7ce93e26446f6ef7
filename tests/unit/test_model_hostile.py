"""Models that somebody broke on purpose: whatever the graph says, only a MeshError comes out, and what was found is told."""

from __future__ import annotations

import random
from collections.abc import Callable

import onnx
import pytest
from onnx import helper

from splitmesh.errors import MeshError, Reason
from splitmesh.model.load import ModelLimits, load_model
from splitmesh.model.unsupported import unsupported_parts
from tests.unit.onnx_nets import branching, data, early_shape, ints, looping, model, node, residual, scanning, value

_NAMES = """
    ConstantOfShape Expand Range Tile Resize Pad OneHot Loop If Scan Reshape Split Gemm TopK Einsum Constant Shape Size Gather
    Concat Slice Cast Where Foo Unique Transpose Squeeze Unsqueeze MatMul Conv DequantizeLinear
"""
OPERATORS = tuple(_NAMES.split())
NUMBERS = (0, -1, -5, 1, 7, 2**31, 2**40, 2**62, -(2**63))
TURNS = 100
"""Of each net; the same ones every time."""
NETS = (residual, early_shape, looping, scanning, branching)


def _graphs(net: onnx.ModelProto) -> list[onnx.GraphProto]:
    inner = [attribute.g for one in net.graph.node for attribute in one.attribute if attribute.HasField("g")]
    return [net.graph, *inner]


def _mutate_node(one: onnx.NodeProto, r: random.Random) -> None:
    match r.randrange(8):
        case 0:
            one.op_type = r.choice(OPERATORS)
        case 1 if one.input:
            one.input[r.randrange(len(one.input))] = r.choice(["", "zz", "x", one.input[-1]])
        case 2:
            del one.input[r.randrange(len(one.input) + 1) :]
        case 3:
            del one.output[:]
        case 4 if one.attribute:
            del one.attribute[r.randrange(len(one.attribute))]
        case 5 if one.attribute:
            attribute = r.choice(one.attribute)
            attribute.i = r.choice(NUMBERS)
            attribute.ints[:] = [r.choice(NUMBERS) for _ in range(r.randrange(4))]
        case 6:
            one.domain = r.choice(["x", "com.microsoft", "ai.onnx", "ai.onnx.ml"])
        case _:
            one.input.append(r.choice(["", "x", "w", "zz"]))


def _mutate(net: onnx.ModelProto, r: random.Random) -> None:
    graph = r.choice(_graphs(net))
    match r.randrange(9):
        case 0 if graph.initializer:
            constant = r.choice(graph.initializer)
            constant.dims[:] = [r.choice(NUMBERS) for _ in range(r.randrange(3))]
        case 1 if graph.initializer:
            r.choice(graph.initializer).data_type = r.randrange(30)
        case 2 if graph.input:
            given = r.choice(graph.input).type.tensor_type
            given.shape.dim.add().dim_value = r.choice(NUMBERS)
        case 3 if graph.output:
            del graph.output[r.randrange(len(graph.output))]
        case 4 if net.opset_import:
            net.opset_import[0].version = r.choice([1, 7, 9, 13, 21, 99, 2**62])
        case 5:
            net.opset_import.add(domain=r.choice(["", "x", "com.microsoft"]), version=r.choice(NUMBERS))
        case 6:
            inner = helper.make_node(r.choice(["F", "Relu"]), ["a"], ["b"], domain=r.choice(["x", ""]))
            net.functions.append(helper.make_function("x", "F", ["a"], ["b"], [inner], [helper.make_opsetid("", 17)]))
            called = r.choice(graph.node)
            called.op_type, called.domain = "F", "x"
        case 7 if len(graph.node) > 1:
            del graph.node[r.randrange(len(graph.node))]
        case _:
            _mutate_node(r.choice(graph.node), r)


@pytest.mark.parametrize("build", NETS)
def test_of_a_graph_broken_anywhere_only_mesh_errors_come_out(build: Callable[[], onnx.ModelProto]) -> None:
    r = random.Random(11)
    for turn in range(TURNS):
        net = build()
        for _ in range(r.randint(1, 4)):
            _mutate(net, r)
        raw = data(net)
        try:
            load_model(raw)
            refused = False
        except MeshError:
            refused = True
        assert bool(unsupported_parts(raw)) is refused, turn


def _with_function_twice(op_type: str) -> onnx.ModelProto:
    inner = [node("Relu", "a", "b")]
    one = helper.make_function("x", "F", ["a"], ["b"], inner, [helper.make_opsetid("", 17)])
    nodes = [helper.make_node("F", ["x"], ["mid"], domain="x"), node(op_type, "mid", "y")]
    return model(
        nodes, [value("x", ["N", 4])], [value("y", ["N", 4])], functions=[one, one], domains=["x"], ir_version=10
    )


def test_functions_that_cannot_be_inlined_are_a_damaged_model() -> None:
    with pytest.raises(MeshError) as caught:
        load_model(data(_with_function_twice("Tanh")))
    assert caught.value.reason is Reason.MODEL_CORRUPT
    (only,) = unsupported_parts(data(_with_function_twice("Tanh")))
    assert (only.kind, only.reason) == ("model", Reason.MODEL_CORRUPT.value)
    assert "x::F" in only.problem


def test_what_was_found_before_the_search_broke_off_is_told() -> None:
    (only,) = unsupported_parts(data(_with_function_twice("Unique")))
    assert (only.kind, only.name) == ("operator", "Unique")


def test_a_search_that_fails_in_no_foreseen_way_keeps_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise IndexError("deep inside")

    monkeypatch.setattr("splitmesh.model.unsupported.settle", fail)
    net = model([node("Unique", "x", "y", temperature=1)], [value("x", [4])], [value("y", [None])])
    assert [one.name for one in unsupported_parts(data(net))] == ["Unique"]


@pytest.mark.parametrize(
    ("op_type", "inputs", "constants"),
    [
        ("ConstantOfShape", "", []),
        ("Expand", "two", [ints("two", 2)]),
        ("Range", "many many many", [ints("many", 1, 2)]),
        ("Range", "two", [ints("two", 2)]),
    ],
)
def test_shape_arithmetic_of_a_wrong_arity_is_not_computed(
    op_type: str, inputs: str, constants: list[onnx.TensorProto]
) -> None:
    nodes = [node("Unique", "x", "u"), node(op_type, inputs, "made"), node("Add", "u made", "y")]
    net = model(nodes, [value("x", [4])], [value("y", [None])], constants)
    names = {one.name for one in unsupported_parts(data(net))}
    assert {"Unique", op_type} <= names


def test_a_size_declared_inside_a_body_counts_before_anything_is_inferred() -> None:
    net = looping()
    body = next(one.g for one in net.graph.node[1].attribute if one.name == "body")
    body.input[2].CopyFrom(value("v", [5000]))
    limits = ModelLimits(max_tensor_elements=4000)
    with pytest.raises(MeshError, match="'v' is declared with at least 5000 elements") as caught:
        load_model(data(net), limits)
    assert caught.value.reason is Reason.MODEL_TOO_LARGE
    assert [one.name for one in unsupported_parts(data(net), limits)] == ["v"]


def test_a_body_that_returns_too_few_values_is_a_damaged_model() -> None:
    net = looping()
    body = next(one.g for one in net.graph.node[1].attribute if one.name == "body")
    del body.output[1]
    with pytest.raises(MeshError) as caught:
        load_model(data(net))
    assert caught.value.reason is Reason.MODEL_CORRUPT
