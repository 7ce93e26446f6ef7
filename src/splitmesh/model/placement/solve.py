"""The one way in: the right exact method for a problem and an objective."""

from __future__ import annotations

from splitmesh.model.placement.mincut import min_latency
from splitmesh.model.placement.problem import Objective, Placement, Problem
from splitmesh.model.placement.program import min_bottleneck, min_latency_within


def place(problem: Problem, objective: Objective, *, time_limit_s: float = 10.0) -> Placement:
    """The best placement within the problem's limits, with a lower bound that says how much better any could be.

    Latency without limits is a minimum cut, exact but for rounding. Throughput, and latency where a limit refuses the
    cut, are mixed-integer programs: at the time limit they return the best placement known and the bound reached.
    MeshError PLAN_INFEASIBLE when no placement is allowed, or none was found in time.
    """
    if objective is Objective.THROUGHPUT:
        return min_bottleneck(problem, time_limit_s=time_limit_s)
    return min_latency_within(problem, time_limit_s=time_limit_s) if problem.limited else min_latency(problem)
