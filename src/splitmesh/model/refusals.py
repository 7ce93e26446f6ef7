"""The rules that a model from outside must keep, each as a search for what breaks it.

A rule yields one :class:`Refusal` per place; who loads stops at the first (``load``), who reports reads them all
(``unsupported``). Knows nothing of how a file is read, and takes a parsed model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx
from onnx import TensorProto

from splitmesh.errors import Reason
from splitmesh.model.control import MAX_DEPTH, body_models, carried, depth, has_sizes
from splitmesh.model.limits import ModelLimits
from splitmesh.model.operators import SIZE_FROM_VALUES, canonical_domain, is_allowed, type_name
from splitmesh.model.shapes import itemsize, runtime_inputs, settle
from splitmesh.model.walk import declared, dense_tensors, every_node, sparse_tensors

MIN_OPSET = 7
"""The oldest that onnxruntime promises to run as specified."""
SCAN_OPSET = 9
"""Before it ``Scan`` had another form, over a batch."""
MAX_OPSET = onnx.defs.onnx_opset_version()

_PACKED = frozenset(
    getattr(TensorProto, name)
    for name in ("INT2", "UINT2", "INT4", "UINT4", "FLOAT4E2M1", "STRING")
    if hasattr(TensorProto, name)
)
"""Element types whose raw data is not one whole number of bytes per element."""

Types = Mapping[str, onnx.TypeProto.Tensor]


@dataclass(frozen=True, slots=True)
class Refusal:
    """One thing in a model that is not accepted."""

    reason: Reason
    kind: str
    """``model``, ``opset``, ``operator``, ``attribute``, ``tensor``, ``input``, ``output`` or ``size``."""
    name: str
    """Of the operator, the tensor, the value; empty: the model as a whole."""
    message: str
    where: str = ""
    """The node it sits at; empty: none in particular."""
    metadata: Mapping[str, str] = field(default_factory=dict)


def external_data(model: onnx.ModelProto) -> Iterator[Refusal]:
    """Tensors whose data lies in another file."""
    parts = (tensor for sparse in sparse_tensors(model) for tensor in (sparse.values, sparse.indices))
    for tensor in (*dense_tensors(model), *parts):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            yield Refusal(
                Reason.MODEL_EXTERNAL_DATA,
                "tensor",
                tensor.name,
                f"tensor {tensor.name!r} keeps its data in another file; save the model in one file",
                metadata={"tensor": tensor.name},
            )


def counts(model: onnx.ModelProto, limits: ModelLimits) -> Iterator[Refusal]:
    """Too many operators or bytes of constants; constants without a type or with impossible dimensions; sizes declared
    beyond what one tensor may have, for which inference would take memory."""
    nodes = sum(1 for _ in every_node(model))
    if nodes > limits.max_nodes:
        yield _too_large("model", "", f"the model has {nodes} operators; at most {limits.max_nodes}")
    total = 0
    shapes = [(tensor.name, tensor.dims, tensor.data_type) for tensor in dense_tensors(model)]
    shapes += [(sparse.values.name, sparse.dims, sparse.values.data_type) for sparse in sparse_tensors(model)]
    for name, dims, elem_type in shapes:
        if any(dim < 0 for dim in dims):
            yield _corrupt("tensor", name, f"tensor {name!r} has negative dimensions {list(dims)}")
        elif not _is_type(elem_type):
            yield _corrupt("tensor", name, f"tensor {name!r} has no valid element type")
        else:
            total += math.prod(dims) * itemsize(elem_type)
    if total > limits.max_initialiser_bytes:
        text = f"the constant tensors take {total} bytes; at most {limits.max_initialiser_bytes}"
        yield _too_large("model", "", text)
    for value in declared(model):
        elements = math.prod(dim.dim_value for dim in value.type.tensor_type.shape.dim if dim.dim_value > 0)
        if elements > limits.max_tensor_elements:
            text = f"{value.name!r} is declared with at least {elements} elements; at most {limits.max_tensor_elements}"
            yield _too_large("tensor", value.name, text)


def _is_type(elem_type: int) -> bool:
    return elem_type in TensorProto.DataType.values() and elem_type != TensorProto.UNDEFINED


def torn_tensors(model: onnx.ModelProto) -> Iterator[Refusal]:
    """Raw data must be as long as type and shape say; sub-byte types and typed fields are left to the runtime."""
    for tensor in dense_tensors(model):
        if not tensor.HasField("raw_data") or tensor.data_type in _PACKED or not _is_type(tensor.data_type):
            continue
        expected = math.prod(tensor.dims) * itemsize(tensor.data_type)
        if len(tensor.raw_data) != expected:
            text = f"tensor {tensor.name!r} holds {len(tensor.raw_data)} bytes, not {expected}"
            yield _corrupt("tensor", tensor.name, text)


def opset(model: onnx.ModelProto) -> Iterator[Refusal]:
    """An opset that is missing or out of range."""
    versions = [entry.version for entry in model.opset_import if canonical_domain(entry.domain) == ""]
    if not versions:
        yield _corrupt("opset", "", "the model does not say which opset it uses")
    elif not MIN_OPSET <= max(versions) <= MAX_OPSET:
        yield Refusal(
            Reason.MODEL_OPERATOR_UNSUPPORTED,
            "opset",
            str(max(versions)),
            f"the model uses opset {max(versions)}; supported: {MIN_OPSET} to {MAX_OPSET}",
            metadata={"opset": str(max(versions))},
        )


def operators(model: onnx.ModelProto) -> Iterator[Refusal]:
    """Operators that are not on the list of ``operators``; calls of the model's own functions are none."""
    local = {(function.domain, function.name) for function in model.functions}
    for node in every_node(model):
        if (node.domain, node.op_type) not in local and not is_allowed(node.domain, node.op_type):
            name = type_name(node)
            yield Refusal(
                Reason.MODEL_OPERATOR_UNSUPPORTED,
                "operator",
                name,
                f"operators not supported: {name}",
                where(node),
                {"operators": name},
            )


def control_flow(model: onnx.ModelProto) -> Iterator[Refusal]:
    """Bodies nested too deep, and the ``Scan`` of old."""
    if depth(model.graph.node) > MAX_DEPTH:
        text = f"control flow is nested more than {MAX_DEPTH} deep"
        yield Refusal(Reason.MODEL_OPERATOR_UNSUPPORTED, "model", "", text)
    used = max(entry.version for entry in model.opset_import if canonical_domain(entry.domain) == "")
    if used >= SCAN_OPSET:
        return
    for node in every_node(model):
        if node.op_type == "Scan":
            yield Refusal(
                Reason.MODEL_OPERATOR_UNSUPPORTED,
                "operator",
                "Scan",
                f"operators not supported: Scan of opset {used}; supported from {SCAN_OPSET}",
                where(node),
                {"operators": "Scan", "opset": str(used)},
            )


def inputs_and_outputs(model: onnx.ModelProto) -> Iterator[Refusal]:
    """What goes in and out must be tensors, the inputs of known rank."""
    given = list(runtime_inputs(model))
    for place, values in (("input", given), ("output", list(model.graph.output))):
        for value in values:
            kind = value.type.WhichOneof("value")
            if kind not in ("tensor_type", None):
                text = f"{value.name!r} is a {kind}, not a tensor"
                yield Refusal(Reason.MODEL_OPERATOR_UNSUPPORTED, place, value.name, text)
    for value in given:
        if value.type.WhichOneof("value") not in ("tensor_type", None):
            continue
        if not value.type.tensor_type.HasField("shape"):
            text = f"input {value.name!r} does not declare its shape"
            yield Refusal(Reason.MODEL_SHAPE_UNKNOWN, "input", value.name, text)
        elif any(dim.HasField("dim_value") and dim.dim_value < 1 for dim in value.type.tensor_type.shape.dim):
            yield _corrupt("input", value.name, f"input {value.name!r} has a dimension that is not positive")


def sizes(model: onnx.ModelProto, types: Types, limits: ModelLimits) -> Iterator[Refusal]:
    """Tensors that are too large or whose size nobody can know; ``types`` are those of :func:`settle`."""
    for name, tensor in types.items():
        dims = [dim.dim_value for dim in tensor.shape.dim if dim.HasField("dim_value")]
        if math.prod(dims) > limits.max_tensor_elements:
            text = f"tensor {name!r} has at least {math.prod(dims)} elements for one sample"
            yield _too_large("tensor", name, f"{text}; at most {limits.max_tensor_elements}")
    for node in model.graph.node:
        if node.op_type in SIZE_FROM_VALUES and not all(has_sizes(types.get(name)) for name in node.output if name):
            yield _unknown_size(
                node,
                node.output[0],
                f"{node.op_type} makes {node.output[0]!r} with a size that cannot be known before it runs",
            )
    for node, body in body_models(model, types):
        inner = settle(body)
        yield from _changing_shapes(node, body, types, inner)
        yield from sizes(body, inner, limits)


def _changing_shapes(node: onnx.NodeProto, body: onnx.ModelProto, types: Types, inner: Types) -> Iterator[Refusal]:
    """A value that doubles at each turn of a loop fills any memory."""
    for initial, inside, _ in carried(node):
        if inside >= len(body.graph.output):
            yield _corrupt(
                "operator", node.op_type, f"the body of a {node.op_type} returns too few values", where(node)
            )
            return
        result = body.graph.output[inside].name
        known = has_sizes(types.get(initial)) and has_sizes(inner.get(result))
        if not known or types[initial].shape != inner[result].shape:
            text = f"{node.op_type} carries {initial!r}, whose size it changes or whose size cannot be known"
            yield _unknown_size(node, initial, text)


def where(node: onnx.NodeProto) -> str:
    """What people find a node by: its name, or where it has none its first output."""
    return node.name or next((f"-> {name}" for name in node.output if name), "")


def _unknown_size(node: onnx.NodeProto, tensor: str, text: str) -> Refusal:
    facts = {"tensor": tensor, "operator": node.op_type}
    return Refusal(Reason.MODEL_SHAPE_UNKNOWN, "size", node.op_type, text, where(node), facts)


def _corrupt(kind: str, name: str, text: str, at: str = "") -> Refusal:
    return Refusal(Reason.MODEL_CORRUPT, kind, name, text, at)


def _too_large(kind: str, name: str, text: str) -> Refusal:
    return Refusal(Reason.MODEL_TOO_LARGE, kind, name, text)
