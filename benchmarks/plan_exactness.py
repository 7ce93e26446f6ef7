"""Whether plans are the best there are, and how long they take to make.

Exactness: random graphs small enough to try every placement that ships nothing back, with outputs read several times,
pins, tensors that may not cross, exits and free operators; half of those for programs have memory and wire limits.
Time: graphs of 50 to 500 operators built like real networks, from the list of operators to the placement. For
throughput, the busiest tier or hop of the placement of least latency over that of the plan is shown beside it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rich.progress import Progress, TaskID

from benchmarks.harness import Result, arguments, publish
from benchmarks.placements import NETS, monotone_placements, random_problem, with_limits
from splitmesh.errors import MeshError
from splitmesh.model.placement.evaluate import bottleneck, loads
from splitmesh.model.placement.problem import Objective, Placement, Problem
from splitmesh.model.placement.solve import place

SAME = 1e-5
"""Two values this near, as a share, are equal: MILP works to 2e-6, the cut to 1e-7."""
LARGEST_GAP = 1e-4
SIZES = (50, 150, 300, 500)


@dataclass(frozen=True, slots=True)
class Case:
    """A kind of plan and how soon it is to be made at 500 operators."""

    name: str
    objective: Objective
    tiers: int
    limited: bool
    goal_ms: float


TIMED = (
    Case("latency", Objective.LATENCY, 2, False, 2),
    Case("latency", Objective.LATENCY, 3, False, 50),
    Case("throughput", Objective.THROUGHPUT, 2, False, 2000),
    Case("throughput", Objective.THROUGHPUT, 3, False, 2000),
    Case("latency in limits", Objective.LATENCY, 2, True, 2000),
    Case("latency in limits", Objective.LATENCY, 3, True, 2000),
)


def main() -> None:
    """Entry point."""
    quick = arguments(__doc__).quick
    cuts, programs, nets = (1_200, 90, 2) if quick else (12_000, 600, 20)
    with Progress(transient=True) as progress:
        exact = exactness(progress, cuts, programs)
        timed = times(progress, nets)
    publish(exact)
    publish(timed)


def exactness(progress: Progress, cuts: int, programs: int) -> Result:
    """Plans against every placement."""
    rows: list[dict[str, object]] = []
    task = progress.add_task("exactness", total=cuts + 3 * programs)
    for objective, limited, count in (
        (Objective.LATENCY, False, cuts),
        (Objective.LATENCY, True, programs),
        (Objective.THROUGHPUT, False, programs),
        (Objective.THROUGHPUT, True, programs),
    ):
        for tiers in (2, 3, 4):
            rows.append(_compared(progress, task, objective, tiers, limited, count // 3))
    different = sum(int(str(row["different"])) for row in rows)
    count = cuts + 3 * programs
    return Result(
        name="plan_exactness",
        n=count,
        baseline="the best of all placements that ship nothing back, by trying each",
        goal="as good as the baseline in every graph, and never above a true optimum with the certificate",
        measured=f"{count - different} of {count} the same",
        met=different == 0,
        rows=rows,
    )


def _compared(
    progress: Progress, task: TaskID, objective: Objective, tiers: int, limited: bool, count: int
) -> dict[str, object]:
    rng = np.random.default_rng([tiers, limited, objective is Objective.LATENCY])
    different = infeasible = 0
    largest_gap = 0.0
    for _ in range(count):
        problem = random_problem(rng, tiers, limited=limited)
        best_ms = _best_of_all(problem, objective)
        found = _placed(problem, objective)
        if found is None or math.isinf(best_ms):
            infeasible += 1
            different += found is not None or math.isfinite(best_ms)
        else:
            different += not _same(problem, found, best_ms)
            largest_gap = max(largest_gap, found.gap_ms / found.value_ms if found.value_ms else 0.0)
        progress.advance(task)
    return {
        "asked_for": objective.value.lower() + (" in limits" if limited else ""),
        "tiers": tiers,
        "graphs": count,
        "infeasible": infeasible,
        "different": different,
        "largest_gap": f"{largest_gap:.0e}",
    }


def _best_of_all(problem: Problem, objective: Objective) -> float:
    best = math.inf
    for tiers in monotone_placements(problem):
        tried = loads(problem, tiers)
        if tried.within_limits(problem):
            best = min(best, tried.latency_ms if objective is Objective.LATENCY else tried.bottleneck_ms)
    return best


def _placed(problem: Problem, objective: Objective) -> Placement | None:
    try:
        return place(problem, objective)
    except MeshError:
        return None


def _same(problem: Problem, found: Placement, best_ms: float) -> bool:
    allowed = loads(problem, found.tiers).within_limits(problem)
    near = abs(found.value_ms - best_ms) <= SAME * best_ms + 1e-12
    return allowed and near and found.lower_bound_ms <= best_ms * (1 + 1e-9)


def times(progress: Progress, nets: int) -> Result:
    """Times of plans, and what the latency cut would make of throughput."""
    rows: list[dict[str, object]] = []
    in_goal = True
    task = progress.add_task("times", total=len(TIMED) * len(SIZES) * len(NETS) * nets)
    for case in TIMED:
        for size in SIZES:
            plans = []
            for problem in _problems(case, size, nets):
                plans.append(_timed(problem, case.objective))
                progress.advance(task)
            rows.append(_row(case, size, plans))
            in_goal &= all(plan.ms <= case.goal_ms and plan.gap <= LARGEST_GAP for plan in plans)
    slowest = ", ".join(f"{row['plan']} {row['max_ms']:.1f}" for row in rows if row["operators"] == max(SIZES))
    return Result(
        name="plan_time",
        n=len(TIMED) * len(SIZES) * len(NETS) * nets,
        baseline="throughput: the placement of least latency",
        goal="at most 2 ms for two tiers, 50 ms for three, 2 s for programs, with a gap of 1e-4 at most",
        measured=f"slowest at {max(SIZES)} operators, ms: {slowest}",
        met=in_goal,
        rows=rows,
    )


@dataclass(frozen=True, slots=True)
class _Timed:
    ms: float
    gap: float
    cut_over_best: float
    """Bottleneck of the placement of least latency over this one's, for throughput."""


def _problems(case: Case, size: int, nets: int) -> Iterator[Problem]:
    for index, net in enumerate(NETS.values()):
        for seed in range(nets):
            problem = net(np.random.default_rng([index, seed]), size, case.tiers)
            yield with_limits(problem, 0.3, 60_000.0) if case.limited else problem


def _timed(problem: Problem, objective: Objective) -> _Timed:
    """The list of operators becomes arrays, a graph and a placement; short ones five times, of which the median."""

    def plan() -> tuple[Placement, float]:
        begun = time.perf_counter()
        checked = Problem(problem.vertices, problem.rtt_ms, problem.max_memory_bytes, problem.max_wire_bytes)
        return place(checked, objective), (time.perf_counter() - begun) * 1e3

    found, ms = plan()
    if ms < 50:
        ms = statistics.median(plan()[1] for _ in range(5))
    over = 1.0
    if objective is Objective.THROUGHPUT:
        over = bottleneck(problem, place(problem, Objective.LATENCY).tiers) / found.value_ms
    return _Timed(ms, found.gap_ms / found.value_ms, over)


def _row(case: Case, size: int, plans: list[_Timed]) -> dict[str, object]:
    return {
        "plan": f"{case.name}, {case.tiers} tiers",
        "operators": size,
        "p50_ms": statistics.median(plan.ms for plan in plans),
        "max_ms": max(plan.ms for plan in plans),
        "goal_ms": case.goal_ms,
        "max_gap": f"{max(plan.gap for plan in plans):.0e}",
        "max_cut_over_best": max(plan.cut_over_best for plan in plans),
    }


if __name__ == "__main__":
    main()
