"""How every tensor's shape depends on the batch size.

ONNX's own inference loses the batch symbol at the first ``Reshape(-1)``. So the inputs' batch is fixed to 2 and to 3,
both graphs are inferred (with :mod:`splitmesh.model.fold` for what inference cannot compute), and each dimension is
solved as ``per_sample * batch + fixed``. That finds folded dimensions too (windows or heads multiplied into the
batch). Dimensions that depend on values, or on a second dynamic input dimension, stay unknown. Large initialisers are
left out of the inference: only their shapes matter. Operators of the runtime's own domain, which ONNX knows no rules for,
are inferred by the runtime, without running them.
"""

from __future__ import annotations

import itertools
import math
from contextlib import closing
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from splitmesh.errors import MeshError, Reason
from splitmesh.model.control import TensorTypes, body_models, has_sizes, settled_outputs
from splitmesh.model.fold import fold_shapes, rounds
from splitmesh.model.operators import MICROSOFT
from splitmesh.model.walk import bodies
from splitmesh.runtime import open_session
from splitmesh.tensor.spec import DTYPES

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
    return settle(fixed_copy(model, batch=batch, other=other))


def fixed_copy(model: onnx.ModelProto, *, batch: int, other: int | None = None) -> onnx.ModelProto:
    """A weightless copy with its input sizes fixed and without what was declared for other tensors."""
    copy = skeleton(model)
    _forget_declared(copy.graph)
    _fix_inputs(copy, batch_symbol(model), batch, other)
    return copy


def settle(model: onnx.ModelProto, *, bodies_too: bool = True) -> dict[str, onnx.TypeProto.Tensor]:
    """Types of all tensors of a copy made for inference, in which folded nodes become initialisers."""
    types = _types(infer(model))
    for _ in rounds():
        changed = fold_shapes(model, types)
        changed = _declare(model, _vendor_types(model, types)) or changed
        if bodies_too:
            changed = _declare(model, _control_types(model, types)) or changed
        if not changed:
            break
        types |= _types(infer(model))
    return types


def _control_types(model: onnx.ModelProto, types: TensorTypes) -> dict[str, onnx.TypeProto.Tensor]:
    """What ONNX's inference leaves open behind control flow and inference inside the bodies settles."""
    settled: dict[str, onnx.TypeProto.Tensor] = {}
    for node, group in itertools.groupby(body_models(model, types), key=lambda pair: pair[0]):
        if any(name and not has_sizes(types.get(name)) for name in node.output):
            inside = [settle(body, bodies_too=False) for _, body in group]
            settled |= settled_outputs(node, inside, types)
    return {name: tensor for name, tensor in settled.items() if name and not has_sizes(types.get(name))}


def _vendor_types(model: onnx.ModelProto, types: TensorTypes) -> dict[str, onnx.TypeProto.Tensor]:
    """What the runtime infers for outputs of its own operators, where that is every dimension."""
    wanted = [
        name
        for node in model.graph.node
        if node.domain == MICROSOFT
        for name in node.output
        if name and not has_sizes(types.get(name))
    ]
    if not wanted:
        return {}
    query = onnx.ModelProto()
    query.CopyFrom(model)
    del query.graph.output[:]
    query.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    try:
        session = open_session(query.SerializeToString(), optimise=False)
    except MeshError:  # what the runtime cannot load stays unknown; opening the model says why
        return {}
    with closing(session):
        # A scalar and an unknown rank look alike here.
        known = [spec for spec in session.outputs if spec.shape and -1 not in spec.shape]
    return {
        spec.name: onnx.helper.make_tensor_type_proto(
            onnx.helper.np_dtype_to_tensor_dtype(DTYPES[spec.dtype]), spec.shape
        ).tensor_type
        for spec in known
    }


def _declare(model: onnx.ModelProto, found: TensorTypes) -> bool:
    """Write types down where inference starts from; whether there were any."""
    outputs = {value.name: value for value in model.graph.output}
    for name, tensor in found.items():
        value = outputs.get(name)
        if value is None:
            value = model.graph.value_info.add(name=name)
        value.type.tensor_type.CopyFrom(tensor)
    return bool(found)


def _forget_declared(graph: onnx.GraphProto) -> None:
    """What an exporter wrote for inner tensors may carry symbols, or sizes, that contradict the fixed batch."""
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    for node in graph.node:
        for body in bodies(node):
            _forget_declared(body)


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
