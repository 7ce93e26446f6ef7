"""A chain of segments is the whole model: on nets with skips and branches, at every order of cuts, exact and rounded."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import onnx
import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.model.artifacts import quantise_split, split_bytes
from splitmesh.model.chain import split_chain
from splitmesh.model.cuts import list_cuts
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model
from splitmesh.model.manifest import HEAD, TAIL, WHOLE, Manifest
from splitmesh.model.verify import random_inputs, run_chain, verify_chain
from splitmesh.runtime import open_session
from splitmesh.tensor.spec import Array
from tests.unit.onnx_nets import data, dense, early_output, early_shape, model, node, residual, two_branches, value

BATCHES = (1, 3)


def long_skip() -> onnx.ModelProto:
    """``a`` is read at once and again at the very end."""
    nodes = [
        node("Relu", "x", "a"),
        node("Neg", "a", "b"),
        node("Sigmoid", "b", "c"),
        node("Tanh", "c", "d"),
        node("Add", "d a", "e"),
        node("Neg", "e", "y"),
    ]
    return model(nodes, [value("x", ["N", 4])], [value("y", ["N", 4])])


def late_input() -> onnx.ModelProto:
    """A second input is read only near the end."""
    nodes = [
        node("Relu", "x", "a"),
        node("Neg", "a", "b"),
        node("Sigmoid", "b", "c"),
        node("Add", "c z", "d"),
        node("Tanh", "d", "y"),
    ]
    return model(nodes, [value("x", ["N", 4]), value("z", ["N", 4])], [value("y", ["N", 4])])


def feeds_of(graph: Graph, *batches: int) -> list[dict[str, Array]]:
    rng = np.random.default_rng(3)
    return [random_inputs(graph, batch, rng) for batch in batches]


def run(segments: Sequence[bytes], feed: dict[str, Array]) -> dict[str, Array]:
    return run_chain([open_session(segment) for segment in segments], feed)


@pytest.mark.parametrize("net", [residual, dense, two_branches, early_shape, long_skip], ids=lambda net: net.__name__)
def test_every_chain_of_three_is_the_whole_or_its_order_is_refused(net) -> None:  # type: ignore[no-untyped-def]
    whole = data(net())
    graph = Graph(load_model(whole))
    cuts = list_cuts(graph)
    feeds = feeds_of(graph, *BATCHES)
    made = 0
    for first, second in combinations([cut.tensors for cut in cuts], 2):
        try:
            chain = split_chain(graph, [first, second])
        except MeshError:
            continue  # of two branches, one cut may be ahead in each
        made += 1
        segments = list(chain.artifacts().values())
        assert verify_chain(whole, segments, feeds).max_abs_error < 1e-5
        names = [[spec.name for spec in open_session(segment).inputs] for segment in segments]
        assert [set(entry) for entry in names[1:]] == [set(first), set(second)]
        with pytest.raises(MeshError) as caught:
            split_chain(graph, [second, first])
        assert caught.value.reason is Reason.CUT_INVALID
    assert made >= len(cuts) - 1


def test_as_many_segments_as_there_are_cuts_and_one_more() -> None:
    whole = data(residual())
    graph = Graph(load_model(whole))
    cuts = [cut.tensors for cut in list_cuts(graph)]
    manifest, artifacts = split_bytes(whole, cuts[0], further=cuts[1:])
    assert manifest.split is not None
    segments = manifest.split.segments()
    assert len(segments) == len(cuts) + 1 > 5
    assert [segment.artifact for segment in segments] == [
        HEAD, *(f"segment_{number}.onnx" for number in range(1, len(cuts))), TAIL,
    ]  # fmt: skip
    assert set(artifacts) == {WHOLE, *(segment.artifact for segment in segments)}
    nodes = [len(onnx.load_model_from_string(artifacts[one.artifact]).graph.node) for one in segments]
    assert sum(nodes) == len(graph.nodes)
    assert [tuple(info.name for info in hop.wire) for hop in manifest.split.hops()] == cuts
    assert manifest.split.verification.batch_sizes == (1, 2, 5)
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_tensor_that_only_a_late_segment_reads_passes_through_those_before_it() -> None:
    whole = data(long_skip())
    manifest, artifacts = split_bytes(whole, ["a"], further=[["b", "a"], ["d", "a"]])
    assert manifest.split is not None
    middle = open_session(artifacts["segment_1.onnx"])
    sent = np.array([[1.0, -2.0, 3.0, 0.5]], dtype=np.float32)
    given = middle.run({"a": sent})
    assert np.array_equal(given["a"], sent)
    assert np.array_equal(given["b"], -sent)
    assert len(onnx.load_model_from_string(artifacts["segment_1.onnx"]).graph.node) == 1
    graph = Graph(load_model(whole))
    for feed in feeds_of(graph, *BATCHES):
        segments = [artifacts[one.artifact] for one in manifest.split.segments()]
        assert np.allclose(run(segments, feed)["y"], open_session(whole).run(feed)["y"], rtol=1e-6)
    for content in artifacts.values():
        load_model(content)  # what a registry would check


def test_a_second_input_that_is_read_late_passes_through_the_segments_before() -> None:
    whole = data(late_input())
    manifest, artifacts = split_bytes(whole, ["a", "z"], further=[["c", "z"]])
    assert manifest.split is not None
    assert {spec.name for spec in open_session(artifacts["segment_1.onnx"]).outputs} == {"c", "z"}
    assert manifest.split.verification.max_abs_error < 1e-6


def test_one_cut_makes_head_and_tail_as_ever() -> None:
    manifest, artifacts = split_bytes(data(residual()), ["b"])
    assert manifest.split is not None
    assert manifest.split.middle == ()
    assert set(artifacts) == {WHOLE, HEAD, TAIL}


@pytest.mark.parametrize(
    ("cuts", "complaint"),
    [
        ([["b"], ["a"]], "cut 2, 'a', does not lie behind cut 1"),
        ([["a"], ["b"], ["b"]], "cut 3, 'b', is at the same place as cut 2"),
        ([["r1", "a"], ["a", "r1"]], "at the same place"),
        ([["a"], ["a"]], "at the same place"),
        ([["a"], ["c2"]], "'a' missing"),
        ([["a"], ["nothing"]], "no tensor 'nothing'"),
        ([["a"], ["b", "b"]], "named twice"),
        ([["a"], []], "no tensor named"),
        ([["a"], ["logits"]], "nothing is left for the tail"),
        ([["x"], ["a"]], "everything would run in the tail"),
        ([], "no cut named"),
    ],
)
def test_a_bad_chain_is_refused_and_says_why(cuts: list[list[str]], complaint: str) -> None:
    with pytest.raises(MeshError, match=complaint) as caught:
        split_chain(Graph(load_model(data(residual()))), cuts)
    assert caught.value.reason is Reason.CUT_INVALID


def test_an_output_that_comes_early_cannot_lie_before_a_cut() -> None:
    with pytest.raises(MeshError) as caught:
        split_bytes(data(early_output()), ["a"], further=[["b"]])
    assert caught.value.reason is Reason.CUT_INVALID


@pytest.mark.parametrize(
    ("net", "cuts"),
    [
        (residual, [["a"], ["b"], ["pool"]]),
        (long_skip, [["a"], ["b", "a"], ["d", "a"]]),
        (two_branches, [["l1", "r1"], ["joined"]]),
    ],
)
def test_every_hop_of_a_chain_can_be_rounded_to_8_bits(net, cuts: list[list[str]]) -> None:  # type: ignore[no-untyped-def]
    whole = data(net())
    graph = Graph(load_model(whole))
    exact, artifacts = split_bytes(whole, cuts[0], further=cuts[1:])
    rounded, made = quantise_split(exact, artifacts, feeds_of(graph, 16))
    assert rounded.split is not None
    assert Manifest.from_json(rounded.to_json()) == rounded
    assert 0 < rounded.split.verification.max_abs_error < 0.05
    for hop, cut in zip(rounded.split.hops(), cuts, strict=True):
        assert {info.dtype for info in hop.wire} == {"uint8"}
        assert {len(entry.scale) for entry in hop.quantisation} == {1}
        assert [entry.tensor for entry in hop.quantisation] == cut
        assert [info.name for info in hop.cut] == cut
    sessions = [open_session(made[one.artifact]) for one in rounded.split.segments()]
    for session, info in zip(sessions, rounded.split.segments(), strict=True):
        assert [spec.name for spec in session.outputs] == [tensor.name for tensor in info.outputs]
        assert {spec.name for spec in session.inputs} == {tensor.name for tensor in info.inputs}
        load_model(made[info.artifact])


def test_a_chain_that_is_not_the_whole_is_not_accepted() -> None:
    whole = data(residual())
    _, artifacts = split_bytes(whole, ["a"], further=[["b"]])
    segments = [artifacts[name] for name in (HEAD, "segment_1.onnx", TAIL)]
    broken = onnx.load_model_from_string(segments[1])
    broken.graph.node[0].op_type = "Relu"
    del broken.graph.node[0].input[1:]
    del broken.graph.node[0].attribute[:]
    with pytest.raises(MeshError) as caught:
        verify_chain(whole, [segments[0], data(broken), segments[2]], feeds_of(Graph(load_model(whole)), 2))
    assert caught.value.reason is Reason.SPLIT_NOT_EQUAL
