"""What code that adds nodes to an ONNX model asks: which opset, which names are free, what type has a tensor.

Knows nothing of cuts, exits or quantisation.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto

from splitmesh.errors import MeshError, Reason
from splitmesh.model.shapes import infer

FLOAT_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
"""Element types that float32 arithmetic may stand in for."""


def opset_of(model: ModelProto, *, at_least: int) -> int:
    """The version of the default operator set; MeshError MODEL_OPERATOR_UNSUPPORTED below ``at_least``."""
    version = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if version < at_least:
        raise MeshError(
            Reason.MODEL_OPERATOR_UNSUPPORTED, f"the model uses opset {version}; at least {at_least} is needed here"
        )
    return version


class Names:
    """Hands out names that no tensor and no node of the given models has, subgraphs included."""

    def __init__(self, *models: ModelProto) -> None:
        self._taken = {name for model in models for name in _names(model.graph)}

    def fresh(self, wanted: str) -> str:
        """``wanted``, or with a number behind it when that is taken; the result is taken from now on."""
        name, number = wanted, 1
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name

    def __contains__(self, name: str) -> bool:
        return name in self._taken


def value_info(model: ModelProto, tensor: str) -> ValueInfoProto:
    """Type and shape of a tensor, inferred when not written in the model; its rank is known.

    MeshError CUT_INVALID when the model has no such tensor, MODEL_SHAPE_UNKNOWN when its rank cannot be inferred,
    MODEL_CORRUPT when shapes contradict.
    """
    graph = model.graph
    produced = {name for node in graph.node for name in node.output} | {entry.name for entry in graph.input}
    if tensor not in produced:
        raise MeshError(Reason.CUT_INVALID, f"the model has no tensor {tensor!r}")
    found = _written(graph, tensor) or _written(infer(model).graph, tensor)
    if found is None:
        raise MeshError(Reason.MODEL_SHAPE_UNKNOWN, f"the rank of tensor {tensor!r} cannot be inferred")
    return found


def _written(graph: GraphProto, tensor: str) -> ValueInfoProto | None:
    for entries in (graph.output, graph.value_info, graph.input):
        for entry in entries:
            if entry.name == tensor and entry.type.tensor_type.HasField("shape"):
                return entry
    return None


def _names(graph: GraphProto) -> Iterator[str]:
    for entries in (graph.input, graph.output, graph.initializer, graph.value_info):
        yield from (entry.name for entry in entries)
    for sparse in graph.sparse_initializer:
        yield sparse.values.name
    for node in graph.node:
        yield node.name
        yield from node.input
        yield from node.output
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _names(subgraph)
