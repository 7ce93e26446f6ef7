"""A model that is refused is told in one go all that is wrong with it, and what to do about each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from splitmesh.errors import MeshError, Reason
from splitmesh.model.load import MAX_OPSET, load_model
from splitmesh.model.unsupported import MAX_PLACES, Unsupported, unsupported_parts
from splitmesh.model.unsupported_hints import OPERATORS
from tests.unit.onnx_nets import data, ints, model, node, quantised, residual, value, weight


def by_name(found: tuple[Unsupported, ...]) -> dict[str, Unsupported]:
    return {one.name: one for one in found}


def test_a_sound_model_has_no_unsupported_part() -> None:
    assert unsupported_parts(data(residual())) == ()
    assert unsupported_parts(data(quantised())) == ()


def test_every_refused_operator_is_told_once_with_its_count_nodes_and_hint() -> None:
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["noise"], name="noise-1"),
        helper.make_node("RandomNormalLike", ["x"], ["more"], name="noise-2"),
        helper.make_node("Tangle", ["noise"], ["mid"], domain="vendor.ops"),
        node("Unique", "mid", "seen"),
        node("Add", "seen more", "y"),
    ]
    net = model(nodes, [value("x", ["N", 4])], [value("y", ["N", 4])], domains=["vendor.ops"])
    found = by_name(unsupported_parts(data(net)))
    assert found.keys() == {"RandomNormalLike", "vendor.ops.Tangle", "Unique"}
    noise = found["RandomNormalLike"]
    assert (noise.count, noise.where, noise.kind) == (2, ("noise-1", "noise-2"), "operator")
    assert "random numbers" in noise.hint
    assert found["vendor.ops.Tangle"].where == ("-> mid",)
    assert "vendor.ops" in found["vendor.ops.Tangle"].hint
    assert all(one.reason == Reason.MODEL_OPERATOR_UNSUPPORTED.value for one in found.values())


def test_kinds_of_trouble_are_told_side_by_side() -> None:
    net = model(
        [node("Unique", "a", "u"), node("Relu", "x", "a"), node("NonZero", "a", "at"), node("Tile", "a at", "y")],
        [value("x", None)],
        [value("y", None)],
        [weight("w", 4)],
    )
    net.graph.initializer[0].data_location = TensorProto.EXTERNAL
    net.graph.initializer[0].external_data.add(key="location", value="w.bin")
    found = unsupported_parts(data(net))
    reasons = {one.reason for one in found}
    assert {"MODEL_EXTERNAL_DATA", "MODEL_OPERATOR_UNSUPPORTED", "MODEL_SHAPE_UNKNOWN"} <= reasons
    assert "save_as_external_data=False" in next(one.hint for one in found if one.name == "w")
    assert all(one.hint and one.problem for one in found)


def test_all_sizes_that_cannot_be_known_are_told_and_not_the_first_only() -> None:
    nodes = [
        node("NonZero", "x", "at"),
        node("Cast", "at", "count", to=TensorProto.INT64),
        node("ReduceMax", "count", "most", keepdims=0),
        node("Reshape", "most one", "target"),
        helper.make_node("ConstantOfShape", ["target"], ["made"], name="fills"),
        helper.make_node("Expand", ["made", "target"], ["y"], name="grows"),
    ]
    net = model(nodes, [value("x", ["N", 4])], [value("y", [None])], [ints("one", 1)])
    found = by_name(unsupported_parts(data(net)))
    assert found["ConstantOfShape"].where == ("fills",)
    assert found["Expand"].where == ("grows",)
    assert found["Expand"].reason == Reason.MODEL_SHAPE_UNKNOWN.value


def test_sizes_behind_an_unsupported_operator_are_not_guessed_at() -> None:
    nodes = [node("Unique", "x", "u"), node("Tile", "u twice", "t"), node("Tile", "x wide", "y")]
    weights = [ints("twice", 2), ints("wide", 2, 2)]
    net = model(nodes, [value("x", ["N", 4])], [value("t", [None]), value("y", None)], weights)
    assert by_name(unsupported_parts(data(net))).keys() == {"Unique"}


def test_every_node_with_an_attribute_of_another_opset_is_told() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="first", slope=0.1),
        helper.make_node("Relu", ["a"], ["b"], name="second", slope=0.2),
        helper.make_node("Softmax", ["b"], ["y"], name="third", temperature=2.0),
    ]
    found = by_name(unsupported_parts(data(model(nodes, [value("x", ["N", 4])], [value("y", ["N", 4])]))))
    assert found["Relu"].where == ("first", "second")
    assert found["Softmax"].kind == "attribute"
    assert "temperature" in found["Softmax"].problem


def test_an_opset_out_of_range_is_told_beside_the_operators() -> None:
    net = model([node("Unique", "x", "y")], [value("x", [4])], [value("y", [None])])
    net.opset_import[0].version = MAX_OPSET + 1
    found = unsupported_parts(data(net))
    assert [one.kind for one in found] == ["opset", "operator"]
    assert "convert_version" in found[0].hint


def test_operators_in_bodies_are_told_and_places_are_bounded() -> None:
    inner = [helper.make_node("RandomNormalLike", ["x"], [f"r{n}"], name=f"n{n}") for n in range(MAX_PLACES + 5)]
    body = helper.make_graph(inner, "then", [], [value("r0", ["N", 4])])
    other = helper.make_graph([node("Identity", "x", "o")], "else", [], [value("o", ["N", 4])])
    flag = numpy_helper.from_array(np.asarray(True), "flag")
    branch = helper.make_node("If", ["flag"], ["y"], then_branch=body, else_branch=other)
    (found,) = unsupported_parts(data(model([branch], [value("x", ["N", 4])], [value("y", ["N", 4])], [flag])))
    assert (found.count, len(found.where)) == (MAX_PLACES + 5, MAX_PLACES)


@pytest.mark.parametrize("broken", [b"", b"\xff" * 40, data(residual())[:300]])
def test_what_is_no_model_is_one_line(broken: bytes) -> None:
    (found,) = unsupported_parts(broken)
    assert (found.kind, found.reason) == ("model", Reason.MODEL_CORRUPT.value)
    assert found.hint


@settings(max_examples=100, deadline=None, database=None)
@given(st.data())
def test_a_mutated_file_has_unsupported_parts_exactly_when_it_is_refused(draw: st.DataObject) -> None:
    raw = bytearray(data(quantised()))
    for _ in range(draw.draw(st.integers(1, 6))):
        raw[draw.draw(st.integers(0, len(raw) - 1))] = draw.draw(st.integers(0, 255))
    try:
        load_model(bytes(raw))
        refused = False
    except MeshError:
        refused = True
    assert bool(unsupported_parts(bytes(raw))) is refused


def test_hints_are_for_operators_that_are_refused() -> None:
    for name in OPERATORS.keys() - {"Scan"}:
        domain = "ai.onnx.ml" if name == "TfIdfVectorizer" else ""
        net = model([helper.make_node(name, ["x"], ["y"], domain=domain)], [value("x", [4])], [value("y", [4])])
        assert any(one.kind == "operator" for one in unsupported_parts(data(net))), name
