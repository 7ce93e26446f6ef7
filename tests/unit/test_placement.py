"""Least latency by minimum cut, against every placement of small graphs, priced by arithmetic that shares no code."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.placements import NETS, monotone_placements, random_problem
from splitmesh.errors import MeshError, Reason
from splitmesh.model.placement import prefix as prefix_module
from splitmesh.model.placement.evaluate import bottleneck, loads, value
from splitmesh.model.placement.mincut import min_latency
from splitmesh.model.placement.prefix import best_prefix
from splitmesh.model.placement.problem import Objective, Problem, Vertex
from splitmesh.model.placement.solve import place

NEVER = math.inf
TIMES = st.one_of(st.integers(0, 9).map(float), st.floats(0, 50, allow_subnormal=False), st.just(NEVER))


def priced(problem: Problem, tiers: tuple[int, ...]) -> float:
    """Latency, written down once more from the definitions."""
    total = sum(v.survival * v.cost_ms[tier] for v, tier in zip(problem.vertices, tiers, strict=True) if v.survival)
    for hop, rtt_ms in enumerate(problem.rtt_ms):
        beyond = [v.survival for v, tier in zip(problem.vertices, tiers, strict=True) if tier > hop]
        total += rtt_ms * max(beyond, default=0.0)
        for index, vertex in enumerate(problem.vertices):
            readers = [
                v.survival for v, t in zip(problem.vertices, tiers, strict=True) if index in v.sources and t > hop
            ]
            if tiers[index] <= hop and readers:
                total += math.inf if vertex.transfer_ms[hop] == NEVER else max(readers) * vertex.transfer_ms[hop]
    return total


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    tiers = draw(st.integers(2, 4))
    vertices: list[Vertex] = []
    for index in range(draw(st.integers(1, {2: 8, 3: 6}.get(tiers, 5)))):
        sources = draw(st.lists(st.integers(0, index - 1), max_size=3)) if index else []
        reach = min((vertices[source].survival for source in sources), default=1.0)
        cost = tuple(draw(TIMES) for _ in range(tiers)) if index else (0.0, *(NEVER,) * (tiers - 1))
        transfer = tuple(draw(TIMES) for _ in range(tiers - 1))
        survival = draw(st.sampled_from([reach, reach / 2, 0.0]))
        vertices.append(Vertex(f"v{index}", tuple(sources), cost, transfer, survival=survival))
    return Problem(tuple(vertices), tuple(draw(st.floats(0, 40)) for _ in range(tiers - 1)))


def chain(*transfers: float, edge: float = 1.0, cloud: float = 0.1, rtt: float = 0.0) -> Problem:
    """An input and operators one after the other; each but the last sends what is given."""
    vertices = [Vertex("input", (), (0.0, NEVER), (transfers[0],))]
    for index, transfer in enumerate((*transfers[1:], 0.0)):
        vertices.append(Vertex(f"v{index}", (index,), (edge, cloud), (transfer,)))
    return Problem(tuple(vertices), (rtt,))


@settings(max_examples=400, deadline=None)
@given(problems())
def test_no_placement_is_faster_than_the_cut(problem: Problem) -> None:
    best = min((priced(problem, tiers) for tiers in monotone_placements(problem)), default=NEVER)
    if best == NEVER:
        with pytest.raises(MeshError) as refused:
            min_latency(problem)
        assert refused.value.reason is Reason.PLAN_INFEASIBLE
        return
    found = min_latency(problem)
    assert priced(problem, found.tiers) == pytest.approx(found.value_ms, rel=1e-9, abs=1e-9)
    assert found.value_ms == pytest.approx(best, rel=1e-7, abs=1e-12)
    assert found.lower_bound_ms <= best * (1 + 1e-12)
    assert found.lower_bound_ms <= found.value_ms
    assert found.gap_ms <= 1e-7 * best + 1e-12
    for vertex, tier in zip(problem.vertices, found.tiers, strict=True):
        assert all(found.tiers[source] <= tier for source in vertex.sources), "ships back"


@pytest.mark.parametrize("tiers", [2, 3, 4])
def test_random_graphs_with_pins_and_exits_are_placed_as_well_as_trying_all_does(tiers: int) -> None:
    rng = np.random.default_rng(tiers)
    infeasible = 0
    for _ in range(120):
        problem = random_problem(rng, tiers)
        best = min((priced(problem, tried) for tried in monotone_placements(problem)), default=NEVER)
        if best == NEVER:
            infeasible += 1
            continue
        assert min_latency(problem).value_ms == pytest.approx(best, rel=1e-7, abs=1e-12)
    assert infeasible < 30


@settings(max_examples=200, deadline=None)
@given(problems(), st.data())
def test_a_placement_is_priced_as_defined(problem: Problem, data: st.DataObject) -> None:
    placements = list(monotone_placements(problem))
    if placements:
        tiers = data.draw(st.sampled_from(placements))
        assert value(problem, tiers) == pytest.approx(priced(problem, tiers), rel=1e-9, abs=1e-9)


@settings(max_examples=200, deadline=None)
@given(problems())
def test_the_best_prefix_is_the_best_of_the_prefixes(problem: Problem) -> None:
    by_position = [t for t in monotone_placements(problem) if list(t) == sorted(t)]
    for objective, price in ((Objective.LATENCY, value), (Objective.THROUGHPUT, bottleneck)):
        best = min((price(problem, tiers) for tiers in by_position), default=NEVER)
        found = best_prefix(problem, objective)
        assert (NEVER if found is None else price(problem, found)) == pytest.approx(best, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
@pytest.mark.parametrize("tiers", [2, 3])
def test_a_real_sized_graph_is_no_worse_than_its_best_prefix_and_certified(
    net: Callable[[np.random.Generator, int, int], Problem], tiers: int
) -> None:
    problem = net(np.random.default_rng(3), 300, tiers)
    found = place(problem, Objective.LATENCY)
    prefix = best_prefix(problem, Objective.LATENCY)
    assert prefix is not None
    assert found.value_ms <= value(problem, prefix)
    assert 0 < found.gap_ms <= 1e-6 * found.value_ms, "the certificate is rounded down, and by no more"


def test_a_fast_link_sends_all_and_a_slow_one_nothing_and_a_narrow_tensor_is_where_to_cut() -> None:
    assert min_latency(chain(0.01, 0.01, 0.01)).tiers == (0, 1, 1, 1)
    assert min_latency(chain(50.0, 50.0, 50.0)).tiers == (0, 0, 0, 0)
    assert min_latency(chain(50.0, 0.2, 50.0)).tiers == (0, 0, 1, 1)


def test_where_both_take_as_long_nothing_is_sent() -> None:
    equal = chain(0.0, 0.0, edge=1.0, cloud=1.0)
    assert min_latency(equal).tiers == (0, 0, 0)
    prefix = best_prefix(equal, Objective.LATENCY)
    assert prefix is not None
    assert prefix.tolist() == [0, 0, 0]


def test_a_round_trip_is_paid_once_and_only_for_what_is_sent() -> None:
    assert min_latency(chain(0.0, 0.0, rtt=1.9)).tiers == (0, 0, 0)
    assert min_latency(chain(0.0, 0.0, rtt=1.7)).value_ms == pytest.approx(1.9)


def test_an_output_with_three_readers_crosses_once() -> None:
    vertices = [Vertex("input", (), (0.0, NEVER), (1.0,))]
    vertices += [Vertex(f"v{index}", (0,), (1.0, 0.1), (NEVER,)) for index in range(3)]
    found = min_latency(Problem(tuple(vertices), (0.0,)))
    assert found.tiers == (0, 1, 1, 1)
    assert found.value_ms == pytest.approx(1.3)


def test_nothing_is_shipped_back_even_where_that_would_pay() -> None:
    """The middle operator is slow at the edge and the last one slow in the cloud."""
    vertices = (
        Vertex("input", (), (0.0, NEVER), (0.1,)),
        Vertex("middle", (0,), (10.0, 0.1), (0.1,)),
        Vertex("last", (1,), (0.1, 30.0), (0.1,)),
    )
    found = min_latency(Problem(vertices, (0.0,)))
    assert found.tiers == (0, 0, 0)
    assert found.value_ms == pytest.approx(10.1)
    assert value(Problem(vertices, (0.0,)), (0, 1, 0)) == NEVER


def test_an_exit_makes_what_lies_behind_it_rare_and_so_worth_sending() -> None:
    def with_exit(hard: float) -> Problem:
        vertices = (
            Vertex("input", (), (0.0, NEVER), (20.0,)),
            Vertex("head", (0,), (1.0, 0.1), (2.0,)),
            Vertex("exit", (1,), (0.1, NEVER), (NEVER,)),
            Vertex("tail", (1,), (5.0, 0.5), (0.0,), survival=hard),
        )
        return Problem(vertices, (3.0,))

    assert min_latency(with_exit(1.0)).value_ms == pytest.approx(6.1)
    rare = min_latency(with_exit(0.1))
    assert rare.tiers == (0, 0, 0, 0)
    assert value(with_exit(0.1), (0, 0, 0, 1)) == pytest.approx(1.1 + 0.1 * (2.0 + 0.5 + 3.0))


def test_tiny_and_huge_times_are_planned_to_the_same_precision() -> None:
    for scale in (1e-9, 1e9):
        found = min_latency(chain(50 * scale, 0.2 * scale, 50 * scale, edge=scale, cloud=0.1 * scale))
        assert found.tiers == (0, 0, 1, 1)
        assert found.gap_ms <= 1e-8 * found.value_ms


def test_pins_that_contradict_each_other_are_infeasible() -> None:
    only_cloud = Vertex("a", (0,), (NEVER, 1.0), (0.0,))
    cases = [
        (Vertex("input", (), (0.0, NEVER), (0.0,)), Vertex("a", (0,), (NEVER, NEVER), (0.0,))),
        (Vertex("input", (), (0.0, NEVER), (NEVER,)), only_cloud),
        (Vertex("input", (), (0.0, NEVER), (0.0,)), only_cloud, Vertex("b", (1,), (1.0, NEVER), (0.0,))),
    ]
    for vertices in cases:
        for objective in Objective:
            with pytest.raises(MeshError) as refused:
                place(Problem(vertices, (1.0,)), objective)
            assert refused.value.reason is Reason.PLAN_INFEASIBLE


def wrong_problems() -> Iterator[tuple[str, Callable[[], object]]]:
    one = Vertex("input", (), (0.0, NEVER), (1.0,))
    two_costs = Vertex("v", (0,), (1.0, 1.0), (1.0,))
    yield "no vertices", lambda: Problem((), (1.0,))
    yield "one tier", lambda: Problem((Vertex("input", (), (0.0,), ()),), ())
    yield "reads itself", lambda: Problem((one, Vertex("v", (1,), (1.0, 1.0), (1.0,))), (1.0,))
    yield "reads before the first", lambda: Problem((one, Vertex("v", (-1,), (1.0, 1.0), (1.0,))), (1.0,))
    yield "a cost too many", lambda: Problem((one, Vertex("v", (0,), (1.0, 1.0, 1.0), (1.0,))), (1.0,))
    yield "negative cost", lambda: Problem((one, Vertex("v", (0,), (1.0, -1.0), (1.0,))), (1.0,))
    yield "undefined transfer", lambda: Problem((one, Vertex("v", (0,), (1.0, 1.0), (math.nan,))), (1.0,))
    yield "survival above one", lambda: Problem((Vertex("input", (), (0.0, NEVER), (1.0,), survival=1.5),), (1.0,))
    yield "undefined survival", lambda: Problem((Vertex("input", (), (0.0, 1.0), (1.0,), survival=math.nan),), (1.0,))
    yield (
        "survival grows",
        lambda: Problem((Vertex("input", (), (0.0, NEVER), (1.0,), survival=0.5), two_costs), (1.0,)),
    )
    yield "negative round trip", lambda: Problem((one,), (-1.0,))
    yield "a limit too few", lambda: Problem((one,), (1.0,), max_memory_bytes=(1.0,))
    yield "memory of one tier", lambda: Problem((Vertex("input", (), (0.0, 1.0), (1.0,), (1.0,)),), (1.0,))
    yield "too few tiers placed", lambda: value(Problem((one, two_costs), (1.0,)), (0,))
    yield "a tier there is not", lambda: loads(Problem((one, two_costs), (1.0,)), (0, 2))


@pytest.mark.parametrize("make", [make for _, make in wrong_problems()], ids=[name for name, _ in wrong_problems()])
def test_what_does_not_fit_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(MeshError) as refused:
        make()
    assert refused.value.reason is Reason.FIELD_INVALID


def test_a_long_list_of_operators_is_looked_at_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pairs of 40,000 positions at once would take 12 GB; in blocks of any size the answer is the same."""
    vertices = [Vertex("input", (), (0.0, NEVER, NEVER), (9.0, 9.0))]
    for index in range(30):
        vertices.append(
            Vertex(f"v{index}", (index,), (5.0 + index % 3, 2.0, 0.1), (float(index * 7 % 11), float(index * 5 % 13)))
        )
    problem = Problem(tuple(vertices), (1.0, 2.0))
    at_once = best_prefix(problem, Objective.LATENCY)
    assert at_once is not None
    for block in (1, 70, 100):
        monkeypatch.setattr(prefix_module, "_BLOCK", block)
        in_blocks = best_prefix(problem, Objective.LATENCY)
        assert in_blocks is not None
        assert in_blocks.tolist() == at_once.tolist()
