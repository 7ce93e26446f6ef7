"""How every tensor's shape depends on the batch size.

ONNX's own inference loses the batch symbol at the first ``Reshape(-1)``. So the inputs' batch is fixed to 2 and to 3,
both graphs are inferred (with :mod:`splitmesh.model.fold` for what inference cannot compute), and each dimension is
solved as ``per_sample * batch + fixed``. That finds folded dimensions too (windows or heads multiplied into the
batch). Dimensions that depend on values, or on a second dynamic input dimension, stay unknown. Large initialisers are
left out of the inference: only their shapes matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from splitmesh.errors import MeshError, Reason
from splitmesh.model.fold import fold_shapes, rounds

_SMALL = 1024
"""Elements of an initialiser that may hold a shape, an axis or a pad; anything larger is weights."""


@dataclass(frozen=True, slots=True)
class Dim:
    """One dimension: ``per_sample * batch + fixed``."""

    per_sample: int
    fixed: int

    @property
    def is_batch(self) -> bool:
        """Exactly the batch size."""
        return (self.per_sample, self.fixed) == (1, 0)

    def at(self, batch: int) -> int:
        """The dimension at this batch size."""
        return self.per_sample * batch + self.fixed


Shape = tuple[Dim | None, ...]
"""Dimensions of a tensor; None where one is not known."""


@dataclass(frozen=True, slots=True)
class TensorShapes:
    """Element type (``TensorProto`` enum) and shape of every tensor that inference reached."""

    elem_types: dict[str, int]
    shapes: dict[str, Shape]


def infer(model: onnx.ModelProto, *, strict: bool = False) -> onnx.ModelProto:
    """A weightless copy of ``model`` with inferred value_info; MeshError MODEL_CORRUPT when types or shapes contradict.

    Not strict, operators without inference rules leave their outputs unknown; contradictions raise in both modes.
    """
    try:
        return onnx.shape_inference.infer_shapes(skeleton(model), check_type=True, strict_mode=strict, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        detail = str(error).strip().replace("\n", " ")[:400]
        raise MeshError(Reason.MODEL_CORRUPT, f"shapes or types in the model contradict: {detail}") from error


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy where large initialisers are typed inputs: the same for inference, without the weights."""
    copy = onnx.ModelProto()
    copy.ir_version = max(model.ir_version, 4)
    copy.opset_import.extend(model.opset_import)
    graph, source = copy.graph, model.graph
    graph.name = source.name or "graph"
    graph.node.extend(source.node)
    graph.output.extend(source.output)
    graph.value_info.extend(source.value_info)
    names = {init.name for init in source.initializer}
    graph.input.extend(value for value in source.input if value.name not in names)
    for init in source.initializer:
        if math.prod(init.dims) <= _SMALL:
            graph.initializer.append(init)
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(init.name, init.data_type, init.dims))
    for sparse in source.sparse_initializer:
        value = onnx.helper.make_tensor_value_info(sparse.values.name, sparse.values.data_type, sparse.dims)
        graph.input.append(value)
    return copy


def batch_symbol(model: onnx.ModelProto) -> str | None:
    """Name of the first dynamic leading input dimension ("" when it has none); None when every batch is fixed."""
    for value in runtime_inputs(model):
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            return dims[0].dim_param
    return None


def runtime_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Graph inputs a caller must feed: those without an initialiser as default."""
    defaults = {init.name for init in model.graph.initializer}
    defaults |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    return [value for value in model.graph.input if value.name not in defaults]


def batch_shapes(model: onnx.ModelProto) -> TensorShapes:
    """Types and batch-affine shapes of all tensors; MeshError MODEL_CORRUPT when inference finds a contradiction."""
    at_two = shapes_at(model, batch=2)
    at_three = at_two if batch_symbol(model) is None else shapes_at(model, batch=3)
    shapes: dict[str, Shape] = {}
    for name, two in at_two.items():
        three = at_three.get(name)
        if three is None or not two.HasField("shape") or not three.HasField("shape"):
            continue
        if len(two.shape.dim) == len(three.shape.dim):
            shapes[name] = tuple(_solve(a, b) for a, b in zip(two.shape.dim, three.shape.dim, strict=True))
    return TensorShapes({name: value.elem_type for name, value in at_two.items()}, shapes)


def shapes_at(model: onnx.ModelProto, *, batch: int, other: int | None = None) -> dict[str, onnx.TypeProto.Tensor]:
    """Types of all tensors at one batch size; ``other``, when given, stands for every other dynamic input dimension."""
    copy = skeleton(model)
    _forget_declared(copy)
    _fix_inputs(copy, batch_symbol(model), batch, other)
    types = _types(infer(copy))
    for _ in rounds():
        if not fold_shapes(copy, types):
            break
        types |= _types(infer(copy))
    return types


def _forget_declared(model: onnx.ModelProto) -> None:
    """What an exporter wrote for inner tensors may carry symbols, or sizes, that contradict the fixed batch."""
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")


def _fix_inputs(model: onnx.ModelProto, symbol: str | None, batch: int, other: int | None) -> None:
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value"):
                continue
            if axis == 0 and dim.dim_param in ("", symbol):
                dim.dim_value = batch
            elif other is not None:
                dim.dim_value = other


def _types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    graph = model.graph
    types = {
        init.name: onnx.helper.make_tensor_type_proto(init.data_type, init.dims).tensor_type
        for init in graph.initializer
    }
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.HasField("tensor_type"):
            types[value.name] = value.type.tensor_type
    return types


def _solve(two: onnx.TensorShapeProto.Dimension, three: onnx.TensorShapeProto.Dimension) -> Dim | None:
    if not two.HasField("dim_value") or not three.HasField("dim_value"):
        return None
    slope = three.dim_value - two.dim_value
    return Dim(slope, two.dim_value - 2 * slope)


def itemsize(elem_type: int) -> int:
    """Bytes of one element; sub-byte types count as one byte, strings as 8."""
    if elem_type == TensorProto.STRING:
        return 8
    return int(onnx.helper.tensor_dtype_to_np_dtype(elem_type).itemsize)
