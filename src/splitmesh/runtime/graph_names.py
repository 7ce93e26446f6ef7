"""How a model names what it takes and gives, read from its bytes: no onnx package is on a MEC host.

Some backends know a tensor by several names at once; which of them the model's file uses is asked here. Knows no shapes.
"""

from __future__ import annotations

from splitmesh.runtime.precision import fields

_GRAPH = 7
"""Of ONNX's ModelProto; what follows are fields of GraphProto and of what is listed there."""
_WEIGHT, _INPUT, _OUTPUT = 5, 11, 12
_NAME = 1
_WEIGHTS_NAME = 8


def graph_names(model: bytes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Inputs without those that have a value in the file, and outputs, in the file's order; empty for what is no model."""
    weights: set[str] = set()
    named: dict[int, list[str]] = {_INPUT: [], _OUTPUT: []}
    try:
        for number, graph in fields(memoryview(model)):
            if number != _GRAPH or not isinstance(graph, memoryview):
                continue
            for kind, entry in fields(graph):
                if kind == _WEIGHT and isinstance(entry, memoryview):
                    weights.update(_texts(entry, _WEIGHTS_NAME))
                elif kind in named and isinstance(entry, memoryview):
                    named[kind] += _texts(entry, _NAME)
    except (ValueError, IndexError):
        return (), ()
    return tuple(name for name in named[_INPUT] if name not in weights), tuple(named[_OUTPUT])


def _texts(message: memoryview, wanted: int) -> list[str]:
    return [
        bytes(value).decode() for number, value in fields(message) if number == wanted and isinstance(value, memoryview)
    ]
