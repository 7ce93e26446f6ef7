"""Every place in an ONNX file where a node, a tensor or a text can sit: graph, sub-graphs, functions, attributes.

Also what a node reads: its inputs, and for control flow (``If``, ``Loop``, ``Scan``) the names its bodies take from
outside.
"""

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


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's attributes: branches of an ``If``, the body of a ``Loop`` or ``Scan``."""
    return _subgraphs(node.attribute)


def reads(node: onnx.NodeProto) -> dict[str, None]:
    """Names of the tensors a node needs, without duplicates and in order: inputs, then what its bodies capture."""
    names = dict.fromkeys(name for name in node.input if name)
    for body in bodies(node):
        names.update(dict.fromkeys(captured(body)))
    return names


def captured(body: onnx.GraphProto) -> dict[str, None]:
    """Names a body uses and does not define; a body nested in it counts with what it captures in turn."""
    found: dict[str, None] = {}
    for node in body.node:
        found.update(reads(node))
    found.update(dict.fromkeys(value.name for value in body.output))
    inner = _defined(body)
    return {name: None for name in found if name and name not in inner}


def inner_names(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """Names of all tensors that live inside the bodies of ``nodes``, nested ones included."""
    for node in nodes:
        for body in bodies(node):
            yield from _defined(body)
            yield from inner_names(body.node)


def _defined(body: onnx.GraphProto) -> set[str]:
    names = {value.name for value in body.input} | {init.name for init in body.initializer}
    names.update(sparse.values.name for sparse in body.sparse_initializer)
    names.update(name for node in body.node for name in node.output if name)
    return names


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


def declared(model: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    """What the file says of the types of inputs, outputs and tensors between, in every graph and function."""
    for graph in _graphs(model):
        yield from (*graph.input, *graph.output, *graph.value_info)
    for function in model.functions:
        yield from function.value_info


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
