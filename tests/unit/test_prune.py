"""Structured pruning: which channels can go, and that the layers behind them make up for it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from splitmesh.compress import prune
from splitmesh.compress.least_squares import Equations, Window
from splitmesh.compress.prune_graph import find_blocks, forget_unread, take_out
from splitmesh.compress.recipe import Prune
from splitmesh.compress.whole_model import compared
from splitmesh.errors import MeshError, Reason
from splitmesh.model.load import load_model
from splitmesh.runtime import open_session
from tests.unit import whole_model_nets as nets
from tests.unit.onnx_nets import data, dense, model, node, quantised, residual, value

NETS = {"resnet": nets.resnet, "mobile": nets.mobile, "mlp": nets.mlp}


def _makers(net: onnx.ModelProto) -> dict[str, int]:
    """Channels that can go, by the tensor the first maker gives."""
    model = prune.prepared(data(net))
    outputs = {entry.name: entry.output[0] for entry in model.graph.node}
    return {outputs[block.makers[0]]: block.channels for block in find_blocks(model)}


def test_inner_channels_of_residual_blocks_can_go_and_outer_ones_cannot() -> None:
    assert _makers(nets.resnet(16)) == {"c1": 32, "c2": 32}


def test_depthwise_convolutions_and_gates_are_part_of_a_block() -> None:
    model = prune.prepared(data(nets.mobile()))
    block = max(find_blocks(model), key=lambda entry: entry.channels)
    by_name = {entry.name: entry.output[0] for entry in model.graph.node}
    assert [by_name[name] for name in block.makers] == ["e", "s2"]
    assert [by_name[name] for name in block.passes] == ["en", "d"]
    assert sorted(by_name[use.node] for use in block.users) == ["p", "s1"]


def test_grouped_convolutions_keep_their_channels() -> None:
    assert "e" not in _makers(nets.mobile(groups=4))


def test_a_flattening_makes_several_features_of_a_channel() -> None:
    assert _makers(nets.mlp()) == {"c": 8, "h": 48, "g": 48, "f": 48}


def test_joined_channels_can_not_go() -> None:
    assert _makers(dense()) == {}


@pytest.mark.parametrize("name", NETS)
def test_channels_that_are_always_zero_go_without_a_trace(name: str) -> None:
    model = prune.prepared(data(NETS[name]()))
    (block, *_) = find_blocks(model)
    dead = [0, 2]
    first = next(entry for entry in model.graph.node if entry.name == block.users[0].node)
    for use in block.users:
        reader = next(entry for entry in model.graph.node if entry.name == use.node)
        stored = next(entry for entry in model.graph.initializer if entry.name == reader.input[1])
        weight = numpy_helper.to_array(stored).copy()
        axis = 1 if reader.op_type == "Conv" else 0
        features = np.concatenate([np.arange(use.layout.repeat) + c * use.layout.repeat for c in dead])
        weight[tuple([slice(None)] * axis + [features])] = 0
        stored.CopyFrom(numpy_helper.from_array(weight, stored.name))
    before = model.SerializeToString()
    take_out(model, block, np.setdiff1d(np.arange(block.channels), dead))
    after = forget_unread(model).SerializeToString()
    load_model(after)
    assert len(after) < len(before)
    feed = {"x": nets.pictures(5)}
    want, got = (open_session(content).run(feed)["scores"] for content in (before, after))
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())
    assert first.name


@pytest.mark.parametrize("name", NETS)
def test_least_squares_keep_the_answers_closer_than_slicing_alone(name: str, tmp_path: Path) -> None:
    work = nets.whole_work(NETS[name]())
    samples = nets.context(work, tmp_path).samples
    model = prune.prepared(work.whole())
    blocks = find_blocks(model)
    keeps = prune.choose(blocks, prune.importance(model, blocks, samples), 0.4)
    close = {}
    for refit in (False, True):
        made, errors = prune.pruned(model, blocks, keeps, samples, refit=refit)
        content = made.SerializeToString()
        load_model(content)
        close[refit] = compared(work.whole(), content, samples, samples.holdout, "scores")
        assert bool(errors) == refit
    assert close[True].output_error < 0.8 * close[False].output_error
    assert (close[True].agreement or 0) >= (close[False].agreement or 0)


def test_a_split_version_is_cut_again_at_the_same_tensor(tmp_path: Path) -> None:
    work = nets.split_work(nets.resnet(), ["block1"])
    context = nets.context(work, tmp_path)
    made = prune.apply(work, Prune(share=0.5), context)
    assert made.manifest.split is not None
    assert [info.name for info in made.manifest.split.cut] == ["block1"]
    assert made.manifest.labels == nets.LABELS
    figures = context.figures
    assert figures["channels_before"] == 64
    assert figures["channels_after"] == 32
    assert figures["macs_after"] < 0.6 * figures["macs_before"]
    assert figures["parameters_after"] < figures["parameters_before"]
    assert figures["bytes_after"] == len(made.whole()) < figures["bytes_before"] == len(work.whole())
    assert figures["layer_error_fitted"] < figures["layer_error_sliced"]
    assert work.whole() == data(nets.resnet())


@pytest.mark.parametrize("net", [dense(), quantised()], ids=["joined", "quantised"])
def test_a_model_without_channels_that_can_go_is_refused(net: onnx.ModelProto, tmp_path: Path) -> None:
    work = nets.whole_work(net, labels=())
    shape = tuple(work.manifest.whole.inputs[0].shape[1:])
    context = nets.context(work, tmp_path, samples=np.ones((120, *shape), np.float32))
    with pytest.raises(MeshError, match="nothing to prune") as caught:
        prune.apply(work, Prune(), context)
    assert caught.value.reason is Reason.MODEL_OPERATOR_UNSUPPORTED


def test_a_weight_that_several_layers_read_is_copied_before_it_changes() -> None:
    net = residual()
    assert _makers(net) == {"c1": 8}
    model = prune.prepared(data(net))
    (block,) = find_blocks(model)
    take_out(model, block, np.arange(5))
    shapes = {
        entry.output[0]: list(next(w.dims for w in model.graph.initializer if w.name == entry.input[1]))
        for entry in model.graph.node
        if entry.op_type == "Conv"
    }
    assert shapes["c1"] == [5, 8, 3, 3]
    assert shapes["c2"] == [8, 5, 3, 3]


def test_an_output_of_the_model_keeps_its_channels() -> None:
    net = nets.resnet()
    net.graph.output.append(value("r1", ["N", 32, nets.SIDE, nets.SIDE]))
    assert _makers(net) == {"c2": 32}


def test_what_stays_of_a_large_layer_fills_whole_lanes(tmp_path: Path) -> None:
    model = prune.prepared(data(nets.resnet(16)))
    blocks = find_blocks(model)
    rng = np.random.default_rng(0)
    keeps = prune.choose(blocks, [rng.random(block.channels) for block in blocks], 0.37)
    assert all(len(keep) % prune.LANES == 0 for keep in keeps)
    assert sum(len(keep) for keep in keeps) == 40


@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
def test_patches_are_what_a_convolution_reads(auto_pad: str, stride: int) -> None:
    rng = np.random.default_rng(0)
    data_in = rng.normal(size=(2, 3, 9, 7)).astype(np.float32)
    weight = rng.normal(size=(4, 3, 3, 2)).astype(np.float32)
    settings: dict[str, object] = {"strides": [stride, 1], "auto_pad": auto_pad}
    if auto_pad == "NOTSET":
        settings |= {"pads": [1, 0, 2, 1], "dilations": [2, 1]}
    conv = node("Conv", "x w", "y", **settings)
    net = model([conv], [value("x", [2, 3, 9, 7])], [value("y", [None] * 4)], [numpy_helper.from_array(weight, "w")])
    answer = open_session(data(net)).run({"x": data_in})["y"]
    size = answer.shape[2:]
    places = np.arange(int(np.prod(size)))[::3]
    rows = Window.of(conv, weight.shape[2:]).patches(data_in, places, size)
    got = (rows @ weight.reshape(4, -1).T).reshape(2, len(places), 4)
    np.testing.assert_allclose(got, np.moveaxis(answer.reshape(2, 4, -1)[:, :, places], 1, 2), atol=1e-5)


def test_fitted_weights_are_the_least_squares_solution() -> None:
    rng = np.random.default_rng(1)
    truth, inputs = rng.normal(size=(6, 2)), rng.normal(size=(400, 6)) + 1
    equations = Equations(6, 2)
    for part in np.array_split(inputs, 8):
        equations.add(part, part @ truth + 3)
    found, offset, before, after = equations.solve(np.zeros((6, 2)), np.zeros(2))
    np.testing.assert_allclose(found, truth, atol=1e-3)
    np.testing.assert_allclose(offset, 3, atol=1e-2)
    assert after < 1e-3 < before
