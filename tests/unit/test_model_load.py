"""Loading models from outside: what is refused, and with which reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from splitmesh.errors import MeshError, Reason
from splitmesh.model.load import MAX_OPSET, MIN_OPSET, ModelLimits, load_file, load_model
from splitmesh.runtime import open_session
from tests.unit.onnx_nets import data, early_shape, ints, model, node, quantised, residual, value, weight


def refused(net: onnx.ModelProto | bytes, limits: ModelLimits | None = None) -> MeshError:
    with pytest.raises(MeshError) as caught:
        load_model(net if isinstance(net, bytes) else data(net), limits or ModelLimits())
    return caught.value


def relu(inputs: list[str | int | None], outputs: list[str | int | None] | None) -> onnx.ModelProto:
    return model([node("Relu", "x", "y")], [value("x", inputs)], [value("y", outputs)])


@pytest.mark.parametrize("opset", [MIN_OPSET, 9, 11, 13, 17, 21, MAX_OPSET])
def test_a_sound_model_loads_with_inferred_shapes(opset: int) -> None:
    loaded = load_model(data(residual(opset=opset)))
    assert {"stem", "sum", "pool"} <= {info.name for info in loaded.graph.value_info}


def test_a_loaded_model_still_runs_and_keeps_its_weights() -> None:
    original, feed = residual(), {"x": np.ones((2, 3, 8, 8), dtype=np.float32)}
    again = load_model(data(original)).SerializeToString()
    expected = open_session(data(original)).run(feed)["logits"]
    np.testing.assert_array_equal(open_session(again).run(feed)["logits"], expected)


@pytest.mark.parametrize("opset", [MIN_OPSET - 1, MAX_OPSET + 1])
def test_an_opset_out_of_range_is_refused(opset: int) -> None:
    error = refused(relu(["N", 3], ["N", 3]).SerializeToString().replace(b"\x10\x11", bytes([0x10, opset])))
    assert error.reason is Reason.MODEL_OPERATOR_UNSUPPORTED
    assert error.metadata["opset"] == str(opset)


@pytest.mark.parametrize("broken", [b"", b"\xff" * 40, b"not a model at all", data(residual())[:300]])
def test_damaged_bytes_are_refused(broken: bytes) -> None:
    assert refused(broken).reason is Reason.MODEL_CORRUPT


@settings(max_examples=150, deadline=None, database=None)
@given(st.data())
def test_no_mutation_of_a_file_raises_anything_but_a_mesh_error(draw: st.DataObject) -> None:
    raw = bytearray(data(quantised()))
    for _ in range(draw.draw(st.integers(1, 6))):
        raw[draw.draw(st.integers(0, len(raw) - 1))] = draw.draw(st.integers(0, 255))
    try:
        load_model(bytes(raw))
    except MeshError as error:
        assert error.reason.value.startswith("MODEL_")  # noqa: PT017


def test_a_file_above_the_limit_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"x" * 2000)
    with pytest.raises(MeshError) as caught:
        load_file(path, ModelLimits(max_size_bytes=1000))
    assert caught.value.reason is Reason.MODEL_TOO_LARGE


def test_a_model_is_loaded_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data(residual()))
    assert load_file(path).graph.output[0].name == "logits"


# --- external data ---------------------------------------------------------------------------------------------------


def external(name: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="secrets.bin")
    return tensor


def _initialiser(net: onnx.ModelProto) -> None:
    net.graph.initializer.append(external("e"))


def _location_without_flag(net: onnx.ModelProto) -> None:
    tensor = external("e")
    tensor.ClearField("data_location")
    net.graph.initializer.append(tensor)


def _sparse_values(net: onnx.ModelProto) -> None:
    net.graph.sparse_initializer.add(values=external("e"), indices=ints("i", 0), dims=[4])


def _sparse_indices(net: onnx.ModelProto) -> None:
    net.graph.sparse_initializer.add(values=weight("e", 1), indices=external("i"), dims=[4])


def _constant(net: onnx.ModelProto) -> None:
    net.graph.node.add(op_type="Constant", output=["e"]).attribute.append(helper.make_attribute("value", external("")))


def _tensor_list(net: onnx.ModelProto) -> None:
    net.graph.node[0].attribute.append(helper.make_attribute("many", [external("a"), external("b")]))


def _sparse_attribute(net: onnx.ModelProto) -> None:
    sparse = onnx.SparseTensorProto(values=external(""), indices=ints("i", 0), dims=[4])
    net.graph.node.add(op_type="Constant", output=["e"]).attribute.append(helper.make_attribute("sparse_value", sparse))


def _nested_graph(net: onnx.ModelProto) -> None:
    inner = helper.make_graph([node("Identity", "e", "o")], "inner", [], [value("o", [4])], [external("e")])
    outer = helper.make_graph([helper.make_node("If", ["c"], ["o"], then_branch=inner)], "outer", [], [])
    net.graph.node.append(helper.make_node("If", ["c"], ["o"], then_branch=outer))


def _function(net: onnx.ModelProto) -> None:
    constant = helper.make_node("Constant", [], ["c"], value=external(""))
    net.functions.append(helper.make_function("local", "f", ["a"], ["c"], [constant], [helper.make_opsetid("", 17)]))


def _nested_in_function(net: onnx.ModelProto) -> None:
    inner = helper.make_graph([node("Identity", "e", "o")], "inner", [], [value("o", [4])], [external("e")])
    branch = helper.make_node("If", ["a"], ["c"], then_branch=inner)
    net.functions.append(helper.make_function("local", "f", ["a"], ["c"], [branch], [helper.make_opsetid("", 17)]))


def _function_default(net: onnx.ModelProto) -> None:
    _function(net)
    net.functions[0].ClearField("node")
    net.functions[0].attribute_proto.append(helper.make_attribute("value", external("")))


@pytest.mark.parametrize(
    "hide",
    [
        _initialiser,
        _location_without_flag,
        _sparse_values,
        _sparse_indices,
        _constant,
        _tensor_list,
        _sparse_attribute,
        _nested_graph,
        _function,
        _nested_in_function,
        _function_default,
    ],
)
def test_data_in_another_file_is_refused_wherever_it_hides(hide: Callable[[onnx.ModelProto], None]) -> None:
    net = relu(["N", 4], ["N", 4])
    hide(net)
    assert refused(net).reason is Reason.MODEL_EXTERNAL_DATA


# --- bombs -----------------------------------------------------------------------------------------------------------


def generator(op: onnx.NodeProto, *weights: TensorProto, inputs: tuple[onnx.ValueInfoProto, ...] = ()) -> bytes:
    net = model([op], list(inputs), [value("y", None)], weights)
    return data(net)


HUGE = 100_000
SCALARS = [numpy_helper.from_array(np.asarray(v, dtype=np.float32), n) for n, v in (("a", 0), ("b", 1e10), ("c", 1))]
X = value("x", ["N", 3])

BOMBS = {
    "ConstantOfShape": generator(node("ConstantOfShape", "s", "y"), ints("s", 50_000, 60_000)),
    "Tile": generator(node("Tile", "x r", "y"), ints("r", HUGE, HUGE), inputs=(X,)),
    "Expand": generator(node("Expand", "x s", "y"), ints("s", HUGE, HUGE, 1, 3), inputs=(X,)),
    "Range": generator(node("Range", "a b c", "y"), *SCALARS),
    "Pad": generator(node("Pad", "x p", "y"), ints("p", 0, 0, 0, HUGE * HUGE), inputs=(X,)),
    "outer product": generator(node("MatMul", "x z", "y"), inputs=(value("x", [HUGE, 1]), value("z", [1, HUGE]))),
    "padded convolution": generator(
        node("Conv", "x w", "y", pads=[HUGE] * 4), weight("w", 1, 3, 1, 1), inputs=(value("x", ["N", 3, 8, 8]),)
    ),
    "computed shape": data(
        model(
            [node("Pow", "b e", "p"), node("Cast", "p", "q", to=7), node("ConstantOfShape", "q", "y")],
            [],
            [value("y", None)],
            [
                numpy_helper.from_array(np.asarray([5e4, 6e4], dtype=np.float32), "b"),
                numpy_helper.from_array(np.asarray(1.0, dtype=np.float32), "e"),
            ],
        )
    ),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_a_small_model_that_asks_for_gigabytes_is_refused(bomb: bytes) -> None:
    assert len(bomb) < 250
    assert refused(bomb).reason is Reason.MODEL_TOO_LARGE


def test_a_tensor_whose_size_follows_from_pixel_values_is_refused() -> None:
    net = model(
        [node("Cast", "x", "s", to=7), node("ConstantOfShape", "s", "y")], [value("x", [2])], [value("y", [None, None])]
    )
    error = refused(net)
    assert error.reason is Reason.MODEL_SHAPE_UNKNOWN
    assert error.metadata["operator"] == "ConstantOfShape"


def test_a_sparse_initialiser_counts_as_dense() -> None:
    net = relu(["N", 4], ["N", 4])
    net.graph.sparse_initializer.add(values=weight("e", 1), indices=ints("i", 0), dims=[50_000, 60_000])
    assert refused(net).reason is Reason.MODEL_TOO_LARGE


def test_weights_above_the_limit_are_refused() -> None:
    assert refused(residual(), ModelLimits(max_initialiser_bytes=100)).reason is Reason.MODEL_TOO_LARGE


def test_weights_that_claim_more_than_they_hold_are_refused() -> None:
    net = residual()
    net.graph.initializer[0].dims[0] = 9
    assert refused(net).reason is Reason.MODEL_CORRUPT


def test_too_many_operators_are_refused() -> None:
    assert refused(residual(), ModelLimits(max_nodes=9)).reason is Reason.MODEL_TOO_LARGE


def calls(body: list[onnx.NodeProto], name: str) -> onnx.FunctionProto:
    return helper.make_function(
        "local", name, ["a"], ["b"], body, [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    )


def local(*functions: onnx.FunctionProto) -> onnx.ModelProto:
    top = helper.make_node(functions[-1].name, ["x"], ["y"], domain="local")
    return model([top], [X], [value("y", ["N", 3])], functions=functions, domains=["local"])


def test_local_functions_are_inlined() -> None:
    loaded = load_model(data(local(calls([node("Relu", "a", "c"), node("Neg", "c", "b")], "f"))))
    assert [n.op_type for n in loaded.graph.node] == ["Relu", "Neg"]
    assert not loaded.functions


def test_functions_that_multiply_each_other_are_counted_before_they_are_inlined() -> None:
    functions = [calls([node("Relu", "a", "b")], "f0")]
    for level in range(1, 12):
        names = ["a", *(f"c{i}" for i in range(9)), "b"]
        body = [helper.make_node(f"f{level - 1}", [names[i]], [names[i + 1]], domain="local") for i in range(10)]
        functions.append(calls(body, f"f{level}"))
    assert refused(local(*functions)).reason is Reason.MODEL_TOO_LARGE


def test_a_function_that_calls_itself_is_refused() -> None:
    recursive = calls([helper.make_node("f", ["a"], ["b"], domain="local")], "f")
    assert refused(local(recursive)).reason is Reason.MODEL_CORRUPT


# --- operators and rules ---------------------------------------------------------------------------------------------


def _custom() -> onnx.ModelProto:
    custom = helper.make_node("Special", ["x"], ["y"], domain="com.example")
    return model([custom], [X], [value("y", ["N", 3])], domains=["com.example"])


def _random() -> onnx.ModelProto:
    return model([node("RandomNormalLike", "x", "y")], [X], [value("y", ["N", 3])])


def _in_function() -> onnx.ModelProto:
    return local(calls([node("RandomNormalLike", "a", "b")], "f"))


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (_custom, "com.example.Special"),
        (_random, "RandomNormalLike"),
        (_in_function, "RandomNormalLike"),
    ],
)
def test_operators_outside_the_allow_list_are_refused_by_name(build: Callable[[], onnx.ModelProto], name: str) -> None:
    error = refused(build())
    assert error.reason is Reason.MODEL_OPERATOR_UNSUPPORTED
    assert error.metadata["operators"] == name


def test_a_quantised_model_of_the_runtime_vendor_is_accepted() -> None:
    net = model(
        [helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")],
        [X],
        [value("y", ["N", 3])],
        domains=["com.microsoft"],
    )
    load_model(data(net))


def test_an_input_without_a_shape_is_refused() -> None:
    net = model([node("Relu", "x", "y")], [value("x", None)], [value("y", None)])
    assert refused(net).reason is Reason.MODEL_SHAPE_UNKNOWN


def test_an_output_without_a_shape_is_completed() -> None:
    loaded = load_model(data(relu(["N", 3], None)))
    assert [d.dim_value or d.dim_param for d in loaded.graph.output[0].type.tensor_type.shape.dim] == ["N", 3]


@pytest.mark.parametrize("dims", [["N", 0], ["N", -3]])
def test_an_input_with_an_impossible_dimension_is_refused(dims: list[str | int | None]) -> None:
    assert refused(relu(dims, ["N", 3])).reason is Reason.MODEL_CORRUPT


def test_shapes_that_contradict_are_refused() -> None:
    net = model([node("MatMul", "x w", "y")], [X], [value("y", ["N", 2])], [weight("w", 4, 2)])
    assert refused(net).reason is Reason.MODEL_CORRUPT


def test_a_cycle_is_refused() -> None:
    net = model([node("Relu", "z", "y"), node("Relu", "y", "z")], [X], [value("y", ["N", 3])])
    assert refused(net).reason is Reason.MODEL_CORRUPT


def test_a_model_with_training_graphs_is_refused() -> None:
    net = residual()
    net.training_info.add()
    assert refused(net).reason is Reason.MODEL_OPERATOR_UNSUPPORTED


def test_shape_arithmetic_over_a_dynamic_height_is_accepted() -> None:
    net = model(
        [node("Resize", "x none s", "y")],
        [value("x", ["N", 3, "H", "W"])],
        [value("y", ["N", 3, None, None])],
        [weight("none", 0), numpy_helper.from_array(np.asarray([1, 1, 2, 2], dtype=np.float32), "s")],
    )
    load_model(data(net))
    load_model(data(early_shape()))
