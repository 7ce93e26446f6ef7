"""Throughput and limits by mixed-integer program, against every placement of small graphs."""

import math

import numpy as np
import pytest

from benchmarks.placements import NETS, monotone_placements, random_problem, with_limits
from splitmesh.errors import MeshError, Reason
from splitmesh.model.placement.evaluate import bottleneck, loads, objective_ms, value
from splitmesh.model.placement.mincut import min_latency
from splitmesh.model.placement.problem import Objective, Problem, Vertex
from splitmesh.model.placement.program import min_bottleneck, min_latency_within
from splitmesh.model.placement.solve import place

NEVER = math.inf


def best_of_all(problem: Problem, objective: Objective) -> float:
    within = (tiers for tiers in monotone_placements(problem) if loads(problem, tiers).within_limits(problem))
    return min((objective_ms(problem, tiers, objective) for tiers in within), default=NEVER)


@pytest.mark.parametrize("objective", Objective)
@pytest.mark.parametrize("limited", [False, True], ids=["unlimited", "limited"])
@pytest.mark.parametrize("tiers", [2, 3, 4])
def test_no_placement_within_the_limits_is_better(objective: Objective, limited: bool, tiers: int) -> None:
    rng = np.random.default_rng([tiers, limited])
    planned = 0
    for _ in range(40):
        problem = random_problem(rng, tiers, limited=limited)
        best = best_of_all(problem, objective)
        if best == NEVER:
            with pytest.raises(MeshError) as refused:
                place(problem, objective)
            assert refused.value.reason is Reason.PLAN_INFEASIBLE
            continue
        found = place(problem, objective)
        assert loads(problem, found.tiers).within_limits(problem)
        assert found.value_ms == objective_ms(problem, found.tiers, objective)
        assert found.value_ms == pytest.approx(best, rel=1e-5, abs=1e-12)
        assert found.lower_bound_ms <= best * (1 + 1e-12)
        assert found.gap_ms <= 1e-4 * best + 1e-12
        planned += 1
    assert planned > 15


def pair(limit: float = NEVER, wire: float = NEVER) -> Problem:
    """Two operators, as heavy as each other, that the cloud runs ten times faster."""
    vertices = (
        Vertex("input", (), (0.0, NEVER), (4.0,), (0.0, 0.0), (400.0,)),
        Vertex("a", (0,), (10.0, 1.0), (2.0,), (60.0, 60.0), (200.0,)),
        Vertex("b", (1,), (10.0, 1.0), (0.0,), (60.0, 60.0), (0.0,)),
    )
    return Problem(vertices, (1.0,), max_memory_bytes=(NEVER, limit), max_wire_bytes=(wire,))


def test_limits_move_the_plan() -> None:
    assert place(pair(), Objective.LATENCY).tiers == (0, 1, 1)
    assert place(pair(limit=100.0), Objective.LATENCY).tiers == (0, 0, 1)
    assert place(pair(wire=300.0), Objective.LATENCY).tiers == (0, 0, 1)
    assert place(pair(limit=0.0), Objective.LATENCY).tiers == (0, 0, 0)
    assert place(pair(wire=0.0), Objective.THROUGHPUT).tiers == (0, 0, 0)


def test_a_limit_is_kept_exactly_though_the_solver_sees_a_millionth() -> None:
    assert place(pair(limit=120.0), Objective.LATENCY).tiers == (0, 1, 1)
    assert place(pair(limit=120.0 - 1e-6), Objective.LATENCY).tiers == (0, 0, 1)
    assert place(pair(limit=120.0 - 1e-6), Objective.THROUGHPUT).tiers == (0, 0, 1)


def test_what_exceeds_a_limit_by_less_than_the_solver_sees_is_searched_again() -> None:
    """Operators of many bytes, some of which together exceed the limit by a ten-millionth."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        weights, gains = rng.uniform(1e6, 1e8, 6).round(), rng.uniform(1, 10, 6)
        limit = float(weights[rng.random(6) < 0.6].sum()) * (1 - 1e-7)
        vertices = [Vertex("input", (), (0.0, NEVER), (0.0,))]
        for gain, weight in zip(gains.tolist(), weights.tolist(), strict=True):
            vertices.append(Vertex("v", (0,), (gain, 0.0), (0.0,), (0.0, weight)))
        problem = Problem(tuple(vertices), (0.0,), max_memory_bytes=(NEVER, limit))
        best = best_of_all(problem, Objective.LATENCY)
        assert place(problem, Objective.LATENCY).value_ms == pytest.approx(best, rel=1e-5)


def test_a_limit_that_the_cut_keeps_needs_no_program() -> None:
    assert min_latency_within(pair(limit=150.0)).method == "min-cut"
    assert min_latency_within(pair(limit=100.0)).method == "milp"


def test_limits_that_nothing_keeps_are_infeasible() -> None:
    vertices = (Vertex("input", (), (0.0, NEVER), (1.0,)), Vertex("a", (0,), (1.0, 1.0), (1.0,), (5.0, 5.0)))
    for objective in Objective:
        with pytest.raises(MeshError) as refused:
            place(Problem(vertices, (1.0,), max_memory_bytes=(4.0, 4.0)), objective)
        assert refused.value.reason is Reason.PLAN_INFEASIBLE


def test_infinite_sizes_are_refused_only_where_there_is_a_limit() -> None:
    vertices = (
        Vertex("input", (), (0.0, NEVER), (0.0,), (), (NEVER,)),
        Vertex("a", (0,), (9.0, 1.0), (0.0,), (5.0, NEVER), (0.0,)),
    )
    assert place(Problem(vertices, (1.0,)), Objective.LATENCY).tiers == (0, 1)
    for limits in ({"max_memory_bytes": (NEVER, 50.0)}, {"max_wire_bytes": (50.0,)}):
        assert place(Problem(vertices, (1.0,), **limits), Objective.LATENCY).tiers == (0, 0)


def test_round_trips_are_waiting_and_not_work() -> None:
    vertices = (Vertex("input", (), (0.0, NEVER), (2.0,)), Vertex("a", (0,), (5.0, 1.0), (0.0,)))
    slow = Problem(vertices, (1000.0,))
    assert place(slow, Objective.LATENCY).tiers == (0, 0)
    found = place(slow, Objective.THROUGHPUT)
    assert found.tiers == (0, 1)
    assert found.value_ms == 2.0


def test_parallel_branches_are_shared_out_where_latency_keeps_them_together() -> None:
    """Two equal branches on two equally fast tiers: one each halves the bottleneck, and latency sees no gain."""
    vertices = (
        Vertex("input", (), (0.0, NEVER), (1.0,)),
        Vertex("left", (0,), (8.0, 8.0), (1.0,)),
        Vertex("right", (0,), (8.0, 8.0), (1.0,)),
        Vertex("join", (1, 2), (0.1, 0.1), (0.0,)),
    )
    problem = Problem(vertices, (0.0,))
    cut = min_latency(problem)
    shared = min_bottleneck(problem)
    assert bottleneck(problem, cut.tiers) == pytest.approx(16.1)
    assert shared.value_ms == pytest.approx(8.1)
    assert shared.lower_bound_ms > 8.0
    assert value(problem, shared.tiers) > cut.value_ms


def test_of_placements_with_one_bottleneck_the_fastest_at_hand_is_taken() -> None:
    """A picture that takes longest to send decides the bottleneck; then where else to run things is decided by latency."""
    vertices = (
        Vertex("input", (), (0.0, NEVER, NEVER), (10.0, 1.0)),
        Vertex("a", (0,), (NEVER, 3.0, 9.0), (1.0, 1.0)),
        Vertex("b", (1,), (NEVER, 3.0, 9.0), (1.0, 1.0)),
    )
    problem = Problem(vertices, (0.0, 0.0))
    assert place(problem, Objective.THROUGHPUT).tiers == (0, 1, 1)


def test_out_of_time_the_best_known_is_returned_with_an_honest_bound() -> None:
    problem = NETS["inception"](np.random.default_rng(5), 300, 3)
    hasty = place(problem, Objective.THROUGHPUT, time_limit_s=1e-3)
    patient = place(problem, Objective.THROUGHPUT)
    assert hasty.lower_bound_ms <= patient.value_ms <= hasty.value_ms
    assert hasty.value_ms == bottleneck(problem, hasty.tiers)
    assert patient.gap_ms <= 1e-4 * patient.value_ms


@pytest.mark.parametrize("net", NETS)
def test_a_net_of_some_hundred_operators_within_limits_is_planned_to_the_gap(net: str) -> None:
    free = NETS[net](np.random.default_rng(2), 150, 2)
    limited = with_limits(free, 0.3, 60_000.0)
    found = place(limited, Objective.LATENCY)
    assert found.method == "milp"
    assert loads(limited, found.tiers).within_limits(limited)
    assert found.value_ms >= place(free, Objective.LATENCY).lower_bound_ms
    assert 9e-7 * found.value_ms < found.gap_ms <= 1e-4 * found.value_ms, (
        "the solver's tolerance is taken off its bound"
    )
