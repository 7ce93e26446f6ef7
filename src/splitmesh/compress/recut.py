"""A version with another whole model: where it was split it is cut again at the same tensors, verified.

Tools rename tensors. A cut tensor whose name the new model does not know is looked for by what it holds: the tensor of
the same shape whose values on a few samples are nearest. What was built on the old segments (rounding, bottleneck,
tables, exits, stages, leakage) does not hold for new ones and goes; those steps come behind in every recipe.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import ModelProto

from splitmesh.compress.whole_model import spread, stream
from splitmesh.compress.work import Context, Work
from splitmesh.errors import MeshError, Reason
from splitmesh.model.artifacts import split_bytes, tensor_infos
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model
from splitmesh.model.manifest import WHOLE, Manifest, SegmentInfo
from splitmesh.tensor.spec import Array

VERIFY_SAMPLES = 24
"""Real samples the new segments are compared with the new whole on."""

PLACE_SAMPLES = 8
"""Samples a renamed tensor is looked for with."""

SAME_PLACE = 0.2
"""Largest root mean square difference of the values, as a share of theirs, of a tensor taken for the same one."""


def recut(work: Work, new_whole: bytes, context: Context) -> Work:
    """The version with ``new_whole`` as its whole, cut where it was cut.

    Labels, preparation and task stay. Raises MeshError CUT_INVALID when the new model has no such place or another
    interface, and what loading and splitting raise.
    """
    model = load_model(new_whole)
    graph = Graph(model)
    fresh = _whole_only(work.manifest, graph)
    split = work.manifest.split
    if split is None:
        return Work(fresh, {WHOLE: new_whole})
    cuts = [[info.name for info in hop.cut] for hop in split.hops()]
    places = _places(work, model, cuts, context)
    try:
        made, artifacts = _split(new_whole, places, fresh, context)
    except MeshError as error:
        behind = [[_behind_rounding(graph, name) for name in cut] for cut in places]
        if error.reason is not Reason.CUT_INVALID or behind == places:
            raise
        made, artifacts = _split(new_whole, behind, fresh, context)
    _remark_dropped(work.manifest, context)
    return Work(fresh.model_copy(update={"split": made.split}), artifacts)


def _split(
    whole: bytes, places: Sequence[Sequence[str]], fresh: Manifest, context: Context
) -> tuple[Manifest, dict[str, bytes]]:
    first, *further = places
    try:
        return split_bytes(
            whole,
            first,
            preprocess=fresh.preprocess,
            labels=fresh.labels,
            feeds=_feeds(context),
            further=further,
        )
    except MeshError as error:
        if error.reason is not Reason.SPLIT_NOT_EQUAL:
            raise
        raise MeshError(
            Reason.CUT_INVALID, f"the changed model cannot be cut at {', '.join(first)}: {error.message}"
        ) from error


def _behind_rounding(graph: Graph, name: str) -> str:
    """The tensor after it was rounded and restored, where everything reads that: head and tail may both need it."""
    found = name
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        readers = graph.consumers.get(found, ())
        if len(readers) != 1 or graph.nodes[readers[0]].op_type != kind:
            return name
        found = graph.nodes[readers[0]].output[0]
    return found


def as_whole(work: Work, new_whole: bytes, context: Context) -> Work:
    """The version with ``new_whole`` and no split: for a model that has none of the old one's tensors."""
    fresh = _whole_only(work.manifest, Graph(load_model(new_whole)))
    if work.manifest.split is not None:
        at = ", ".join(info.name for info in work.manifest.split.cut)
        context.remark(
            f"the version was cut at {at}, which the new model does not have: it is whole again, cut it anew"
        )
        _remark_dropped(work.manifest, context)
    return Work(fresh, {WHOLE: new_whole})


def _whole_only(manifest: Manifest, graph: Graph) -> Manifest:
    """The manifest of the new whole alone; MeshError CUT_INVALID when callers would notice the change."""
    info = SegmentInfo(
        artifact=WHOLE, inputs=tensor_infos(graph, graph.inputs), outputs=tensor_infos(graph, graph.outputs)
    )
    for side, before, after in (
        ("inputs", manifest.whole.inputs, info.inputs),
        ("outputs", manifest.whole.outputs, info.outputs),
    ):
        had, has = ([(entry.name, entry.dtype, len(entry.shape)) for entry in infos] for infos in (before, after))
        if had != has:
            raise MeshError(Reason.CUT_INVALID, f"the changed model has the {side} {has}, the version had {had}")
    return Manifest(task=manifest.task, labels=manifest.labels, preprocess=manifest.preprocess, whole=info)


def _remark_dropped(manifest: Manifest, context: Context) -> None:
    split = manifest.split
    built = {
        "the rounding of the cut": split is not None and any(hop.quantisation for hop in split.hops()),
        "the bottleneck": split is not None and any(hop.bottleneck for hop in split.hops()),
        "the exits": bool(manifest.exits()),
        "the leakage figures": bool(manifest.leakage),
    }
    gone = [name for name, there in built.items() if there]
    if gone:
        context.remark(f"{', '.join(gone)} belonged to the old segments and went; name those steps again")


def _feeds(context: Context) -> list[dict[str, Array]]:
    """Real samples, alone and several at once."""
    samples = context.samples
    rows = spread(samples, samples.fit, VERIFY_SAMPLES)
    if samples.calibration.fixed_batch is not None:
        return list(samples.feeds(rows))
    return [samples.calibration.feeds(part) for part in (rows[:1], rows[1:4], rows[4:]) if len(part)]


def _places(work: Work, new: ModelProto, cuts: Sequence[Sequence[str]], context: Context) -> list[list[str]]:
    """The cuts by the new model's names."""
    known = {name for node in new.graph.node for name in node.output} | {value.name for value in new.graph.input}
    missing = sorted({name for cut in cuts for name in cut} - known)
    renamed = _found(work, new, missing, context) if missing else {}
    for old, name in renamed.items():
        context.remark(f"the cut's tensor {old} is called {name} in the changed model")
    return [[renamed.get(name, name) for name in cut] for cut in cuts]


def _found(work: Work, new: ModelProto, missing: Sequence[str], context: Context) -> dict[str, str]:
    rows = spread(context.samples, context.samples.fit, PLACE_SAMPLES)
    graph = Graph(new)
    candidates = [
        name
        for node in graph.nodes
        for name in node.output
        if (spec := graph.spec(name)) is not None and spec.dtype.startswith("float") and name not in graph.replicated
    ]
    old = onnx.load_model_from_string(work.whole())
    gaps: dict[str, dict[str, float]] = {name: {} for name in missing}
    sizes = dict.fromkeys(missing, 0.0)
    runs = zip(
        stream(old, missing, context.samples, rows, threads=context.threads),
        stream(new, candidates, context.samples, rows, threads=context.threads),
        strict=True,
    )
    for wanted, there in runs:
        for name in missing:
            sizes[name] += float(np.square(wanted[name].astype(np.float64)).sum())
            for candidate, array in there.items():
                if array.shape == wanted[name].shape:
                    gap = float(np.square(wanted[name].astype(np.float64) - array.astype(np.float64)).sum())
                    gaps[name][candidate] = gaps[name].get(candidate, 0.0) + gap
    return {name: _nearest(name, gaps[name], sizes[name]) for name in missing}


def _nearest(name: str, gaps: dict[str, float], size: float) -> str:
    nearest = min(gaps, key=lambda candidate: gaps[candidate], default=None)
    if nearest is None or not gaps[nearest] <= SAME_PLACE**2 * size:
        raise MeshError(
            Reason.CUT_INVALID,
            f"the version is cut at {name!r}, and the changed model has no tensor that holds the same; "
            "change the model first and cut it afterwards",
            metadata={"tensor": name},
        )
    return nearest
