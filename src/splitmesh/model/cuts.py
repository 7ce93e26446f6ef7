"""Where a model can be cut.

A cut is a set of tensors between a head and a tail. Candidates are the frontiers of every prefix of the topological
order. Every tensor that lies on all paths from input to output (an articulation tensor) is among them: each node that
matters comes either before or after it, so the prefix that ends with it has no other live tensor, in whatever order the
file lists branches. Does not judge cuts: bytes and position are facts, times and leakage are measured elsewhere.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, KeysView, Sequence
from dataclasses import dataclass

from splitmesh.errors import MeshError, Reason
from splitmesh.model.graph import Graph
from splitmesh.model.partition import ancestors, partition
from splitmesh.tensor.spec import DTYPES, MAX_RANK, TensorSpec


@dataclass(frozen=True, slots=True)
class Cut:
    """A set of tensors that separates a model into head and tail."""

    tensors: tuple[str, ...]
    """Names in the original model."""
    specs: tuple[TensorSpec, ...]
    """Types and shapes, ``-1`` for a dynamic batch."""
    size_bytes: int
    """Bytes of all tensors for one sample, uncompressed."""
    position: float
    """Share of the model's work before the cut, 0..1 (see :mod:`splitmesh.model.macs`)."""
    index: int
    """Number of input-dependent nodes in the head: grows from the input to the output."""


def list_cuts(graph: Graph, max_tensors: int = 4) -> list[Cut]:
    """Every candidate of at most ``max_tensors`` tensors, from the input to the output, without duplicates.

    Left out: the inputs themselves, cuts with nothing left for the tail, and cuts through a tensor whose type or size
    for one sample is not known or whose first dimension is not the batch.
    """
    needed = sorted(ancestors(graph, graph.outputs))
    work, inputs = _weights(graph), set(graph.inputs)
    total, done = sum(work[node] for node in needed) or 1, 0
    cuts: dict[frozenset[str], Cut] = {}
    for count, (node, names) in enumerate(_frontiers(graph, needed), start=1):
        done += work[node]
        if not 0 < len(names) <= max_tensors or count == len(needed) or names & inputs:
            continue
        if frozenset(names) not in cuts and not any(_problem(graph, name) for name in names):
            cuts[frozenset(names)] = _cut(graph, tuple(names), done / total, count)
    return list(cuts.values())


def resolve_cut(graph: Graph, names: Sequence[str]) -> Cut:
    """The cut at ``names``, in the order given.

    Raises MeshError CUT_INVALID when a name is unknown (with near matches), is no tensor that can cross, or when the
    set does not separate the graph or holds a tensor the tail does not need; MODEL_SHAPE_UNKNOWN when a size is not
    known.
    """
    if not names:
        raise _invalid("no tensor named")
    if duplicates := [name for name, count in Counter(names).items() if count > 1]:
        raise _invalid(f"tensor {duplicates[0]!r} is named twice")
    for name in names:
        _require_cuttable(graph, name)
    sides = partition(graph, names)
    if sides.missing:
        outputs = sorted(set(sides.missing) & set(graph.outputs))
        what = f"the output {outputs[0]!r} is computed before it" if outputs else "the tail would also need them"
        raise _invalid(
            f"{_quoted(names)} does not separate the model: {_quoted(sides.missing)} missing, {what}",
            missing=",".join(sides.missing),
        )
    if sides.unused:
        raise _invalid(f"the tail does not need {_quoted(sides.unused)}", redundant=",".join(sides.unused))
    if not sides.tail:
        raise _invalid(f"nothing is left for the tail after {_quoted(names)}")
    for name in names:
        if problem := _problem(graph, name):
            raise MeshError(Reason.MODEL_SHAPE_UNKNOWN, f"tensor {name!r} {problem}", metadata={"tensor": name})
    work = _weights(graph)
    total = sum(work[node] for node in sides.head | sides.tail) or 1
    return _cut(graph, tuple(names), sum(work[node] for node in sides.head) / total, len(sides.head))


def _weights(graph: Graph) -> Sequence[int]:
    """Work of each node; all count the same in a model without convolutions and products."""
    return graph.macs if any(graph.macs) else [1] * len(graph.nodes)


def _cut(graph: Graph, names: tuple[str, ...], position: float, index: int) -> Cut:
    samples = [graph.sample_spec(name) for name in names]
    size = sum(sample.size_bytes for sample in samples if sample is not None)
    return Cut(names, tuple(graph.require_spec(name) for name in names), size, position, index)


def _frontiers(graph: Graph, needed: Sequence[int]) -> Iterator[tuple[int, KeysView[str]]]:
    """Each node of ``needed`` with the tensors that are live after it (a view, valid until the next step).

    A frontier without graph inputs is always a cut: a prefix holds all ancestors of its nodes, and each of its nodes is
    needed by an output, so every path from it leaves through a live tensor.
    """
    readers = Counter(name for node in needed for name in graph.value_inputs(node))
    readers.update(set(graph.outputs) - graph.replicated)
    live = {name: readers[name] for name in graph.inputs if readers[name]}
    for node in needed:
        for name in graph.value_inputs(node):
            live[name] -= 1
            if not live[name]:
                del live[name]
        live.update((name, readers[name]) for name in graph.nodes[node].output if readers[name])
        yield node, live.keys()


def _require_cuttable(graph: Graph, name: str) -> None:
    if name in graph.inputs:
        raise _invalid(f"{name!r} is an input of the model: everything would run in the tail")
    if name in graph.replicated:
        raise _invalid(f"{name!r} does not depend on the input's values; it is copied to both sides and never cut")
    if name not in graph.producers:
        near = difflib.get_close_matches(name, graph.producers, n=3, cutoff=0.5)
        hint = f"; did you mean {_quoted(near)}?" if near else ""
        raise _invalid(f"the model has no tensor {name!r}{hint}", near=",".join(near))


def _problem(graph: Graph, name: str) -> str:
    """Why a tensor cannot cross, "" when it can."""
    shape, sample = graph.shape(name), graph.sample_spec(name)
    if shape is None or sample is None or sample.dtype not in DTYPES:
        return "has a type or size that cannot be inferred; fix the input's height and width"
    if len(shape) > MAX_RANK or sample.size_bytes == 0:
        return f"has shape {list(sample.shape)}, which cannot be sent"
    if graph.batch_symbol is not None:
        leading, *rest = shape or (None,)
        if leading is None or not leading.is_batch or any(dim is None or dim.per_sample for dim in rest):
            return "does not have the batch as its first and only varying dimension"
    return ""


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _invalid(message: str, **metadata: str) -> MeshError:
    return MeshError(Reason.CUT_INVALID, f"cut refused: {message}", metadata=metadata)
