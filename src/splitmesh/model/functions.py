"""Model-local functions, replaced by what they compute.

Counts first how many operators the calls expand to: ten functions that call each other ten times each make ten thousand
million nodes from a kilobyte.
"""

from __future__ import annotations

import onnx
from onnx import inliner

from splitmesh.errors import MeshError, Reason

_Key = tuple[str, str]


def inlined(model: onnx.ModelProto, max_nodes: int) -> onnx.ModelProto:
    """``model`` without functions; MODEL_TOO_LARGE above ``max_nodes``, MODEL_CORRUPT when functions call themselves or two
    have one name."""
    if not model.functions:
        return model
    total = _expanded(model)
    if total > max_nodes:
        raise MeshError(
            Reason.MODEL_TOO_LARGE, f"the model's functions expand to {total} operators; at most {max_nodes}"
        )
    try:
        flat = inliner.inline_local_functions(model)
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        detail = str(error).strip().partition("\n")[0][:300]
        raise MeshError(Reason.MODEL_CORRUPT, f"the model's functions cannot be inlined: {detail}") from error
    if flat.functions:
        raise MeshError(Reason.MODEL_OPERATOR_UNSUPPORTED, "the model's functions need another opset than the model")
    return flat


def _expanded(model: onnx.ModelProto) -> int:
    bodies: dict[_Key, list[onnx.NodeProto]] = {(f.domain, f.name): list(f.node) for f in model.functions}
    sizes: dict[_Key, int] = {}
    open_calls: set[_Key] = set()

    def size(nodes: list[onnx.NodeProto]) -> int:
        return sum(called((node.domain, node.op_type)) for node in nodes)

    def called(key: _Key) -> int:
        if key not in bodies:
            return 1
        if key not in sizes:
            if key in open_calls:
                raise MeshError(Reason.MODEL_CORRUPT, f"function {key[1]!r} calls itself")
            if len(open_calls) > 100:
                raise MeshError(Reason.MODEL_TOO_LARGE, "functions are nested more than 100 deep")
            open_calls.add(key)
            sizes[key] = size(bodies[key])
            open_calls.discard(key)
        return sizes[key]

    return size(list(model.graph.node))
