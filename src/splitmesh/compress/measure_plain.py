"""The cut without any of the recipe, beside which its worth is seen: as it is computed, and rounded to 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing

import numpy as np

from splitmesh.compress.answering import packed_sizes
from splitmesh.compress.reference import Reference
from splitmesh.compress.report import Point
from splitmesh.compress.tally import Tally
from splitmesh.compress.work import Samples, Work
from splitmesh.errors import MeshError, Reason
from splitmesh.model.chain import calibrate_chain, quantise_chain
from splitmesh.model.cuts import resolve_cut
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model
from splitmesh.model.split import split_model
from splitmesh.runtime import open_session

RANGE_SAMPLES = 256
"""Samples that the ranges of the plain 8-bit cut come from."""

_NOT_THERE = frozenset({Reason.CUT_INVALID, Reason.MODEL_SHAPE_UNKNOWN})


def plain_cut(original: bytes, work: Work, samples: Samples, reference: Reference, threads: int) -> list[Point]:
    """The first cut without any of the recipe: as it is computed, and rounded to 8 bits; both packed by zstd.

    Cut from the original or, where a step replaced the model and these tensors with it, from the new whole.
    """
    split = work.manifest.split
    if split is None:
        return []
    at = [info.name for info in split.cut]
    segments = _cut(original, at) or _cut(work.whole(), at)
    if segments is None:
        return []
    points = []
    plain = not split.quantisation and split.bottleneck is None
    if not plain:  # else the version itself is this point
        points.append(_cut_point("float32 cut, zstd", segments, reference, threads))
    if not (split.quantisation and split.coding is None):
        ranges = calibrate_chain(segments, samples.feeds(samples.fit[:RANGE_SAMPLES]))
        models, rules = quantise_chain(segments, ranges)
        if any(rules):
            made = [model.SerializeToString() for model in models]
            points.append(_cut_point("int8 cut, zstd", made, reference, threads))
    return points


def _cut_point(name: str, segments: Sequence[bytes], reference: Reference, threads: int) -> Point:
    tally = Tally(reference.class_output)
    sizes: list[int] = []
    with ExitStack() as stack:
        head, tail = (stack.enter_context(closing(open_session(model, threads=threads))) for model in segments)
        for batch in reference:
            features = head.run(batch.feed)
            wire = {spec.name: features[spec.name] for spec in tail.inputs}
            sizes += packed_sizes(list(wire.values()))
            tally.add(tail.run(wire), batch.expected, batch.labels)
    return tally.point(name, "cut", float(np.mean(sizes)))


def _cut(whole: bytes, at: Sequence[str]) -> tuple[bytes, bytes] | None:
    graph = Graph(load_model(whole))
    try:
        made = split_model(graph, resolve_cut(graph, at))
    except MeshError as error:
        if error.reason not in _NOT_THERE:
            raise
        return None
    return made.head.SerializeToString(), made.tail.SerializeToString()
