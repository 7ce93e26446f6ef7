"""Demands for tests of how applications share."""

from __future__ import annotations

from typing import Any

import numpy as np

from splitmesh.routing.demand import Demand

EVEN = np.ones(4)
"""One sample a second of each worth: .125, .375, .625, .875."""


def demand(application: str = "solder", **fields: Any) -> Demand:
    given: dict[str, Any] = {
        "weight": 1.0,
        "min_share": 0.0,
        "rates": EVEN,
        "edges": np.linspace(0, 1, 5),
        "bytes": 1000.0,
        "cloud_ms": 10.0,
    }
    return Demand(application, **(given | fields))


def random_demands(rng: np.random.Generator, count: int, most_bins: int = 12) -> list[Demand]:
    demands = []
    for index in range(count):
        bins = int(rng.integers(1, most_bins + 1))
        rates = rng.uniform(0, 10, bins) * (rng.random(bins) < 0.8)
        demands.append(
            Demand(
                f"app-{index}",
                weight=float(rng.uniform(0.1, 5)),
                min_share=float(rng.choice([0.0, 0.05, 0.2])),
                rates=rates,
                edges=np.linspace(0, 1, bins + 1),
                bytes=float(rng.choice([0.0, 100.0, rng.uniform(10, 1e5)])),
                cloud_ms=float(rng.choice([0.0, 5.0, rng.uniform(0.1, 100)])),
            )
        )
    return demands


def totals(demands: list[Demand]) -> tuple[float, float]:
    rates = [one.rates.sum() for one in demands]
    return sum(rate * one.bytes for rate, one in zip(rates, demands, strict=True)), sum(
        rate * one.cloud_ms for rate, one in zip(rates, demands, strict=True)
    )
