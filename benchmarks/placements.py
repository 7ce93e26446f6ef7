"""Problems to plan: random graphs small enough to try every placement, and graphs built like real networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from splitmesh.model.placement.problem import Problem, Vertex


def monotone_placements(problem: Problem) -> Iterator[tuple[int, ...]]:
    """Every placement that ships nothing back and runs every operator where it may."""
    vertices, chosen = problem.vertices, [0] * len(problem.vertices)

    def place(index: int) -> Iterator[tuple[int, ...]]:
        if index == len(vertices):
            yield tuple(chosen)
            return
        first = max((chosen[source] for source in vertices[index].sources), default=0)
        for tier in range(first, problem.tiers):
            if math.isfinite(vertices[index].cost_ms[tier]):
                chosen[index] = tier
                yield from place(index + 1)

    yield from place(0)


def random_problem(rng: np.random.Generator, tiers: int, *, limited: bool = False) -> Problem:
    """Any graph of 2 to 10, 8 or 7 vertices for 2, 3 or 4 tiers; some without any allowed placement."""
    count = int(rng.integers(2, {2: 11, 3: 9}.get(tiers, 8)))
    whole, pins, exits = rng.random() < 0.3, rng.random() < 0.3, rng.random() < 0.4
    scale = 10.0 ** rng.integers(-2, 4)
    density = rng.uniform(0.2, 0.7)

    def times(width: int, forbidden: float) -> tuple[float, ...]:
        drawn = rng.integers(0, 6, width).astype(float) if whole else rng.exponential(scale, width)
        drawn[rng.random(width) < 0.15] = 0.0
        drawn[rng.random(width) < (forbidden if pins else 0.0)] = math.inf
        return tuple(drawn.tolist())

    vertices: list[Vertex] = []
    for index in range(count):
        sources = tuple(int(s) for s in range(index) if rng.random() < density) or tuple(range(index))[-1:]
        if index and rng.random() < 0.05:
            sources = ()
        reach = min((vertices[source].survival for source in sources), default=1.0)
        survival = reach * float(rng.choice([1.0, 0.5, 0.2, 0.0], p=[0.6, 0.2, 0.15, 0.05])) if exits else 1.0
        cost = times(tiers, 0.12) if index else (0.0, *(math.inf,) * (tiers - 1))
        amounts = [tuple(rng.integers(0, 10, width).astype(float).tolist()) for width in (tiers, tiers - 1)]
        memory, wire = amounts if limited else ((), ())
        vertices.append(Vertex(f"v{index}", sources, cost, times(tiers - 1, 0.2), memory, wire, survival))
    rtt = tuple(0.0 if rng.random() < 0.3 else float(rng.exponential(2 * scale)) for _ in range(tiers - 1))
    if not limited:
        return Problem(tuple(vertices), rtt)
    memory_limits = tuple(float(rng.integers(5, 60)) if rng.random() < 0.7 else math.inf for _ in range(tiers))
    wire_limits = tuple(float(rng.integers(0, 25)) if rng.random() < 0.5 else math.inf for _ in range(tiers - 1))
    return Problem(tuple(vertices), rtt, memory_limits, wire_limits)


def residual_net(rng: np.random.Generator, operators: int, tiers: int) -> Problem:
    """Stages of residual blocks like ResNet: convolution, activation, convolution, addition with the block's input."""

    def block(last: int, new: Callable[..., int]) -> int:
        first = new((last,), work=1.0)
        second = new((new((first,), work=0.05),), work=1.0)
        return new((new((second, last), work=0.05),), work=0.05)

    return _net(rng, operators, tiers, block)


def inception_net(rng: np.random.Generator, operators: int, tiers: int) -> Problem:
    """Four parallel branches of one to three convolutions, joined by a concatenation."""

    def block(last: int, new: Callable[..., int]) -> int:
        ends = []
        for length in (1, 2, 3, 2):
            end = last
            for _ in range(length):
                end = new((new((end,), work=1.0, width=0.3),), work=0.05, width=0.3)
            ends.append(end)
        return new(tuple(ends), work=0.1)

    return _net(rng, operators, tiers, block)


def dense_net(rng: np.random.Generator, operators: int, tiers: int) -> Problem:
    """Dense blocks of six layers: every layer reads all earlier ones of its block."""

    def block(last: int, new: Callable[..., int]) -> int:
        seen = [last]
        for _ in range(6):
            joined = new(tuple(seen), work=0.1) if len(seen) > 1 else seen[0]
            seen.append(new((new((joined,), work=0.05, width=0.5),), work=1.0, width=0.2))
        return new((new(tuple(seen), work=0.1),), work=0.5)

    return _net(rng, operators, tiers, block)


NETS: dict[str, Callable[[np.random.Generator, int, int], Problem]] = {
    "residual": residual_net,
    "inception": inception_net,
    "dense": dense_net,
}


def with_limits(problem: Problem, memory_share: float, wire_bytes: float) -> Problem:
    """The first tier holds a share of the weights at most, the first hop carries so many bytes at most."""
    weights = sum(vertex.memory_bytes[0] for vertex in problem.vertices)
    return replace(
        problem,
        max_memory_bytes=(memory_share * weights, *(math.inf,) * (problem.tiers - 1)),
        max_wire_bytes=(wire_bytes, *(math.inf,) * (problem.tiers - 2)),
    )


def _net(
    rng: np.random.Generator, operators: int, tiers: int, block: Callable[[int, Callable[..., int]], int]
) -> Problem:
    """Blocks until the operators are used up; links of 1 Mbit/s to 3 Gbit/s, every tier 1 to 20 times faster than the
    one before; each quarter of the operators makes tensors of half the bytes."""
    vertices: list[Vertex] = []
    picture_bytes = 30_000.0
    link_mbit = 10 ** rng.uniform(0, 3.5, tiers - 1)
    speed = np.append(1.0, 10 ** rng.uniform(0, 1.3, tiers - 1)).cumprod()

    def new(sources: tuple[int, ...], work: float, width: float = 1.0) -> int:
        stage = len(vertices) * 4 // operators
        own_bytes = 200_000.0 / 2**stage * width * rng.uniform(0.8, 1.2) if sources else picture_bytes
        time = work * rng.lognormal(0.0, 0.5)
        cost = tuple((time / speed).tolist()) if sources else (0.0,) + (math.inf,) * (tiers - 1)
        transfer = tuple((0.05 + own_bytes * 8e-3 / link_mbit).tolist())
        weights = work * 50_000.0 * 2**stage
        name = f"op{len(vertices)}"
        wire = (own_bytes,) * (tiers - 1)
        vertices.append(Vertex(name, sources, cost, transfer, (weights,) * tiers, wire))
        return len(vertices) - 1

    last = new((), 0.0)
    while len(vertices) < operators - 1:
        last = block(last, new)
    new((last,), work=0.2, width=0.001)
    return Problem(tuple(vertices), tuple(float(rng.uniform(0.5, 30)) for _ in range(tiers - 1)))
