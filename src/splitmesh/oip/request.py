"""A ModelInferRequest as plain values: what is asked, of which model, with which inputs.

What a tensor's bytes must be is checked here against what the request says of it; what the model takes is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from splitmesh.api.oip.v2 import grpc_service_pb2 as pb
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.oip.datatypes import BYTES, CONTENTS_FIELD, dtype_of
from splitmesh.oip.parameters import Options, number_from, options_from
from splitmesh.tensor.spec import DTYPES, MAX_RANK, Array, Buffer, TensorLimits, TensorSpec, as_bytes

MAX_ID = 1024
"""Characters of a request's id, which is echoed."""
LENGTH_BYTES = 4
"""Of the length before each element of BYTES."""
MAX_TENSORS = 256
"""Inputs or outputs that a request may name."""
MAX_ELEMENTS = 1024
"""Of BYTES, one for each sample; no node takes more samples."""
MAX_CLASSES = 10_000
"""Of an output, as texts."""


@dataclass(frozen=True, slots=True)
class TensorInput:
    """A tensor as it came: the size fits, the content was not looked at."""

    spec: TensorSpec
    data: Buffer

    @property
    def samples(self) -> int:
        """Its first dimension."""
        return self.spec.shape[0]

    def row(self, sample: int) -> TensorInput:
        """One sample of it, without a copy."""
        if self.samples == 1:
            return self
        size = len(self.data) // self.samples
        spec = TensorSpec(self.spec.name, self.spec.dtype, (1, *self.spec.shape[1:]))
        return TensorInput(spec, memoryview(self.data)[sample * size : (sample + 1) * size])


@dataclass(frozen=True, slots=True)
class BytesInput:
    """Elements of any length, one for each sample."""

    name: str
    elements: tuple[Buffer, ...]

    @property
    def samples(self) -> int:
        """How many elements."""
        return len(self.elements)


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """An output that is asked for."""

    name: str
    classes: int = 0
    """So many of the largest as texts; 0: the tensor."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request."""

    id: str
    inputs: tuple[TensorInput | BytesInput, ...]
    samples: int
    outputs: tuple[WantedOutput, ...]
    """Empty: everything, in the model's order."""
    options: Options


def call_from_message(message: pb.ModelInferRequest, raw: Sequence[Buffer], limits: TensorLimits) -> Call:
    """The request; ``raw`` is the content of ``raw_input_contents``, which may have been lifted out of the message.

    Raises MeshError TENSOR_* where type, shape and bytes of an input do not fit together, FRAME_TOO_LARGE, FIELD_INVALID.
    """
    if len(message.id) > MAX_ID:
        raise field_error("id", f"has {len(message.id)} characters; at most {MAX_ID}")
    if not 1 <= len(message.inputs) <= MAX_TENSORS:
        raise field_error("inputs", f"has {len(message.inputs)} entries, expected 1..{MAX_TENSORS}")
    if raw and len(raw) != len(message.inputs):
        raise field_error("raw_input_contents", f"has {len(raw)} entries for {len(message.inputs)} inputs")
    inputs = tuple(_input(tensor, raw[place] if raw else None, limits) for place, tensor in enumerate(message.inputs))
    counts = {one.samples for one in inputs}
    if len(counts) != 1:
        raise MeshError(
            Reason.TENSOR_SHAPE_MISMATCH,
            f"the inputs have {sorted(counts)} samples (first dimension): one number for all",
        )
    return Call(
        id=message.id,
        inputs=inputs,
        samples=counts.pop(),
        outputs=_outputs(message),
        options=options_from(message.parameters),
    )


def _outputs(message: pb.ModelInferRequest) -> tuple[WantedOutput, ...]:
    if not message.outputs:
        return ()
    if len(message.outputs) > MAX_TENSORS:
        raise field_error("outputs", f"has {len(message.outputs)} entries; at most {MAX_TENSORS}")
    wanted = tuple(WantedOutput(one.name, number_from(one.parameters, "classification")) for one in message.outputs)
    if len({one.name for one in wanted}) != len(wanted):
        raise field_error("outputs", "names an output twice")
    if any(one.classes > MAX_CLASSES for one in wanted):
        raise field_error("outputs", f"asks for more than {MAX_CLASSES} classes: ask for the tensor")
    if any("shared_memory_region" in one.parameters for one in message.outputs):
        raise _no_shared_memory()
    return wanted


def _input(
    tensor: pb.ModelInferRequest.InferInputTensor, raw: Buffer | None, limits: TensorLimits
) -> TensorInput | BytesInput:
    if tensor.parameters and "shared_memory_region" in tensor.parameters:
        raise _no_shared_memory()
    if raw is not None and tensor.HasField("contents") and tensor.contents.ListFields():
        raise field_error("contents", f"of input {tensor.name!r} is set beside raw_input_contents: send one of the two")
    if len(tensor.shape) > MAX_RANK:
        raise MeshError(
            Reason.TENSOR_SHAPE_MISMATCH,
            f"tensor {tensor.name!r} has {len(tensor.shape)} dimensions; at most {MAX_RANK}",
        )
    shape = tuple(tensor.shape)
    if tensor.datatype == BYTES:
        return _bytes_input(tensor, shape, raw, limits)
    spec = TensorSpec(tensor.name, dtype_of(tensor.name, tensor.datatype), shape)
    if not shape:
        raise MeshError(
            Reason.TENSOR_SHAPE_MISMATCH, f"tensor {tensor.name!r} has no dimension: the first counts samples"
        )
    spec.validate(limits)
    if raw is None:
        raw = as_bytes(_typed(tensor, spec))
    if len(raw) != spec.size_bytes:
        raise MeshError(
            Reason.TENSOR_SIZE_MISMATCH,
            f"tensor {tensor.name!r} has {len(raw)} bytes; {tensor.datatype} {list(shape)} takes {spec.size_bytes}",
        )
    return TensorInput(spec, raw)


def _typed(tensor: pb.ModelInferRequest.InferInputTensor, spec: TensorSpec) -> Array:
    """Typed contents as an array; slow, for tools that write requests by hand."""
    field = CONTENTS_FIELD.get(tensor.datatype)
    if field is None:
        raise MeshError(
            Reason.TENSOR_DTYPE_MISMATCH,
            f"tensor {tensor.name!r}: {tensor.datatype} has no typed contents: send it raw",
        )
    elements = getattr(tensor.contents, field)
    if len(elements) != math.prod(spec.shape):
        raise MeshError(
            Reason.TENSOR_SIZE_MISMATCH,
            f"tensor {tensor.name!r} has {len(elements)} elements in {field}; {list(spec.shape)} takes "
            f"{math.prod(spec.shape)}",
        )
    wide = np.array(elements)
    array = wide.astype(DTYPES[spec.dtype])
    if array.dtype.kind in "iu" and not np.array_equal(array, wide):
        raise MeshError(Reason.TENSOR_DTYPE_MISMATCH, f"tensor {tensor.name!r} holds values outside {tensor.datatype}")
    return array


def _bytes_input(
    tensor: pb.ModelInferRequest.InferInputTensor, shape: tuple[int, ...], raw: Buffer | None, limits: TensorLimits
) -> BytesInput:
    if not shape or not 1 <= shape[0] <= MAX_ELEMENTS or any(dim != 1 for dim in shape[1:]):
        raise MeshError(
            Reason.TENSOR_SHAPE_MISMATCH,
            f"input {tensor.name!r} of BYTES has shape {list(shape)}; one element for each sample, [n] or [n, 1], and at "
            f"most {MAX_ELEMENTS}",
        )
    elements = tuple(tensor.contents.bytes_contents) if raw is None else _elements(tensor.name, raw, shape[0])
    if len(elements) != shape[0]:
        raise MeshError(
            Reason.TENSOR_SIZE_MISMATCH,
            f"input {tensor.name!r} has {len(elements)} elements; its shape says {shape[0]}",
        )
    size = sum(map(len, elements))
    if size > limits.max_size_bytes:
        raise MeshError(
            Reason.FRAME_TOO_LARGE, f"input {tensor.name!r} takes {size} bytes; at most {limits.max_size_bytes}"
        )
    return BytesInput(tensor.name, elements)


def _elements(name: str, raw: Buffer, most: int) -> tuple[Buffer, ...]:
    """Each element stands after its length, little-endian in 4 bytes."""
    view, found, at = memoryview(raw), list[Buffer](), 0
    while at < len(view):
        begin = at + LENGTH_BYTES
        at = begin + int.from_bytes(view[at:begin], "little")
        if begin > len(view) or at > len(view) or len(found) == most:
            raise MeshError(
                Reason.TENSOR_SIZE_MISMATCH,
                f"input {name!r} of BYTES does not hold {most} elements, each after its length in {LENGTH_BYTES} bytes",
            )
        found.append(view[begin:at])
    return tuple(found)


def _no_shared_memory() -> MeshError:
    return MeshError(Reason.UNIMPLEMENTED, "there is no shared memory here: send the tensors themselves")
