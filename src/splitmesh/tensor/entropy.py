"""The codec ``range``: a cut's 8-bit tensors, entropy coded with the tables of the version whose cut it is.

A payload is::

    1 byte    number of the rate
    4 bytes   CRC-32C, little-endian, of the tables' SHA-256, the rate's byte, the symbols (a byte each, in coding
              order) and the coded bytes
    the rest  the symbols, range coded (``entropy_stream.py``): the library's words, most significant byte first,
              trailing zero bytes left out

Symbols stand tensor by tensor; inside a tensor the channels that share a table follow each other, tables in the order
of the file and channels in theirs; a channel is row-major. The sum over the tables, what was decoded and what was sent
refuses other tables (two that differ by a zero point decode the same symbols), damage, truncation and anything
appended. Lossless at all channels and step 1; another rate gives what :meth:`RangeCodec.coarse` gives, exactly. One
sample at a time.

Knows tables and arrays, nothing of frames or streams. Needs the library constriction (extras ``edge`` and ``cloud``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from splitmesh.errors import MeshError, Reason
from splitmesh.tensor.entropy_stream import decoded, encoded
from splitmesh.tensor.entropy_tables import Plan, Tables
from splitmesh.tensor.spec import Array, Buffer, TensorSpec, total_bytes

__all__ = ["RangeCodec", "Tables"]

HEADER_BYTES = 5
MOST_BYTES_PER_SYMBOL = 4
"""The rarest symbol takes 24 bits; the coder's end at most 8 bytes on top."""


class RangeCodec:
    """Codes what crosses one cut; implements ``codecs.ShapedCodec``. Threads may share it.

    Args:
        tables: of the version.
        specs: what crosses, uint8, in the wire's order; the first dimension is -1 or 1, others may be -1.
        rate: at which it encodes; what is decoded names its own.

    Raises MeshError MODEL_CORRUPT when tables and tensors do not fit together.
    """

    name = "range"

    def __init__(self, tables: Tables, specs: Sequence[TensorSpec], rate: int = 0) -> None:
        if len(specs) != len(tables.axes):
            raise MeshError(Reason.MODEL_CORRUPT, f"tables for {len(tables.axes)} tensors, {len(specs)} cross")
        for spec, axis, channels in zip(specs, tables.axes, tables.channels, strict=True):
            if spec.dtype != "uint8" or len(spec.shape) <= axis or spec.shape[axis] not in (-1, channels):
                raise MeshError(
                    Reason.MODEL_CORRUPT,
                    f"tensor {spec.name!r} is {spec.dtype} {list(spec.shape)}; its tables are for uint8 with {channels} "
                    f"channels along axis {axis}",
                )
        if not 0 <= rate < len(tables.rates):
            raise MeshError(Reason.FIELD_INVALID, f"rate {rate} is none of {len(tables.rates)}")
        self.tables = tables
        self.rate = rate
        self._given = tuple(specs)
        self._specs = tuple(replace(spec, shape=(1, *spec.shape[1:])) for spec in specs)

    def at(self, rate: int) -> RangeCodec:
        """The same, encoding at this rate."""
        return RangeCodec(self.tables, self._given, rate)

    def shaped(self, specs: Sequence[TensorSpec]) -> RangeCodec:
        """The same for one sample of these shapes; MeshError TENSOR_* when they are none that cross here."""
        if tuple(specs) == self._specs:
            return self
        if len(specs) != len(self._given):
            raise MeshError(Reason.TENSOR_SHAPE_MISMATCH, f"{len(specs)} tensors, {len(self._given)} cross here")
        for expected, channels, axis, spec in zip(
            self._specs, self.tables.channels, self.tables.axes, specs, strict=True
        ):
            expected.require_match(spec)
            if spec.shape[axis] != channels:
                raise MeshError(
                    Reason.TENSOR_SHAPE_MISMATCH,
                    f"tensor {spec.name!r} has {spec.shape[axis]} channels, not {channels}",
                )
        return RangeCodec(self.tables, specs, self.rate)

    def encode(self, data: Buffer) -> bytes:
        """One sample's tensors, one behind the other as raw bytes, at this codec's rate."""
        size = self._size()
        if len(data) != size:
            raise MeshError(Reason.TENSOR_SIZE_MISMATCH, f"{len(data)} bytes, the tensors that cross take {size}")
        flat, start, arrays = np.frombuffer(data, np.uint8), 0, []
        for spec in self._specs:
            arrays.append(flat[start : start + spec.size_bytes].reshape(spec.shape))
            start += spec.size_bytes
        return self._encode(arrays, self.rate)

    def decode(self, data: Buffer, size_bytes: int) -> bytes:
        """The raw bytes of what was encoded, coarse where its rate was; MeshError PAYLOAD_CORRUPT for anything else."""
        size = self._size()
        if size_bytes != size:
            raise _refused(f"{size_bytes} bytes are expected, the tensors that cross take {size}")
        data = bytes(data)
        if len(data) < HEADER_BYTES:
            raise _refused(f"{len(data)} bytes hold no rate and sum")
        rate = data[0]
        if rate >= len(self.tables.rates):
            raise _refused(f"rate {rate} is none of {len(self.tables.rates)}")
        plans = self.tables.plans(rate)
        sizes = [spec.size_bytes // count for spec, count in zip(self._specs, self.tables.channels, strict=True)]
        symbols = sum(len(plan.order) * each for plan, each in zip(plans, sizes, strict=True))
        coded = data[HEADER_BYTES:]
        if len(coded) > MOST_BYTES_PER_SYMBOL * symbols + 8:
            raise _refused(f"{len(coded)} bytes for {symbols} symbols")
        runs = [
            (model, (end - start) * each)
            for plan, each in zip(plans, sizes, strict=True)
            for start, end, model in plan.runs
        ]
        found = decoded(coded, runs)
        if found is None or self._sum(rate, found.astype(np.uint8).tobytes(), coded) != data[1:HEADER_BYTES]:
            raise _refused("it is damaged, or was coded with the tables of another version")
        parts, place = [], 0
        for tensor, (plan, each) in enumerate(zip(plans, sizes, strict=True)):
            count = len(plan.order) * each
            parts.append(self._rebuild(tensor, plan, found[place : place + count].reshape(-1, each)))
            place += count
        return b"".join(parts)

    def coarse(self, arrays: Sequence[Array], rate: int) -> list[NDArray[np.uint8]]:
        """What a receiver gets at this rate, for any number of samples, without coding."""
        result = []
        for tensor, (plan, array) in enumerate(zip(self.tables.plans(rate), arrays, strict=True)):
            rows = self._rows(tensor, array)
            kept = _look_up(plan.values, _look_up(plan.symbols, rows[plan.order]))
            result.append(self._place(tensor, plan, kept, array.shape))
        return result

    def size_bytes(self, arrays: Sequence[Array], rate: int) -> int:
        """Bytes of one sample's payload at this rate; its tensors in the wire's order, the first dimension 1."""
        return len(self._encode(arrays, rate))

    def _size(self) -> int:
        if any(-1 in spec.shape for spec in self._specs):
            raise MeshError(Reason.TENSOR_SHAPE_MISMATCH, "the sizes of what crosses vary: say them with `shaped`")
        return total_bytes(self._specs)

    def _encode(self, arrays: Sequence[Array], rate: int) -> bytes:
        every, runs = [], []
        for tensor, (plan, array) in enumerate(zip(self.tables.plans(rate), arrays, strict=True)):
            if array.shape[0] != 1:
                raise MeshError(Reason.TENSOR_SHAPE_MISMATCH, f"{array.shape[0]} samples; a payload holds one")
            symbols = _look_up(plan.symbols, self._rows(tensor, array)[plan.order])
            every.append(symbols)
            wide = symbols.astype(np.int32)
            runs += [(model, wide[start:end].reshape(-1)) for start, end, model in plan.runs]
        coded = encoded(runs)
        return bytes([rate]) + self._sum(rate, b"".join(part.tobytes() for part in every), coded) + coded

    def _sum(self, rate: int, symbols: bytes, coded: bytes) -> bytes:
        over = 0
        for part in (self.tables.digest, bytes([rate]), symbols, coded):
            over = google_crc32c.extend(over, part)
        return over.to_bytes(4, "little")

    def _rows(self, tensor: int, array: Array) -> Array:
        """Channels first, the rest in a row ``[channels, values]``."""
        axis, channels = self.tables.axes[tensor], self.tables.channels[tensor]
        spec = self._specs[tensor]
        if array.dtype != np.uint8 or array.ndim != len(spec.shape) or array.shape[axis] != channels:
            raise MeshError(
                Reason.TENSOR_SHAPE_MISMATCH,
                f"tensor {spec.name!r} is {array.dtype.name} {list(array.shape)}; uint8 with {channels} channels along "
                f"axis {axis} is coded",
            )
        return np.moveaxis(array, axis, 0).reshape(channels, -1)

    def _rebuild(self, tensor: int, plan: Plan, symbols: NDArray[np.int32]) -> bytes:
        return self._place(tensor, plan, _look_up(plan.values, symbols), self._specs[tensor].shape).tobytes()

    def _place(self, tensor: int, plan: Plan, kept: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Back to the tensor's own layout, channels that did not cross at their zero point."""
        axis = self.tables.axes[tensor]
        rest = shape[:axis] + shape[axis + 1 :]
        rows = np.empty((self.tables.channels[tensor], math.prod(rest)), np.uint8)
        rows[:] = self.tables.zero_points[tensor][:, None]
        rows[plan.order] = kept
        return np.ascontiguousarray(np.moveaxis(rows.reshape(len(rows), *rest), 0, axis))


def _look_up(table: NDArray[np.uint8], indices: Array) -> NDArray[np.uint8]:
    """``table`` is ``[1, 256]``, or has a row for each of the indices' rows."""
    if len(table) == 1:
        return np.asarray(table[0][indices])
    return np.asarray(table[np.arange(len(table))[:, None], indices])


def _refused(detail: str) -> MeshError:
    return MeshError(Reason.PAYLOAD_CORRUPT, f"payload refused: {detail}")
