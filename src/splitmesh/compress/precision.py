"""The steps ``fp16`` and ``int8``: another precision for the whole model; its inputs and outputs stay float32.

Ranges come from the fit samples, choices between variants from the validation samples. Both keep the names of tensors,
so that a split version can be cut again at the same place.
"""

from __future__ import annotations

import sys

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from splitmesh.compress import static_int8
from splitmesh.compress.recipe import Fp16, Int8
from splitmesh.compress.recut import recut
from splitmesh.compress.whole_model import (
    Likeness,
    compared,
    constants_stored,
    float_tensors,
    good_enough,
    groups,
    in_order,
    latency_figures,
    likeness,
    named_nodes,
    outputs,
    size_figures,
    spread,
    stream,
    usable,
)
from splitmesh.compress.work import Context, Rows, Work
from splitmesh.errors import MeshError, Reason
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model
from splitmesh.model.verify import ROUNDING
from splitmesh.model.walk import dense_tensors, every_node
from splitmesh.tensor.spec import Array

FP16_MAX = 65504.0
"""Largest finite float16."""

HEADROOM = 4.0
"""How far production may go beyond the calibration before a float16 overflows."""

RANGE_SAMPLES = 256
"""Fit samples that ranges of all tensors are taken from."""

_RANGE_BATCH = 4

_DELICATE = (
    *("Softmax", "LogSoftmax", "LayerNormalization", "InstanceNormalization", "ReduceMean", "ReduceSum"),
    *("Pow", "Exp", "Log", "Sqrt", "Reciprocal", "Div", "Erf"),
)
"""Operators that lose the most in 16 bits: kept in 32 where the plain conversion answers worse."""

_QUANTISED = ROUNDING | {"DequantizeLinear", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits"}


def apply_fp16(work: Work, step: Fp16, context: Context) -> Work:
    """Weights and arithmetic in float16, cut again where the version was cut.

    What holds values that float16 cannot (with ``HEADROOM``) stays float32 and is named. Raises MeshError
    MODEL_OPERATOR_UNSUPPORTED for a model that is not float32, whose inputs or outputs exceed float16, or that does not
    run as float16; and what :func:`~splitmesh.compress.recut.recut` raises.
    """
    old = work.whole()
    model = named_nodes(constants_stored(load_model(old)))
    _require_float32(model, "fp16")
    context.progress("looking for values that 16 bits cannot hold", 0.0)
    blocked = _beyond_half(model, context)
    context.progress("converting", 0.4)
    new, result = _half(old, model, blocked, (), work, context)
    if not good_enough(result, context.budget):
        careful, better = _half(old, model, blocked, _DELICATE, work, context)
        if _closer(better, result):
            context.remark("softmax, normalisation and the like stay float32: in 16 bits the answers were worse")
            new, result = careful, better
    context.progress("measuring", 0.7)
    return _finished(work, new, result, "fp16", context)


def apply_int8(work: Work, step: Int8, context: Context) -> Work:
    """Static 8-bit arithmetic as QDQ, calibrated on the fit samples, cut again where the version was cut.

    Where the plain result answers worse on the validation samples, ranges without outliers and then leaving out the
    layers that lose most are tried. Raises MeshError MODEL_OPERATOR_UNSUPPORTED for a model that is not float32, is
    quantised already, has nothing to quantise or does not run afterwards; and what recut raises.
    """
    old = work.whole()
    model = load_model(old)
    _require_float32(model, "int8")
    wanted = outputs(old, context.samples, _validation(context), threads=context.threads)

    def judge(candidate: bytes) -> Likeness:
        load_model(candidate)
        answers = outputs(candidate, context.samples, _validation(context), threads=context.threads)
        _require_finite(answers, "int8")
        return likeness(wanted, answers, work.manifest.class_output)

    keep = {info.name for hop in (work.manifest.split.hops() if work.manifest.split else ()) for info in hop.cut}
    new, result = static_int8.quantised(old, step.per_channel, keep, judge, context)
    context.progress("measuring", 0.8)
    return _finished(work, new, result, "int8", context)


def _finished(work: Work, new: bytes, result: Likeness, kind: str, context: Context) -> Work:
    made = recut(work, new, context)
    size_figures(work.whole(), new, context)
    latency_figures(work.whole(), new, context)
    if result.agreement is not None:
        context.figures["validation_agreement"] = result.agreement
    context.figures["validation_output_error"] = result.output_error
    context.remark(f"{kind}: {result.text()} (validation samples)")
    context.progress("done", 1.0)
    return made


def _require_float32(model: ModelProto, kind: str) -> None:
    found = {node.op_type for node in every_node(model)} & _QUANTISED
    if found:
        problem = f"is quantised already ({', '.join(sorted(found)[:5])})"
    elif any(tensor.data_type == TensorProto.FLOAT16 for tensor in dense_tensors(model)):
        problem = "has 16-bit weights already"
    elif not any(tensor.data_type == TensorProto.FLOAT for tensor in dense_tensors(model)):
        problem = "has no float32 weights"
    else:
        return
    raise MeshError(Reason.MODEL_OPERATOR_UNSUPPORTED, f"{kind} needs a float32 model: this one {problem}")


def _validation(context: Context) -> Rows:
    """The rows choices are made on; a small set without any decides on the fit samples."""
    samples = context.samples
    rows = samples.validation if len(samples.validation) else samples.fit
    return usable(samples, rows)


def _closer(first: Likeness, second: Likeness) -> bool:
    return (first.agreement or 0.0, -first.output_error) > (second.agreement or 0.0, -second.output_error)


def _require_finite(answers: dict[str, Array], kind: str) -> None:
    for name, array in answers.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise MeshError(Reason.MODEL_OPERATOR_UNSUPPORTED, f"as {kind} the model's output {name!r} is not finite")


def _beyond_half(model: ModelProto, context: Context) -> set[str]:
    """Names of nodes that must stay float32: they make, read or hold values too large for float16."""
    graph = Graph(model)
    names = float_tensors(graph)
    rows = spread(context.samples, context.samples.fit, RANGE_SAMPLES)
    largest = dict.fromkeys(names, 0.0)
    for group in groups(graph, names, _RANGE_BATCH):
        runs = stream(model, group, context.samples, rows, threads=context.threads, batch=_RANGE_BATCH)
        for run in runs:
            for name, array in run.items():
                largest[name] = max(largest[name], float(np.abs(array).max(initial=0.0)))
    for entry in model.graph.initializer:
        if entry.data_type == TensorProto.FLOAT:
            # A weight does not grow in production.
            size = float(np.abs(numpy_helper.to_array(entry)).max(initial=0.0))
            largest[entry.name] = 0.0 if size <= FP16_MAX else size
    # Written so that what is not a number counts as too large.
    large = {name for name, value in largest.items() if not value <= FP16_MAX / HEADROOM}
    at_the_rim = sorted(large & {*graph.inputs, *graph.outputs})
    if at_the_rim:
        raise MeshError(
            Reason.MODEL_OPERATOR_UNSUPPORTED,
            f"{at_the_rim[0]!r} holds values up to {largest[at_the_rim[0]]:.3g}: too large for 16-bit floats",
        )
    blocked = {node.name for node in graph.nodes if large & {*node.input, *node.output}}
    if blocked:
        context.remark(
            f"{len(blocked)} of {len(graph.nodes)} operators stay float32: values up to "
            f"{max(largest[name] for name in large):.3g} are too large for 16 bits ({', '.join(sorted(large)[:3])})"
        )
    context.figures["operators_kept_float32"] = float(len(blocked))
    return blocked


def _half(
    old: bytes, model: ModelProto, blocked: set[str], operators: tuple[str, ...], work: Work, context: Context
) -> tuple[bytes, Likeness]:
    copy = ModelProto()
    copy.CopyFrom(model)
    try:
        new = in_order(_without_detours(_converted(copy, blocked, operators))).SerializeToString(deterministic=True)
        load_model(new)
        answers = outputs(new, context.samples, _validation(context), threads=context.threads)
    except MeshError as error:
        raise MeshError(
            Reason.MODEL_OPERATOR_UNSUPPORTED, f"the model does not run as fp16: {error.message}"
        ) from error
    _require_finite(answers, "fp16")
    return new, compared(
        old, new, context.samples, _validation(context), work.manifest.class_output, threads=context.threads
    )


def _converted(model: ModelProto, blocked: set[str], operators: tuple[str, ...]) -> ModelProto:
    # Importing its package puts a folder of scripts on the path, for good.
    path = list(sys.path)
    try:
        from onnxruntime.transformers import float16
    finally:
        sys.path[:] = path
    try:
        made: ModelProto = float16.convert_float_to_float16(
            model,
            keep_io_types=True,
            op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *operators],
            node_block_list=sorted(blocked),
        )
    # A converter for well-meant models: whatever it stumbles over, the model cannot be converted.
    except Exception as error:
        raise MeshError(
            Reason.MODEL_OPERATOR_UNSUPPORTED, f"the conversion fails ({type(error).__name__}: {str(error)[:200]})"
        ) from error
    return made


def _without_detours(model: ModelProto) -> ModelProto:
    """Between two operators that stay float32 the converter goes through 16 bits, which would overflow; changes the model."""
    nodes = model.graph.node
    casts = {
        node.output[0]: (node.input[0], next(entry.i for entry in node.attribute if entry.name == "to"))
        for node in nodes
        if node.op_type == "Cast"
    }
    full = {  # float32 before it was made 16 bits, by its name as float32 again
        name: casts[source][0]
        for name, (source, to) in casts.items()
        if to == TensorProto.FLOAT and source in casts and casts[source][1] == TensorProto.FLOAT16
    }
    ends = {value.name for value in model.graph.output}
    for node in nodes:
        node.input[:] = [full.get(name, name) for name in node.input]
    while True:
        read = {name for node in every_node(model) for name in node.input} | ends
        kept = [node for node in nodes if node.op_type != "Cast" or node.output[0] in read]
        if len(kept) == len(nodes):
            return model
        copies = [NodeProto.FromString(node.SerializeToString()) for node in kept]
        del nodes[:]
        nodes.extend(copies)
