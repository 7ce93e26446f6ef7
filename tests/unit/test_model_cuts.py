"""Where a model can be cut: the graph view, the candidates, and cuts named by a person."""

from __future__ import annotations

import onnx
import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.model.cuts import list_cuts, resolve_cut
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model
from splitmesh.tensor import TensorSpec
from tests.unit.onnx_nets import (
    data,
    dense,
    early_output,
    early_shape,
    ints,
    model,
    node,
    quantised,
    residual,
    two_branches,
    value,
    weight,
)


def graph_of(net: onnx.ModelProto) -> Graph:
    return Graph(load_model(data(net)))


def names(net: onnx.ModelProto, most: int = 4) -> list[tuple[str, ...]]:
    return [cut.tensors for cut in list_cuts(graph_of(net), most)]


def refused(net: onnx.ModelProto, *at: str) -> MeshError:
    with pytest.raises(MeshError) as caught:
        resolve_cut(graph_of(net), at)
    return caught.value


# --- the graph -------------------------------------------------------------------------------------------------------


def test_producers_and_consumers_are_numbered_in_topological_order() -> None:
    graph = graph_of(residual())
    assert graph.nodes[graph.producers["sum"]].op_type == "Add"
    assert [graph.nodes[i].op_type for i in graph.consumers["a"]] == ["Conv", "Add"]


def test_the_order_of_the_file_is_kept_where_it_is_topological() -> None:
    net = two_branches()
    assert [n.output[0] for n in graph_of(net).nodes] == [n.output[0] for n in net.graph.node]


def test_a_file_in_another_order_is_sorted() -> None:
    net = load_model(data(two_branches()))
    nodes = list(net.graph.node)
    del net.graph.node[:]
    net.graph.node.extend(reversed(nodes))
    graph = Graph(net)
    done = {*graph.inputs, *graph.initialisers}
    for item in graph.nodes:
        assert set(item.input) <= done
        done.update(item.output)


def test_tensors_computed_from_weights_alone_are_constants() -> None:
    net = model(
        [node("Neg", "w", "w2"), node("MatMul", "x w2", "a"), node("Relu", "a", "y")],
        [value("x", ["N", 4])],
        [value("y", ["N", 3])],
        [weight("w", 4, 3)],
    )
    graph = graph_of(net)
    assert graph.constants == {"w", "w2"}
    assert names(net) == [("a",)]


def test_tensors_computed_from_shapes_are_replicated_not_cut() -> None:
    graph = graph_of(early_shape())
    assert graph.shape_only == {"shape", "batch", "batch1", "target"}
    assert not {t for cut in list_cuts(graph) for t in cut.tensors} & graph.replicated


def test_the_batch_survives_a_reshape_that_inference_does_not_follow() -> None:
    graph = graph_of(residual())
    assert graph.spec("flat") == TensorSpec("flat", "float32", (-1, 8))
    assert graph.sample_spec("flat") == TensorSpec("flat", "float32", (1, 8))


def test_a_dimension_that_is_a_multiple_of_the_batch_is_recognised() -> None:
    net = model(
        [node("Reshape", "x s", "folded"), node("Relu", "folded", "a"), node("Reshape", "a t", "y")],
        [value("x", ["N", 4, 2])],
        [value("y", [None, 8])],
        [ints("s", -1, 2), ints("t", -1, 8)],
    )
    graph = graph_of(net)
    shape = graph.shape("a")
    assert shape is not None
    assert shape[0] is not None
    assert (shape[0].per_sample, shape[0].fixed) == (4, 0)
    assert graph.sample_spec("a") == TensorSpec("a", "float32", (4, 2))


def test_work_is_estimated_for_one_sample() -> None:
    graph = graph_of(residual())
    by_output = {graph.nodes[i].output[0]: macs for i, macs in enumerate(graph.macs)}
    assert by_output["stem"] == 8 * 64 * 27
    assert by_output["logits"] == 5 * 8
    assert by_output["a"] == 0


# --- candidates ------------------------------------------------------------------------------------------------------


def test_a_residual_block_offers_single_tensors_outside_and_pairs_inside() -> None:
    assert names(residual()) == [
        ("stem",),
        ("a",),
        ("a", "c1"),
        ("a", "r1"),
        ("a", "c2"),
        ("sum",),
        ("b",),
        ("pool",),
        ("flat",),
    ]


def test_cuts_grow_from_input_to_output_and_their_work_with_them() -> None:
    cuts = list_cuts(graph_of(residual()))
    assert [cut.index for cut in cuts] == sorted(cut.index for cut in cuts)
    assert [cut.position for cut in cuts] == sorted(cut.position for cut in cuts)
    assert 0 < cuts[0].position < cuts[-1].position < 1


def test_the_size_of_a_cut_is_that_of_one_sample() -> None:
    sizes = {cut.tensors: cut.size_bytes for cut in list_cuts(graph_of(residual()))}
    assert sizes[("a",)] == 8 * 64 * 4
    assert sizes[("a", "r1")] == 2 * 8 * 64 * 4
    assert sizes[("flat",)] == 8 * 4


def test_the_size_of_a_quantised_cut_counts_bytes() -> None:
    assert {cut.tensors: cut.size_bytes for cut in list_cuts(graph_of(quantised()))}[("q",)] == 4


def test_the_number_of_tensors_of_a_cut_is_limited() -> None:
    assert all(len(cut) == 1 for cut in names(residual(), most=1))
    assert ("a", "c1") not in names(residual(), most=1)


def test_a_net_that_never_lets_go_of_its_input_has_no_early_cuts() -> None:
    assert names(dense()) == [("all",)]


def test_interleaved_branches_are_cut_in_pairs() -> None:
    assert names(two_branches()) == [("stem",), ("stem", "l1"), ("l1", "r1"), ("r1", "l2"), ("l2", "r2"), ("joined",)]


def test_an_output_computed_early_crosses_with_the_cut() -> None:
    assert ("aux", "b") in [tuple(sorted(cut)) for cut in names(early_output())]
    assert ("b",) not in names(early_output())


def test_parts_of_the_graph_that_no_output_needs_are_ignored() -> None:
    net = residual()
    net.graph.node.append(node("Neg", "a", "unused"))
    assert names(net) == names(residual())


def test_a_cut_through_a_folded_batch_is_not_offered() -> None:
    net = model(
        [
            node("Relu", "x", "before"),
            node("Reshape", "before s", "folded"),
            node("Relu", "folded", "a"),
            node("Reshape", "a t", "after"),
            node("Relu", "after", "y"),
        ],
        [value("x", ["N", 4, 2])],
        [value("y", [None, 8])],
        [ints("s", -1, 2), ints("t", -1, 8)],
    )
    assert names(net) == [("before",), ("after",)]
    assert refused(net, "a").reason is Reason.MODEL_SHAPE_UNKNOWN


def test_a_model_of_fixed_batch_has_cuts_with_fixed_shapes() -> None:
    cut = list_cuts(graph_of(residual(batch=1)))[0]
    assert cut.specs == (TensorSpec("stem", "float32", (1, 8, 8, 8)),)


def test_a_model_of_unnamed_batch_has_the_same_cuts() -> None:
    assert names(residual(batch=None)) == names(residual())


def test_an_unknown_height_leaves_no_cut_whose_size_is_unknown() -> None:
    net = model(
        [node("Relu", "x", "a"), node("GlobalAveragePool", "a", "b"), node("Relu", "b", "y")],
        [value("x", ["N", 3, "H", "W"])],
        [value("y", ["N", 3, 1, 1])],
    )
    assert names(net) == [("b",)]
    error = refused(net, "a")
    assert error.reason is Reason.MODEL_SHAPE_UNKNOWN
    assert error.metadata == {"tensor": "a"}


# --- cuts named by a person ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", [residual(), two_branches(), early_shape(), early_output(), quantised()])
def test_every_candidate_resolves_to_itself(net: onnx.ModelProto) -> None:
    graph = graph_of(net)
    for cut in list_cuts(graph):
        assert resolve_cut(graph, cut.tensors) == cut


def test_the_order_of_the_names_is_kept() -> None:
    assert resolve_cut(graph_of(residual()), ["r1", "a"]).tensors == ("r1", "a")


def test_a_cut_across_branches_at_other_places_than_the_files_order_is_found() -> None:
    cut = resolve_cut(graph_of(two_branches()), ["l2", "stem"])
    assert cut.index == 3


def test_an_unknown_tensor_is_refused_with_its_nearest_names() -> None:
    error = refused(residual(), "polo")
    assert error.reason is Reason.CUT_INVALID
    assert "'pool'" in error.message
    assert error.metadata["near"] == "pool"


@pytest.mark.parametrize(
    ("net", "at", "key", "tensors"),
    [
        (residual(), ["r1"], "missing", "a"),
        (two_branches(), ["l1"], "missing", "stem"),
        (dense(), ["r1"], "missing", "c1,r0,x"),
        (early_output(), ["b"], "missing", "aux"),
        (residual(), ["b", "a"], "redundant", "a"),
        (two_branches(), ["l2", "l1", "r1"], "redundant", "l1"),
    ],
    ids=["skip", "other branch", "input itself", "early output", "earlier tensor", "same branch"],
)
def test_a_set_that_is_no_frontier_is_refused_with_the_tensor_at_fault(
    net: onnx.ModelProto, at: list[str], key: str, tensors: str
) -> None:
    error = refused(net, *at)
    assert error.reason is Reason.CUT_INVALID
    assert error.metadata[key] in tensors


@pytest.mark.parametrize(
    ("at", "words"),
    [
        ([], "no tensor"),
        (["a", "a"], "twice"),
        (["x"], "input"),
        (["w0"], "copied to both sides"),
        (["logits"], "nothing is left"),
    ],
)
def test_a_meaningless_cut_is_refused_with_the_reason(at: list[str], words: str) -> None:
    error = refused(residual(), *at)
    assert error.reason is Reason.CUT_INVALID
    assert words in error.message
