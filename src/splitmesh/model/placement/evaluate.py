"""What a given placement costs, computed from the problem's own figures: the yardstick of every solver."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from splitmesh.errors import field_error
from splitmesh.model.placement.figures import Floats, Ints
from splitmesh.model.placement.problem import Objective, Problem


@dataclass(frozen=True, slots=True)
class Loads:
    """What each tier and hop of a placement does for a mean sample. All infinite: it may not run so."""

    tier_ms: Floats
    """(K,)."""
    hop_ms: Floats
    """(K-1,): transfers, without round trips."""
    waiting_ms: float
    """The round trips paid."""
    memory_bytes: Floats
    """(K,)."""
    wire_bytes: Floats
    """(K-1,)."""

    @property
    def latency_ms(self) -> float:
        """One sample after the other."""
        return float(self.tier_ms.sum() + self.hop_ms.sum()) + self.waiting_ms

    @property
    def bottleneck_ms(self) -> float:
        """The busiest tier or hop: the time per sample in steady flow."""
        return float(max(self.tier_ms.max(), self.hop_ms.max()))

    def within_limits(self, problem: Problem) -> bool:
        """Whether memory and wire limits hold."""
        memory = not problem.max_memory_bytes or bool((self.memory_bytes <= problem.max_memory_bytes).all())
        return memory and (not problem.max_wire_bytes or bool((self.wire_bytes <= problem.max_wire_bytes).all()))


def loads(problem: Problem, tiers: Sequence[int] | Ints) -> Loads:
    """Of a tier for every vertex. Infinite times where it ships back or does what it may not; limits are not looked at.

    MeshError FIELD_INVALID for another number of vertices or a tier there is not.
    """
    figures, count = problem.figures, problem.tiers
    at = np.asarray(tiers, dtype=np.int64)
    if at.shape != figures.survival.shape or at.min() < 0 or at.max() >= count:
        raise field_error("tiers", f"expected {len(figures.survival)} tiers of 0..{count - 1}")
    read, reader, everyone = figures.read, figures.reader, np.arange(len(at))
    cost = figures.cost_ms[everyone, at]
    memory = figures.memory_bytes[everyone, at]
    forbidden = bool(np.isinf(cost).any() or (at[read] > at[reader]).any())
    hop_ms, wire, waiting = np.zeros(count - 1), np.zeros(count - 1), 0.0
    for hop, rtt_ms in enumerate(problem.rtt_ms):
        beyond = at > hop
        if not beyond.any():
            continue
        waiting += rtt_ms * float(figures.survival[beyond].max()) if rtt_ms else 0.0
        arcs = (at[read] <= hop) & beyond[reader]
        share = np.full(len(at), -1.0)
        np.maximum.at(share, read[arcs], figures.survival[reader[arcs]])
        crossing = share >= 0
        transfer = figures.transfer_ms[crossing, hop]
        forbidden |= bool(np.isinf(transfer).any()) or math.isinf(rtt_ms)
        if not forbidden:
            hop_ms[hop] = float(transfer @ share[crossing])
        wire[hop] = _product(figures.wire_bytes[crossing, hop], share[crossing])
    if forbidden:
        return Loads(np.full(count, np.inf), np.full(count - 1, np.inf), math.inf, _sums(at, memory, count), wire)
    return Loads(_sums(at, cost, count), hop_ms, waiting, _sums(at, memory, count), wire)


def value(problem: Problem, tiers: Sequence[int] | Ints) -> float:
    """Latency in ms of a mean sample, infinite where the placement is not allowed; limits are not looked at."""
    return loads(problem, tiers).latency_ms


def bottleneck(problem: Problem, tiers: Sequence[int] | Ints) -> float:
    """Time in ms of the busiest tier or hop, infinite where the placement is not allowed; limits are not looked at."""
    return loads(problem, tiers).bottleneck_ms


def objective_ms(problem: Problem, tiers: Sequence[int] | Ints, objective: Objective) -> float:
    """The one that is asked for."""
    return value(problem, tiers) if objective is Objective.LATENCY else bottleneck(problem, tiers)


def _sums(at: Ints, figures: Floats, count: int) -> Floats:
    sums: Floats = np.bincount(at, weights=figures, minlength=count).astype(np.float64)
    return sums


def _product(amounts: Floats, shares: Floats) -> float:
    """Infinite amounts count nothing where no sample goes."""
    return float(amounts[shares > 0] @ shares[shares > 0])
