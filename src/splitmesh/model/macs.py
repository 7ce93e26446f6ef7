"""Multiply-accumulates of one node: how much of a model's work lies before a cut.

An estimate for ordering cuts, not a prediction of time: only convolutions and matrix products count, as they take
most of a vision model's time. Plans are made from measured times.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx

SampleShape = Callable[[str], tuple[int, ...] | None]

# Positions of the weight (convolutions) or of the left factor (products) among a node's inputs.
_CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3, "DeformConv": 1}
_PRODUCTS = {
    "MatMul": 0,
    "FusedMatMul": 0,
    "MatMulInteger": 0,
    "QLinearMatMul": 0,
    "Gemm": 0,
    "FusedGemm": 0,
    "QGemm": 0,
}


def node_macs(node: onnx.NodeProto, shape: SampleShape) -> int:
    """Multiply-accumulates for one sample; 0 when the operator does not count or a shape is unknown."""
    output = shape(node.output[0]) if node.output else None
    if output is None:
        return 0
    if node.op_type in _CONVOLUTIONS:
        weight = shape(node.input[_CONVOLUTIONS[node.op_type]])
        return 0 if weight is None else math.prod(output) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        data, weight = shape(node.input[0]), shape(node.input[1])
        return 0 if data is None or weight is None else math.prod(data) * math.prod(weight[1:])
    if node.op_type in _PRODUCTS:
        left = shape(node.input[_PRODUCTS[node.op_type]])
        if not left:
            return 0
        transposed = any(attr.name == "transA" and attr.i for attr in node.attribute)
        return math.prod(output) * (left[-2] if transposed and len(left) > 1 else left[-1])
    return 0
