"""Evaluates the small integer arithmetic by which exporters compute shapes.

ONNX's data propagation stops at ``Where``, ``Equal`` and everything that passes through a float, which is how torch
writes ``expand(-1)`` and ``interpolate(scale_factor)``. Here such nodes are computed, when all dimensions they start
from are known, with ONNX's own reference implementation, and inference goes on from there. Never touches weights or
activations: values above a fixed number of elements are not computed, so a hostile graph cannot ask for memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from splitmesh.errors import MeshError, Reason

_MAX_ELEMENTS = 1024
_MAX_ROUNDS = 64
"""Inference and folding alternate; one round resolves one more data-dependent shape on the longest path."""

_NAMES = """
    Abs Add And Cast Ceil Concat ConstantOfShape Div Equal Expand Floor Gather Greater GreaterOrEqual Identity Less
    LessOrEqual Max Min Mod Mul Neg Not Or Pow Range ReduceProd ReduceSum Reshape Round Slice Split Sqrt Squeeze Sub
    Transpose Unsqueeze Where
"""
_OPERATORS = frozenset(_NAMES.split())

Value = NDArray[np.generic]
TensorTypes = Mapping[str, onnx.TypeProto.Tensor]


def fold_shapes(model: onnx.ModelProto, types: TensorTypes) -> bool:
    """Replace, in place, nodes whose small values are known by initialisers; whether any was.

    ``types`` are the inferred types of ``model``: where they hold all dimensions of a tensor, ``Shape`` and ``Size`` of
    it are known.
    """
    graph = model.graph
    known = {init.name: _read(init) for init in graph.initializer if _is_small(init)}
    outputs = {value.name for value in graph.output}
    keep: list[onnx.NodeProto] = []
    for node in graph.node:
        values = None if outputs & set(node.output) else _evaluate(node, known, types, model)
        if values is None:
            keep.append(node)
            continue
        known.update(values)
        graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    changed = len(keep) < len(graph.node)
    if changed:
        del graph.node[:]
        graph.node.extend(keep)
    return changed


def rounds() -> range:
    """How often inference and folding may alternate."""
    return range(_MAX_ROUNDS)


def _read(tensor: onnx.TensorProto) -> Value:
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise MeshError(
            Reason.MODEL_CORRUPT, f"tensor {tensor.name!r} does not hold what its type and shape say"
        ) from error


def _is_small(init: onnx.TensorProto) -> bool:
    return math.prod(init.dims) <= _MAX_ELEMENTS and init.data_type != onnx.TensorProto.STRING


def _evaluate(
    node: onnx.NodeProto, known: Mapping[str, Value], types: TensorTypes, model: onnx.ModelProto
) -> dict[str, Value] | None:
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Constant":
        return _constant(node)
    if node.op_type in ("Shape", "Size"):
        return _shape(node, known, types)
    if node.op_type not in _OPERATORS or any(name and name not in known for name in node.input):
        return None
    feeds = {name: known[name] for name in node.input if name}
    if not _fits(node, feeds):
        return None
    names = [name for name in node.output if name]
    single = helper.make_graph(
        [node],
        "fold",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in feeds.items()],
        [helper.make_empty_tensor_value_info(name) for name in names],
    )
    try:
        with np.errstate(all="ignore"):
            run = ReferenceEvaluator(helper.make_model(single, opset_imports=list(model.opset_import)))
            results = run.run(None, feeds)
    except Exception:  # whatever the reference cannot compute stays unknown
        return None
    values = {name: np.asarray(value) for name, value in zip(names, results, strict=True)}
    return values if all(value.size <= _MAX_ELEMENTS for value in values.values()) else None


def _constant(node: onnx.NodeProto) -> dict[str, Value] | None:
    attribute = node.attribute[0] if node.attribute else None
    if attribute is None:
        return None
    value: Value
    match attribute.name:
        case "value" if _is_small(attribute.t):
            value = _read(attribute.t)
        case "value_int":
            value = np.asarray(attribute.i, dtype=np.int64)
        case "value_ints" if len(attribute.ints) <= _MAX_ELEMENTS:
            value = np.asarray(attribute.ints, dtype=np.int64)
        case "value_float":
            value = np.asarray(attribute.f, dtype=np.float32)
        case "value_floats" if len(attribute.floats) <= _MAX_ELEMENTS:
            value = np.asarray(attribute.floats, dtype=np.float32)
        case _:
            return None
    return {node.output[0]: value}


def _shape(node: onnx.NodeProto, known: Mapping[str, Value], types: TensorTypes) -> dict[str, Value] | None:
    name = node.input[0]
    dims: tuple[int, ...]
    if name in known:
        dims = known[name].shape
    else:
        tensor = types.get(name)
        if tensor is None or not tensor.HasField("shape"):
            return None
        if any(not dim.HasField("dim_value") for dim in tensor.shape.dim):
            return None
        dims = tuple(dim.dim_value for dim in tensor.shape.dim)
    if node.op_type == "Size":
        return {node.output[0]: np.asarray(math.prod(dims), dtype=np.int64)}
    start, end = shape_range(node, len(dims))
    return {node.output[0]: np.asarray(dims[start:end], dtype=np.int64)}


def shape_range(node: onnx.NodeProto, rank: int) -> tuple[int, int]:
    """The slice of dimensions a ``Shape`` node returns (attributes ``start`` and ``end`` exist since opset 15)."""
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    start, end, _ = slice(attributes.get("start"), attributes.get("end")).indices(rank)
    return start, max(start, end)


def _fits(node: onnx.NodeProto, feeds: Mapping[str, Value]) -> bool:
    """Whether the result is certain to be small, for the operators whose output is not bounded by their inputs."""
    values = [feeds[name] for name in node.input if name]
    match node.op_type:
        case "ConstantOfShape" if len(values) != 1:
            return False
        case "Expand" if len(values) != 2:
            return False
        case "Range" if [value.size for value in values] != [1, 1, 1]:
            return False
        case "ConstantOfShape":
            return 0 <= math.prod(int(dim) for dim in values[0].reshape(-1)) <= _MAX_ELEMENTS
        case "Expand":
            wanted = math.prod(max(1, int(dim)) for dim in values[1].reshape(-1))
            return wanted * max(1, values[0].size) <= _MAX_ELEMENTS**2
        case "Range":
            start, limit, delta = (float(value.reshape(())) for value in values)
            return delta != 0 and abs(limit - start) / abs(delta) <= _MAX_ELEMENTS
        case _:
            return math.prod(max(1, value.size) for value in values) <= _MAX_ELEMENTS**2
