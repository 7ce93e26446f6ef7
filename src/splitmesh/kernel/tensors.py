"""The one place where tensor messages become arrays, and back."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import Message

from splitmesh.api.tensor.v1 import tensor_pb2
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.wire import LARGE_BYTES, Lifted
from splitmesh.tensor import DTYPES, FrameHeader, TensorLimits, TensorSpec, as_bytes, from_bytes
from splitmesh.tensor.spec import DEFAULT_LIMITS, Array, Buffer, spec_of

DATA_TYPES: dict[str, tensor_pb2.DataType.ValueType] = {
    name: tensor_pb2.DataType.Value(f"DATA_TYPE_{name.upper()}") for name in DTYPES
}
CODEC_VALUES: dict[str, tensor_pb2.Codec.ValueType] = {
    "identity": tensor_pb2.CODEC_IDENTITY,
    "zstd": tensor_pb2.CODEC_ZSTD,
    "range": tensor_pb2.CODEC_RANGE,
}
_NAMES = {value: name for name, value in DATA_TYPES.items()}
_CODEC_NAMES = {value: name for name, value in CODEC_VALUES.items()}

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

M = TypeVar("M", bound=Message)


def spec_to_message(spec: TensorSpec) -> tensor_pb2.TensorSpec:
    """A specification as a message."""
    return tensor_pb2.TensorSpec(name=spec.name, data_type=DATA_TYPES[spec.dtype], shape=spec.shape)


def spec_from_message(message: tensor_pb2.TensorSpec) -> TensorSpec:
    """A message as a specification; TENSOR_DTYPE_MISMATCH for a type outside the allow-list."""
    name = _NAMES.get(message.data_type)
    if name is None:
        raise MeshError(
            Reason.TENSOR_DTYPE_MISMATCH, f"tensor {message.name!r} has data_type {message.data_type}, which is unknown"
        )
    return TensorSpec(message.name, name, tuple(message.shape))


def tensor_to_message(name: str, array: Array) -> tensor_pb2.Tensor:
    """An array as a message (one copy, into the message)."""
    return tensor_pb2.Tensor(spec=spec_to_message(spec_of(name, array)), data=bytes(as_bytes(array)))


def with_tensors(
    message: M, field: RepeatedCompositeFieldContainer[tensor_pb2.Tensor], arrays: Mapping[str, Array]
) -> M | Lifted[M]:
    """``message`` with the arrays in ``field``, one of its own; where they are large their data goes beside it, not into it."""
    if sum(array.nbytes for array in arrays.values()) < LARGE_BYTES:
        field.extend(tensor_to_message(name, array) for name, array in arrays.items())
        return message
    field.extend(tensor_pb2.Tensor(spec=spec_to_message(spec_of(name, array))) for name, array in arrays.items())
    return Lifted(message, tuple(as_bytes(array) for array in arrays.values()))


def tensor_from_message(
    message: tensor_pb2.Tensor, limits: TensorLimits = DEFAULT_LIMITS, *, data: Buffer | None = None
) -> tuple[str, Array]:
    """A message as a named read-only array; TENSOR_* when dtype, shape and bytes do not fit together.

    ``data`` is its data where that was lifted out of it.
    """
    spec = spec_from_message(message.spec)
    return spec.name, from_bytes(spec, message.data if data is None else data, limits)


def tensors_from_messages(
    messages: Sequence[tensor_pb2.Tensor],
    limits: TensorLimits = DEFAULT_LIMITS,
    *,
    blobs: Sequence[Buffer] | None = None,
) -> dict[str, Array]:
    """Several messages as arrays by name; ``blobs`` has the data of each where it was lifted out."""
    lifted = itertools.repeat(None, len(messages)) if blobs is None else blobs
    return dict(tensor_from_message(message, limits, data=data) for message, data in zip(messages, lifted, strict=True))


def header_to_message(header: FrameHeader) -> tensor_pb2.FrameHeader:
    """A frame's header as a message."""
    return tensor_pb2.FrameHeader(
        tensors=[spec_to_message(spec) for spec in header.tensors],
        codec=CODEC_VALUES[header.codec],
        size_bytes=header.size_bytes,
        chunk_count=header.chunk_count,
        crc32c=header.crc32c,
    )


def header_from_message(message: tensor_pb2.FrameHeader) -> FrameHeader:
    """A message as a frame's header; CODEC_UNSUPPORTED for a codec outside the table."""
    codec = _CODEC_NAMES.get(message.codec)
    if codec is None:
        raise MeshError(Reason.CODEC_UNSUPPORTED, f"codec {message.codec} is unknown")
    return FrameHeader(
        tensors=tuple(spec_from_message(spec) for spec in message.tensors),
        codec=codec,
        size_bytes=message.size_bytes,
        chunk_count=message.chunk_count,
        crc32c=message.crc32c,
    )
