"""Which nodes run on which side of a set of tensors, and what is wrong when they do not separate the graph.

The head computes the tensors; the tail computes the outputs from them. Each node that depends on the input's values
runs on exactly one side; replicated nodes (constants, shapes) belong to no side and are copied where needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from splitmesh.model.graph import Graph


@dataclass(frozen=True, slots=True)
class Partition:
    """The two sides of a set of tensors.

    The set is a cut when ``missing`` and ``unused`` are empty and ``tail`` is not.
    """

    head: frozenset[int]
    """Nodes the tensors depend on, themselves included."""
    tail: frozenset[int]
    """Nodes the outputs still need when the tensors are given."""
    missing: tuple[str, ...]
    """Inputs and tensors of the head that are not in the set and that the tail would need too."""
    unused: tuple[str, ...]
    """Tensors of the set the tail does not read."""


def partition(graph: Graph, tensors: Iterable[str]) -> Partition:
    """Both sides of ``tensors``; linear in the size of the graph."""
    given = tuple(tensors)
    head = ancestors(graph, given)
    stop, read, missing, tail = set(given), set[str](), dict[str, None](), set[int]()
    pending = [name for name in graph.outputs if name not in graph.replicated]
    seen = set(pending)
    while pending:
        name = pending.pop()
        if name in stop:
            read.add(name)
            continue
        node = graph.producers.get(name)
        if node is None or node in head:
            missing[name] = None
            continue
        if node not in tail:
            tail.add(node)
            fresh = [source for source in graph.value_inputs(node) if source not in seen]
            seen.update(fresh)
            pending.extend(fresh)
    unused = tuple(name for name in given if name not in read)
    return Partition(head, frozenset(tail), tuple(sorted(missing)), unused)


def ancestors(graph: Graph, tensors: Iterable[str]) -> frozenset[int]:
    """Value-dependent nodes that ``tensors`` depend on, their producers included."""
    found = set[int]()
    pending = [name for name in tensors if name not in graph.replicated]
    while pending:
        node = graph.producers.get(pending.pop())
        if node is not None and node not in found:
            found.add(node)
            pending.extend(graph.value_inputs(node))
    return frozenset(found)
