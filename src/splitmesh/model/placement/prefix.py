"""The best of the placements that cut the list of operators, not the graph: a bound and a fall-back, found at once.

Tier ``h`` gets the operators from position ``p[h-1]`` up to ``p[h]`` of the topological order. Over these placements
both objectives are solved exactly, limits included, by dynamic programming over the positions.
"""

from __future__ import annotations

import math

import numpy as np

from splitmesh.model.placement.figures import Figures, Floats, Ints
from splitmesh.model.placement.problem import Objective, Problem

_BLOCK = 4_000_000
"""Pairs of positions looked at together: all at once would take gigabytes for 20,000 operators."""


def best_prefix(problem: Problem, objective: Objective) -> Ints | None:
    """A tier for every vertex, the earliest of equals, or None where no such placement is allowed within the limits."""
    figures, last = problem.figures, problem.tiers - 1
    count = len(figures.survival)
    hops = _hop_costs(problem, objective)
    join = np.add if objective is Objective.LATENCY else np.maximum
    start = np.zeros(1, dtype=np.int64)
    positions = np.arange(count + 1)
    best = join(_stage(problem, 0, start, positions)[0], hops[0])
    came_from: list[Ints] = []
    for tier in range(1, last):
        stage_end, origins = _through(problem, tier, best, join)
        came_from.append(origins)
        best = join(stage_end, hops[tier])
    final = join(best, _stage(problem, last, positions, positions[-1:])[:, 0])
    position = count - int(final[::-1].argmin())
    if math.isinf(final[position]):
        return None
    ends = [position]
    for origins in reversed(came_from):
        ends.append(int(origins[ends[-1]]))
    tiers: Ints = np.searchsorted(np.array(ends[::-1]), np.arange(count), side="right")
    return tiers


def _through(problem: Problem, tier: int, best: Floats, join: np.ufunc) -> tuple[Floats, Ints]:
    """(N + 1,) each: the best value when a tier ends at a position, and the latest position it then begins at."""
    positions = np.arange(len(best))
    values, origins = np.empty(len(best)), np.empty(len(best), dtype=np.int64)
    width = max(1, _BLOCK // len(best))
    for first in range(0, len(best), width):
        ends = positions[first : first + width]
        totals = join(best[:, None], _stage(problem, tier, positions, ends))
        values[ends] = totals.min(axis=0)
        origins[ends] = len(best) - 1 - totals[::-1].argmin(axis=0)
    return values, origins


def _stage(problem: Problem, tier: int, begins: Ints, ends: Ints) -> Floats:
    """(begins, ends): time of a tier that runs the operators between; infinite where it may not."""
    figures = problem.figures
    forbidden, times = _running(figures.cost_ms[:, tier])
    between = times[ends] - times[begins][:, None]
    refused = (forbidden[ends] > forbidden[begins][:, None]) | (ends < begins[:, None])
    if problem.max_memory_bytes and problem.max_memory_bytes[tier] < math.inf:
        too_large, memory = _running(figures.memory_bytes[:, tier])
        refused |= too_large[ends] > too_large[begins][:, None]
        refused |= memory[ends] - memory[begins][:, None] > problem.max_memory_bytes[tier]
    between[refused] = math.inf
    return between


def _hop_costs(problem: Problem, objective: Objective) -> list[Floats]:
    """Per hop, for every position: the time of what crosses there, with the round trip where latency counts it."""
    figures = problem.figures
    order, begins, share = _spans(figures)
    read, reader = figures.read[order], figures.reader[order]
    beyond = np.maximum.accumulate(np.append(figures.survival, 0.0)[::-1])[::-1]
    costs = []
    for hop, rtt_ms in enumerate(problem.rtt_ms):
        cost = _crossing(figures.transfer_ms[:, hop], read, begins, reader, share)
        if problem.max_wire_bytes and problem.max_wire_bytes[hop] < math.inf:
            wire = _crossing(figures.wire_bytes[:, hop], read, begins, reader, share)
            cost[wire > problem.max_wire_bytes[hop]] = math.inf
        if objective is Objective.LATENCY and rtt_ms:
            cost[:-1] += rtt_ms * beyond[:-1]
        elif math.isinf(rtt_ms):
            cost[:-1] = math.inf
        costs.append(cost)
    return costs


def _spans(figures: Figures) -> tuple[Ints, Ints, Floats]:
    """Order of the arcs by what they read, then by reader; (M,) after which position each is the next to read it; (M,)
    the largest share of samples that read it from there on."""
    order = np.lexsort((figures.reader, figures.read))
    read, reader = figures.read[order], figures.reader[order]
    first = np.ones(len(read), dtype=bool)
    first[1:] = read[1:] != read[:-1]
    begins = np.where(first, read, np.roll(reader, 1))
    share = figures.survival[reader]
    if not (share == 1).all():
        rank = 2.0 * (read.max() - read[::-1])
        share = (np.maximum.accumulate(share[::-1] + rank) - rank)[::-1]
    return order, begins, share


def _crossing(amounts: Floats, read: Ints, begins: Ints, ends: Ints, share: Floats) -> Floats:
    """(N + 1,): sum at every position of the outputs made before it and read after it."""
    infinite = np.isinf(amounts)
    total = np.zeros(len(amounts) + 2)
    weighed = np.where(infinite, 0.0, amounts)[read] * share
    np.add.at(total, begins + 1, weighed)
    np.subtract.at(total, ends + 1, weighed)
    crossing: Floats = np.maximum(total.cumsum()[:-1], 0.0)
    if infinite.any():
        closed = np.zeros(len(amounts) + 2, dtype=np.int64)
        np.add.at(closed, begins + 1, infinite[read])
        np.subtract.at(closed, ends + 1, infinite[read].astype(np.int64))
        crossing[closed.cumsum()[:-1] > 0] = math.inf
    return crossing


def _running(amounts: Floats) -> tuple[Ints, Floats]:
    """(N + 1,) each: how many infinite ones, and the sum of the others, before a position."""
    infinite = np.isinf(amounts)
    sums = np.zeros(len(amounts) + 1)
    np.cumsum(np.where(infinite, 0.0, amounts), out=sums[1:])
    counts = np.zeros(len(amounts) + 1, dtype=np.int64)
    np.cumsum(infinite, out=counts[1:])
    return counts, sums
