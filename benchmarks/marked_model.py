"""A model that says when its halves are not of one version: the shipped one with a mark at its waist.

The head adds the mark, the tail takes its own off again; where they differ what is left is far from any feature, and the answer
is the class ``mixed``. Everything else is computed as without marks, but for rounding.
"""

from __future__ import annotations

import json

import numpy as np
import onnx
from onnx import helper, numpy_helper

from examples.solder_joints.demo import SHIPPED_MODEL

WAIST = "waist"
MIXED = "mixed"
STEP = 256.0
"""Between marks: features are a hundredth of it, and a float keeps five digits behind the point."""
SURE, DOUBT = 1e6, 100.0
"""What the class ``mixed`` gets for a mark too many, and loses always: features so far off make large logits of their own."""


def marked(mark: int) -> bytes:
    """The shipped model with a mark, as a whole; cut at ``WAIST``."""
    model = onnx.load(SHIPPED_MODEL / "model.onnx")
    graph = model.graph
    (made,) = (node for node in graph.node if WAIST in node.output)
    made.output[list(made.output).index(WAIST)] = "waist_plain"
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == WAIST:
                node.input[index] = "waist_back"
    (logits,) = graph.output
    for node in graph.node:
        for index, name in enumerate(node.output):
            if name == logits.name:
                node.output[index] = "logits_plain"
    for name, value in (("mark", mark * STEP), ("step", STEP), ("sure", SURE), ("doubt", DOUBT)):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    position = list(graph.node).index(made) + 1
    for offset, node in enumerate(
        (
            helper.make_node("Add", ["waist_plain", "mark"], [WAIST]),
            helper.make_node("Sub", [WAIST, "mark"], ["waist_back"]),
        )
    ):
        graph.node.insert(position + offset, node)
    axes = list(range(1, 4))
    graph.node.extend(
        [
            helper.make_node("ReduceMean", ["waist_back"], ["left"], axes=axes, keepdims=0),
            helper.make_node("Div", ["left", "step"], ["marks_apart"]),
            helper.make_node("Round", ["marks_apart"], ["apart"]),
            helper.make_node("Abs", ["apart"], ["mixed_flat"]),
            helper.make_node("Mul", ["mixed_flat", "sure"], ["mixed_sure"]),
            helper.make_node("Sub", ["mixed_sure", "doubt"], ["mixed_logit"]),
            helper.make_node("Unsqueeze", ["mixed_logit", "last"], ["mixed_column"]),
            helper.make_node("Concat", ["logits_plain", "mixed_column"], [logits.name], axis=1),
        ]
    )
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "last"))
    logits.type.tensor_type.shape.dim[1].dim_value += 1
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def labels() -> list[str]:
    """The shipped model's, and ``MIXED``."""
    return [*json.loads((SHIPPED_MODEL / "labels.json").read_text()), MIXED]
