"""A bottleneck in the graphs: what crosses, what comes back, names, opsets, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from splitmesh.compress.closed_form import Basis, Decoder, Layout, decode, rounded
from splitmesh.compress.closed_form_graph import decoder_model, encoder_model
from splitmesh.errors import MeshError, Reason
from splitmesh.model.bottleneck_graph import insert_bottleneck
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model
from splitmesh.runtime import open_session
from splitmesh.tensor.spec import Array

SCALE, ZERO = 0.05, 128

SHAPES = {
    "picture": (Layout(4, 6, 1), (6, 8, 8)),
    "blocks": (Layout(4, 6, 2), (6, 8, 8)),
    "tokens": (Layout(3, 10, 1), (7, 10)),
    "flat": (Layout(2, 10, 1), (10,)),
}


def _halves(
    shape: tuple[int, ...], opset: int = 17, elem_type: int = TensorProto.FLOAT, batch: int | str = "n"
) -> tuple[ModelProto, ModelProto]:
    ir = min(9, 7 if opset < 15 else 9)

    def half(operator: str, given: str, result: str) -> ModelProto:
        ends = [helper.make_tensor_value_info(name, elem_type, [batch, *shape]) for name in (given, result)]
        graph = helper.make_graph([helper.make_node(operator, [given], [result])], "half", ends[:1], ends[1:])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)

    return half("Tanh", "x", "t"), half("Neg", "t", "y")


def _code(layout: Layout, channels: int = 3) -> tuple[Basis, Decoder]:
    random = np.random.default_rng(3)
    places = 9 if layout.rank == 4 else 1
    basis = Basis(
        layout, random.normal(0, 0.2, layout.numbers), random.normal(0, 0.4, (layout.numbers, channels)), False
    )
    weights = random.normal(0, 0.3, (places * channels, layout.numbers))
    return basis, Decoder(weights, random.normal(0, 0.1, layout.numbers), False)


def _run(model: ModelProto, feed: dict[str, Array]) -> dict[str, Any]:
    return open_session(model.SerializeToString()).run(feed)


def _opset(model: ModelProto) -> int:
    return max(entry.version for entry in model.opset_import if entry.domain == "")


@pytest.mark.parametrize("opset", [9, 13, 18])
@pytest.mark.parametrize("kind", SHAPES)
def test_the_graphs_compute_what_the_numbers_say(kind: str, opset: int) -> None:
    layout, shape = SHAPES[kind]
    head, tail = _halves(shape, opset)
    basis, decoder = _code(layout)
    new_head, new_tail, rule = insert_bottleneck(
        head, tail, "t", encoder_model(basis), decoder_model(basis, decoder), SCALE, ZERO
    )
    assert (rule.tensor, rule.wire_tensor, rule.axis) == ("t.code", "t.code.q8", None)
    assert _opset(new_head) == (13 if opset < 10 else opset)
    for batch in (1, 3):
        x = np.random.default_rng(batch).normal(0, 1, (batch, *shape)).astype(np.float32)
        wire = _run(new_head, {"x": x})
        expected = rounded(basis.codes(np.tanh(x)), SCALE)
        sent = wire["t.code.q8"].astype(float) - ZERO
        places = sent[:, :, None, None] if layout.rank == 2 else sent
        flat = np.moveaxis(places, 1, -1) if layout.rank != 3 else places[:, :, None, :]
        assert list(wire) == ["t.code.q8"]
        assert np.abs(flat - expected).max() <= 1
        assert (flat != expected).mean() < 0.01
        rebuilt = decode(decoder, layout, flat * SCALE)
        np.testing.assert_allclose(_run(new_tail, wire)["y"], -rebuilt, atol=1e-4)


@pytest.mark.parametrize("kind", SHAPES)
def test_both_halves_load_like_any_model_and_name_the_shape_that_crosses(kind: str) -> None:
    layout, shape = SHAPES[kind]
    basis, decoder = _code(layout)
    head, tail = _halves(shape)
    made = insert_bottleneck(head, tail, "t", encoder_model(basis), decoder_model(basis, decoder), SCALE, ZERO)
    specs = [Graph(load_model(half.SerializeToString())).require_spec("t.code.q8") for half in made[:2]]
    expected = {"picture": (-1, 3, 8, 8), "blocks": (-1, 3, 4, 4), "tokens": (-1, 7, 3), "flat": (-1, 3)}[kind]
    assert [spec.shape for spec in specs] == [expected] * 2
    assert {spec.dtype for spec in specs} == {"uint8"}


def test_the_tensor_stays_in_the_head_by_its_own_name_for_an_exit() -> None:
    layout, shape = SHAPES["picture"]
    basis, decoder = _code(layout)
    head, tail = _halves(shape)
    made, _, _ = insert_bottleneck(head, tail, "t", encoder_model(basis), decoder_model(basis, decoder), SCALE, ZERO)
    made.graph.output.append(helper.make_tensor_value_info("t", TensorProto.FLOAT, ["n", *shape]))
    x = np.random.default_rng(0).normal(0, 1, (2, *shape)).astype(np.float32)
    np.testing.assert_array_equal(_run(made, {"x": x})["t"], _run(head, {"x": x})["t"])


def test_names_that_are_taken_are_not_taken_again() -> None:
    layout, shape = SHAPES["blocks"]
    head, tail = _halves(shape)
    x = np.random.default_rng(0).normal(0, 1, (2, *shape)).astype(np.float32)
    basis, decoder = _code(layout)
    coders = encoder_model(basis), decoder_model(basis, decoder)
    plain = insert_bottleneck(head, tail, "t", *coders, SCALE, ZERO)
    taken = ["t.code", "t.code.q8", "bottleneck/encoder/weights", "bottleneck/decoder/weights", "t.code.q8.scale"]
    for half in (head, tail):
        for name in taken:
            half.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), name))
            half.graph.node.append(helper.make_node("Neg", [name], [f"{name}.unused"]))
    made = insert_bottleneck(head, tail, "t", *coders, SCALE, ZERO)
    assert made[2].wire_tensor == "t.code.q8_2"
    for half in made[:2]:
        onnx.checker.check_model(half, full_check=True)
    expected = _run(plain[1], _run(plain[0], {"x": x}))["y"]
    np.testing.assert_array_equal(_run(made[1], _run(made[0], {"x": x}))["y"], expected)


@pytest.mark.parametrize("elem_type", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_other_floats_are_cast_on_both_sides(elem_type: int) -> None:
    layout, shape = SHAPES["picture"]
    basis, decoder = _code(layout)
    coders = encoder_model(basis), decoder_model(basis, decoder)
    x = np.random.default_rng(0).normal(0, 1, (2, *shape)).astype(np.float32)
    wide = insert_bottleneck(*_halves(shape), "t", *coders, SCALE, ZERO)
    other = insert_bottleneck(*_halves(shape, elem_type=elem_type), "t", *coders, SCALE, ZERO)
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    mine = _run(other[1], _run(other[0], {"x": x.astype(dtype)}))["y"]
    assert mine.dtype == dtype
    np.testing.assert_allclose(mine, _run(wide[1], _run(wide[0], {"x": x}))["y"], atol=0.1)


def test_what_was_given_is_not_changed() -> None:
    layout, shape = SHAPES["picture"]
    basis, decoder = _code(layout)
    given = [*_halves(shape, 9), encoder_model(basis), decoder_model(basis, decoder)]
    before = [model.SerializeToString() for model in given]
    insert_bottleneck(given[0], given[1], "t", given[2], given[3], SCALE, ZERO)
    assert [model.SerializeToString() for model in given] == before


def _refused(*args: object) -> MeshError:
    with pytest.raises(MeshError) as caught:
        insert_bottleneck(*args)  # type: ignore[arg-type]
    return caught.value


def test_what_does_not_fit_is_refused_with_a_reason() -> None:
    layout, shape = SHAPES["picture"]
    head, tail = _halves(shape)
    basis, decoder = _code(layout)
    encoder, back = encoder_model(basis), decoder_model(basis, decoder)
    other_basis, other_decoder = _code(Layout(4, 5, 1))
    other_encoder, other_back = encoder_model(other_basis), decoder_model(other_basis, other_decoder)
    whole_numbers = _halves(shape, elem_type=TensorProto.INT32)
    five = _halves((2, 3, 4, 5))
    two_outputs = ModelProto()
    two_outputs.CopyFrom(encoder)
    two_outputs.graph.output.append(two_outputs.graph.output[0])
    cases = {
        "not what the head gives": _refused(head, tail, "x", encoder, back, SCALE, ZERO),
        "no floating-point": _refused(*whole_numbers, "t", encoder, back, SCALE, ZERO),
        "5 dimensions": _refused(*five, "t", encoder, back, SCALE, ZERO),
        "one float32 output": _refused(head, tail, "t", two_outputs, back, SCALE, ZERO),
        "no rounding": _refused(head, tail, "t", encoder, back, 0.0, ZERO),
        "no rounding to": _refused(head, tail, "t", encoder, back, SCALE, 256),
        "encoder does not fit": _refused(head, tail, "t", other_encoder, back, SCALE, ZERO),
        "decoder gives": _refused(head, tail, "t", encoder, other_back, SCALE, ZERO),
    }
    for text, error in cases.items():
        assert error.reason == Reason.CUT_INVALID, text
        assert text in error.message
