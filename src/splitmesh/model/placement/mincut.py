"""The placement of least latency: an exact minimum cut, with the flow as its certificate.

Tiers never fall along an arc, so this is a labelling with ordered labels and convex interactions (Ishikawa 2003), and a
cut of a graph with a copy ``(v, h)`` of every vertex for every hop gives the optimum. A copy is *late* when its vertex
runs beyond the hop; late copies are on the side of the source. A capacity a -> b is paid when a is late and b is not:

- ``(v, h-1) -> (v, h)`` time of v on tier h; ``(v, -1)`` is the source, ``(v, K-1)`` the sink.
- ``(v, h) -> (v, h-1)`` infinite: who is beyond a hop is beyond those before it.
- ``(v, h) -> (u, h)`` infinite for every u that reads v: nothing is shipped back.
- ``(u, h) -> v's helper`` infinite, ``helper -> (v, h)`` transfer: v's output crosses once, however many read it.
- ``(v, h) -> the hop's helper`` infinite, ``helper -> sink`` round trip.

Where samples leave at exits, a helper has a capacity per level of survival: the largest level beyond the hop is paid.
With two tiers there is one copy of every vertex: the cut of Hu et al. (DADS, INFOCOM 2019) with the arcs that forbid
shipping back. Nothing here knows limits of memory or bytes; they break the cut (see ``program``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from splitmesh.errors import MeshError, Reason
from splitmesh.model.placement.evaluate import value
from splitmesh.model.placement.figures import Figures, Floats, Ints
from splitmesh.model.placement.prefix import best_prefix
from splitmesh.model.placement.problem import Objective, Placement, Problem
from splitmesh.model.placement.readers import reader_groups

METHOD = "min-cut"
_UNCUTTABLE = 2**30
"""Capacity of an infinite arc. Flows stay below it, so that a flow and a residual capacity together fit int32."""


def min_latency(problem: Problem) -> Placement:
    """The best placement, without regard to limits of memory and bytes; of equal ones, that which runs things earlier.

    ``lower_bound_ms`` is the flow, from capacities rounded down to 1/2^30 of the best single cut's latency: the gap is
    that rounding. MeshError PLAN_INFEASIBLE when no placement is allowed.
    """
    graph = _graph(problem)
    known = best_prefix(problem, Objective.LATENCY)
    if known is None:
        known = _allowed(problem, graph)
    known_ms = value(problem, known)
    spread_ms = max(known_ms - graph.paid_anyway_ms, known_ms * 1e-6) or 1.0
    scale = (_UNCUTTABLE - 1) / spread_ms
    flow, late = _cut(graph, scale)
    tiers = _tiers(late, problem)
    value_ms = value(problem, tiers)
    if known_ms < value_ms:
        tiers, value_ms = known, known_ms
    bound_ms = min(graph.paid_anyway_ms + flow / scale, value_ms)
    return Placement(tuple(tiers.tolist()), value_ms, bound_ms, METHOD)


@dataclass(frozen=True, slots=True)
class _Graph:
    """Arcs by tail, then head, each pair once."""

    indptr: Ints
    heads: Ints
    capacity_ms: Floats
    source: int
    """Its node; the sink is the next one."""
    paid_anyway_ms: float
    """Least time of every vertex, taken off its capacities."""

    @property
    def nodes(self) -> int:
        """How many there are."""
        return len(self.indptr) - 1

    def matrix(self, values: NDArray[np.int32]) -> csr_array:
        """A value for every arc."""
        return csr_array((values, self.heads, self.indptr), shape=(self.nodes, self.nodes))


def _graph(problem: Problem) -> _Graph:
    figures, hops = problem.figures, problem.tiers - 1
    count = len(figures.survival)
    copies = np.arange(count * hops).reshape(count, hops)
    arcs = _Arcs(source=count * hops)
    paid_anyway_ms = arcs.costs(figures.cost_ms, copies)
    arcs.add(copies[figures.read], copies[figures.reader], math.inf)
    arcs.transfers(figures, copies)
    for hop, rtt_ms in enumerate(problem.rtt_ms):
        arcs.round_trip(figures, copies[:, hop], rtt_ms)
    return arcs.graph(paid_anyway_ms)


class _Arcs:
    """Collects arcs; copies come first, then the source, the sink and the helpers."""

    def __init__(self, source: int) -> None:
        self.source, self.sink, self.nodes = source, source + 1, source + 2
        self._tails: list[Ints] = []
        self._heads: list[Ints] = []
        self._capacities: list[Floats] = []

    def add(self, tails: Ints | int, heads: Ints | int, capacity_ms: Floats | float) -> None:
        """Arrays of one shape; a number stands for all."""
        tail, head, capacity = np.broadcast_arrays(tails, heads, capacity_ms)
        self._tails.append(tail.ravel())
        self._heads.append(head.ravel())
        self._capacities.append(capacity.ravel())

    def helpers(self, count: int) -> Ints:
        """New nodes."""
        self.nodes += count
        return np.arange(self.nodes - count, self.nodes)

    def costs(self, cost_ms: Floats, copies: Ints) -> float:
        """A path from source to sink through the copies of each vertex; returns the sum of what is paid anyway."""
        least = cost_ms.min(axis=1)
        if (stuck := np.flatnonzero(np.isinf(least))).size:
            raise MeshError(Reason.PLAN_INFEASIBLE, f"{stuck.size} operators may run on no tier")
        extra = cost_ms - least[:, None]
        self.add(self.source, copies[:, 0], extra[:, 0])
        self.add(copies[:, -1], self.sink, extra[:, -1])
        if copies.shape[1] > 1:
            self.add(copies[:, :-1], copies[:, 1:], extra[:, 1:-1])
            self.add(copies[:, 1:], copies[:, :-1], math.inf)
        return float(least.sum())

    def transfers(self, figures: Figures, copies: Ints) -> None:
        """Each output once per hop."""
        groups = reader_groups(figures)
        from_copies = copies[groups.vertex]
        price_ms = figures.transfer_ms[groups.vertex]
        if not (groups.share == 1).all():
            finite = np.isfinite(price_ms)
            price_ms = np.where(finite, price_ms, 0.0) * groups.share[:, None]
            price_ms[~finite] = math.inf
        shared = np.bincount(groups.group) > 1
        readers = shared[groups.group]
        self.add(copies[groups.reader[~readers]], from_copies[~shared], price_ms[~shared])
        helpers = self.helpers(shared.sum() * copies.shape[1]).reshape(-1, copies.shape[1])
        self.add(helpers, from_copies[shared], price_ms[shared])
        self.add(copies[groups.reader[readers]], helpers[(shared.cumsum() - 1)[groups.group[readers]]], math.inf)

    def round_trip(self, figures: Figures, copies: Ints, rtt_ms: float) -> None:
        """Once, by the largest survival beyond the hop."""
        for share, deciding in figures.levels() if rtt_ms else ():
            self._any_of(copies[deciding], rtt_ms * share)

    def _any_of(self, copies: Ints, capacity_ms: float) -> None:
        if len(copies) == 1:
            self.add(copies, self.sink, capacity_ms)
            return
        helper = self.helpers(1)
        self.add(copies, helper, math.inf)
        self.add(helper, self.sink, capacity_ms)

    def graph(self, paid_anyway_ms: float) -> _Graph:
        """Arcs of one pair added up, those without capacity left out."""
        capacity = np.concatenate(self._capacities)
        kept = np.flatnonzero(capacity)
        pair = (np.concatenate(self._tails) * self.nodes + np.concatenate(self._heads))[kept]
        order = pair.argsort()
        pair = pair[order]
        first = np.flatnonzero(np.append(True, pair[1:] != pair[:-1]))
        tails, heads = np.divmod(pair[first], self.nodes)
        capacity = np.add.reduceat(capacity[kept][order], first)
        indptr = np.searchsorted(tails, np.arange(self.nodes + 1))
        return _Graph(indptr.astype(np.int32), heads.astype(np.int32), capacity, self.source, paid_anyway_ms)


def _cut(graph: _Graph, scale: float) -> tuple[int, NDArray[np.bool_]]:
    """The greatest flow in units of 1/scale ms, and which nodes are on the source's side of its smallest cut."""
    whole = np.minimum(np.floor(graph.capacity_ms * scale), _UNCUTTABLE).astype(np.int32)
    capacity = graph.matrix(whole)
    result = maximum_flow(capacity, graph.source, graph.source + 1)
    return int(result.flow_value), _reached(capacity - result.flow, graph)


def _allowed(problem: Problem, graph: _Graph) -> Ints:
    """The earliest placement whose latency is finite: what infinite capacities force to be late is late."""
    forced = np.isinf(graph.capacity_ms)
    tails = np.repeat(np.arange(graph.nodes), np.diff(graph.indptr))[forced]
    ones = np.ones(len(tails), dtype=np.int32)
    late = _reached(csr_array((ones, (tails, graph.heads[forced])), shape=(graph.nodes, graph.nodes)), graph)
    if late[graph.source + 1]:
        raise MeshError(Reason.PLAN_INFEASIBLE, "no placement runs and sends every operator where it is allowed to")
    return _tiers(late, problem)


def _reached(matrix: csr_array, graph: _Graph) -> NDArray[np.bool_]:
    late = np.zeros(graph.nodes, dtype=bool)
    late[breadth_first_order(matrix, graph.source, return_predecessors=False)] = True
    return late


def _tiers(late: NDArray[np.bool_], problem: Problem) -> Ints:
    hops = problem.tiers - 1
    tiers: Ints = late[: len(problem.vertices) * hops].reshape(-1, hops).sum(axis=1)
    return tiers
