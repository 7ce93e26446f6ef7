"""Plans over a chain of tiers, camera to MEC host to cloud: the best placement for every set of tiers that compute.

Each set is a minimum cut over the operators (with limits, a mixed integer program); tiers between that do not compute
hand messages on. What crosses a tier that computes is unpacked and packed again there. Times are sums over operators
(``plan_graph.py``). Exits are not looked at.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from splitmesh.errors import field_error
from splitmesh.model.placement.problem import Objective
from splitmesh.model.plan import Plan, explain, rank, require_known_tensors
from splitmesh.model.plan_certificate import value_ms
from splitmesh.model.plan_chain_price import ChainCosting, Tier
from splitmesh.model.plan_graph import Solved, allowed_codecs, build_problem, same_graph, solve
from splitmesh.model.plan_limits import picture_refusals, require_operators
from splitmesh.model.plan_options import Certificate, Constraints, Link, Option, Workload

__all__ = ["MAX_TIERS", "Tier", "plan_chain"]

SOLVE_S = 2.0
"""Most seconds for one set of tiers, where limits or throughput make it a mixed integer program."""

MAX_TIERS = 6
"""Sets of tiers double with every further one."""


def plan_chain(
    tiers: Sequence[Tier],
    links: Sequence[Link],
    workload: Workload,
    constraints: Constraints,
    objective: Objective = Objective.LATENCY,
) -> Plan:
    """Rank the best placement of every set of tiers.

    Args:
        tiers: two or more, the one beside the cameras first; their profiles hold the same graph.
        links: from each to the next.
        workload: pictures.
        constraints: what forbids an option; ``max_head_bytes`` and the uplink budget are the first tier's.
        objective: what to rank by.

    Raises MeshError PLAN_INFEASIBLE, with the reasons, when every option is refused; FIELD_INVALID for tiers that do not
    fit together, a profile without a graph, and as ``make_plan``.
    """
    if not 2 <= len(tiers) <= MAX_TIERS or len(links) != len(tiers) - 1:
        raise field_error("tiers", f"{len(tiers)} tiers and {len(links)} links; expected 2..{MAX_TIERS} and one less")
    if not same_graph(*(tier.profile for tier in tiers)):
        raise field_error("tiers", "have profiles without a graph or with different ones; profile the version again")
    if len({tier.name for tier in tiers}) < len(tiers):
        raise field_error("tiers", "have the same name twice")
    require_known_tensors(tiers[0].profile, constraints)
    require_operators(tiers[0].profile, constraints)
    search = _ChainSearch(ChainCosting(tuple(tiers), tuple(links), workload, constraints, objective))
    options = rank(list(search.options()), objective)
    value = value_ms(options[0], objective)
    lowest_ms, method = min(search.bounds)
    bound = min(value, lowest_ms)
    certificate = Certificate(bound, value - bound, method)
    why = explain(options, objective, certificate)
    return Plan(tuple(options), why, objective, certificate, tuple(links), workload, constraints)


class _ChainSearch:
    def __init__(self, costing: ChainCosting) -> None:
        self._costing = costing
        self.bounds: list[tuple[float, str]] = []
        """Lower bound and method of every set of two or more tiers."""

    def options(self) -> Iterator[Option]:
        """The best of every set of tiers; with every image codec where one tier does everything."""
        costing, count = self._costing, len(self._costing.tiers)
        yield costing.alone(0, None)
        for tier, codec in itertools.product(range(1, count), costing.pictures):
            yield costing.alone(tier, codec)
        for size in range(2, count + 1):
            for used in itertools.combinations(range(count), size):
                if used[0] > 0 and not costing.pictures:
                    continue
                option = self._best(used, costing.best_picture(used[0]) if used[0] > 0 else None)
                if option is not None:
                    yield option

    def _best(self, used: tuple[int, ...], picture: str | None) -> Option | None:
        """None when the best leaves a tier without work: a smaller set has it; or when no codec carries what crosses."""
        costing = self._costing
        found = self._solve(used, costing.constraints)
        if not (picture and any(picture_refusals(costing.constraints))):
            beforehand, bound = costing.picture_value_ms(used[0], picture), found.lower_bound_ms
            latency = costing.objective is Objective.LATENCY
            self.bounds.append((bound + beforehand if latency else max(bound, beforehand), found.method))
        tiers = found.tiers or self._solve(used, Constraints()).tiers
        if tiers is None or len(set(tiers)) < len(used):
            return None
        return costing.price([used[tier] for tier in tiers], picture)

    def _solve(self, used: tuple[int, ...], limits: Constraints) -> Solved:
        costing = self._costing
        profile = costing.tiers[0].profile
        problem = build_problem(
            profile.nodes,
            allowed_codecs(profile, limits),
            costing.graph_tiers(used, limited=limits is costing.constraints),
            [costing.joined(here, there) for here, there in itertools.pairwise(used)],
            costing.objective,
            max_wire_bytes=[
                costing.most_wire_bytes(here, there) if limits is costing.constraints else math.inf
                for here, there in itertools.pairwise(used)
            ],
        )
        return solve(problem, costing.objective, SOLVE_S)
