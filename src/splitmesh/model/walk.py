"""Every place in an ONNX file where a node, a tensor or a text can sit: graph, sub-graphs, functions, attributes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message


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


def has_invalid_text(message: Message) -> bool:
    """Whether a string anywhere in the message is not UTF-8 (protobuf then hands out bytes)."""
    for field, content in message.ListFields():
        if field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE):
            continue
        for item in content if field.is_repeated else (content,):
            if isinstance(item, bytes) or (isinstance(item, Message) and has_invalid_text(item)):
                return True
    return False
