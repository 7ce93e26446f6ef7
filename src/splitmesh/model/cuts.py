"""Where a model can be cut.

A cut is a set of tensors between a head and a tail. Candidates are the frontiers of every prefix of the topological
order. Every tensor that lies on all paths from input to output (an articulation tensor) is among them: each node that
matters comes either before or after it, so the prefix that ends with it has no other live tensor, in whatever order the
file lists branches. Does not judge cuts: bytes and position are facts, times and leakage are measured elsewhere.

An input of the model may be part of a cut when the tail reads it (a late second input, one branch of a siamese net); it
then crosses as it is. An output computed in the head crosses too, and the tail hands it on.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, KeysView, Sequence
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

    Left out: cuts that hold every input the outputs depend on (to send these alone is less), cuts with nothing left for
    the tail, and cuts through a tensor whose type or size for one sample is not known or whose first dimension is not the
    batch.
    """
    needed = sorted(ancestors(graph, graph.outputs))
    work, inputs = _weights(graph), _read_inputs(graph, needed)
    total, done = sum(work[node] for node in needed) or 1, 0
    cuts: dict[frozenset[str], Cut] = {}
    for count, (node, names) in enumerate(_frontiers(graph, needed), start=1):
        done += work[node]
        if not 0 < len(names) <= max_tensors or count == len(needed) or names >= inputs:
            continue
        if frozenset(names) not in cuts and not any(_problem(graph, name) for name in names):
            cuts[frozenset(names)] = _cut(graph, tuple(names), done / total, count)
    return list(cuts.values())


def frontiers(graph: Graph) -> list[tuple[str, ...]]:
    """What is live after each prefix of the topological order, without duplicates: the candidates of :func:`list_cuts`,
    of any number of tensors, and those it leaves out because a tensor cannot cross."""
    needed = sorted(ancestors(graph, graph.outputs))
    inputs = _read_inputs(graph, needed)
    found: dict[frozenset[str], tuple[str, ...]] = {}
    for count, (_, names) in enumerate(_frontiers(graph, needed), start=1):
        if names and count < len(needed) and not names >= inputs:
            found.setdefault(frozenset(names), tuple(names))
    return list(found.values())


def resolve_cut(graph: Graph, names: Sequence[str]) -> Cut:
    """The cut at ``names``, in the order given.

    Raises MeshError CUT_INVALID when a name is unknown (with near matches), is no tensor that can cross, lies inside
    control flow, or when the set does not separate the graph, holds a tensor the tail does not need, or nothing but
    inputs; MODEL_SHAPE_UNKNOWN when a size is not known or a tensor is not one row per sample.
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
    if not sides.head:
        raise _invalid(f"{_quoted(names)}: inputs alone are no cut, everything would run in the tail")
    if not sides.tail:
        raise _invalid(f"nothing is left for the tail after {_quoted(names)}")
    for name in names:
        if problem := _problem(graph, name):
            raise MeshError(Reason.MODEL_SHAPE_UNKNOWN, f"tensor {name!r} {problem}", metadata={"tensor": name})
    work = _weights(graph)
    total = sum(work[node] for node in sides.head | sides.tail) or 1
    return _cut(graph, tuple(names), sum(work[node] for node in sides.head) / total, len(sides.head))


def can_cross(graph: Graph, name: str) -> bool:
    """Whether the tensor can be part of a cut: its size is known and it holds one row per sample."""
    return not _problem(graph, name)


def _weights(graph: Graph) -> Sequence[int]:
    """Work of each node; all count the same in a model without convolutions and products."""
    return graph.macs if any(graph.macs) else [1] * len(graph.nodes)


def _cut(graph: Graph, names: tuple[str, ...], position: float, index: int) -> Cut:
    samples = [graph.sample_spec(name) for name in names]
    size = sum(sample.size_bytes for sample in samples if sample is not None)
    return Cut(names, tuple(graph.require_spec(name) for name in names), size, position, index)


def _frontiers(graph: Graph, needed: Sequence[int]) -> Iterator[tuple[int, KeysView[str]]]:
    """Each node of ``needed`` with the tensors that are live after it (a view, valid until the next step).

    A frontier is always a cut: a prefix holds all ancestors of its nodes, and each of its nodes is needed by an output,
    so every path from it leaves through a live tensor.
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
        return
    if name in graph.replicated:
        raise _invalid(f"{name!r} does not depend on the input's values; it is copied to both sides and never cut")
    if name in graph.inner and name not in graph.producers:
        raise _invalid(f"{name!r} is computed inside control flow, which runs on one side as a whole")
    if name not in graph.producers:
        near = difflib.get_close_matches(name, graph.producers, n=3, cutoff=0.5)
        hint = f"; did you mean {_quoted(near)}?" if near else ""
        raise _invalid(f"the model has no tensor {name!r}{hint}", near=",".join(near))


def _problem(graph: Graph, name: str) -> str:
    """Why a tensor cannot cross, "" when it can."""
    shape, sample = graph.shape(name), graph.sample_spec(name)
    if shape is None or sample is None or sample.dtype not in DTYPES:
        return f"has a type or size that cannot be inferred; {_remedy(graph)}"
    if len(shape) > MAX_RANK or sample.size_bytes == 0:
        return f"has shape {list(sample.shape)}, which cannot be sent"
    if graph.batch_symbol is not None:
        leading, *rest = shape or (None,)
        if leading is None or not leading.is_batch or any(dim is None or dim.per_sample for dim in rest):
            return "does not have the batch as its first and only varying dimension"
    return ""


def _remedy(graph: Graph) -> str:
    """Which input to fix, as far as inputs are to blame."""
    open_dims = [
        f"dimension {axis} of input {name!r}"
        for name in graph.inputs
        for axis, dim in enumerate(graph.shape(name) or ())
        if dim is None
    ]
    if open_dims:
        return f"export the model with a fixed {' and '.join(open_dims)}"
    return "it depends on values, on control flow or on an operator without inference rules; cut elsewhere"


def _read_inputs(graph: Graph, needed: Iterable[int]) -> frozenset[str]:
    """Inputs that an output depends on."""
    read = {name for node in needed for name in graph.value_inputs(node)}.union(graph.outputs)
    return frozenset(name for name in graph.inputs if name in read)


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _invalid(message: str, **metadata: str) -> MeshError:
    return MeshError(Reason.CUT_INVALID, f"cut refused: {message}", metadata=metadata)
