"""Every place in an ONNX file where a node or a tensor can sit: graph, sub-graphs, functions, attributes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The graph and every sub-graph, those in functions included."""
    pending = [model.graph]
    for function in model.functions:
        pending.extend(_subgraphs(function.attribute_proto))
        pending.extend(graph for node in function.node for graph in _subgraphs(node.attribute))
    while pending:
        graph = pending.pop()
        yield graph
        pending.extend(sub for node in graph.node for sub in _subgraphs(node.attribute))


def _subgraphs(attributes: Iterable[onnx.AttributeProto]) -> Iterator[onnx.GraphProto]:
    for attribute in attributes:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def every_node(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Nodes of the graph, of sub-graphs and of functions."""
    for function in model.functions:
        yield from function.node
    for graph in _graphs(model):
        yield from graph.node


def _attributes(model: onnx.ModelProto) -> Iterator[onnx.AttributeProto]:
    for node in every_node(model):
        yield from node.attribute
    for function in model.functions:
        yield from function.attribute_proto


def sparse_tensors(model: onnx.ModelProto) -> Iterator[onnx.SparseTensorProto]:
    """Sparse initialisers and attributes."""
    for graph in _graphs(model):
        yield from graph.sparse_initializer
    for attribute in _attributes(model):
        if attribute.HasField("sparse_tensor"):
            yield attribute.sparse_tensor
        yield from attribute.sparse_tensors


def dense_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Initialisers and attributes, without the parts of sparse tensors."""
    for graph in _graphs(model):
        yield from graph.initializer
    for attribute in _attributes(model):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
