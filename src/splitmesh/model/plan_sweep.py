"""How options fare as the uplink changes, without pricing them again: a latency is a constant plus bytes over rate.

In the inverse of the rate every latency is a line and every busiest time the larger of a line and a constant, so the
rates at which the winner changes are crossings of lines: exact, not sampled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitmesh.model.placement.problem import Objective

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curve:
    """One option at any uplink rate. Times are mean milliseconds per sample."""

    base_ms: float
    """Latency without the transfer on the uplink."""
    uplink_bytes: float
    """Mean per sample."""
    link_base_ms: float = 0.0
    """What a message occupies the uplink for, beside its transfer."""
    busy_base_ms: float = 0.0
    """The busiest host."""

    def latency_ms(self, uplink_mbps: Floats) -> Floats:
        """At each rate."""
        return self.base_ms + self._transfer(uplink_mbps)

    def busiest_ms(self, uplink_mbps: Floats) -> Floats:
        """The busiest host or the uplink, at each rate."""
        return np.maximum(self.busy_base_ms, self.link_base_ms + self._transfer(uplink_mbps))

    def least_mbps(self, max_link_ms: float) -> float:
        """The slowest uplink that a sample occupies for no longer than this."""
        if self.uplink_bytes == 0:
            return 0.0 if self.link_base_ms <= max_link_ms else math.inf
        left = max_link_ms - self.link_base_ms
        return 8 * self.uplink_bytes / (left * 1e3) if left > 0 else math.inf

    def _transfer(self, uplink_mbps: Floats) -> Floats:
        return 8 * self.uplink_bytes / (uplink_mbps * 1e3)

    def _lines(self, objective: Objective) -> list[tuple[float, float]]:
        """Constant and slope over 1 / rate of the pieces whose maximum it is."""
        slope = 8 * self.uplink_bytes / 1e3
        if objective is Objective.LATENCY:
            return [(self.base_ms, slope)]
        return [(self.busy_base_ms, 0.0), (self.link_base_ms, slope)]


@dataclass(frozen=True, slots=True)
class Region:
    """Rates at which one option wins."""

    low_mbps: float
    high_mbps: float
    winner: int | None
    """Index of the curve; None: none is feasible."""


def winners(
    curves: Sequence[Curve],
    low_mbps: float,
    high_mbps: float,
    objective: Objective = Objective.LATENCY,
    max_link_ms: float = math.inf,
) -> list[Region]:
    """Which curve is lowest where, from the slowest uplink to the fastest; of equal ones the first.

    Args:
        curves: of feasible options.
        low_mbps: where to begin, greater than 0.
        high_mbps: where to end.
        objective: by latency or by the busiest host or link.
        max_link_ms: an option that occupies the uplink for longer is out (1000 / frames per second).
    """
    least = np.array([curve.least_mbps(max_link_ms) for curve in curves])
    edges = {low_mbps, high_mbps, *(rate for rate in least.tolist() if low_mbps < rate < high_mbps)}
    edges.update(_crossings(curves, low_mbps, high_mbps, objective))
    rates = np.array(sorted(edges))
    middles = 2 / (1 / rates[:-1] + 1 / rates[1:])
    best, best_ms = np.full(len(middles), -1), np.full(len(middles), np.inf)
    for index, curve in enumerate(curves):
        values = curve.latency_ms(middles) if objective is Objective.LATENCY else curve.busiest_ms(middles)
        lower = (values < best_ms) & (middles >= least[index])
        best[lower], best_ms[lower] = index, values[lower]
    regions: list[Region] = []
    for low, high, winner in zip(rates[:-1].tolist(), rates[1:].tolist(), best.tolist(), strict=True):
        found = None if winner < 0 else winner
        if regions and regions[-1].winner == found:
            low = regions.pop().low_mbps
        regions.append(Region(low, high, found))
    return regions


def _crossings(curves: Sequence[Curve], low_mbps: float, high_mbps: float, objective: Objective) -> set[float]:
    """Rates between the ends at which two lines of different curves, or of one, meet."""
    lines = np.array(sorted({line for curve in curves for line in curve._lines(objective)})).reshape(-1, 2)
    constant, slope = lines[:, 0], lines[:, 1]
    with np.errstate(all="ignore"):
        inverse = (constant[:, None] - constant[None, :]) / (slope[None, :] - slope[:, None])
        rates = 1 / inverse[np.isfinite(inverse) & (inverse > 0)]
    return set(rates[(rates > low_mbps) & (rates < high_mbps)].tolist())
