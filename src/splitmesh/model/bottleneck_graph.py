"""Writes a bottleneck into a cut: an encoder and 8-bit rounding end the head, the way back starts the tail.

Encoder and decoder are small ONNX models of their own; they are merged in under free names and brought to the opset of
the half they join. The tensor of the cut stays inside the head under its own name, where an exit reads it unrounded,
and is rebuilt under that name in the tail. Knows graphs; where encoder and decoder come from and whether the answers
survive is for others to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper, version_converter

from splitmesh.errors import MeshError, Reason
from splitmesh.model.edit import FLOAT_TYPES, Names, opset_of, value_info
from splitmesh.model.manifest import Quantisation
from splitmesh.model.operators import canonical_domain
from splitmesh.model.quantize import MIN_OPSET
from splitmesh.runtime import open_session
from splitmesh.tensor.spec import Array

MODERN_OPSET = 13
"""What a half is raised to when it is older than QuantizeLinear."""

_ANY = 16
"""What a dimension that varies is taken for when encoder and decoder are tried."""

_RANKS = (2, 3, 4)
"""``[n, features]``, ``[n, tokens, channels]``, ``[n, channels, height, width]``."""


def insert_bottleneck(
    head: ModelProto,
    tail: ModelProto,
    tensor: str,
    encoder: ModelProto,
    decoder: ModelProto,
    scale: float,
    zero_point: int,
) -> tuple[ModelProto, ModelProto, Quantisation]:
    """Copies of head and tail between which only the code of ``tensor`` crosses, as uint8, and how it is rounded.

    Args:
        head: gives ``tensor``; not rounded yet.
        tail: takes ``tensor`` by the same name.
        tensor: float, of rank 2 to 4.
        encoder: one float input, the tensor; one float output, the code: ``[n, channels, ...]``, tokens
            ``[n, tokens, channels]``.
        decoder: one float input, the code; one float output, the tensor rebuilt.
        scale: of the code's rounding, one for all of it: real = (q - zero_point) * scale.
        zero_point: 0..255.

    The head's output ``tensor`` becomes ``<tensor>.code.q8`` (or the next free name) at the same place. Other outputs
    of the head and other inputs of the tail stay as they are.

    Raises MeshError CUT_INVALID (head and tail do not share the tensor, it is no float tensor of rank 2 to 4, encoder or
    decoder do not have one float input and one float output, fit neither the tensor nor each other, or no such rounding
    exists), MODEL_OPERATOR_UNSUPPORTED (their opsets cannot be reconciled).
    """
    info = _require_shared(head, tail, tensor)
    _require_coder("encoder", encoder)
    _require_coder("decoder", decoder)
    _require_fit(info, encoder, decoder)
    if not (math.isfinite(scale) and 0 < np.float32(scale) < np.inf and 0 <= zero_point <= 255):
        raise _invalid(f"real = (q - {zero_point}) * {scale} is no rounding to 8 bits")
    head, encoder = _one_opset(head, encoder, "head")
    tail, decoder = _one_opset(tail, decoder, "tail")
    names = Names(head, tail)
    rule = Quantisation(
        tensor=names.fresh(f"{tensor}.code"),
        wire_tensor=names.fresh(f"{tensor}.code.q8"),
        dtype="uint8",
        scale=(float(np.float32(scale)),),
        zero_point=(int(zero_point),),
    )
    new_head = _with_encoder(head, info, encoder, rule, names)
    wire = _wire_info(new_head, tensor, rule, len(info.type.tensor_type.shape.dim))
    new_tail = _with_decoder(tail, info, decoder, rule, wire, names)
    for half in (new_head, new_tail):
        try:
            onnx.checker.check_model(half)
        except onnx.checker.ValidationError as error:
            detail = str(error).strip().partition("\n")[0]
            raise _invalid(f"with the bottleneck a half would be no valid model: {detail}") from error
    return new_head, new_tail, rule


def _require_shared(head: ModelProto, tail: ModelProto, tensor: str) -> ValueInfoProto:
    given, taken = ({entry.name for entry in side} for side in (head.graph.output, tail.graph.input))
    if tensor not in given or tensor not in taken:
        raise _invalid(f"{tensor!r} is not what the head gives and the tail takes")
    info = value_info(head, tensor)
    if info.type.tensor_type.elem_type not in FLOAT_TYPES:
        raise _invalid(f"{tensor!r} holds no floating-point numbers")
    if (rank := len(info.type.tensor_type.shape.dim)) not in _RANKS:
        raise _invalid(f"{tensor!r} has {rank} dimensions; a bottleneck takes 2, 3 or 4")
    return info


def _require_coder(what: str, model: ModelProto) -> None:
    constants = {entry.name for entry in model.graph.initializer}
    ends = ([entry for entry in model.graph.input if entry.name not in constants], list(model.graph.output))
    if any(len(side) != 1 or side[0].type.tensor_type.elem_type != TensorProto.FLOAT for side in ends):
        raise _invalid(f"the {what} needs one float32 input and one float32 output")
    if model.functions:
        raise _invalid(f"the {what} has functions of its own; inline them")


def _one_opset(half: ModelProto, coder: ModelProto, what: str) -> tuple[ModelProto, ModelProto]:
    """Copies of both with the same operator sets; the coder gives way where it can, being the smaller."""
    versions = (opset_of(half, at_least=1), opset_of(coder, at_least=1))
    target = versions[0] if versions[0] >= MIN_OPSET else MODERN_OPSET
    half = _converted(half, target) or _refuse(what, versions[0], target)
    lowered = _converted(coder, target)
    if lowered is None:
        half = _converted(half, versions[1]) or _refuse(what, versions[0], versions[1])
        lowered = _copy(coder)
    own = {canonical_domain(entry.domain): entry.version for entry in half.opset_import}
    for entry in lowered.opset_import:
        domain = canonical_domain(entry.domain)
        if own.setdefault(domain, entry.version) != entry.version:
            raise MeshError(
                Reason.MODEL_OPERATOR_UNSUPPORTED,
                f"{what} and bottleneck use versions {own[domain]} and {entry.version} of the operators {domain!r}",
            )
    del half.opset_import[:]
    half.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in own.items())
    half.ir_version = max(half.ir_version, lowered.ir_version, 4)
    return half, lowered


def _converted(model: ModelProto, version: int) -> ModelProto | None:
    """A copy at this opset; None where ONNX does not know how."""
    if opset_of(model, at_least=1) == version:
        return _copy(model)
    try:
        result = version_converter.convert_version(model, version)
        onnx.checker.check_model(result)
    except (RuntimeError, ValueError, onnx.checker.ValidationError):
        return None
    # The converter goes through its own representation; what it cannot say is lost, such as names of inputs.
    ends = [[[entry.name for entry in side] for side in (m.graph.input, m.graph.output)] for m in (model, result)]
    return result if ends[0][1] == ends[1][1] and set(ends[1][0]) <= set(ends[0][0]) else None


def _refuse(what: str, found: int, wanted: int) -> ModelProto:
    raise MeshError(
        Reason.MODEL_OPERATOR_UNSUPPORTED,
        f"the {what} uses opset {found} and cannot be brought to {wanted}; export the model with opset {wanted}",
    )


def _with_encoder(
    head: ModelProto, info: ValueInfoProto, encoder: ModelProto, rule: Quantisation, names: Names
) -> ModelProto:
    graph, source = head.graph, info.name
    if info.type.tensor_type.elem_type != TensorProto.FLOAT:
        source = names.fresh(f"{info.name}.float32")
        graph.node.append(helper.make_node("Cast", [info.name], [source], to=TensorProto.FLOAT))
    graph.node.extend(_merged(graph, encoder, source, rule.tensor, names, "encoder"))
    graph.node.append(_linear("QuantizeLinear", graph, names, rule.tensor, rule.wire_tensor, rule))
    position = [entry.name for entry in graph.output].index(info.name)
    if info.name not in {entry.name for entry in (*graph.input, *graph.value_info)}:
        graph.value_info.append(info)
    graph.output[position].CopyFrom(helper.make_tensor_value_info(rule.wire_tensor, TensorProto.UINT8, None))
    return head


def _wire_info(head: ModelProto, tensor: str, rule: Quantisation, rank: int) -> ValueInfoProto:
    """Type and shape of what crosses, written into the head's output too."""
    try:
        found = ValueInfoProto()
        found.CopyFrom(value_info(head, rule.wire_tensor))
    except MeshError as error:
        raise _invalid(f"the encoder does not fit {tensor!r}: {error.message}") from error
    dims = found.type.tensor_type.shape.dim
    channels = dims[2 if rank == 3 else 1] if len(dims) == rank else None
    if channels is None or not channels.HasField("dim_value"):
        raise _invalid(f"the encoder turns {tensor!r} into {len(dims)} dimensions or an unknown number of channels")
    (output,) = (entry for entry in head.graph.output if entry.name == rule.wire_tensor)
    output.CopyFrom(found)
    return found


def _with_decoder(
    tail: ModelProto,
    info: ValueInfoProto,
    decoder: ModelProto,
    rule: Quantisation,
    wire: ValueInfoProto,
    names: Names,
) -> ModelProto:
    graph, plain = tail.graph, info.name
    position = [entry.name for entry in graph.input].index(info.name)
    kept = ValueInfoProto()
    kept.CopyFrom(graph.input[position])
    graph.input[position].CopyFrom(wire)
    nodes = [_linear("DequantizeLinear", graph, names, rule.wire_tensor, rule.tensor, rule)]
    elem_type = info.type.tensor_type.elem_type
    if elem_type != TensorProto.FLOAT:
        plain = names.fresh(f"{info.name}.float32")
    nodes += _merged(graph, decoder, rule.tensor, plain, names, "decoder")
    if plain != info.name:
        nodes.append(helper.make_node("Cast", [plain], [info.name], to=elem_type))
    originals = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *originals])
    if info.name not in {entry.name for entry in (*graph.output, *graph.value_info)}:
        graph.value_info.append(kept)
    return tail


def _require_fit(info: ValueInfoProto, encoder: ModelProto, decoder: ModelProto) -> None:
    """Run both once on zeros: inference of shapes does not see every mismatch."""
    dims = info.type.tensor_type.shape.dim
    shape = [dim.dim_value or (1 if axis == 0 else _ANY) for axis, dim in enumerate(dims)]
    given: Array = np.zeros(shape, np.float32)
    for what, coder in (("encoder", encoder), ("decoder", decoder)):
        try:
            with closing(open_session(coder.SerializeToString())) as session:
                (given,) = session.run({session.inputs[0].name: given}).values()
        except MeshError as error:
            raise _invalid(f"the {what} does not fit {info.name!r} of shape {shape}: {error.message}") from error
        if what == "encoder" and (given.ndim != len(shape) or given.shape[0] != shape[0]):
            raise _invalid(f"the encoder turns {info.name!r} of shape {shape} into {list(given.shape)}")
    if list(given.shape) != shape:
        raise _invalid(f"the decoder gives {list(given.shape)} where {info.name!r} has {shape}")


def _merged(graph: GraphProto, coder: ModelProto, source: str, result: str, names: Names, what: str) -> list[NodeProto]:
    """The coder's nodes from ``source`` to ``result``; its weights go into ``graph``."""
    constants = {entry.name for entry in coder.graph.initializer}
    (given,) = (entry.name for entry in coder.graph.input if entry.name not in constants)
    mapping = {"": "", given: source}
    if coder.graph.output[0].name != given:
        mapping[coder.graph.output[0].name] = result

    def renamed(name: str) -> str:
        if name not in mapping:
            mapping[name] = names.fresh(f"bottleneck/{what}/{name}")
        return mapping[name]

    body = _copy(coder).graph
    _rename(body, renamed)
    for weight in body.initializer:
        weight.name = renamed(weight.name)
    for sparse in body.sparse_initializer:
        sparse.values.name = renamed(sparse.values.name)
    for node in body.node:
        node.name = names.fresh(f"bottleneck/{what}/{node.name or node.op_type}")
    graph.initializer.extend(body.initializer)
    graph.sparse_initializer.extend(body.sparse_initializer)
    nodes = list(body.node)
    if not any(result in node.output for node in nodes):  # a coder that hands its input on
        nodes.append(helper.make_node("Identity", [source], [result]))
    return nodes


def _rename(graph: GraphProto, renamed: Callable[[str], str]) -> None:
    for node in graph.node:
        for side in (node.input, node.output):
            for position, name in enumerate(side):
                side[position] = renamed(name)
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                for value in (*body.input, *body.output, *body.value_info):
                    value.name = renamed(value.name)
                for weight in body.initializer:
                    weight.name = renamed(weight.name)
                _rename(body, renamed)


def _linear(operator: str, graph: GraphProto, names: Names, source: str, result: str, rule: Quantisation) -> NodeProto:
    values = (np.float32(rule.scale[0]), np.uint8(rule.zero_point[0]))
    inputs = [source]
    for part, value in zip(("scale", "zero_point"), values, strict=True):
        inputs.append(names.fresh(f"{result}.{part}"))
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), inputs[-1]))
    return helper.make_node(operator, inputs, [result], name=names.fresh(f"{operator}/{result}"))


def _copy(model: ModelProto) -> ModelProto:
    copied = ModelProto()
    copied.CopyFrom(model)
    return copied


def _invalid(message: str) -> MeshError:
    return MeshError(Reason.CUT_INVALID, f"bottleneck refused: {message}")
