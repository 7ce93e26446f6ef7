"""Writes a fitted exit into a head as ONNX nodes: pooling, one matrix product, softmax.

Standardisation and temperature are folded into the product's weights. Knows how operators changed between opsets; how
the exit was fitted is ``exits.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.edit import FLOAT_TYPES, Names, opset_of, value_info
from splitmesh.model.exits import FittedExit
from splitmesh.model.pooling import CELL_AXES, STATISTICS, STD_EPSILON, pooled_axes

EXIT_OUTPUT = "exit_probabilities"
LOGITS_OUTPUT = "exit_logits"
FEATURES_OUTPUT = "exit_features"

MIN_OPSET = 7
"""Older arithmetic has no numpy broadcasting."""

AXES_AS_INPUT_OPSET = 18
"""From here on ReduceMean and ReduceMax take their axes as an input."""


def attach_exit(
    head: ModelProto,
    feature_tensor: str,
    fitted: FittedExit,
    output: str = EXIT_OUTPUT,
    *,
    logits: str = "",
    features: str = "",
) -> ModelProto:
    """A copy of ``head`` with one more output: ``output``, float32 ``[batch, classes]``, equal to ``fitted.predict``.

    ``feature_tensor`` is any float tensor of the head of rank 2 to 4, normally the cut tensor. The exit reads it by its
    own name, hence before rounding, whether the head is quantised already or later. ``logits`` and ``features`` name further
    outputs, float32 ``[batch, classes]`` before the softmax and ``[batch, F]`` as ``pooling.pool`` gives them; empty: none.

    Raises MeshError CUT_INVALID (no such tensor, wrong rank or type), MODEL_SHAPE_UNKNOWN (rank unknown),
    TENSOR_SHAPE_MISMATCH (fitted to another number of channels), MODEL_OPERATOR_UNSUPPORTED (opset below 7),
    FIELD_INVALID (the output name is taken).
    """
    opset = opset_of(head, at_least=MIN_OPSET)
    tensor_type = value_info(head, feature_tensor).type.tensor_type
    if tensor_type.elem_type not in FLOAT_TYPES:
        raise MeshError(Reason.CUT_INVALID, f"an exit reads float tensors; {feature_tensor!r} holds another type")
    names = Names(head)
    for name in filter(None, (output, logits, features)):
        if name in names:
            raise field_error("output", f"{name!r} is already the name of something in the head")
    dims = tensor_type.shape.dim
    shape = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
    pooled = _expected_features(shape, fitted.grid, feature_tensor)
    if pooled is not None and pooled != len(fitted.mean):
        raise MeshError(
            Reason.TENSOR_SHAPE_MISMATCH,
            f"the exit was fitted to {len(fitted.mean)} pooled features, {feature_tensor!r} gives {pooled}",
        )
    result = ModelProto()
    result.CopyFrom(head)
    weights, bias = _folded(fitted)
    writer = _Writer(result, names, opset)
    source = feature_tensor
    if tensor_type.elem_type != TensorProto.FLOAT:
        source = writer.node("Cast", [source], to=TensorProto.FLOAT)
    axes = pooled_axes(len(dims))
    if axes and fitted.grid > 1:
        source, axes = writer.cells(source, shape, fitted.grid), CELL_AXES
    read = writer.pooled(source, axes) if axes else source
    if features:
        read = writer.node("Identity", [read], output=features)
    product = [read, writer.constant("weights", weights), writer.constant("bias", bias)]
    writer.node("Softmax", [writer.node("Gemm", product, output=logits or None)], output=output, axis=1)
    batch = dims[0].dim_value if dims[0].HasField("dim_value") else dims[0].dim_param or None
    read_numbers, classes = fitted.weights.shape
    for name, width in ((output, classes), (logits, classes), (features, read_numbers)):
        if name:
            result.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, width]))
    return result


def _expected_features(shape: list[int | None], grid: int, tensor: str) -> int | None:
    """Numbers per sample after pooling; None when the channels are unknown."""
    if not pooled_axes(len(shape)):
        return shape[1]
    if grid > 1 and (len(shape) != 4 or any(dim is None or dim % grid for dim in shape[2:]) or shape[1] is None):
        raise MeshError(Reason.TENSOR_SHAPE_MISMATCH, f"{tensor!r} has no {grid} x {grid} cells of one size: {shape}")
    channels = shape[2] if len(shape) == 3 else shape[1]
    return None if channels is None else STATISTICS * channels * grid * grid


def _folded(fitted: FittedExit) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    weights = fitted.weights / fitted.scale[:, None] / fitted.temperature
    bias = fitted.bias / fitted.temperature - fitted.mean @ weights
    return weights.astype(np.float32), bias.astype(np.float32)


class _Writer:
    """Appends nodes to a graph under free names."""

    def __init__(self, model: ModelProto, names: Names, opset: int) -> None:
        self._graph = model.graph
        self._names = names
        self._opset = opset

    def node(self, operator: str, inputs: list[str], *, output: str | None = None, **attributes: Any) -> str:
        result = output or self._names.fresh(f"exit/{operator}:0")
        node: NodeProto = helper.make_node(
            operator, inputs, [result], name=self._names.fresh(f"exit/{operator}"), **attributes
        )
        self._graph.node.append(node)
        return result

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        result = self._names.fresh(f"exit/{name}")
        self._graph.initializer.append(numpy_helper.from_array(value, result))
        return result

    def reduce(self, operator: str, source: str, axes: tuple[int, ...]) -> str:
        if self._opset >= AXES_AS_INPUT_OPSET:
            along = self.constant("axes", np.asarray(axes, dtype=np.int64))
            return self.node(operator, [source, along], keepdims=1)
        return self.node(operator, [source], axes=list(axes), keepdims=1)

    def cells(self, source: str, shape: list[int | None], grid: int) -> str:
        """``[batch, channels, height, width]`` as ``[batch, channels, grid, height / grid, grid, width / grid]``."""
        channels, height, width = (dim or 0 for dim in shape[1:])
        # 0 keeps the batch, whatever it is
        target = np.asarray([0, channels, grid, height // grid, grid, width // grid], dtype=np.int64)
        return self.node("Reshape", [source, self.constant("cells", target)])

    def pooled(self, source: str, axes: tuple[int, ...]) -> str:
        """Mean, maximum and deviation, each flattened to ``[batch, channels]``, side by side."""
        mean = self.reduce("ReduceMean", source, axes)
        largest = self.reduce("ReduceMax", source, axes)
        # the mean of squared differences, not E[x^2] - E[x]^2: that cancels in float32
        difference = self.node("Sub", [source, mean])
        variance = self.reduce("ReduceMean", self.node("Mul", [difference, difference]), axes)
        epsilon = self.constant("epsilon", np.asarray(STD_EPSILON, dtype=np.float32))
        deviation = self.node("Sqrt", [self.node("Add", [variance, epsilon])])
        flat = [self.node("Flatten", [part], axis=1) for part in (mean, largest, deviation)]
        return self.node("Concat", flat, axis=1)
