"""Placements that no cut finds: the busiest tier or hop made least busy, and latency within memory and wire limits.

Both are NP-hard in general (they contain the partitioning of numbers), so HiGHS solves a mixed-integer program. It
leaves a lower bound, from which its tolerances are taken off here: it drops what would improve on its solution by less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from splitmesh.errors import MeshError, Reason
from splitmesh.model.placement.evaluate import loads, objective_ms
from splitmesh.model.placement.figures import Floats, Ints
from splitmesh.model.placement.mincut import min_latency
from splitmesh.model.placement.prefix import best_prefix
from splitmesh.model.placement.problem import Objective, Placement, Problem
from splitmesh.model.placement.rows import Program

METHOD = "milp"
REL_GAP = 1e-6
"""The solver stops this near to the best."""
TOLERANCE = 1e-6
"""What HiGHS calls feasible and whole, as a share of the objective's scale."""


def min_bottleneck(problem: Problem, *, time_limit_s: float = 10.0) -> Placement:
    """The placement whose busiest tier or hop is least busy, within the problem's limits.

    At the time limit the best found so far, with the bound reached. MeshError PLAN_INFEASIBLE when no placement is
    allowed, or none was found in time.
    """
    cut = min_latency(problem)
    known = [np.array(cut.tiers)] if loads(problem, cut.tiers).within_limits(problem) else []
    if (prefix := best_prefix(problem, Objective.THROUGHPUT)) is not None:
        known.append(prefix)
    return _solve(problem, Objective.THROUGHPUT, known, 0.0, time_limit_s)


def min_latency_within(problem: Problem, *, time_limit_s: float = 10.0) -> Placement:
    """The placement of least latency within the problem's memory and wire limits.

    At the time limit the best found so far, with the bound reached. MeshError PLAN_INFEASIBLE when no placement is
    allowed, or none was found in time.
    """
    cut = min_latency(problem)
    if loads(problem, cut.tiers).within_limits(problem):
        return cut
    prefix = best_prefix(problem, Objective.LATENCY)
    return _solve(problem, Objective.LATENCY, [] if prefix is None else [prefix], cut.lower_bound_ms, time_limit_s)


def _solve(
    problem: Problem, objective: Objective, known: Sequence[Ints], bound_ms: float, time_limit_s: float
) -> Placement:
    """The best of the known placements and the solver's; among equals the first."""
    best = min(known, key=lambda tiers: objective_ms(problem, tiers, objective), default=None)
    best_ms = math.inf if best is None else objective_ms(problem, best, objective)
    if best_ms > bound_ms:
        found, solver_bound_ms = _search(problem, objective, best_ms, bound_ms, time_limit_s)
        bound_ms = max(bound_ms, solver_bound_ms)
        if found is not None and not loads(problem, found).within_limits(problem):
            # above a limit by less than the solver sees; what is as near to it from below is given up here
            found, _ = _search(problem, objective, best_ms, bound_ms, time_limit_s, margin=3 * TOLERANCE)
        if found is not None and loads(problem, found).within_limits(problem):
            found_ms = objective_ms(problem, found, objective)
            best, best_ms = (found, found_ms) if found_ms < best_ms else (best, best_ms)
    if best is None:
        raise MeshError(Reason.PLAN_INFEASIBLE, "no placement keeps the limits of memory and bytes on the wire")
    return Placement(tuple(best.tolist()), best_ms, min(bound_ms, best_ms), METHOD)


def _search(
    problem: Problem, objective: Objective, best_ms: float, bound_ms: float, time_limit_s: float, margin: float = 0.0
) -> tuple[Ints | None, float]:
    """What HiGHS finds, and its bound in ms without its tolerances."""
    program = Program(problem, margin=margin)
    if objective is Objective.THROUGHPUT:
        scale_ms = best_ms if best_ms < math.inf else _all_on_one(problem)
        weights, constant_ms = _busiest(program, scale_ms, bounded=best_ms < math.inf), 0.0
    else:
        scale_ms = bound_ms or 1.0
        weights, constant_ms = _latency(program, problem, scale_ms)
    result = program.solve(weights, rel_gap=REL_GAP, time_limit_s=time_limit_s)
    found = None if result.x is None else np.rint(result.x[program.late]).astype(np.int64).sum(axis=1)
    if result.mip_dual_bound is None:
        return found, 0.0
    slack = REL_GAP * abs(result.mip_dual_bound) + TOLERANCE
    return found, (result.mip_dual_bound - slack) * scale_ms + constant_ms


def _busiest(program: Program, scale_ms: float, *, bounded: bool) -> Floats:
    """One more variable that no tier and no hop exceeds, in units of the scale; minimise it."""
    busiest = program.variables(1, upper=1.0 + TOLERANCE if bounded else math.inf)
    figures = program.figures
    for tier in range(program.hops + 1):
        columns, ms, constant_ms = program.tier_load(figures.cost_ms[:, tier], tier)
        program.at_most(np.append(columns, busiest), np.append(ms / scale_ms, -1.0), -constant_ms / scale_ms)
    for hop in range(program.hops):
        columns, ms = program.hop_load(figures.transfer_ms[:, hop], hop)
        program.at_most(np.append(columns, busiest), np.append(ms / scale_ms, -1.0), 0.0)
    weights = np.zeros(busiest[0] + 1)
    weights[busiest] = 1.0
    return weights


def _latency(program: Program, problem: Problem, scale_ms: float) -> tuple[Floats, float]:
    """One more variable per hop and level of survival, for the round trip; weights in units of the scale, and ms."""
    figures = program.figures
    terms: list[tuple[Ints, Floats]] = []
    constant_ms = 0.0
    for tier in range(problem.tiers):
        columns, ms, constant = program.tier_load(figures.cost_ms[:, tier], tier)
        terms.append((columns, ms))
        constant_ms += constant
    for hop, rtt_ms in enumerate(problem.rtt_ms):
        terms.append(program.hop_load(figures.transfer_ms[:, hop], hop))
        for share, last in figures.levels():
            waits = program.variables(1)
            program.not_above(program.late[last, hop], np.full(last.sum(), waits[0]))
            terms.append((waits, np.array([rtt_ms * share if rtt_ms < math.inf else 0.0])))
    weights = np.zeros(max(int(columns.max()) for columns, _ in terms if columns.size) + 1)
    for columns, ms in terms:
        np.add.at(weights, columns, ms / scale_ms)
    return weights, constant_ms


def _all_on_one(problem: Problem) -> float:
    """A scale where no placement is known: the most that all vertices take on a tier."""
    cost_ms = problem.figures.cost_ms
    return float(np.where(np.isinf(cost_ms), 0.0, cost_ms).sum(axis=0).max()) or 1.0
