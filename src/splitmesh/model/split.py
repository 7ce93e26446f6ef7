"""Cuts a model in two at a :class:`~splitmesh.model.cuts.Cut`.

Both halves are complete models: initialisers, constants and shape arithmetic are copied to the side that uses them
and left out of the other. Shapes of tensors that live on the other side are rebuilt from the batch size, which every
cut tensor carries. An input in the cut is an output of the head by the same name, and an output computed in the head is
an input of the tail by the same name: ONNX allows both and runtimes copy. Quantisation and bottlenecks are added
elsewhere; here head + tail computes exactly what the whole does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from splitmesh.errors import MeshError, Reason
from splitmesh.model.cuts import Cut
from splitmesh.model.fold import shape_range
from splitmesh.model.graph import Graph
from splitmesh.model.partition import partition


@dataclass(frozen=True, slots=True)
class Split:
    """Head and tail; the head's outputs and the tail's inputs are the cut's tensors, in the cut's order."""

    head: onnx.ModelProto
    tail: onnx.ModelProto
    cut: Cut


def split_model(model: onnx.ModelProto | Graph, cut: Cut) -> Split:
    """Both halves of a model that :mod:`splitmesh.model.load` accepted, or of its graph when that exists already.

    Raises MeshError CUT_INVALID when the cut is not one of this model, MODEL_SHAPE_UNKNOWN when a shape that one side
    needs cannot be rebuilt there.
    """
    graph = model if isinstance(model, Graph) else Graph(model)
    sides = partition(graph, cut.tensors)
    if sides.missing or sides.unused or not sides.tail:
        raise MeshError(Reason.CUT_INVALID, f"{', '.join(cut.tensors)} does not separate this model")
    head = _half(graph, sides.head, graph.inputs, cut.tensors)
    tail = _half(graph, sides.tail, cut.tensors, graph.outputs)
    for name, half in (("head", head), ("tail", tail)):
        try:
            onnx.checker.check_model(half)
        except onnx.checker.ValidationError as error:
            detail = str(error).strip().partition("\n")[0]
            raise MeshError(Reason.CUT_INVALID, f"the {name} would not be a valid model: {detail}") from error
    return Split(head, tail, cut)


def _half(graph: Graph, nodes: frozenset[int], inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """The model that computes ``outputs`` from ``inputs`` with ``nodes`` and whatever replicated nodes they need."""
    local = set(inputs) | {name for node in nodes for name in graph.nodes[node].output}
    shapes = _Shapes(graph, inputs)
    wanted, initialisers = _needed(graph, nodes, outputs, local)
    body: list[onnx.NodeProto] = []
    for index in sorted(wanted):
        node = graph.nodes[index]
        body.extend(shapes.rebuilt(node) if _is_remote_shape(graph, node, local) else (node,))
    body = [*shapes.preamble, *body]

    source = graph.model.graph
    half = onnx.ModelProto()
    half.CopyFrom(_without_graph(graph.model))
    half.graph.name = source.name or "graph"
    half.graph.doc_string = source.doc_string
    half.graph.metadata_props.extend(source.metadata_props)
    half.graph.node.extend(body)
    half.graph.initializer.extend(init for init in source.initializer if init.name in initialisers)
    half.graph.initializer.extend(shapes.initialisers)
    half.graph.sparse_initializer.extend(s for s in source.sparse_initializer if s.values.name in initialisers)
    half.graph.input.extend(_boundary(graph, name) for name in inputs)
    half.graph.output.extend(_boundary(graph, name) for name in outputs)
    inner = {name for node in body for name in node.output} - set(inputs) - set(outputs)
    half.graph.value_info.extend(value for value in source.value_info if value.name in inner)
    present = inner | initialisers | set(inputs) | set(outputs)
    half.graph.quantization_annotation.extend(
        note for note in source.quantization_annotation if note.tensor_name in present
    )
    return half


def _needed(graph: Graph, nodes: frozenset[int], outputs: Sequence[str], local: set[str]) -> tuple[set[int], set[str]]:
    """``nodes`` and the replicated nodes behind them, and the initialisers they all read."""
    wanted, initialisers = set[int](), set[str]()
    pending = [name for name in outputs if name in graph.replicated]
    pending.extend(name for node in nodes for name in graph.reads[node])
    wanted.update(nodes)
    while pending:
        name = pending.pop()
        if name in graph.initialisers:
            initialisers.add(name)
        elif name in graph.replicated:
            index = graph.producers[name]
            if index not in wanted:
                wanted.add(index)
                if not _is_remote_shape(graph, graph.nodes[index], local):
                    pending.extend(graph.reads[index])
    return wanted, initialisers


def _is_remote_shape(graph: Graph, node: onnx.NodeProto, local: set[str]) -> bool:
    """Whether a node asks for the shape of a tensor that only the other side has."""
    return (
        node.op_type in ("Shape", "Size")
        and node.output[0] in graph.shape_only
        and node.input[0] not in graph.replicated
        and node.input[0] not in local
    )


class _Shapes:
    """Rebuilds shapes of absent tensors as ``per_sample * batch + fixed``, the batch read from an input of this
    side."""

    def __init__(self, graph: Graph, inputs: Sequence[str]) -> None:
        self._graph = graph
        self._inputs = inputs
        self._fresh = _name_maker(graph)
        self._batch = ""
        self.preamble: list[onnx.NodeProto] = []
        """Nodes that read the batch size, to run before all others."""
        self.initialisers: list[onnx.TensorProto] = []
        """What the rebuilt nodes read."""

    def rebuilt(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Nodes that make the same output as this ``Shape`` or ``Size`` without its input."""
        shape = [dim for dim in self._graph.shape(node.input[0]) or () if dim is not None]
        output = node.output[0]
        if node.op_type == "Size":
            size = np.asarray(np.prod([dim.fixed for dim in shape], dtype=np.int64))
            return [helper.make_node("Constant", [], [output], value=numpy_helper.from_array(size))]
        start, end = shape_range(node, len(shape))
        slopes = np.asarray([dim.per_sample for dim in shape[start:end]], dtype=np.int64)
        fixed = np.asarray([dim.fixed for dim in shape[start:end]], dtype=np.int64)
        if not slopes.any():
            return [helper.make_node("Constant", [], [output], value=numpy_helper.from_array(fixed))]
        scaled = self._fresh("scaled")
        return [
            helper.make_node("Mul", [self._batch_size(), self._constant("per_sample", slopes)], [scaled]),
            helper.make_node("Add", [scaled, self._constant("fixed", fixed)], [output]),
        ]

    def _batch_size(self) -> str:
        if not self._batch:
            shapes = {name: self._graph.shape(name) for name in self._inputs}
            source = next((name for name, shape in shapes.items() if shape and shape[0] and shape[0].is_batch), None)
            if source is None:
                raise MeshError(
                    Reason.MODEL_SHAPE_UNKNOWN, "no tensor of the cut carries the batch size the tail needs"
                )
            whole, self._batch = self._fresh("shape"), self._fresh("batch")
            first = self._constant("first", np.zeros(1, dtype=np.int64))
            self.preamble.append(helper.make_node("Shape", [source], [whole]))
            self.preamble.append(helper.make_node("Gather", [whole, first], [self._batch], axis=0))
        return self._batch

    def _constant(self, stem: str, value: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> str:
        name = self._fresh(stem)
        self.initialisers.append(numpy_helper.from_array(value, name))
        return name


def _name_maker(graph: Graph) -> Callable[[str], str]:
    taken = {*graph.producers, *graph.inputs, *graph.initialisers, *graph.inner}

    def fresh(stem: str) -> str:
        number = 0
        while (name := f"splitmesh/{stem}/{number}") in taken:
            number += 1
        taken.add(name)
        return name

    return fresh


def _without_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """Versions, opsets, producer and metadata; before IR version 4 every initialiser had to be an input too."""
    shell = onnx.ModelProto(
        ir_version=max(model.ir_version, 4),
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        domain=model.domain,
        model_version=model.model_version,
        doc_string=model.doc_string,
    )
    shell.opset_import.extend(model.opset_import)
    shell.metadata_props.extend(model.metadata_props)
    return shell


def _boundary(graph: Graph, name: str) -> onnx.ValueInfoProto:
    """The original declaration of an input or output; for a cut tensor, type and shape as inferred."""
    declared: Iterable[onnx.ValueInfoProto] = (*graph.model.graph.input, *graph.model.graph.output)
    for value in declared:
        if value.name == name:
            return value
    symbol = graph.batch_symbol or "batch"
    shape = graph.shape(name)
    dims: list[int | str | None] | None = None
    if shape is not None:
        dims = [
            None if dim is None else symbol if dim.is_batch else None if dim.per_sample else dim.fixed for dim in shape
        ]
    return helper.make_tensor_value_info(name, graph.elem_type(name), dims)
