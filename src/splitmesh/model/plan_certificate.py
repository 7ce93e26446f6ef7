"""Looks at every cut of a profiled graph: a cut that the table lacks, and how far from the best the winner can be."""

from __future__ import annotations

import math
from collections.abc import Iterator

from splitmesh.model.placement.problem import Objective
from splitmesh.model.plan_costing import Costing
from splitmesh.model.plan_graph import (
    Exit,
    Solved,
    allowed_codecs,
    before,
    build_problem,
    crossing_nodes,
    graph_tier,
    same_graph,
    solve,
    summed_cut,
)
from splitmesh.model.plan_limits import operator_refusals
from splitmesh.model.plan_options import Certificate, Kind, Option

SOLVE_S = 5.0
"""Most seconds for one mixed integer program; a minimum cut takes milliseconds."""

CLEARLY = 0.02
"""A cut whose times are sums is offered when it is better by this share: less is within what sums are worth."""


def value_ms(option: Option, objective: Objective) -> float:
    """What is minimised: the latency, or the time of the busiest host or link per sample."""
    return option.latency_ms if objective is Objective.LATENCY else 1e3 / option.throughput_fps


class GraphSearch:
    """Every cut of a graph on two tiers."""

    def __init__(self, costing: Costing, objective: Objective) -> None:
        self._costing = costing
        self._objective = objective
        limits = costing.constraints
        self._nodes = costing.edge.nodes
        self._codecs = [
            [codec for codec in codecs if not any(operator_refusals(limits, (), codec=codec))]
            for codecs in allowed_codecs(costing.edge, limits)
        ]
        self._tiers = (
            graph_tier(
                costing.edge,
                costing.edge_slowdown,
                first=True,
                last=False,
                max_model_bytes=limits.max_head_bytes,
                unsupported=limits.unsupported_on_edge,
            ),
            graph_tier(costing.cloud, 1 / costing.cloud_speedup, first=False, last=True, max_model_bytes=None),
        )
        self.best = self._place(None)
        """The best cut without an exit."""

    @classmethod
    def of(cls, costing: Costing, objective: Objective) -> GraphSearch | None:
        """None unless both profiles hold the same graph."""
        return cls(costing, objective) if same_graph(costing.edge, costing.cloud) else None

    def missing_options(self) -> Iterator[Option]:
        """The options of the best cut when the profiles do not hold it."""
        if self.best.tiers is None:
            return
        tiers = self.best.tiers
        crossing = crossing_nodes(self._nodes, tiers, 0)
        head = [index for index, tier in enumerate(tiers) if tier == 0]
        if {self._nodes[index].name for index in crossing} in [set(cut.tensors) for cut in self._costing.edge.cuts]:
            return
        cut, in_cloud = (summed_cut(p, head, crossing) for p in (self._costing.edge, self._costing.cloud))
        if cut is not None and in_cloud is not None:
            yield from self._costing.cut_options(cut, in_cloud)

    def certificate(self, winner: Option) -> Certificate:
        """Of the winner of a table that holds everything on one tier."""
        value, solved = value_ms(winner, self._objective), [self.best]
        if winner.kind is Kind.CASCADE and (behind := self._exit(winner)) is not None:
            solved.append(self._place(behind))
        lowest = min(solved, key=lambda found: found.lower_bound_ms)
        bound = min(lowest.lower_bound_ms, value)
        return Certificate(bound, value - bound, lowest.method)

    def _exit(self, winner: Option) -> Exit | None:
        share = self._costing.workload.escalation
        if share is None:
            share = next((cut.escalation for cut in self._costing.edge.cuts if cut.tensors == winner.cut), None)
        head = before(self._nodes, winner.cut)
        return None if share is None or head is None else Exit(head, share)

    def _place(self, exit_at: Exit | None) -> Solved:
        problem = build_problem(
            self._nodes,
            self._codecs,
            self._tiers,
            (self._costing.link,),
            self._objective,
            max_wire_bytes=(self._most_wire_bytes(),),
            exit_at=exit_at,
        )
        return solve(problem, self._objective, SOLVE_S)

    def _most_wire_bytes(self) -> float:
        """Mean bytes per sample that budget and rate leave."""
        limits, most = self._costing.constraints, math.inf
        if limits.frames_per_s is not None:
            most = self._costing.link.uplink_mbps * 1e6 / 8 / limits.frames_per_s
            if limits.uplink_budget_bytes_per_s is not None:
                most = min(most, limits.uplink_budget_bytes_per_s / limits.frames_per_s)
        return most
