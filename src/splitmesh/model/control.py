"""The bodies of ``If``, ``Loop`` and ``Scan`` as models of their own, so that shapes and limits hold inside them too.

A body sees what its node is given: what it captures by name, and what a ``Loop`` or ``Scan`` hands it. A value carried
from one turn to the next is taken to keep the shape it starts with; whoever relies on that asks :func:`carried` and
compares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx
from onnx import TensorProto, helper

from splitmesh.model.operators import CONTROL_FLOW, canonical_domain
from splitmesh.model.walk import bodies, captured

TensorTypes = Mapping[str, onnx.TypeProto.Tensor]

MAX_DEPTH = 4
"""Bodies inside bodies; each level costs another inference."""


def is_control(node: onnx.NodeProto) -> bool:
    """Whether a node is control flow."""
    return canonical_domain(node.domain) == "" and node.op_type in CONTROL_FLOW


def depth(nodes: Sequence[onnx.NodeProto]) -> int:
    """How many bodies lie inside one another; 0 without control flow."""
    return max((1 + depth(body.node) for node in nodes for body in bodies(node)), default=0)


def body_models(outer: onnx.ModelProto, types: TensorTypes) -> Iterator[tuple[onnx.NodeProto, onnx.ModelProto]]:
    """Each body of the graph's own control flow, with its node; shapes of what it is given are those in ``types``."""
    constants = {init.name: init for init in outer.graph.initializer}
    for node in outer.graph.node:
        if is_control(node):
            for body in bodies(node):
                yield node, _as_model(outer, constants, types, node, body)


def carried(node: onnx.NodeProto) -> list[tuple[str, int, int]]:
    """Values a ``Loop`` or ``Scan`` carries along: initial tensor, number of the body's output, of the node's output."""
    if node.op_type == "Loop":
        return [(name, 1 + index, index) for index, name in enumerate(node.input[2:])]
    if node.op_type == "Scan":
        states = len(node.input) - _attribute(node, "num_scan_inputs")
        return [(name, index, index) for index, name in enumerate(node.input[:states])]
    return []


def settled_outputs(
    node: onnx.NodeProto, found: Sequence[TensorTypes], types: TensorTypes
) -> dict[str, onnx.TypeProto.Tensor]:
    """Types of a node's outputs that follow from the types ``found`` inside each of its bodies, where they agree."""
    inside = list(zip(bodies(node), found, strict=True))
    settled: dict[str, onnx.TypeProto.Tensor] = {}
    if node.op_type == "If":
        for index, name in enumerate(node.output):
            if any(index >= len(body.output) for body, _ in inside):
                continue
            seen = [inner.get(body.output[index].name) for body, inner in inside]
            if seen[0] is not None and has_sizes(seen[0]) and all(tensor == seen[0] for tensor in seen):
                settled[name] = seen[0]
        return settled
    body, inner = inside[0]
    for initial, result, outer in carried(node):
        if result >= len(body.output):
            break
        before, after = types.get(initial), inner.get(body.output[result].name)
        if before is not None and has_sizes(before) and before == after and outer < len(node.output):
            settled[node.output[outer]] = before
    return settled


def has_sizes(tensor: onnx.TypeProto.Tensor | None) -> bool:
    """Whether every dimension is known."""
    if tensor is None or not tensor.HasField("shape"):
        return False
    dims: Sequence[onnx.TensorShapeProto.Dimension] = tensor.shape.dim
    return all(dim.HasField("dim_value") for dim in dims)


def _as_model(
    outer: onnx.ModelProto,
    constants: Mapping[str, TensorProto],
    types: TensorTypes,
    node: onnx.NodeProto,
    body: onnx.GraphProto,
) -> onnx.ModelProto:
    model = onnx.ModelProto(ir_version=outer.ir_version)
    model.opset_import.extend(outer.opset_import)
    graph = model.graph
    graph.CopyFrom(body)
    del graph.value_info[:]
    given = _given(node, body, types)
    for value in graph.input:
        if value.name in given:
            value.CopyFrom(given[value.name])
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    for name in captured(body):
        if name in constants:
            graph.initializer.append(constants[name])
        else:
            graph.input.append(_typed(name, types.get(name)))
    return model


def _given(node: onnx.NodeProto, body: onnx.GraphProto, types: TensorTypes) -> dict[str, onnx.ValueInfoProto]:
    """What a ``Loop`` or ``Scan`` passes to its body's inputs."""
    names = [value.name for value in body.input]
    found: dict[str, onnx.ValueInfoProto] = {}
    if node.op_type == "Loop" and len(names) >= 2:
        found[names[0]] = helper.make_tensor_value_info(names[0], TensorProto.INT64, [])
        found[names[1]] = helper.make_tensor_value_info(names[1], TensorProto.BOOL, [])
        names = names[2:]
    for name, (initial, _, _) in zip(names, carried(node), strict=False):
        found[name] = _typed(name, types.get(initial))
    if node.op_type == "Scan":
        states = len(carried(node))
        axes = [list(attr.ints) for attr in node.attribute if attr.name == "scan_input_axes"]
        for index, (name, source) in enumerate(zip(names[states:], node.input[states:], strict=False)):
            axis = axes[0][index] if axes and index < len(axes[0]) else 0
            found[name] = _without_axis(_typed(name, types.get(source)), axis)
    return found


def _without_axis(value: onnx.ValueInfoProto, axis: int) -> onnx.ValueInfoProto:
    tensor = value.type.tensor_type
    if tensor.HasField("shape"):
        if -len(tensor.shape.dim) <= axis < len(tensor.shape.dim):
            del tensor.shape.dim[axis]
        else:
            tensor.ClearField("shape")
    return value


def _typed(name: str, tensor: onnx.TypeProto.Tensor | None) -> onnx.ValueInfoProto:
    value = onnx.ValueInfoProto(name=name)
    if tensor is not None:
        value.type.tensor_type.CopyFrom(tensor)
    return value


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)
