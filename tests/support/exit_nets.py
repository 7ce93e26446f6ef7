"""Two small nets for exits, a classifier and a detector, and what a recipe makes of them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import closing
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from splitmesh.compress.engine import Finished, run
from splitmesh.compress.recipe import make_recipe, parse_step
from splitmesh.compress.work import Work
from splitmesh.model.artifacts import tensor_infos
from splitmesh.model.calibration import Calibration
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model
from splitmesh.model.manifest import WHOLE, Manifest, SegmentInfo
from splitmesh.runtime import open_session
from splitmesh.tensor.spec import Array
from tests.unit.onnx_nets import data, ints, model, node, value, weight

LABELS = ("dark", "left", "right")
N = 400


def pictures_of(n: int = N, *, noise: float = 0.4, seed: int = 0) -> tuple[Array, NDArray[np.int64]]:
    """Nothing, a bright left half, or a bright right half, in noise."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 3, n)
    pictures = rng.normal(0, noise, (n, 1, 16, 16))
    pictures[kinds == 1, :, :, :8] += 1
    pictures[kinds == 2, :, :, 8:] += 1
    return pictures.astype(np.float32), kinds


def trunk() -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Convolutions up to ``late``, by way of ``early`` and ``middle``; of 16 x 16."""
    nodes = [
        node("Conv", "x w0", "c0", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", "c0", "early"),
        node("Conv", "early w1", "c1", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "middle"),
        node("Conv", "middle w2", "c2", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", "c2", "late"),
    ]
    return nodes, [weight("w0", 6, 1, 3, 3), weight("w1", 8, 6, 3, 3), weight("w2", 8, 8, 3, 3)]


def classifier(*, batch: int | str = "N", opset: int = 17) -> bytes:
    """Its last layer is solved by least squares, so that it names the three kinds."""
    nodes, weights = trunk()
    nodes.append(node("Flatten", "late", "flat"))
    inputs, flat = [value("x", [batch, 1, 16, 16])], 8 * 4 * 4

    def complete(matrix: NDArray[np.float32], bias: NDArray[np.float32]) -> bytes:
        last = [numpy_helper.from_array(matrix, "w3"), numpy_helper.from_array(bias, "b3")]
        whole = [*nodes, node("Gemm", "flat w3 b3", "logits")]
        return data(model(whole, inputs, [value("logits", [batch, 3])], [*weights, *last], opset=opset))

    below = model(nodes, [value("x", ["N", 1, 16, 16])], [value("flat", ["N", flat])], weights, opset=opset)
    pictures, kinds = pictures_of(300, seed=9)
    with closing(open_session(data(below))) as session:
        features = session.run({"x": pictures})["flat"]
    solved, *_ = np.linalg.lstsq(np.c_[features, np.ones(300)], 6 * np.eye(3)[kinds], rcond=1e-3)
    return complete(solved[:-1].astype(np.float32), solved[-1].astype(np.float32))


def detector() -> bytes:
    """Boxes of any number, none included: every cell's mean brightness is a score, and NMS drops those below .3."""
    nodes, weights = trunk()
    nodes += [
        node("AveragePool", "x", "pooled", kernel_shape=[4, 4], strides=[4, 4]),
        node("Mul", "late zero", "nothing_of_it"),
        node("ReduceMean", "nothing_of_it", "still_nothing", axes=[1], keepdims=1),
        node("Add", "pooled still_nothing", "levels"),
        node("Reshape", "levels shape", "scores"),
        node("Shape", "scores", "s"),
        node("Gather", "s first", "batch"),
        node("Concat", "batch cells", "boxes_shape", axis=0),
        node("Expand", "corners boxes_shape", "boxes"),
        node("NonMaxSuppression", "boxes scores most iou least", "chosen"),
        node("GatherND", "scores chosen", "found"),
    ]
    corners = np.array([[[r, c, r + 0.9, c + 0.9] for r in range(4) for c in range(4)]], dtype=np.float32)
    weights += [
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
        ints("shape", 0, 1, 16),
        ints("first", 0),
        ints("cells", 16, 4),
        numpy_helper.from_array(corners, "corners"),
        ints("most", 20),
        numpy_helper.from_array(np.array([0.5], np.float32), "iou"),
        numpy_helper.from_array(np.array([0.3], np.float32), "least"),
    ]
    outputs = [value("chosen", ["k", 3], TensorProto.INT64), value("found", ["k"])]
    return data(model(nodes, [value("x", ["N", 1, 16, 16])], outputs, weights))


NOISE = 1.6
"""Of the pictures that the staged classifier is made with: each exit is unsure of some."""
FOUND, FOUND_SCORE = "found", 0.6
"""Output and score that the detector's exit learns."""


@cache
def staged_classifier() -> Finished:
    """Cut at ``late``, crossing range coded, with exits at ``early`` and at the cut."""
    return _made(classifier(), pictures_of(800, noise=NOISE)[0], LABELS, "split:at=late", "int8-cut", "exits:at=early")


@cache
def finding_detector() -> Finished:
    """Cut behind its features, with an exit that tells nothing from something."""
    exits = f"exits:found_output={FOUND},found_score={FOUND_SCORE}"
    return _made(detector(), pictures_of(noise=0.2)[0], (), "split:at=late+pooled", exits)


def _made(whole: bytes, pictures: Array, labels: Sequence[str], *steps: str) -> Finished:
    graph = Graph(load_model(whole))
    manifest = Manifest(
        task="classification" if labels else "raw",
        labels=tuple(labels),
        whole=SegmentInfo(
            artifact=WHOLE, inputs=tensor_infos(graph, graph.inputs), outputs=tensor_infos(graph, graph.outputs)
        ),
    )
    calibration = Calibration({"x": pictures}, None, tuple(info.spec() for info in manifest.whole.inputs))
    recipe = make_recipe([parse_step(step) for step in steps], holdout_share=0.4)
    with tempfile.TemporaryDirectory() as folder:
        return run(
            Path(folder), Work(manifest, {WHOLE: whole}), calibration, recipe, model="small", progress=lambda *_: None
        )
