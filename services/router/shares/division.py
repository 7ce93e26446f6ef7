"""A site's budget among its heads: what each should have now, and what is said about it.

Every pair of head and application is one demand of a single allocation (``splitmesh.routing.sharing``), so equal samples on
different heads get equal shares. A head is granted what its samples got, and its part of what is left over. Knows the demands
of now; no streams and no time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from services.router.shares.ledger import Amount
from splitmesh.routing.demand import Demand
from splitmesh.routing.sharing import Limits, Share, allocate

IDLE_PART = 0.1
"""Of what is left over, by this much of the mean demand everybody gets the same: the first sample of a head that asked for
nothing can cross."""


@dataclass(frozen=True, slots=True)
class Asking:
    """One head."""

    node: str
    demands: tuple[Demand, ...]
    """By application, with the site's weights and minima."""


@dataclass(frozen=True, slots=True)
class LiveShare:
    """One application's share on one node, now; see ``splitmesh.api.routing.v1.LiveShare``."""

    node: str
    application: str
    weight: float
    min_share: float
    asked_per_s: float
    allowed_per_s: float
    bytes_per_s: float
    cloud_ms_per_s: float
    least_worth: float
    why: str


@dataclass(frozen=True, slots=True)
class Division:
    """What follows from the demands of a site."""

    limits: Limits
    prices: tuple[float, float]
    """Worth per byte and per millisecond; 0 while there is room."""
    wanted: Mapping[int, Amount]
    """What each head should have, by the head's number."""
    shares: Mapping[int, Mapping[str, Share]]
    """By the head's number and the application."""
    live: tuple[LiveShare, ...]
    """By node and application."""


def divide(asking: Mapping[int, Asking], limits: Limits) -> Division:
    """Within the limits, all of what is limited being given to somebody; MeshError FIELD_INVALID for too many demands."""
    demands = {(number, one.application): one for number, head in asking.items() for one in head.demands}
    found = allocate([replace(one, application=f"{key[0]}/{key[1]}") for key, one in demands.items()], limits)
    shares: dict[int, dict[str, Share]] = {number: {} for number in asking}
    for (number, application), share in zip(demands, found.shares, strict=True):
        shares[number][application] = share
    bytes_per_s = _with_rest(
        [sum(one.bytes_per_s for one in mine.values()) for mine in shares.values()],
        [sum(float(one.rates.sum()) * one.bytes for one in head.demands) for head in asking.values()],
        limits.bytes_per_s,
    )
    cloud_ms_per_s = _with_rest(
        [sum(one.cloud_ms_per_s for one in mine.values()) for mine in shares.values()],
        [sum(float(one.rates.sum()) * one.cloud_ms for one in head.demands) for head in asking.values()],
        limits.cloud_ms_per_s,
    )
    return Division(
        limits=limits,
        prices=(found.price_per_byte, found.price_per_ms),
        wanted=dict(zip(asking, map(Amount, bytes_per_s, cloud_ms_per_s), strict=True)),
        shares=shares,
        live=_live(asking, shares),
    )


def _with_rest(got: list[float], asked: list[float], limit: float) -> list[float]:
    """Each head's amount: what its samples got, and of the rest of the limit a part that grows with what it asks for."""
    if math.isinf(limit):
        return [limit] * len(got)
    rest = max(0.0, limit - sum(got))
    total = sum(asked)
    if total == 0:
        return [mine + rest / len(got) for mine in got]
    idle = IDLE_PART * total / len(asked)
    return [mine + rest * (wish + idle) / (total * (1 + IDLE_PART)) for mine, wish in zip(got, asked, strict=True)]


def _live(asking: Mapping[int, Asking], shares: Mapping[int, Mapping[str, Share]]) -> tuple[LiveShare, ...]:
    """Processes of one node together."""
    found: dict[tuple[str, str], LiveShare] = {}
    for number, head in asking.items():
        for demand in head.demands:
            share = shares[number][demand.application]
            before = found.get((head.node, demand.application))
            found[head.node, demand.application] = LiveShare(
                node=head.node,
                application=demand.application,
                weight=demand.weight,
                min_share=demand.min_share,
                asked_per_s=float(demand.rates.sum()) + (before.asked_per_s if before else 0.0),
                allowed_per_s=share.samples_per_s + (before.allowed_per_s if before else 0.0),
                bytes_per_s=share.bytes_per_s + (before.bytes_per_s if before else 0.0),
                cloud_ms_per_s=share.cloud_ms_per_s + (before.cloud_ms_per_s if before else 0.0),
                least_worth=min(share.least_worth, before.least_worth) if before else share.least_worth,
                why=before.why if before and before.asked_per_s > float(demand.rates.sum()) else share.why,
            )
    return tuple(found[key] for key in sorted(found))
