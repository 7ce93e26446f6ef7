"""Whether a model's weights are float16, read from its bytes: no onnx package is on a MEC host.

Walks protobuf's wire format (protobuf.dev/programming-guides/encoding) down to the type of each weight and knows nothing
else of a model. What is no protobuf has no such weights here; the runtime refuses it with the right error.
"""

from __future__ import annotations

from collections.abc import Iterator

_GRAPH, _WEIGHT, _TYPE = 7, 5, 2
"""Fields of ONNX's ModelProto, GraphProto and TensorProto."""
_FLOAT16 = 10
"""``TensorProto.DataType.FLOAT16``."""
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5


def has_half_weights(model: bytes) -> bool:
    """Whether any weight of the graph is float16."""
    try:
        return any(
            entry == (_TYPE, _FLOAT16)
            for number, graph in fields(memoryview(model))
            if number == _GRAPH and isinstance(graph, memoryview)
            for kind, weight in fields(graph)
            if kind == _WEIGHT and isinstance(weight, memoryview)
            for entry in fields(weight)
        )
    except (ValueError, IndexError):
        return False


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field; of fixed sizes none. Raises ValueError or IndexError for what is no protobuf."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield number, value
        elif kind == _BYTES:
            size, at = _varint(message, at)
            if at + size > len(message):
                raise ValueError("ends inside a field")
            yield number, message[at : at + size]
            at += size
        elif kind in (_EIGHT, _FOUR):
            at += 8 if kind == _EIGHT else 4
        else:
            raise ValueError(f"wire type {kind}")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
