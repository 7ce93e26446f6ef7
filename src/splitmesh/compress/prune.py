"""The step ``prune``: whole channels inside blocks go, and the layers behind them are fitted to what they gave before.

Which channels: a channel counts for as much as its variance over the fit samples, through the weights that read it, moves
the next layer; per layer the measures are brought to length 1 (Molchanov et al., Pruning Convolutional Neural Networks
for Resource Efficient Inference, ICLR 2017), and the smallest of all layers go. So layers with much redundancy give more.
The fitting is ``least_squares.py``, layer by layer against the original's outputs; the graph is ``prune_graph.py``'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from splitmesh.compress.least_squares import MAX_FEATURES, Equations, Matrix, Window
from splitmesh.compress.prune_graph import Block, Channels, Use, find_blocks, forget_unread, input_axis, put, take_out
from splitmesh.compress.recipe import Prune
from splitmesh.compress.recut import recut
from splitmesh.compress.whole_model import (
    compared,
    constants_stored,
    groups,
    in_order,
    initialisers,
    latency_figures,
    named_nodes,
    size_figures,
    spread,
    stream,
    usable,
)
from splitmesh.compress.work import BATCH, Context, Samples, Work
from splitmesh.errors import MeshError, Reason
from splitmesh.model.edit import Names
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model

IMPORTANCE_SAMPLES = 128
FIT_SAMPLES = 256
ROWS_PER_FEATURE = 8
"""Data per unknown, as far as the samples have it."""

MIN_ROWS = 4096
MAX_ROWS = 60_000

LANES = 8
"""Floats of a vector register, at least."""

MOST_OF_A_LAYER = 0.35
"""A layer may give so much more than the share asked for."""

Progress = Callable[[str, float], None]


def apply(work: Work, step: Prune, context: Context) -> Work:
    """The version with the share of its channels that can go gone, cut again where it was cut.

    Raises MeshError MODEL_OPERATOR_UNSUPPORTED when no channel can go; and what
    :func:`~splitmesh.compress.recut.recut` raises.
    """
    old = work.whole()
    model = prepared(old)
    blocks = find_blocks(model)
    if not blocks:
        raise MeshError(
            Reason.MODEL_OPERATOR_UNSUPPORTED,
            "nothing to prune: no float32 layer's channels are all used up by layers inside the model",
        )
    samples, threads = context.samples, context.threads
    context.progress("weighing channels", 0.0)
    keeps = choose(blocks, importance(model, blocks, samples, threads=threads), step.share)
    made, errors = pruned(model, blocks, keeps, samples, threads=threads, progress=context.progress)
    new = made.SerializeToString(deterministic=True)
    context.progress("measuring", 0.9)
    result = recut(work, new, context)
    _figures(model, made, blocks, keeps, context)
    size_figures(old, new, context)
    latency_figures(old, new, context)
    rows = usable(samples, samples.validation if len(samples.validation) else samples.fit)
    close = compared(old, new, samples, rows, work.manifest.class_output, threads=threads)
    if close.agreement is not None:
        context.figures["validation_agreement"] = close.agreement
    context.figures["validation_output_error"] = close.output_error
    context.remark(f"prune: {close.text()} (validation samples)")
    if errors:
        context.figures["layer_error_sliced"] = float(np.mean([before for before, _ in errors]))
        context.figures["layer_error_fitted"] = float(np.mean([after for _, after in errors]))
    context.progress("done", 1.0)
    return result


def prepared(data: bytes) -> ModelProto:
    """The model as :func:`~splitmesh.compress.prune_graph.find_blocks` takes it."""
    return named_nodes(in_order(constants_stored(load_model(data))))


def importance(
    model: ModelProto, blocks: Sequence[Block], samples: Samples, *, threads: int = 1
) -> list[NDArray[np.float64]]:
    """Per block ``[channels]``: the share of the next layers' inputs, as their weights see it, that each channel moves."""
    graph, weights = Graph(model), initialisers(model)
    nodes = {node.name: node for node in model.graph.node}
    uses = [(number, use) for number, block in enumerate(blocks) for use in block.users]
    names = list(dict.fromkeys(use.tensor for _, use in uses))
    axes = {use.tensor: use.layout.axis for _, use in uses}
    rows = spread(samples, samples.fit, IMPORTANCE_SAMPLES)
    spreads: dict[str, NDArray[np.float64]] = {}
    for group in groups(graph, names, BATCH):
        sums = {name: np.zeros((3, 1)) for name in group}
        for run in stream(model, group, samples, rows, threads=threads):
            for name, array in run.items():
                flat = np.moveaxis(array, axes[name], 0).reshape(array.shape[axes[name]], -1).astype(np.float64)
                counts = np.full(len(flat), flat.shape[1])
                sums[name] = sums[name] + np.stack([counts, flat.sum(axis=1), np.square(flat).sum(axis=1)])
        for name, (count, total, squares) in sums.items():
            spreads[name] = np.maximum(squares / count - np.square(total / count), 0.0)
    found = [np.zeros(block.channels) for block in blocks]
    for number, use in uses:
        weight = numpy_helper.to_array(weights[nodes[use.node].input[1]]).astype(np.float64)
        axis = input_axis(nodes[use.node])
        energy = np.square(np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)).sum(axis=1)
        share = (energy * spreads[use.tensor]).reshape(-1, use.layout.repeat).sum(axis=1)
        found[number] += share / max(share.sum(), 1e-30)
    return found


def choose(blocks: Sequence[Block], scores: Sequence[NDArray[np.float64]], share: float) -> list[Channels]:
    """Which channels stay, ascending, per block: about ``share`` of all go, of one block at most ``MOST_OF_A_LAYER`` more.

    What stays of a larger block is a multiple of ``LANES``: kernels compute as many at once, and are slower with a rest.
    """
    wanted = round(share * sum(block.channels for block in blocks))
    most = [min(block.channels - 1, math.ceil(min(share + MOST_OF_A_LAYER, 0.95) * block.channels)) for block in blocks]
    norms = [max(float(np.linalg.norm(np.sqrt(score))), 1e-30) for score in scores]
    order = sorted(
        (float(value), number)
        for number, (score, norm) in enumerate(zip(scores, norms, strict=True))
        for value in np.sqrt(score) / norm
    )
    gone = [0] * len(blocks)
    total, best, nearest = 0, list(gone), wanted
    for _, number in order:
        if gone[number] >= most[number]:
            continue
        block = blocks[number].channels
        total -= _in_lanes(block, gone[number])
        gone[number] += 1
        total += _in_lanes(block, gone[number])
        if abs(total - wanted) < nearest:
            nearest, best = abs(total - wanted), list(gone)
    keeps = []
    for found, score, count in zip(blocks, scores, best, strict=True):
        weakest = np.argsort(score, kind="stable")[: _in_lanes(found.channels, count)]
        keeps.append(np.setdiff1d(np.arange(found.channels, dtype=np.int64), weakest))
    return keeps


def _in_lanes(channels: int, gone: int) -> int:
    """How many go when what stays is rounded to whole lanes."""
    if channels < 2 * LANES:
        return gone
    stays = max(LANES, round((channels - gone) / LANES) * LANES)
    return channels - min(stays, channels)


def pruned(
    original: ModelProto,
    blocks: Sequence[Block],
    keeps: Sequence[Channels],
    samples: Samples,
    *,
    refit: bool = True,
    threads: int = 1,
    progress: Progress = lambda step, share: None,
) -> tuple[ModelProto, list[tuple[float, float]]]:
    """A copy with only these channels, and per layer that was fitted its output's relative error before and after.

    ``refit`` False leaves the weights that stay as they are.
    """
    made = ModelProto()
    made.CopyFrom(original)
    blocks = [replace(block, passes=dict(block.passes), tensors=dict(block.tensors)) for block in blocks]
    errors: list[tuple[float, float]] = []
    order = {node.name: number for number, node in enumerate(original.graph.node)}
    # From the input on: what an early layer loses, a later one is fitted to make up for.
    ranked = sorted(range(len(blocks)), key=lambda number: min(order[use.node] for use in blocks[number].users))
    for done, number in enumerate(ranked):
        block, keep = blocks[number], keeps[number]
        if len(keep) == block.channels:
            continue
        take_out(made, block, keep)
        forget_unread(made)
        progress("fitting layers", 0.1 + 0.8 * done / len(blocks))
        if refit:
            for use in sorted(block.users, key=lambda entry: order[entry.node]):
                error = _refit(original, made, use, blocks, samples, threads)
                if error is not None:
                    errors.append(error)
    return made, errors


def _refit(
    original: ModelProto, made: ModelProto, use: Use, blocks: Sequence[Block], samples: Samples, threads: int
) -> tuple[float, float] | None:
    node = next(entry for entry in made.graph.node if entry.name == use.node)
    weight = numpy_helper.to_array(initialisers(made)[node.input[1]])
    matrix = _as_matrix(node, weight)
    features, outputs = matrix.shape
    if features + 1 > MAX_FEATURES:
        return None
    window = Window.of(node, weight.shape[2:]) if node.op_type == "Conv" else None
    wanted = min(MAX_ROWS, max(MIN_ROWS, ROWS_PER_FEATURE * features))
    rows = spread(samples, samples.fit, FIT_SAMPLES)
    equations = Equations(features, outputs)
    target = node.output[0]
    random = np.random.default_rng(0)
    runs = zip(
        stream(made, [node.input[0]], samples, rows, threads=threads, alone=True),
        stream(original, [target], samples, rows, threads=threads, alone=True),
        strict=True,
    )
    for given, answers in runs:
        inputs, wants = _rows(given[node.input[0]], answers[target], window, wanted / len(rows), random)
        equations.add(inputs, wants)
    has_bias = len(node.input) > 2 and bool(node.input[2])
    bias = numpy_helper.to_array(initialisers(made)[node.input[2]]) if has_bias else np.zeros(outputs)
    fitted, offset, before, after = equations.solve(matrix, bias.astype(np.float64))
    names = Names(made)
    put(made, node, 1, _as_weight(node, fitted, weight.shape), names)
    if node.op_type != "MatMul":
        put(made, node, 2, offset.astype(np.float32), names)
    else:
        _add_offset(made, node, offset.astype(np.float32), names, blocks)
    forget_unread(made)
    return before, after


def _rows(
    given: NDArray[np.generic],
    answers: NDArray[np.generic],
    window: Window | None,
    per_sample: float,
    random: np.random.Generator,
) -> tuple[Matrix, Matrix]:
    """Some places of every sample: what the layer reads there, and what it gave."""
    if window is None:
        inputs = given.reshape(-1, given.shape[-1]).astype(np.float64)
        wants = answers.reshape(-1, answers.shape[-1]).astype(np.float64)
        count = min(len(inputs), math.ceil(per_sample * len(given)))
        chosen = np.sort(random.choice(len(inputs), count, replace=False))
        return inputs[chosen], wants[chosen]
    size = answers.shape[2:]
    count = min(math.prod(size), math.ceil(per_sample))
    places = np.sort(random.choice(math.prod(size), count, replace=False))
    flat = answers.reshape(*answers.shape[:2], -1)[:, :, places]
    wants = np.moveaxis(flat, 1, 2).reshape(-1, flat.shape[1]).astype(np.float64)
    return window.patches(given, places, size), wants


def _as_matrix(node: NodeProto, weight: NDArray[np.generic]) -> Matrix:
    """``[features, outputs]``."""
    if node.op_type == "Conv":
        return weight.reshape(len(weight), -1).T.astype(np.float64)
    return (weight.T if input_axis(node) == 1 else weight).astype(np.float64)


def _as_weight(node: NodeProto, matrix: Matrix, shape: tuple[int, ...]) -> NDArray[np.float32]:
    flipped = node.op_type == "Conv" or input_axis(node) == 1
    return (matrix.T if flipped else matrix).reshape(shape).astype(np.float32)


def _add_offset(
    model: ModelProto, node: NodeProto, offset: NDArray[np.float32], names: Names, blocks: Sequence[Block]
) -> None:
    """A product without a bias: the constant is added behind it, under the name that the readers know.

    Where the product makes a block itself, the constant has a value for each of the block's channels.
    """
    inner = names.fresh(f"{node.output[0]}_product")
    added = NodeProto(op_type="Add", name=names.fresh(f"{node.name}_offset"))
    added.input.append(inner)
    added.output.append(node.output[0])
    node.output[0] = inner
    put(model, added, 1, offset, names)
    position = next(at for at, entry in enumerate(model.graph.node) if entry.name == node.name)
    model.graph.node.insert(position + 1, added)
    for block in blocks:
        if node.name in block.makers:
            block.passes[added.name] = -1
            block.tensors[inner] = block.tensors[added.output[0]]


def _figures(
    before: ModelProto, after: ModelProto, blocks: Sequence[Block], keeps: Sequence[Channels], context: Context
) -> None:
    had, has = sum(block.channels for block in blocks), sum(len(keep) for keep in keeps)
    context.figures["channels_before"], context.figures["channels_after"] = float(had), float(has)
    for side, model in (("before", before), ("after", after)):
        context.figures[f"macs_{side}"] = float(sum(Graph(load_model(model.SerializeToString())).macs))
        context.figures[f"parameters_{side}"] = float(
            sum(math.prod(entry.dims) for entry in model.graph.initializer if entry.data_type == 1)
        )
    context.remark(
        f"{had - has} of the {had} channels that can go went, from {len(blocks)} blocks; "
        f"multiply-adds {context.figures['macs_before']:.3g} -> {context.figures['macs_after']:.3g}"
    )
