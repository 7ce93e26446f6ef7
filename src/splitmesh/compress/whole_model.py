"""What the steps that change a whole model share: tensors tapped while it runs, its answers, its time.

Knows sessions and samples; changes no version.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from splitmesh.compress.recipe import Budget
from splitmesh.compress.tally import classes
from splitmesh.compress.work import BATCH, Context, Rows, Samples
from splitmesh.errors import MeshError, Reason
from splitmesh.model.graph import Graph
from splitmesh.model.output_error import OutputError
from splitmesh.model.verify import MAX_RUN_S
from splitmesh.runtime import open_session
from splitmesh.runtime.timing import time_piece
from splitmesh.tensor.spec import Array

LATENCY_BUDGET_S = 2.0
"""Of timing one model."""

NOTABLY = 1.05
"""Slower by less is noise."""

GROUP_BYTES = 128 << 20
"""Of tensors held at once."""

TOLERABLE_DISAGREEMENT = 0.01
TOLERABLE_ERROR = 0.05
"""Beyond this a step tries what is known to help, where the budget names no limit."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """How close a model's answers are to another's."""

    samples: int
    agreement: float | None
    """Share with the same class; None without classes."""
    output_error: float
    """Root mean square of the outputs' difference, as a share of the outputs'."""

    def text(self) -> str:
        """For a person."""
        if self.agreement is None:
            return f"its outputs are off by {self.output_error:.2%} (root mean square) on {self.samples} samples"
        return f"it names the same class as before on {self.agreement:.2%} of {self.samples} samples"


def usable(samples: Samples, rows: Rows) -> Rows:
    """The rows a model can run: with a fixed batch those that fill it. MeshError CALIBRATION_INSUFFICIENT for none."""
    size = samples.calibration.fixed_batch or 1
    found = rows[: len(rows) // size * size]
    if not len(found):
        raise MeshError(
            Reason.CALIBRATION_INSUFFICIENT, f"{len(rows)} samples do not fill the model's fixed batch of {size}"
        )
    return found


def spread(samples: Samples, rows: Rows, most: int) -> Rows:
    """At most ``most`` of the rows (a whole fixed batch at least), spread evenly, in order."""
    most = max(most, samples.calibration.fixed_batch or 1)
    if len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
    return usable(samples, rows)


def outputs(model: bytes, samples: Samples, rows: Rows, *, threads: int = 1) -> dict[str, Array]:
    """What the model answers to these rows, by output, ``[rows, ...]``."""
    with closing(open_session(model, threads=threads, max_run_s=MAX_RUN_S)) as session:
        runs = [session.run(feed) for feed in samples.feeds(usable(samples, rows))]
    return {name: np.concatenate([np.atleast_1d(run[name]) for run in runs]) for name in runs[0]}


def likeness(wanted: Mapping[str, Array], got: Mapping[str, Array], class_output: str) -> Likeness:
    """Of two models' answers to the same rows; ``class_output``: empty without classes."""
    agreement = None
    if class_output:
        agreement = float((classes(wanted[class_output]) == classes(got[class_output])).mean())
    error = OutputError()
    error.add({name: array for name, array in wanted.items() if array.dtype.kind == "f"}, got)
    return Likeness(len(next(iter(wanted.values()))), agreement, error.relative())


def compared(old: bytes, new: bytes, samples: Samples, rows: Rows, class_output: str, *, threads: int = 1) -> Likeness:
    """As :func:`likeness`, running both."""
    before, after = (outputs(model, samples, rows, threads=threads) for model in (old, new))
    return likeness(before, after, class_output)


def latency_figures(old: bytes, new: bytes, context: Context) -> tuple[float, float]:
    """Median milliseconds of one sample (of one fixed batch) before and after, on this node; kept as figures."""
    times = [
        [time_piece(model, threads=context.threads, budget_s=LATENCY_BUDGET_S / 6).median_ms for model in (old, new)]
        for _ in range(3)
    ]
    # In turns, and the best of three: what else runs here slows both.
    before, after = (min(column) for column in zip(*times, strict=True))
    context.figures["latency_ms_before"], context.figures["latency_ms_after"] = round(before, 4), round(after, 4)
    if after > NOTABLY * before:
        context.remark(
            f"slower on this node, {after:.2f} ms instead of {before:.2f} ms for one sample with {context.threads} "
            "thread(s): the gain in bytes is no gain in time here; measure on the edge's own processor"
        )
    return before, after


def size_figures(old: bytes, new: bytes, context: Context) -> None:
    """Bytes of the file before and after."""
    context.figures["bytes_before"], context.figures["bytes_after"] = float(len(old)), float(len(new))


def tapped(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """A copy that gives these tensors as outputs, beside its own."""
    copy = ModelProto()
    copy.CopyFrom(model)
    known = {value.name for value in copy.graph.output}
    inputs = {value.name for value in copy.graph.input}
    # The type is the runtime's to infer. An input as an output needs a node.
    for name in names:
        if name in known:
            continue
        if name in inputs:
            raise MeshError(Reason.CUT_INVALID, f"{name!r} is the model's input")
        copy.graph.output.append(onnx.ValueInfoProto(name=name))
    return copy


def stream(
    model: ModelProto,
    names: Sequence[str],
    samples: Samples,
    rows: Rows,
    *,
    threads: int = 1,
    batch: int = BATCH,
    alone: bool = False,
) -> Iterator[dict[str, Array]]:
    """These tensors (inputs of the model too), a batch at a time; ``alone``: what they do not need is not computed."""
    inputs = {value.name for value in model.graph.input}
    inner = [name for name in names if name not in inputs]
    feeds = samples.feeds(usable(samples, rows), batch=batch)
    if not inner:
        yield from ({name: feed[name] for name in names} for feed in feeds)
        return
    copy = tapped(model, inner)
    if alone:
        kept = [value for value in copy.graph.output if value.name in inner]
        del copy.graph.output[:]
        copy.graph.output.extend(kept)
    with closing(open_session(copy.SerializeToString(), threads=threads, max_run_s=MAX_RUN_S)) as session:
        for feed in feeds:
            run = session.run(feed)
            yield {name: feed[name] if name in inputs else run[name] for name in names}


def float_tensors(graph: Graph) -> list[str]:
    """float32 tensors that depend on the picture, the inputs first, in order."""
    made = (name for node in graph.nodes for name in node.output if name)
    return [
        name
        for name in (*graph.inputs, *made)
        if name not in graph.replicated and graph.elem_type(name) == TensorProto.FLOAT
    ]


def groups(graph: Graph, names: Sequence[str], batch: int) -> Iterator[list[str]]:
    """The tensors, as many at once as memory should hold; one of unknown size alone."""
    group: list[str] = []
    held = 0
    for name in names:
        spec = graph.sample_spec(name)
        size = spec.size_bytes * batch if spec is not None else GROUP_BYTES
        if group and held + size > GROUP_BYTES:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield group


def good_enough(result: Likeness, budget: Budget) -> bool:
    """Whether nothing need be tried against a loss: within the budget, or within what a step usually costs."""
    if result.agreement is not None:
        most = TOLERABLE_DISAGREEMENT if budget.max_disagreement is None else budget.max_disagreement
        return 1 - result.agreement <= most
    return result.output_error <= (TOLERABLE_ERROR if budget.max_output_error is None else budget.max_output_error)


def named_nodes(model: ModelProto) -> ModelProto:
    """A copy whose nodes all have names, each its own, so that tools can be told which to leave alone."""
    copy = ModelProto()
    copy.CopyFrom(model)
    taken: set[str] = set()
    for number, node in enumerate(copy.graph.node):
        name = node.name or f"node_{number}"
        while name in taken:
            name += "_"
        taken.add(name)
        node.name = name
    return copy


def in_order(model: ModelProto) -> ModelProto:
    """The model with its nodes in topological order; changed in place."""
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in Graph(model).nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def initialisers(model: ModelProto) -> dict[str, TensorProto]:
    """Stored weights by name."""
    return {entry.name: entry for entry in model.graph.initializer}


def constants_stored(model: ModelProto) -> ModelProto:
    """A copy where tensors of ``Constant`` nodes are initialisers, so that weights are found in one place."""
    copy = ModelProto()
    copy.CopyFrom(model)
    kept = []
    for node in copy.graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if value is None or node.domain not in ("", "ai.onnx"):
            kept.append(node)
            continue
        stored = copy.graph.initializer.add()
        stored.CopyFrom(value)
        stored.name = node.output[0]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy
