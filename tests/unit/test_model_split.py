"""Head and tail together are the whole: on hand-made nets, exported nets and random graphs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitmesh.errors import MeshError, Reason
from splitmesh.model.artifacts import split_bytes, write_split
from splitmesh.model.cuts import list_cuts, resolve_cut
from splitmesh.model.graph import Graph
from splitmesh.model.load import MAX_OPSET, MIN_OPSET, load_model
from splitmesh.model.manifest import HEAD, MANIFEST, TAIL, WHOLE, Manifest, Verification
from splitmesh.model.split import Split, split_model
from splitmesh.model.verify import random_inputs, verify_split
from splitmesh.runtime import open_session
from splitmesh.tensor import TensorSpec
from tests.unit.onnx_nets import (
    data,
    dense,
    early_output,
    early_shape,
    from_torch,
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


def verified(net: onnx.ModelProto, split: Split, graph: Graph) -> Verification:
    rng = np.random.default_rng(1)
    feeds = [random_inputs(graph, batch, rng) for batch in (1, 3)]
    return verify_split(data(net), data(split.head), data(split.tail), feeds)


def check_every_cut(net: onnx.ModelProto) -> int:
    """Split and verify at every candidate; the number of candidates."""
    graph = graph_of(net)
    cuts = list_cuts(graph)
    for cut in cuts:
        verified(net, split_model(graph, cut), graph)
    return len(cuts)


def split_at(net: onnx.ModelProto, *at: str) -> Split:
    graph = graph_of(net)
    return split_model(graph, resolve_cut(graph, at))


# --- equality --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "expected"),
    [(residual, 9), (dense, 1), (two_branches, 6), (early_shape, 4), (quantised, 3), (early_output, 3)],
)
def test_every_cut_of_a_net_equals_the_whole(build: Callable[[], onnx.ModelProto], expected: int) -> None:
    assert check_every_cut(build()) == expected


@pytest.mark.parametrize("opset", range(MIN_OPSET, MAX_OPSET + 1))
def test_every_cut_equals_the_whole_in_every_opset(opset: int) -> None:
    assert check_every_cut(residual(opset=opset)) == 9


def test_a_net_of_fixed_batch_is_split_too() -> None:
    assert check_every_cut(residual(batch=1)) == 9


def test_random_graphs_split_at_every_cut() -> None:
    @settings(max_examples=150, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(random_nets())
    def check(net: onnx.ModelProto) -> None:
        check_every_cut(net)

    check()


@st.composite
def random_nets(draw: st.DrawFn) -> onnx.ModelProto:
    """Random DAGs of [batch, 4] tensors with branches, joins, shape arithmetic and sometimes a second input or output."""
    inputs = [value("x", ["N", 4])] + ([value("z", ["N", 4])] if draw(st.booleans()) else [])
    tensors = [item.name for item in inputs]
    nodes: list[onnx.NodeProto] = []
    weights = [weight("w", 4, 4), weight("v", 4)]
    for index in range(draw(st.integers(2, 9))):
        a, b, out = draw(st.sampled_from(tensors)), draw(st.sampled_from(tensors)), f"t{index}"
        match draw(st.sampled_from(["unary", "binary", "matmul", "bias", "reshape", "split", "fill"])):
            case "unary":
                nodes.append(node(draw(st.sampled_from(["Tanh", "Sigmoid", "Neg", "Identity"])), a, out))
            case "binary":
                nodes.append(node(draw(st.sampled_from(["Add", "Mul", "Sub"])), f"{a} {b}", out))
            case "matmul":
                nodes.append(node("MatMul", f"{a} w", out))
            case "bias":
                nodes.append(node("Add", f"{a} v", out))
            case "reshape":
                nodes += [node("Shape", b, f"{out}s"), node("Reshape", f"{a} {out}s", out)]
            case "split":
                nodes += [
                    node("Split", a, f"{out}l {out}r", axis=1),
                    _concat([f"{out}r", f"{out}l"], out),
                ]
            case "fill":
                nodes += [
                    node("Shape", b, f"{out}s"),
                    node("ConstantOfShape", f"{out}s", f"{out}z"),
                    node("Add", f"{a} {out}z", out),
                ]
        tensors.append(out)
    last = [name for name in tensors if name.startswith("t")]
    outputs = {last[-1]} | ({draw(st.sampled_from(last))} if draw(st.booleans()) else set())
    return model(nodes, inputs, [value(name, ["N", 4]) for name in sorted(outputs)], weights, opset=13)


def _concat(inputs: list[str], output: str) -> onnx.NodeProto:
    return onnx.helper.make_node("Concat", inputs, [output], axis=1)


# --- exported by torch -----------------------------------------------------------------------------------------------


def torch_attention() -> object:
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(3, 16, 4, 4)
            self.token = nn.Parameter(torch.randn(1, 1, 16))
            self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.patch(x).flatten(2).transpose(1, 2)
            y = torch.cat([self.token.expand(x.shape[0], -1, -1), y], dim=1)
            batch, tokens, width = y.shape
            q, k, v = self.qkv(y).reshape(batch, tokens, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
            mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ v
            y = y + mixed.transpose(1, 2).reshape(batch, tokens, width)
            result: torch.Tensor = self.out(y[:, 0])
            return result

    return Block()


def torch_upsampling() -> object:
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 2, 3, 1, 1)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.norm(self.down(x)))
            y = nn.functional.interpolate(y, size=x.shape[-2:], mode="bilinear")
            result: torch.Tensor = self.up(y).mean((2, 3))
            return result

    return Net()


@pytest.mark.parametrize(("build", "fewest"), [(torch_attention, 15), (torch_upsampling, 4)])
def test_every_cut_of_an_exported_net_equals_the_whole(build: Callable[[], object], fewest: int) -> None:
    assert check_every_cut(from_torch(build(), 3, 16, 16)) >= fewest


def test_attention_is_cut_at_one_tensor_although_every_block_reads_the_batch_size() -> None:
    graph = graph_of(from_torch(torch_attention(), 3, 16, 16))
    singles = [cut for cut in list_cuts(graph) if len(cut.tensors) == 1]
    assert any(cut.position > 0.9 for cut in singles)


# --- what the halves look like ---------------------------------------------------------------------------------------


def test_the_cut_is_the_heads_outputs_and_the_tails_inputs_in_its_order() -> None:
    split = split_at(residual(), "r1", "a")
    assert [item.name for item in split.head.graph.output] == ["r1", "a"]
    assert [item.name for item in split.tail.graph.input] == ["r1", "a"]


def test_weights_go_only_where_they_are_used_and_shared_ones_to_both() -> None:
    split = split_at(residual(), "a", "r1")
    assert {init.name for init in split.head.graph.initializer} == {"w0", "w1"}
    assert {init.name for init in split.tail.graph.initializer} == {"w1", "w2", "bias", "target"}


def test_the_batch_stays_dynamic_in_both_halves() -> None:
    split = split_at(residual(), "b")
    for half in (split.head, split.tail):
        session = open_session(data(half))
        assert {spec.shape[0] for spec in (*session.inputs, *session.outputs)} == {-1}


def test_versions_and_metadata_are_kept() -> None:
    net = residual(opset=13)
    net.producer_name, net.model_version = "someone", 7
    net.metadata_props.add(key="line", value="3")
    split = split_at(net, "b")
    for half in (split.head, split.tail):
        assert (half.ir_version, half.producer_name, half.model_version) == (net.ir_version, "someone", 7)
        assert list(half.opset_import) == list(net.opset_import)
        assert half.metadata_props == net.metadata_props


def test_nodes_no_output_needs_are_left_out() -> None:
    net = residual()
    net.graph.node.append(node("Neg", "a", "unused"))
    split = split_at(net, "b")
    assert "unused" not in {name for half in (split.head, split.tail) for n in half.graph.node for name in n.output}


def test_a_shape_of_the_input_is_rebuilt_in_the_tail_from_the_cut() -> None:
    split = split_at(early_shape(), "c")
    assert [item.name for item in split.tail.graph.input] == ["c"]
    assert [item.name for item in split.head.graph.output] == ["c"]


@pytest.mark.parametrize(("batch", "cuts"), [("N", 0), (2, 2)])
def test_a_number_of_elements_is_rebuilt_only_where_it_is_a_constant(batch: int | str, cuts: int) -> None:
    nodes = [
        node("Size", "x", "size"),
        node("Cast", "size", "count", to=1),
        node("Relu", "x", "a"),
        node("Tanh", "a", "b"),
        node("Mul", "b count", "y"),
    ]
    assert check_every_cut(model(nodes, [value("x", [batch, 4])], [value("y", [batch, 4])])) == cuts


def test_names_of_any_characters_work() -> None:
    odd = ["/a/b:0", "ü ñ 漢字", "x.y[0]", "quote\"'", "a b"]
    nodes = [onnx.helper.make_node("Relu", [odd[i]], [odd[i + 1]]) for i in range(len(odd) - 1)]
    net = model(nodes, [value(odd[0], ["N", 4])], [value(odd[-1], ["N", 4])])
    assert check_every_cut(net) == 3


def test_names_the_splitter_would_invent_may_be_taken() -> None:
    net = early_shape()
    net.graph.node.insert(0, node("Identity", "two", "splitmesh/batch/0"))
    net.graph.node.extend([node("Mul", "y splitmesh/batch/0", "y2")])
    net.graph.output[0].name = "y2"
    check_every_cut(net)


def test_an_input_with_a_default_is_a_weight() -> None:
    net = residual()
    net.graph.input.append(value("w1", [8, 8, 3, 3]))
    assert check_every_cut(net) == 9


def test_a_cut_of_another_model_is_refused() -> None:
    cut = list_cuts(graph_of(two_branches()))[-1]
    with pytest.raises(MeshError) as caught:
        split_model(load_model(data(residual())), cut)
    assert caught.value.reason is Reason.CUT_INVALID


# --- verification ----------------------------------------------------------------------------------------------------


def broken_tail() -> tuple[onnx.ModelProto, Split, Graph]:
    net = residual()
    split = split_at(net, "b")
    for init in split.tail.graph.initializer:
        if init.name == "bias":
            init.CopyFrom(weight("bias", 5, seed=9))
    return net, split, graph_of(net)


def test_a_split_that_differs_is_refused_with_the_size_of_the_error() -> None:
    with pytest.raises(MeshError) as caught:
        verified(*broken_tail())
    assert caught.value.reason is Reason.SPLIT_NOT_EQUAL
    assert caught.value.metadata["output"] == "logits"
    assert float(caught.value.metadata["error"]) > 0.01


def test_without_a_tolerance_the_difference_is_reported() -> None:
    net, split, graph = broken_tail()
    feed = random_inputs(graph, 4, np.random.default_rng(0))
    report = verify_split(data(net), data(split.head), data(split.tail), [feed], tolerance=None)
    assert report.max_abs_error > 0.01
    assert report.tolerance is None
    assert report.inputs == 4
    assert report.top1_agreement is not None


def test_a_tail_that_yields_nan_is_never_equal() -> None:
    net, split, graph = broken_tail()
    for init in split.tail.graph.initializer:
        if init.name == "bias":
            init.CopyFrom(onnx.numpy_helper.from_array(np.full(5, np.nan, dtype=np.float32), "bias"))
    feed = random_inputs(graph, 1, np.random.default_rng(0))
    with pytest.raises(MeshError) as caught:
        verify_split(data(net), data(split.head), data(split.tail), [feed], tolerance=None)
    assert caught.value.reason is Reason.SPLIT_NOT_EQUAL


def test_a_comparison_counts_samples_and_batch_sizes() -> None:
    report = verified(residual(), split_at(residual(), "b"), graph_of(residual()))
    assert (report.inputs, report.batch_sizes, report.top1_agreement) == (4, (1, 3), 1.0)
    assert report.max_abs_error <= 1e-5


def test_comparing_on_nothing_is_refused() -> None:
    with pytest.raises(MeshError) as caught:
        verify_split(b"", b"", b"", [])
    assert caught.value.reason is Reason.CALIBRATION_INSUFFICIENT


def test_random_inputs_have_the_type_and_batch_asked_for() -> None:
    specs = [
        TensorSpec("f", "float32", (-1, 3)),
        TensorSpec("b", "uint8", (2, 2)),
        TensorSpec("i", "int64", (-1,)),
        TensorSpec("t", "bool", (-1,)),
    ]
    feed = random_inputs(specs, 4, np.random.default_rng(0))
    assert {name: (a.dtype.name, a.shape) for name, a in feed.items()} == {
        "f": ("float32", (4, 3)),
        "b": ("uint8", (2, 2)),
        "i": ("int64", (4,)),
        "t": ("bool", (4,)),
    }


def test_random_inputs_need_to_know_every_other_dimension() -> None:
    with pytest.raises(MeshError) as caught:
        random_inputs([TensorSpec("x", "float32", (-1, 3, -1))], 1, np.random.default_rng(0))
    assert caught.value.reason is Reason.MODEL_SHAPE_UNKNOWN


# --- artefacts -------------------------------------------------------------------------------------------------------


def test_one_call_makes_manifest_and_artefacts() -> None:
    whole = data(residual())
    manifest, files = split_bytes(whole, ["b"], labels=["a", "b", "c", "d", "e"])
    assert files.keys() == {WHOLE, HEAD, TAIL}
    assert files[WHOLE] == whole
    assert manifest.task == "classification"
    assert manifest.split is not None
    assert [t.name for t in manifest.split.wire] == ["b"]
    assert manifest.split.verification.batch_sizes == (1, 2, 5)
    for segment in (manifest.whole, manifest.split.head, manifest.split.tail):
        session = open_session(files[segment.artifact])
        assert tuple(info.spec() for info in segment.inputs) == session.inputs
        assert tuple(info.spec() for info in segment.outputs) == session.outputs


def test_without_labels_the_outputs_are_raw() -> None:
    assert split_bytes(data(residual()), ["b"])[0].task == "raw"


def test_the_same_split_is_the_same_bytes() -> None:
    whole = data(residual())
    assert split_bytes(whole, ["b"]) == split_bytes(whole, ["b"])


def test_labels_that_do_not_fit_the_model_are_refused() -> None:
    with pytest.raises(MeshError) as caught:
        split_bytes(data(residual()), ["b"], labels=["one", "two"])
    assert caught.value.reason is Reason.FIELD_INVALID


def test_written_files_are_complete_and_nothing_else_is_left(tmp_path: Path) -> None:
    manifest, files = split_bytes(data(residual()), ["b"])
    write_split(tmp_path / "new" / "out", manifest, files)
    folder = tmp_path / "new" / "out"
    assert {path.name for path in folder.iterdir()} == {WHOLE, HEAD, TAIL, MANIFEST}
    assert Manifest.from_json((folder / MANIFEST).read_bytes()) == manifest
    assert (folder / HEAD).read_bytes() == files[HEAD]


def test_a_second_split_replaces_the_first_and_leaves_other_files_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for at in ("b", "a"):
        manifest, files = split_bytes(data(residual()), [at])
        write_split(tmp_path, manifest, files)
    assert json.loads((tmp_path / MANIFEST).read_text())["split"]["cut"][0]["name"] == "a"
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_write_that_fails_leaves_no_manifest_of_half_a_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_split(tmp_path, *split_bytes(data(residual()), ["a"]))
    manifest, files = split_bytes(data(residual()), ["b"])
    replace, done = os.replace, list[Path]()

    def failing(source: Path, target: Path) -> None:
        if done:
            raise OSError("disk gone")
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="disk gone"):
        write_split(tmp_path, manifest, files)
    assert MANIFEST not in {path.name for path in tmp_path.iterdir()}
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_an_artefact_cannot_be_written_outside_its_folder(tmp_path: Path) -> None:
    manifest, files = split_bytes(data(residual()), ["b"])
    with pytest.raises(MeshError) as caught:
        write_split(tmp_path, manifest, {**files, "../evil.onnx": b""})
    assert caught.value.reason is Reason.FIELD_INVALID
