"""From a frame to a segment's inputs: which tensors it carries, held against the version, and their arrays, checked."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from cloud.tail.forward import INLINE_BYTES
from cloud.tail.segments import Loaded
from splitmesh.errors import MeshError, Reason
from splitmesh.tensor import Frame, TensorLimits, require_finite, unpack
from splitmesh.tensor.codecs import OF_A_VERSION
from splitmesh.tensor.spec import Array, TensorSpec, total_bytes

CODED_INLINE_BYTES = 8 * 1024
"""As ``INLINE_BYTES`` for entropy coded frames: their symbols are decoded one by one, 64 KiB take 2 ms."""


def stated(frame: Frame, loaded: Loaded) -> Frame:
    """The frame with its tensors named, also where its sender left them to the version.

    Raises MeshError TENSOR_SHAPE_MISMATCH or TENSOR_DTYPE_MISMATCH when they are not what the version states for the cut,
    one sample of it.
    """
    specs = frame.header.tensors
    if not specs:
        return replace(frame, header=replace(frame.header, tensors=_one_sample(loaded)))
    if [spec.name for spec in specs] != [spec.name for spec in loaded.wire]:
        raise MeshError(
            Reason.TENSOR_SHAPE_MISMATCH,
            f"the frame carries {[spec.name for spec in specs]}, the cut is {[spec.name for spec in loaded.wire]}",
        )
    for expected, spec in zip(loaded.wire, specs, strict=True):
        expected.require_match(spec)
        if spec.shape[:1] != (1,):
            raise MeshError(
                Reason.TENSOR_SHAPE_MISMATCH, f"tensor {spec.name!r} must hold one sample (first dimension 1)"
            )
    return frame


async def feeds_of(frame: Frame, loaded: Loaded, limits: TensorLimits) -> dict[str, Array]:
    """The arrays of a frame whose tensors are stated; large ones are made in a thread.

    Raises MeshError TENSOR_SIZE_MISMATCH, CHECKSUM_MISMATCH, CODEC_UNSUPPORTED, PAYLOAD_CORRUPT, FRAME_TOO_LARGE or
    TENSOR_NOT_FINITE.
    """
    # What is unpacked counts: an entropy coded payload is small and its symbols are not.
    inline_bytes = CODED_INLINE_BYTES if frame.header.codec in OF_A_VERSION else INLINE_BYTES
    if total_bytes(frame.header.tensors) > inline_bytes:
        return await asyncio.to_thread(_feeds, frame, loaded, limits)
    return _feeds(frame, loaded, limits)


def _one_sample(loaded: Loaded) -> tuple[TensorSpec, ...]:
    for spec in loaded.wire:
        if -1 in spec.shape[1:]:
            raise MeshError(
                Reason.TENSOR_SHAPE_MISMATCH,
                f"the frame names no tensors, and {spec.name!r} of this cut has open dimensions {list(spec.shape)}: "
                "its header must state them",
            )
    return tuple(replace(spec, shape=(1, *spec.shape[1:])) for spec in loaded.wire)


def _feeds(frame: Frame, loaded: Loaded, limits: TensorLimits) -> dict[str, Array]:
    arrays = unpack(frame, limits, loaded.codecs)
    feeds = dict(zip((spec.name for spec in frame.header.tensors), arrays, strict=True))
    for name, array in feeds.items():
        require_finite(name, array)
    return feeds
