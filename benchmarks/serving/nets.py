"""Two classifiers for measuring what serving costs: one so small that serving is most of it, one of a usual size.

Written operator by operator with seeded weights: times and shapes matter here, answers only in that they differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIDE = 224
INPUT, OUTPUT = "picture", "scores"


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution with ReLU; its padding keeps the size up to the stride."""

    channels: int
    kernel: int
    stride: int


@dataclass(frozen=True, slots=True)
class Net:
    """A chain of convolutions, a mean over the picture, and a linear layer."""

    layers: tuple[Layer, ...]
    classes: int


NETS = {
    "tiny": Net((Layer(16, 7, 4), Layer(32, 3, 2), Layer(64, 3, 2)), 10),
    "mid": Net(
        (
            Layer(16, 3, 2),
            Layer(32, 3, 2),
            Layer(48, 3, 1),
            Layer(96, 3, 2),
            Layer(96, 3, 1),
            Layer(256, 3, 2),
        ),
        1000,
    ),
}
"""By name."""


def build(name: str) -> bytes:
    """The ONNX file of one net: ``picture`` float32 ``[batch, 3, 224, 224]`` to ``scores`` ``[batch, classes]``."""
    return chain(NETS[name], name)


def chain(net: Net, name: str) -> bytes:
    """The ONNX file of any such net; what layer ``n`` gives is the tensor ``r<n>``."""
    rng = np.random.default_rng(0)
    nodes, weights, tensor, inputs = [], [], INPUT, 3
    for number, layer in enumerate(net.layers):
        shape = (layer.channels, inputs, layer.kernel, layer.kernel)
        weights.append(_weight(rng, f"w{number}", shape))
        padding = [layer.kernel // 2] * 4
        strides = [layer.stride] * 2
        nodes.append(helper.make_node("Conv", [tensor, f"w{number}"], [f"c{number}"], pads=padding, strides=strides))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"]))
        tensor, inputs = f"r{number}", layer.channels
    weights.append(_weight(rng, "w", (inputs, net.classes)))
    nodes.append(helper.make_node("GlobalAveragePool", [tensor], ["mean"]))
    nodes.append(helper.make_node("Flatten", ["mean"], ["features"]))
    nodes.append(helper.make_node("MatMul", ["features", "w"], [OUTPUT]))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", net.classes])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def picture(seed: int = 1) -> NDArray[np.float32]:
    """One sample ``[1, 3, 224, 224]``, 602,112 bytes."""
    return np.random.default_rng(seed).standard_normal((1, 3, SIDE, SIDE)).astype(np.float32)


def _weight(rng: np.random.Generator, name: str, shape: Sequence[int]) -> Any:
    fan_in = float(np.prod(shape[1:])) if len(shape) > 2 else float(shape[0])
    return numpy_helper.from_array((rng.standard_normal(shape) * (2 / fan_in) ** 0.5).astype(np.float32), name)
