"""A small version with samples, as a step of a recipe finds it: pictures of a few patterns with noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from splitmesh.compress.recipe import Budget
from splitmesh.compress.work import Context, Samples, Work
from splitmesh.model.artifacts import tensor_infos
from splitmesh.model.calibration import Calibration
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model
from splitmesh.model.manifest import WHOLE, Manifest, SegmentInfo
from splitmesh.runtime import open_session

CLASSES = 5


def whole_work(net: onnx.ModelProto, *, classes: int = CLASSES) -> Work:
    """A version that is whole; ``classes`` 0: a model without classes."""
    content = net.SerializeToString()
    graph = Graph(load_model(content))
    labels = tuple(f"class {number}" for number in range(classes))
    return Work(
        Manifest(
            task="classification" if classes else "raw",
            labels=labels,
            whole=SegmentInfo(
                artifact=WHOLE, inputs=tensor_infos(graph, graph.inputs), outputs=tensor_infos(graph, graph.outputs)
            ),
        ),
        {WHOLE: content},
    )


def samples_of(work: Work, n: int = 160, *, noise: float = 0.1, seed: int = 0) -> Samples:
    """Every sample is one of five patterns and noise; pictures have sides that 4 divides."""
    random = np.random.default_rng(seed)
    tensors = {}
    which = random.integers(0, 5, n)
    for info in work.manifest.whole.inputs:
        patterns = random.normal(0, 2, (5, *info.shape[1:]))
        if patterns.ndim == 4:  # smooth, as pictures are
            patterns = np.repeat(np.repeat(patterns[:, :, ::4, ::4], 4, axis=2), 4, axis=3)
        made = patterns[which] + noise * random.normal(size=(n, *info.shape[1:]))
        tensors[info.name] = made.astype(np.dtype(info.dtype))
    inputs = tuple(info.spec() for info in work.manifest.whole.inputs)
    return Samples.divide(Calibration(tensors, None, inputs), holdout_share=0.3, seed=0)


def context_of(work: Work, folder: Path, *, samples: Samples | None = None, budget: Budget | None = None) -> Context:
    """The original is the version's own whole."""
    return Context(
        samples or samples_of(work),
        work.whole(),
        work.manifest,
        folder,
        lambda _step, _share: None,
        budget or Budget(),
    )


def balanced(net: onnx.ModelProto) -> onnx.ModelProto:
    """The same with its ``bias`` moved so that several classes are named, as a trained net would."""
    work = whole_work(net)
    samples = samples_of(work)
    given = open_session(work.whole()).run(samples.calibration.feeds(np.arange(samples.calibration.samples)))
    made = onnx.ModelProto()
    made.CopyFrom(net)
    (bias,) = (entry for entry in made.graph.initializer if entry.name == "bias")
    moved = numpy_helper.to_array(bias) - given["logits"].mean(axis=0)
    bias.CopyFrom(numpy_helper.from_array(moved.astype(np.float32), "bias"))
    return made
