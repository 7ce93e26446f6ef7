"""Static 8-bit quantisation with onnxruntime, and what is tried where it costs answers.

Activations are uint8, weights int8 of 7 bits: the kernels of processors without VNNI add two products in 16 bits, which
8-bit weights can overflow, and an edge host's processor is not known here. Knows no versions and no cuts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from splitmesh.compress.whole_model import Likeness, float_tensors, good_enough, groups, named_nodes, spread, stream
from splitmesh.compress.work import Context
from splitmesh.errors import MeshError, Reason
from splitmesh.model.graph import Graph
from splitmesh.tensor.spec import Array

CALIBRATION_SAMPLES = 512
PERCENTILE_SAMPLES = 64
SENSITIVITY_SAMPLES = 16

PERCENTILE = 99.95
"""Of a tensor's values that a range without outliers holds, on either side."""

EXCLUDED_SHARES = (0.1, 0.25, 0.5)
"""Of the layers with weights, left in float32 one after the other until the answers are good enough."""

_BATCH = 4

_VALUES_PER_RUN = 50_000
"""Of one tensor, drawn for a percentile: bounds the memory."""

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

_OPERATORS = (
    *_LAYERS,
    *("Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Mul", "Pad"),
    *("Relu", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
)
"""With 8-bit kernels, or passing 8-bit values through. Softmax and normalisation lose too much for what they cost."""

Judge = Callable[[bytes], Likeness]
"""How close a candidate's answers are to the original's, on validation samples."""


def quantised(old: bytes, per_channel: bool, keep: set[str], judge: Judge, context: Context) -> tuple[bytes, Likeness]:
    """The best of what was tried, and how close it is.

    Args:
        old: a float32 model.
        per_channel: one scale per output channel of a weight.
        keep: tensors that must keep their names.
        judge: see :data:`Judge`; may raise.
        context: fit samples, folder, budget, remarks.

    Raises MeshError MODEL_OPERATOR_UNSUPPORTED when nothing can be quantised or no candidate runs.
    """
    context.progress("preparing the graph", 0.0)
    prepared = _prepared(old, keep, context.folder)
    layers = [node for node in prepared.graph.node if node.op_type in _LAYERS]
    if not layers:
        raise MeshError(
            Reason.MODEL_OPERATOR_UNSUPPORTED, f"nothing to quantise: the model has none of {', '.join(_LAYERS)}"
        )
    settings = _Settings(prepared, per_channel, context)
    context.progress("calibrating", 0.1)
    best = _judged(settings.build({}, ()), judge)
    plain = best
    if good_enough(best[1], context.budget):
        return best
    context.progress("ranges without outliers", 0.4)
    ranges: Mapping[str, tuple[float, float]] = _percentiles(prepared, context)
    clipped = _judged(settings.build(ranges, ()), judge)
    tried = "ranges without outliers"
    if _key(clipped[1]) > _key(best[1]):
        best = clipped
    else:
        ranges, tried = {}, "the full ranges"
    ranked = _by_sensitivity(prepared, best[0], [node.name for node in layers], context)
    for number, share in enumerate(EXCLUDED_SHARES):
        if good_enough(best[1], context.budget):
            break
        context.progress("leaving out sensitive layers", 0.5 + 0.1 * number)
        left = ranked[: max(1, round(share * len(ranked)))]
        candidate = _judged(settings.build(ranges, left), judge)
        if _key(candidate[1]) > _key(best[1]):
            best = candidate
            tried = f"{len(left)} of {len(ranked)} layers left in float32 ({', '.join(left[:3])})"
    if best is not plain:
        context.remark(f"int8: min-max ranges for all layers were worse ({plain[1].text()}); taken instead: {tried}")
    return best


class _Settings:
    """One prepared model, quantised in several ways."""

    def __init__(self, prepared: ModelProto, per_channel: bool, context: Context) -> None:
        self._prepared = prepared
        self._per_channel = per_channel
        self._context = context

    def build(self, ranges: Mapping[str, tuple[float, float]], left_out: Sequence[str]) -> bytes:
        samples = self._context.samples
        rows = spread(samples, samples.fit, CALIBRATION_SAMPLES)
        source, target = (self._context.folder / name for name in ("prepared.onnx", "int8.onnx"))
        onnx.save_model(self._prepared, str(source))
        try:
            with _quiet():
                quantize_static(
                    str(source),
                    str(target),
                    _Reader(iter(samples.feeds(rows, batch=_BATCH))),
                    quant_format=QuantFormat.QDQ,
                    op_types_to_quantize=list(_OPERATORS),
                    per_channel=self._per_channel,
                    reduce_range=True,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    nodes_to_exclude=_with_feeders(self._prepared, left_out),
                    extra_options=self._options(ranges),
                )
            return target.read_bytes()
        # A tool for well-meant models: whatever it stumbles over, the model cannot be quantised.
        except Exception as error:
            raise MeshError(
                Reason.MODEL_OPERATOR_UNSUPPORTED,
                f"the model cannot be quantised ({type(error).__name__}: {str(error)[:200]})",
            ) from error
        finally:
            source.unlink(missing_ok=True)
            target.unlink(missing_ok=True)

    def _options(self, ranges: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
        # Kept: without its ReLU a tensor before the rounding holds other values, and the version may be cut there.
        options: dict[str, Any] = {"QDQKeepRemovableActivations": True}
        last = {value.name for value in self._prepared.graph.output}
        kinds = [node.op_type for node in self._prepared.graph.node if last & set(node.output)]
        # Scores in 256 steps would tie; only where no inner layer shares the operator.
        lone = [
            kind for kind in kinds if sum(n.op_type == kind for n in self._prepared.graph.node) == kinds.count(kind)
        ]
        if lone:
            options["OpTypesToExcludeOutputQuantization"] = sorted(set(lone))
        if ranges:
            options["TensorQuantOverrides"] = {
                name: [{"rmin": np.float32(low), "rmax": np.float32(high)}] for name, (low, high) in ranges.items()
            }
        return options


class _Reader(CalibrationDataReader):
    """Feeds, made when they are asked for."""

    def __init__(self, feeds: Iterator[Mapping[str, Array]]) -> None:
        self._feeds = feeds

    def get_next(self) -> Mapping[str, Array] | None:
        return next(self._feeds, None)


def _judged(candidate: bytes, judge: Judge) -> tuple[bytes, Likeness]:
    try:
        return candidate, judge(candidate)
    except MeshError as error:
        raise MeshError(
            Reason.MODEL_OPERATOR_UNSUPPORTED, f"the quantised model does not run: {error.message}"
        ) from error


def _key(result: Likeness) -> tuple[float, float]:
    return (result.agreement or 0.0, -result.output_error)


def _prepared(old: bytes, keep: set[str], folder: Path) -> ModelProto:
    """Shapes inferred and batch normalisation folded, unless that takes a tensor which must stay."""
    source, target = folder / "source.onnx", folder / "inferred.onnx"
    source.write_bytes(old)
    try:
        for skip in (False, True):
            with _quiet():
                quant_pre_process(str(source), str(target), skip_optimization=skip, skip_symbolic_shape=True)
            model = onnx.load_model(str(target))
            if keep <= {name for node in model.graph.node for name in node.output} | {
                v.name for v in model.graph.input
            }:
                break
        return named_nodes(model)
    except Exception as error:
        raise MeshError(
            Reason.MODEL_OPERATOR_UNSUPPORTED,
            f"the model cannot be prepared for quantisation ({type(error).__name__}: {str(error)[:200]})",
        ) from error
    finally:
        source.unlink(missing_ok=True)
        target.unlink(missing_ok=True)


def _percentiles(model: ModelProto, context: Context) -> dict[str, tuple[float, float]]:
    """Ranges that leave outliers out, widened to hold 0, of every tensor an operator to quantise reads or makes."""
    graph = Graph(model)
    touched = {
        name for node in graph.nodes if node.op_type in _OPERATORS for name in (*node.input, *node.output) if name
    }
    names = [name for name in float_tensors(graph) if name in touched]
    rows = spread(context.samples, context.samples.fit, PERCENTILE_SAMPLES)
    random = np.random.default_rng(0)
    found: dict[str, tuple[float, float]] = {}
    for group in groups(graph, names, PERCENTILE_SAMPLES):
        values: dict[str, list[Array]] = {name: [] for name in group}
        for run in stream(model, group, context.samples, rows, threads=context.threads, batch=_BATCH):
            for name, array in run.items():
                flat = array.reshape(-1)
                if flat.size > _VALUES_PER_RUN:
                    flat = flat[random.integers(0, flat.size, _VALUES_PER_RUN)]
                values[name].append(flat)
        for name, parts in values.items():
            low, high = np.percentile(np.concatenate(parts), [100 - PERCENTILE, PERCENTILE])
            if high - low > 0:
                found[name] = (min(float(low), 0.0), max(float(high), 0.0))
    return found


def _with_feeders(model: ModelProto, layers: Sequence[str]) -> list[str]:
    """These layers and what makes their inputs: as long as that is quantised, so is what they read."""
    nodes = {node.name: node for node in model.graph.node}
    makers = {name: node for node in model.graph.node for name in node.output}
    found = dict.fromkeys(layers)
    for layer in layers:
        maker = makers.get(nodes[layer].input[0])
        while maker is not None:
            found[maker.name] = None
            maker = None if maker.op_type in (*_LAYERS, "Add", "Concat") else makers.get(maker.input[0])
    return list(found)


def _by_sensitivity(model: ModelProto, made: bytes, layers: Sequence[str], context: Context) -> list[str]:
    """Layers by the error that they add to what comes in with errors already, the worst first."""
    graph, other = Graph(model), onnx.load_model_from_string(made)
    there = {name for node in other.graph.node for name in node.output} | {value.name for value in other.graph.input}
    nodes = [node for node in graph.nodes if node.name in set(layers)]
    names = list(dict.fromkeys(name for node in nodes for name in (node.input[0], node.output[0]) if name in there))
    rows = spread(context.samples, context.samples.fit, SENSITIVITY_SAMPLES)
    gap, size = dict.fromkeys(names, 0.0), dict.fromkeys(names, 1e-30)
    for group in groups(graph, names, 2 * _BATCH):
        runs = (stream(m, group, context.samples, rows, threads=context.threads, batch=_BATCH) for m in (model, other))
        for wanted, got in zip(*runs, strict=True):
            for name in group:
                gap[name] += float(np.square(wanted[name].astype(np.float64) - got[name].astype(np.float64)).sum())
                size[name] += float(np.square(wanted[name].astype(np.float64)).sum())
    error = {name: gap[name] / size[name] for name in names}
    added = {node.name: error.get(node.output[0], 0.0) - error.get(node.input[0], 0.0) for node in nodes}
    return sorted(added, key=lambda name: (-added[name], name))


@contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's tools advise on the root logger; what matters is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
