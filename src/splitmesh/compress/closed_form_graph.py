"""A closed-form code as two small ONNX models: the encoder and the decoder of a bottleneck.

4-D: a convolution of the block's size and stride, and a 3 x 3 convolution followed by DepthToSpace; tokens and flat
features: a product each. Knows operators; the numbers are ``closed_form.py``'s.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from splitmesh.compress.closed_form import Basis, Decoder, Floats

OPSET = 13
"""Has every operator used here in the form that later opsets kept."""

_DIMS: dict[int, list[str]] = {2: ["n"], 3: ["n", "t"], 4: ["n"]}


def encoder_model(basis: Basis) -> ModelProto:
    """From the tensor ``x`` to the code ``code``, float32."""
    layout = basis.layout
    bias = -basis.mean @ basis.encoder
    if layout.rank < 4:
        return _product(basis.encoder, bias, layout.rank, never_negative=False, ends=("x", "code"))
    b = layout.block
    weights = basis.encoder.reshape(b, b, layout.channels, basis.channels).transpose(3, 2, 0, 1)
    node = helper.make_node("Conv", ["x", "weights", "bias"], ["code"], kernel_shape=[b, b], strides=[b, b])
    return _model([node], {"weights": weights, "bias": bias}, ("x", layout.channels), ("code", basis.channels), 4)


def decoder_model(basis: Basis, decoder: Decoder) -> ModelProto:
    """From the code ``code`` to the tensor ``y``, float32."""
    layout = basis.layout
    if layout.rank < 4:
        return _product(
            decoder.weights, decoder.bias, layout.rank, never_negative=decoder.never_negative, ends=("code", "y")
        )
    weights = decoder.weights.reshape(3, 3, basis.channels, layout.numbers).transpose(3, 2, 0, 1)
    names = ["rebuilt", *(["placed"] if layout.block > 1 else []), *(["positive"] if decoder.never_negative else [])]
    nodes = [helper.make_node("Conv", ["code", "weights", "bias"], [names[0]], kernel_shape=[3, 3], pads=[1, 1, 1, 1])]
    if layout.block > 1:
        # its default order, column by row by depth, is the blocks': place by place, channels last
        nodes.append(helper.make_node("DepthToSpace", ["rebuilt"], ["placed"], blocksize=layout.block))
    if decoder.never_negative:
        nodes.append(helper.make_node("Relu", [names[-2]], ["positive"]))
    nodes[-1].output[0] = "y"
    constants = {"weights": weights, "bias": decoder.bias}
    return _model(nodes, constants, ("code", basis.channels), ("y", layout.channels), 4)


def _product(weights: Floats, bias: Floats, rank: int, *, never_negative: bool, ends: tuple[str, str]) -> ModelProto:
    given, result = ends
    nodes = [
        helper.make_node("MatMul", [given, "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sum"]),
    ]
    if never_negative:
        nodes.append(helper.make_node("Relu", ["sum"], ["positive"]))
    nodes[-1].output[0] = result
    sizes = weights.shape
    return _model(nodes, {"weights": weights, "bias": bias}, (given, sizes[0]), (result, sizes[1]), rank)


def _model(
    nodes: list[NodeProto],
    constants: dict[str, NDArray[np.float64]],
    given: tuple[str, int],
    result: tuple[str, int],
    rank: int,
) -> ModelProto:
    def info(name: str, channels: int, side: str) -> ValueInfoProto:
        spatial = [f"{side}_height", f"{side}_width"] if rank == 4 else []
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [*_DIMS[rank], channels, *spatial])

    weights = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "coder", [info(*given, "in")], [info(*result, "out")], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=7)
