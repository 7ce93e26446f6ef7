"""Rounds the cut to 8 bits inside the graphs: QuantizeLinear ends the head, DequantizeLinear starts the tail.

So the runtime does the arithmetic and Python only moves bytes; a decoder gives the same bits on every machine. Knows
ranges of values, scales and graphs; whether the answers survive the rounding is for ``verify.py`` to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from splitmesh.errors import MeshError, Reason
from splitmesh.model.edit import FLOAT_TYPES, Names, opset_of, value_info
from splitmesh.model.manifest import Quantisation
from splitmesh.model.ranges import Affine, RangeCollector, Ranges, affine
from splitmesh.runtime import open_session
from splitmesh.tensor.spec import Array

MIN_OPSET = 10
"""QuantizeLinear exists from here on, with one scale per tensor."""

PER_AXIS_OPSET = 13
"""QuantizeLinear takes one scale per channel from here on."""


def calibrate(
    head: bytes,
    feeds: Iterable[Mapping[str, Array]],
    *,
    percentile: float | None = None,
    threads: int = 1,
) -> dict[str, Ranges]:
    """The range of every float output of ``head`` over ``feeds``, per channel, by tensor name.

    Args:
        head: the serialised head, not yet quantised.
        feeds: inputs of the head; the first dimension of every output is the batch.
        percentile: clip to this percentile at the top and its mirror at the bottom, e.g. 99.9; None: minimum, maximum.
        threads: of the session.

    Samples with NaN or infinity in a tensor do not count for it. Raises MeshError CALIBRATION_INSUFFICIENT when a
    tensor has no usable sample, FIELD_INVALID for a percentile outside 50..100.
    """
    session = open_session(head, threads=threads)
    try:
        collectors = {
            spec.name: RangeCollector(spec.name, percentile)
            for spec in session.outputs
            if spec.dtype.startswith("float")
        }
        for feed in feeds:
            outputs = session.run(feed)
            for name, collector in collectors.items():
                collector.add(outputs[name])
    finally:
        session.close()
    return {name: collector.ranges() for name, collector in collectors.items()}


def quantise_cut(
    head: ModelProto, tail: ModelProto, ranges: Mapping[str, Ranges], *, per_channel: bool = True
) -> tuple[ModelProto, ModelProto, tuple[Quantisation, ...]]:
    """Copies of head and tail between which the float tensors of the cut cross as uint8.

    The cut is what the head gives and the tail takes by the same name. The head's output ``t`` becomes ``t.q8`` (or the
    next free name) at the same place; ``t`` itself stays inside the head, where an exit reads it unrounded. Tensors of
    other types, the head's other outputs and the tail's other inputs stay as they are. Scales run along the channel
    axis; below opset 13 there is one per tensor.

    Raises MeshError CUT_INVALID when no tensor is shared, CALIBRATION_INSUFFICIENT when a float tensor has no range,
    TENSOR_SHAPE_MISMATCH when its range has another number of channels, MODEL_OPERATOR_UNSUPPORTED below opset 10.
    """
    opset = min(opset_of(head, at_least=MIN_OPSET), opset_of(tail, at_least=MIN_OPSET))
    wanted = {entry.name for entry in tail.graph.input}
    shared = [entry.name for entry in head.graph.output if entry.name in wanted]
    if not shared:
        raise MeshError(Reason.CUT_INVALID, "head and tail share no tensor")
    new_head, new_tail = ModelProto(), ModelProto()
    new_head.CopyFrom(head)
    new_tail.CopyFrom(tail)
    names = Names(head, tail)
    done, restored = [], []
    for tensor in shared:
        info = value_info(head, tensor)
        if info.type.tensor_type.elem_type not in FLOAT_TYPES:
            continue
        if tensor not in ranges:
            raise MeshError(Reason.CALIBRATION_INSUFFICIENT, f"no calibrated range for cut tensor {tensor!r}")
        rule = affine(ranges[tensor], per_channel=per_channel and opset >= PER_AXIS_OPSET)
        _require_channels(info, rule)
        wire = names.fresh(f"{tensor}.q8")
        _append_quantise(new_head.graph, names, info, wire, rule)
        restored += _dequantise(new_tail.graph, names, info, wire, rule)
        done.append(
            Quantisation(
                tensor=tensor,
                wire_tensor=wire,
                dtype="uint8",
                axis=rule.axis,
                scale=tuple(rule.scale.tolist()),
                zero_point=tuple(rule.zero_point.tolist()),
            )
        )
    originals = list(new_tail.graph.node)
    del new_tail.graph.node[:]
    new_tail.graph.node.extend([*restored, *originals])
    return new_head, new_tail, tuple(done)


def _require_channels(info: ValueInfoProto, rule: Affine) -> None:
    if rule.axis is None:
        return
    dims = info.type.tensor_type.shape.dim
    channels = dims[rule.axis].dim_value if rule.axis < len(dims) else 0
    if channels != len(rule.scale):
        raise MeshError(
            Reason.TENSOR_SHAPE_MISMATCH,
            f"{info.name!r} has {channels or 'an unknown number of'} channels, its range {len(rule.scale)}",
        )


def _append_quantise(graph: GraphProto, names: Names, info: ValueInfoProto, wire: str, rule: Affine) -> None:
    source = info.name
    if info.type.tensor_type.elem_type != TensorProto.FLOAT:
        source = names.fresh(f"{info.name}.float32")
        graph.node.append(helper.make_node("Cast", [info.name], [source], to=TensorProto.FLOAT))
    graph.node.append(_linear("QuantizeLinear", graph, names, source, wire, rule))
    position = [entry.name for entry in graph.output].index(info.name)
    kept = ValueInfoProto()
    kept.CopyFrom(graph.output[position])
    if info.name not in {entry.name for entry in (*graph.input, *graph.value_info)}:
        graph.value_info.append(kept)
    graph.output[position].CopyFrom(_as_uint8(info, wire))


def _dequantise(graph: GraphProto, names: Names, info: ValueInfoProto, wire: str, rule: Affine) -> list[NodeProto]:
    position = [entry.name for entry in graph.input].index(info.name)
    graph.input[position].CopyFrom(_as_uint8(graph.input[position], wire))
    elem_type = info.type.tensor_type.elem_type
    if elem_type == TensorProto.FLOAT:
        return [_linear("DequantizeLinear", graph, names, wire, info.name, rule)]
    wide = names.fresh(f"{info.name}.float32")
    return [
        _linear("DequantizeLinear", graph, names, wire, wide, rule),
        helper.make_node("Cast", [wide], [info.name], to=elem_type),
    ]


def _linear(operator: str, graph: GraphProto, names: Names, source: str, result: str, rule: Affine) -> NodeProto:
    scale, zero = names.fresh(f"{result}.scale"), names.fresh(f"{result}.zero_point")
    shape = () if rule.axis is None else (-1,)
    graph.initializer.append(numpy_helper.from_array(rule.scale.reshape(shape), scale))
    graph.initializer.append(numpy_helper.from_array(rule.zero_point.reshape(shape), zero))
    attributes: dict[str, Any] = {} if rule.axis is None else {"axis": rule.axis}
    return helper.make_node(
        operator, [source, scale, zero], [result], name=names.fresh(f"{operator}/{result}"), **attributes
    )


def _as_uint8(info: ValueInfoProto, name: str) -> ValueInfoProto:
    changed = ValueInfoProto()
    changed.CopyFrom(info)
    changed.name = name
    changed.type.tensor_type.elem_type = TensorProto.UINT8
    return changed
