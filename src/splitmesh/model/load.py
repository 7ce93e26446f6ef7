"""From untrusted bytes to an ONNX model that may be cut and run.

Covered: file size before parsing, damaged protobuf, external data in every place a tensor can sit, node and weight
counts including sub-graphs and functions, an operator allow-list, ONNX's checker, contradicting shapes, and tensors
larger than a cap wherever their shape follows from the model (a 92-byte model that asks for 12 GB is refused).

Inside the bodies of ``If``, ``Loop`` and ``Scan`` the same holds; values that a loop carries must keep their shape.

Not covered: how long a model computes (a ``Loop`` may have no end), how much memory many middle-sized tensors take
together, and the sizes that follow from the caller's batch. Profile models from outside in a child process with limits on
memory and CPU time.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from splitmesh.errors import MeshError, Reason
from splitmesh.model.control import MAX_DEPTH, body_models, carried, depth, has_sizes
from splitmesh.model.functions import inlined
from splitmesh.model.operators import SIZE_FROM_VALUES, canonical_domain, is_allowed
from splitmesh.model.shapes import fixed_copy, infer, itemsize, runtime_inputs, settle, shapes_at
from splitmesh.model.walk import dense_tensors, every_node, has_invalid_text, sparse_tensors

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


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """Upper bounds for a model from outside."""

    max_size_bytes: int = 512 * 1024 * 1024
    """Largest file."""
    max_nodes: int = 20_000
    """Operators, sub-graphs and calls of functions included."""
    max_initialiser_bytes: int = 512 * 1024 * 1024
    """All constant tensors together, dense, as their dimensions say."""
    max_tensor_elements: int = 1 << 27
    """Largest single tensor for one sample."""
    assumed_dim: int = 256
    """What a dynamic input dimension other than the batch is taken for when tensor sizes are checked."""


DEFAULT_LIMITS = ModelLimits()


def load_file(path: str | os.PathLike[str], limits: ModelLimits = DEFAULT_LIMITS) -> onnx.ModelProto:
    """:func:`load_model` on a file of which at most the allowed size is read; OSError when it cannot be read."""
    return load_model(read_model_bytes(path, limits), limits)


def read_model_bytes(path: str | os.PathLike[str], limits: ModelLimits = DEFAULT_LIMITS) -> bytes:
    """The file's bytes; MeshError MODEL_TOO_LARGE without reading more than the allowed size."""
    with open(path, "rb") as file:
        data = file.read(limits.max_size_bytes + 1)
    _require_size(data, limits)
    return data


def load_model(data: bytes, limits: ModelLimits = DEFAULT_LIMITS) -> onnx.ModelProto:
    """The checked model, local functions inlined, with inferred types and shapes as its value_info.

    Raises MeshError MODEL_TOO_LARGE, MODEL_CORRUPT, MODEL_EXTERNAL_DATA, MODEL_OPERATOR_UNSUPPORTED or, when an input
    has no rank or the size of a generated tensor cannot be known, MODEL_SHAPE_UNKNOWN.
    """
    _require_size(data, limits)
    model = _parse(data)
    _refuse_external(model)
    _require_counts(model, limits)
    _require_whole_tensors(model)
    _require_opset(model)
    _require_operators(model)
    _require_tensors(model)
    model = inlined(model, limits.max_nodes)
    _require_control_flow(model)
    _complete_outputs(model)
    _check(model)
    _infer_into(model)
    _require_sizes(model, limits)
    return model


def _require_size(data: bytes, limits: ModelLimits) -> None:
    if len(data) > limits.max_size_bytes:
        raise _too_large(f"the file is larger than {limits.max_size_bytes} bytes")


def _parse(data: bytes) -> onnx.ModelProto:
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise MeshError(Reason.MODEL_CORRUPT, f"{len(data)} bytes are not an ONNX model") from error
    if not model.HasField("graph") or not model.graph.node:
        raise MeshError(Reason.MODEL_CORRUPT, "the model has no operators")
    if has_invalid_text(model):
        raise MeshError(Reason.MODEL_CORRUPT, "a name in the model is not UTF-8")
    if model.training_info:
        raise MeshError(Reason.MODEL_OPERATOR_UNSUPPORTED, "the model carries training_info; export it for inference")
    return model


def _refuse_external(model: onnx.ModelProto) -> None:
    parts = (tensor for sparse in sparse_tensors(model) for tensor in (sparse.values, sparse.indices))
    for tensor in (*dense_tensors(model), *parts):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise MeshError(
                Reason.MODEL_EXTERNAL_DATA,
                f"tensor {tensor.name!r} keeps its data in another file; save the model in one file",
                metadata={"tensor": tensor.name},
            )


def _require_counts(model: onnx.ModelProto, limits: ModelLimits) -> None:
    nodes = sum(1 for _ in every_node(model))
    if nodes > limits.max_nodes:
        raise _too_large(f"the model has {nodes} operators; at most {limits.max_nodes}")
    total = 0
    shapes = [(tensor.name, tensor.dims, tensor.data_type) for tensor in dense_tensors(model)]
    shapes += [(sparse.values.name, sparse.dims, sparse.values.data_type) for sparse in sparse_tensors(model)]
    for name, dims, elem_type in shapes:
        if any(dim < 0 for dim in dims):
            raise MeshError(Reason.MODEL_CORRUPT, f"tensor {name!r} has negative dimensions {list(dims)}")
        if elem_type not in TensorProto.DataType.values() or elem_type == TensorProto.UNDEFINED:
            raise MeshError(Reason.MODEL_CORRUPT, f"tensor {name!r} has no valid element type")
        total += math.prod(dims) * itemsize(elem_type)
    if total > limits.max_initialiser_bytes:
        raise _too_large(f"the constant tensors take {total} bytes; at most {limits.max_initialiser_bytes}")


def _require_whole_tensors(model: onnx.ModelProto) -> None:
    """Raw data must be as long as type and shape say; sub-byte types and typed fields are left to the runtime."""
    for tensor in dense_tensors(model):
        if not tensor.HasField("raw_data") or tensor.data_type in _PACKED:
            continue
        expected = math.prod(tensor.dims) * itemsize(tensor.data_type)
        if len(tensor.raw_data) != expected:
            raise MeshError(
                Reason.MODEL_CORRUPT, f"tensor {tensor.name!r} holds {len(tensor.raw_data)} bytes, not {expected}"
            )


def _require_opset(model: onnx.ModelProto) -> None:
    versions = [entry.version for entry in model.opset_import if canonical_domain(entry.domain) == ""]
    if not versions:
        raise MeshError(Reason.MODEL_CORRUPT, "the model does not say which opset it uses")
    if not MIN_OPSET <= max(versions) <= MAX_OPSET:
        raise MeshError(
            Reason.MODEL_OPERATOR_UNSUPPORTED,
            f"the model uses opset {max(versions)}; supported: {MIN_OPSET} to {MAX_OPSET}",
            metadata={"opset": str(max(versions))},
        )


def _require_operators(model: onnx.ModelProto) -> None:
    local = {(function.domain, function.name) for function in model.functions}
    refused = sorted(
        {
            ".".join(filter(None, (canonical_domain(node.domain), node.op_type)))
            for node in every_node(model)
            if (node.domain, node.op_type) not in local and not is_allowed(node.domain, node.op_type)
        }
    )
    if refused:
        raise MeshError(
            Reason.MODEL_OPERATOR_UNSUPPORTED,
            f"operators not supported: {', '.join(refused[:20])}",
            metadata={"operators": ",".join(refused[:20])},
        )


def _require_control_flow(model: onnx.ModelProto) -> None:
    if depth(model.graph.node) > MAX_DEPTH:
        raise MeshError(Reason.MODEL_OPERATOR_UNSUPPORTED, f"control flow is nested more than {MAX_DEPTH} deep")
    opset = max(entry.version for entry in model.opset_import if canonical_domain(entry.domain) == "")
    if opset < SCAN_OPSET and any(node.op_type == "Scan" for node in every_node(model)):
        raise MeshError(
            Reason.MODEL_OPERATOR_UNSUPPORTED,
            f"operators not supported: Scan of opset {opset}; supported from {SCAN_OPSET}",
            metadata={"operators": "Scan", "opset": str(opset)},
        )


def _check(model: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        detail = str(error).strip().partition("\n")[0][:300]
        raise MeshError(Reason.MODEL_CORRUPT, f"the model breaks the ONNX rules: {detail}") from error


def _require_tensors(model: onnx.ModelProto) -> None:
    for value in (*runtime_inputs(model), *model.graph.output):
        kind = value.type.WhichOneof("value")
        if kind not in ("tensor_type", None):
            raise MeshError(Reason.MODEL_OPERATOR_UNSUPPORTED, f"{value.name!r} is a {kind}, not a tensor")
    for value in runtime_inputs(model):
        if not value.type.tensor_type.HasField("shape"):
            raise MeshError(Reason.MODEL_SHAPE_UNKNOWN, f"input {value.name!r} does not declare its shape")
        if any(dim.HasField("dim_value") and dim.dim_value < 1 for dim in value.type.tensor_type.shape.dim):
            raise MeshError(Reason.MODEL_CORRUPT, f"input {value.name!r} has a dimension that is not positive")


def _complete_outputs(model: onnx.ModelProto) -> None:
    """ONNX asks for the shape of every output, but exporters leave it out; then inference has to know it."""
    if all(value.type.tensor_type.HasField("shape") for value in model.graph.output):
        return
    types = shapes_at(model, batch=1)
    for value in model.graph.output:
        tensor = types.get(value.name)
        if tensor is None or not tensor.HasField("shape"):
            raise MeshError(Reason.MODEL_SHAPE_UNKNOWN, f"output {value.name!r} has no shape that can be inferred")
        if not value.type.tensor_type.HasField("shape"):
            anonymous = [None] * len(tensor.shape.dim)
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, tensor.elem_type, anonymous))


def _infer_into(model: onnx.ModelProto) -> None:
    inferred = infer(model, strict=True).graph
    outputs = {value.name: value for value in inferred.output}
    del model.graph.value_info[:]
    model.graph.value_info.extend(inferred.value_info)
    for value in model.graph.output:
        value.CopyFrom(outputs[value.name])


def _require_sizes(model: onnx.ModelProto, limits: ModelLimits) -> None:
    copy = fixed_copy(model, batch=1, other=limits.assumed_dim)
    _require_graph_sizes(copy, settle(copy), limits)


def _require_graph_sizes(model: onnx.ModelProto, types: dict[str, onnx.TypeProto.Tensor], limits: ModelLimits) -> None:
    for name, tensor in types.items():
        dims = [dim.dim_value for dim in tensor.shape.dim if dim.HasField("dim_value")]
        if math.prod(dims) > limits.max_tensor_elements:
            raise _too_large(
                f"tensor {name!r} has at least {math.prod(dims)} elements for one sample; "
                f"at most {limits.max_tensor_elements}"
            )
    for node in model.graph.node:
        if node.op_type in SIZE_FROM_VALUES and not all(has_sizes(types.get(name)) for name in node.output if name):
            raise MeshError(
                Reason.MODEL_SHAPE_UNKNOWN,
                f"{node.op_type} makes {node.output[0]!r} with a size that cannot be known before it runs",
                metadata={"tensor": node.output[0], "operator": node.op_type},
            )
    for node, body in body_models(model, types):
        inner = settle(body)
        _require_constant_shapes(node, body, types, inner)
        _require_graph_sizes(body, inner, limits)


def _require_constant_shapes(
    node: onnx.NodeProto,
    body: onnx.ModelProto,
    types: dict[str, onnx.TypeProto.Tensor],
    inner: dict[str, onnx.TypeProto.Tensor],
) -> None:
    """A value that doubles at each turn of a loop fills any memory."""
    for initial, inside, _ in carried(node):
        if inside >= len(body.graph.output):
            raise MeshError(Reason.MODEL_CORRUPT, f"the body of a {node.op_type} returns too few values")
        result = body.graph.output[inside].name
        known = has_sizes(types.get(initial)) and has_sizes(inner.get(result))
        if not known or types[initial].shape != inner[result].shape:
            raise MeshError(
                Reason.MODEL_SHAPE_UNKNOWN,
                f"{node.op_type} carries {initial!r}, whose size it changes or whose size cannot be known",
                metadata={"tensor": initial, "operator": node.op_type},
            )


def _too_large(message: str) -> MeshError:
    return MeshError(Reason.MODEL_TOO_LARGE, message)
