"""Networks and samples for the steps that change a whole model; weights are seeded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from splitmesh.compress.work import Context, Samples, Work
from splitmesh.model.artifacts import split_bytes, tensor_infos
from splitmesh.model.calibration import Calibration
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model
from splitmesh.model.manifest import WHOLE, Manifest, SegmentInfo
from splitmesh.tensor.spec import Array
from tests.unit.onnx_nets import data, ints, model, node, value

SIDE = 12
CLASSES = 4
LABELS = ("a", "b", "c", "d")


def stored(name: str, *shape: int, scale: float = 1.0) -> onnx.TensorProto:
    rng = np.random.default_rng([1, *name.encode()])
    fan = max(1, int(np.prod(shape[1:])))
    return numpy_helper.from_array((rng.normal(0, scale * np.sqrt(2 / fan), shape)).astype(np.float32), name)


def vector(name: str, size: int, *, around: float = 0.0) -> onnx.TensorProto:
    rng = np.random.default_rng([2, *name.encode()])
    return numpy_helper.from_array((around + 0.2 * rng.random(size)).astype(np.float32), name)


def norm(tensor: str, out: str, channels: int) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
    names = [f"{out}_{part}" for part in ("scale", "shift", "mean", "var")]
    weights = [vector(name, channels, around=1.0 if part in (0, 3) else 0.0) for part, name in enumerate(names)]
    return node("BatchNormalization", f"{tensor} {' '.join(names)}", out), weights


def resnet(channels: int = 16, batch: int | str = "N") -> onnx.ModelProto:
    """A stem and two residual blocks; ``block1`` is between them. Inner channels can go, outer ones cannot."""
    nodes = [node("Conv", "x w0", "stem", pads=[1, 1, 1, 1]), node("Relu", "stem", "block0")]
    weights = [stored("w0", channels, 1, 3, 3)]
    for number in (1, 2):
        before = f"block{number - 1}"
        bn, extra = norm(f"c{number}", f"n{number}", 2 * channels)
        nodes += [
            node("Conv", f"{before} wa{number}", f"c{number}", pads=[1, 1, 1, 1]),
            bn,
            node("Relu", f"n{number}", f"r{number}"),
            node("Conv", f"r{number} wb{number} bb{number}", f"d{number}", pads=[1, 1, 1, 1]),
            node("Add", f"d{number} {before}", f"s{number}"),
            node("Relu", f"s{number}", f"block{number}"),
        ]
        weights += [
            stored(f"wa{number}", 2 * channels, channels, 3, 3),
            stored(f"wb{number}", channels, 2 * channels, 3, 3),
            vector(f"bb{number}", channels),
            *extra,
        ]
    nodes += [
        node("GlobalAveragePool", "block2", "pool"),
        node("Reshape", "pool target", "flat"),
        node("Gemm", "flat wc bc", "scores", transB=1),
    ]
    weights += [stored("wc", CLASSES, channels), vector("bc", CLASSES), ints("target", -1, channels)]
    return model(nodes, [value("x", [batch, 1, SIDE, SIDE])], [value("scores", [batch, CLASSES])], weights)


def mobile(*, groups: int = 32) -> onnx.ModelProto:
    """Expand, depthwise, a gate, project, add; the middle convolution has so many groups."""
    bn, extra = norm("e", "en", 32)
    nodes = [
        node("Conv", "x w0", "stem", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Conv", "stem we", "e"),
        bn,
        node("Clip", "en low high", "ea"),
        node("Conv", "ea wd bd", "d", group=groups, pads=[1, 1, 1, 1]),
        node("Sigmoid", "d", "ds"),
        node("Mul", "d ds", "da"),
        node("GlobalAveragePool", "da", "sq"),
        node("Conv", "sq w1 b1", "s1"),
        node("Relu", "s1", "s1a"),
        node("Conv", "s1a w2 b2", "s2"),
        node("HardSigmoid", "s2", "gate"),
        node("Mul", "da gate", "gated"),
        node("Conv", "gated wp", "p"),
        node("Add", "p stem", "sum"),
        node("GlobalAveragePool", "sum", "pool"),
        node("Flatten", "pool", "flat"),
        node("MatMul", "flat wc", "scores"),
    ]
    weights = [
        *(stored("w0", 8, 1, 3, 3), stored("we", 32, 8, 1, 1), stored("wd", 32, 32 // groups, 3, 3), vector("bd", 32)),
        *(stored("w1", 16, 32, 1, 1), vector("b1", 16), stored("w2", 32, 16, 1, 1), vector("b2", 32)),
        *(stored("wp", 8, 32, 1, 1), stored("wc", 8, CLASSES), *extra),
        numpy_helper.from_array(np.array(0, np.float32), "low"),
        numpy_helper.from_array(np.array(6, np.float32), "high"),
    ]
    return model(nodes, [value("x", ["N", 1, SIDE, SIDE])], [value("scores", ["N", CLASSES])], weights)


def mlp() -> onnx.ModelProto:
    """Flatten of a convolution's channels, products with and without bias; weights are Constant nodes, one is read twice."""
    kernel, first = stored("k", 8, 1, 3, 3), stored("first", 8 * 36, 48)
    last = stored("last", CLASSES, 48)
    nodes = [
        *(onnx.helper.make_node("Constant", [], [entry.name], value=entry) for entry in (kernel, first, last)),
        node("Conv", "x k", "c", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", "c", "cr"),
        node("Reshape", "cr target", "flat"),
        node("MatMul", "flat first", "h"),
        node("Add", "h hb", "hh"),
        node("Relu", "hh", "ha"),
        node("MatMul", "ha square", "g"),
        node("Relu", "g", "ga"),
        node("MatMul", "ga square", "f"),
        node("Relu", "f", "fa"),
        node("Gemm", "fa last", "scores", transB=1),
    ]
    weights = [vector("hb", 48), stored("square", 48, 48), ints("target", -1, 8 * 36)]
    return model(nodes, [value("x", ["N", 1, SIDE, SIDE])], [value("scores", ["N", CLASSES])], weights)


def pictures(count: int = 160) -> Array:
    """Smooth random pictures: neighbouring pixels resemble each other, as in real ones."""
    rng = np.random.default_rng(7)
    small = rng.normal(0, 1, (count, 1, 4, 4)).repeat(3, axis=2).repeat(3, axis=3)
    return (small + 0.2 * rng.normal(0, 1, (count, 1, SIDE, SIDE))).astype(np.float32)


def whole_work(net: onnx.ModelProto | bytes, labels: tuple[str, ...] = LABELS) -> Work:
    content = net if isinstance(net, bytes) else data(net)
    graph = Graph(load_model(content))
    inputs, outputs = tensor_infos(graph, graph.inputs), tensor_infos(graph, graph.outputs)
    info = SegmentInfo(artifact=WHOLE, inputs=inputs, outputs=outputs)
    return Work(Manifest(task="classification" if labels else "raw", labels=labels, whole=info), {WHOLE: content})


def split_work(net: onnx.ModelProto, at: list[str], *further: list[str]) -> Work:
    return Work(*split_bytes(data(net), at, labels=LABELS, further=further))


def context(work: Work, folder: Path, *, samples: Array | None = None, **settings: Any) -> Context:
    given = pictures() if samples is None else samples
    inputs = tuple(info.spec() for info in work.manifest.whole.inputs)
    calibration = Calibration({inputs[0].name: given}, None, inputs)
    divided = Samples.divide(calibration, holdout_share=0.3, seed=0)
    return Context(
        divided,
        work.whole(),
        work.manifest,
        folder,
        lambda step, share: None,
        **settings,
    )
