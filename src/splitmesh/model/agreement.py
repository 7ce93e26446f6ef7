"""Whether rounding a cut to 8 bits changes a classifier's answers, measured before anything is built."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing

from splitmesh.errors import MeshError, Reason
from splitmesh.model.classes import as_probabilities
from splitmesh.model.cuts import Cut
from splitmesh.model.graph import Graph
from splitmesh.model.ranges import RangeCollector, affine, dequantise, quantise
from splitmesh.model.wire_cost import tapped
from splitmesh.runtime import open_session
from splitmesh.tensor.spec import Array

MAX_FEATURE_BYTES = 128 << 20
"""Features held in memory; further samples are left out."""


def rounded_agreement(
    graph: Graph,
    cut: Cut,
    tail: bytes,
    batches: Iterable[Mapping[str, Array]],
    class_output: str,
    *,
    threads: int = 1,
    budget_s: float = 5.0,
    clock: Callable[[], float] = time.perf_counter,
) -> float | None:
    """Share of samples to which the tail gives the same class for rounded and restored features as the whole model.

    The ranges are those of the same samples, as they would be when the cut is rounded on them. None when there is no
    sample, or the features hold no finite value.

    Args:
        graph: of the whole model.
        cut: of it.
        tail: behind the cut, serialised.
        batches: inputs of the whole model.
        class_output: the output with one score per class.
        threads: of the sessions.
        budget_s: no further run begins after this many seconds, so fewer samples may be compared.
        clock: seconds.
    """
    until = clock() + budget_s
    runs: list[dict[str, Array]] = []
    held = 0
    with closing(open_session(tapped(graph.model, [cut]).SerializeToString(), threads=threads)) as session:
        for batch in batches:
            runs.append(session.run(batch))
            held += sum(runs[-1][name].nbytes for name in cut.tensors)
            if clock() > until - budget_s / 2 or held > MAX_FEATURE_BYTES:
                break
    if not runs:
        return None
    collectors = {name: RangeCollector(name) for name in cut.tensors if runs[0][name].dtype.kind == "f"}
    try:
        for run in runs:
            for name, collector in collectors.items():
                collector.add(run[name])
        rules = {name: affine(collector.ranges(), per_channel=True) for name, collector in collectors.items()}
    except MeshError as error:
        if error.reason not in (Reason.CALIBRATION_INSUFFICIENT, Reason.TENSOR_NOT_FINITE):
            raise
        return None
    same = seen = 0
    with closing(open_session(tail, threads=threads)) as session:
        for run in runs:
            features = {spec.name: run[spec.name] for spec in session.inputs}
            for name, rule in rules.items():
                features[name] = dequantise(quantise(features[name], rule), rule).astype(features[name].dtype)
            answers = as_probabilities(run[class_output]).argmax(axis=1)
            same += int((as_probabilities(session.run(features)[class_output]).argmax(axis=1) == answers).sum())
            seen += len(answers)
            if clock() > until:
                break
    return same / seen
