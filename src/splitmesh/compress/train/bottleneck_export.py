"""Encoder and decoder of a trained bottleneck as plain ONNX models, compared with torch before anybody gets them.

Written node by node: the networks are short chains, and their files then depend on no exporter, only on the weights.
Knows the networks' layers, not how they were trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from splitmesh.compress.train.bottleneck_network import STARTING_SPREAD, Decoder, Encoder
from splitmesh.errors import MeshError, Reason
from splitmesh.runtime import open_session

OPSET, IR_VERSION = 17, 8
"""Old enough to be merged into most models as they are."""

FEATURES, CODE = "features", "code"
"""Names in the encoder; the decoder's are the other way round."""

TOLERANCE = 1e-4
"""Largest difference from torch, as a share of the largest magnitude."""

Dims = Sequence[int | str]


class _Chain:
    """A graph under construction: each operator takes what the one before gave."""

    def __init__(self, start: str) -> None:
        self.now = start
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, values: Tensor) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(values.detach().numpy()), name))
        return name

    def add(self, operator: str, *others: str, **attributes: Any) -> str:
        result = f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, [self.now, *others], [result], **attributes))
        self.now = result
        return result

    def layer(self, layer: nn.Module) -> str:
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None
            strides, kernel = list(layer.stride), list(layer.kernel_size)
            pads = [kernel[0] // 2] * 4
            weight, bias = self.weight(layer.weight), self.weight(layer.bias)
            return self.add("Conv", weight, bias, kernel_shape=kernel, strides=strides, pads=pads)
        assert isinstance(layer, nn.Linear)
        self.add("MatMul", self.weight(layer.weight.T))
        return self.add("Add", self.weight(layer.bias))

    def model(self, name: str, given: tuple[str, Dims], result: tuple[str, Dims]) -> onnx.ModelProto:
        self.nodes[-1].output[0] = result[0]
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(given[0], TensorProto.FLOAT, list(given[1]))],
            [helper.make_tensor_value_info(result[0], TensorProto.FLOAT, list(result[1]))],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return model


def export_encoder(encoder: Encoder, example: Tensor) -> onnx.ModelProto:
    """``features [batch, ...]`` to ``code [batch, ...]``; ``example``: some features. MeshError SPLIT_NOT_EQUAL when it
    answers unlike the module."""
    with torch.no_grad():
        wanted: Tensor = encoder(example)
    chain = _Chain(FEATURES)
    chain.add("Div", chain.weight(encoder.spread))
    chain.layer(encoder.first)
    chain.add("Relu")
    chain.layer(encoder.last)
    model = chain.model("encoder", (FEATURES, _dims(example)), (CODE, _dims(wanted)))
    _require_equal(model, example, wanted)
    return model


def export_decoder(decoder: Decoder, example: Tensor) -> onnx.ModelProto:
    """``code [batch, ...]`` to ``features [batch, ...]``; ``example``: some codes. MeshError as above."""
    with torch.no_grad():
        wanted: Tensor = decoder(example)
    chain = _Chain(CODE)
    chain.add("Div", chain.weight(torch.tensor(STARTING_SPREAD)))
    chain.layer(decoder.first)
    skipped = chain.add("Relu")
    chain.layer(decoder.block[0])
    chain.add("Relu")
    chain.layer(decoder.block[1])
    chain.add("Add", skipped)
    chain.add("Relu")
    for up in decoder.ups:
        chain.layer(up)
        chain.add("DepthToSpace", blocksize=2, mode="CRD")
        chain.add("Relu")
    if decoder.ups:
        ends, axes = torch.tensor(decoder.sides), torch.tensor([2, 3])
        chain.add("Slice", chain.weight(torch.zeros(2, dtype=torch.int64)), chain.weight(ends), chain.weight(axes))
    chain.layer(decoder.last)
    chain.add("Mul", chain.weight(decoder.spread))
    chain.add("Add", chain.weight(decoder.mean))
    if decoder.nonnegative:
        chain.add("Relu")
    model = chain.model("decoder", (CODE, _dims(example)), (FEATURES, _dims(wanted)))
    _require_equal(model, example, wanted)
    return model


def _dims(example: Tensor) -> Dims:
    return ["batch", *example.shape[1:]]


def _require_equal(model: onnx.ModelProto, example: Tensor, wanted: Tensor) -> None:
    with closing(open_session(model.SerializeToString())) as session:
        (got,) = session.run({session.inputs[0].name: example.numpy()}).values()
    gap, size = float(np.abs(got - wanted.numpy()).max()), float(wanted.abs().max()) or 1.0
    # Written so that a difference that is not a number fails too.
    if got.shape != tuple(wanted.shape) or not gap <= TOLERANCE * size:
        raise MeshError(Reason.SPLIT_NOT_EQUAL, f"{model.graph.name} differs from torch by {gap / size:.3g}")
