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

import os
from collections.abc import Iterator

import onnx
from google.protobuf.message import DecodeError

from splitmesh.errors import MeshError, Reason
from splitmesh.model import refusals
from splitmesh.model.functions import inlined
from splitmesh.model.limits import DEFAULT_LIMITS, ModelLimits
from splitmesh.model.refusals import MAX_OPSET, MIN_OPSET, SCAN_OPSET, Refusal
from splitmesh.model.shapes import fixed_copy, infer, settle, shapes_at
from splitmesh.model.walk import has_invalid_text

__all__ = [
    "DEFAULT_LIMITS",
    "MAX_OPSET",
    "MIN_OPSET",
    "SCAN_OPSET",
    "ModelLimits",
    "complete_outputs",
    "load_file",
    "load_model",
    "parse",
    "read_model_bytes",
]


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
    model = parse(data, limits)
    _refuse(refusals.external_data(model))
    _refuse(refusals.counts(model, limits))
    _refuse(refusals.torn_tensors(model))
    _refuse(refusals.opset(model))
    _require_operators(model)
    _refuse(refusals.inputs_and_outputs(model))
    model = inlined(model, limits.max_nodes)
    _refuse(refusals.control_flow(model))
    complete_outputs(model)
    _check(model)
    _infer_into(model)
    copy = fixed_copy(model, batch=1, other=limits.assumed_dim)
    _refuse(refusals.sizes(copy, settle(copy), limits))
    return model


def _refuse(found: Iterator[Refusal]) -> None:
    """Raise the first."""
    for first in found:
        raise MeshError(first.reason, first.message, metadata=dict(first.metadata))


def _require_size(data: bytes, limits: ModelLimits) -> None:
    if len(data) > limits.max_size_bytes:
        raise MeshError(Reason.MODEL_TOO_LARGE, f"the file is larger than {limits.max_size_bytes} bytes")


def parse(data: bytes, limits: ModelLimits = DEFAULT_LIMITS) -> onnx.ModelProto:
    """The file as it is, read but not checked; MODEL_TOO_LARGE, MODEL_CORRUPT or MODEL_OPERATOR_UNSUPPORTED (training)."""
    _require_size(data, limits)
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


def _require_operators(model: onnx.ModelProto) -> None:
    refused = sorted({one.name for one in refusals.operators(model)})
    if refused:
        raise MeshError(
            Reason.MODEL_OPERATOR_UNSUPPORTED,
            f"operators not supported: {', '.join(refused[:20])}",
            metadata={"operators": ",".join(refused[:20])},
        )


def _check(model: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        detail = str(error).strip().partition("\n")[0][:300]
        raise MeshError(Reason.MODEL_CORRUPT, f"the model breaks the ONNX rules: {detail}") from error


def complete_outputs(model: onnx.ModelProto) -> None:
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
