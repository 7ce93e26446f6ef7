"""What a plan is asked for, and the plan over the profiles of its hosts. Knows no gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from splitmesh.model.plan import Constraints, Link, Objective, Plan, Workload, make_plan
from splitmesh.model.plan_chain import Tier, plan_chain
from splitmesh.model.plan_options import AS_SENT
from splitmesh.model.plan_record import PlannedTier
from splitmesh.model.profile_data import Profile


@dataclass(frozen=True, slots=True)
class Host:
    """A tier as it is asked for."""

    name: str
    node: str
    """Whose own profile is used; empty: the partitioner's times ``slowdown``."""
    slowdown: float
    max_model_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class PlanTask:
    """What a plan is asked for."""

    hosts: tuple[Host, ...]
    """Edge, any number between, cloud."""
    links: tuple[Link, ...]
    """From each to the next."""
    workload: Workload
    """Without picture sizes."""
    constraints: Constraints
    objective: Objective
    picture_bytes: int
    """0: what the profile measured."""


def planned_tiers(task: PlanTask, measured: Mapping[str, Profile]) -> list[PlannedTier]:
    """The hosts as a record of the plan names them; ``measured``: profiles by the names of nodes, as the registry has them."""
    return [
        PlannedTier.of(host.name, measured[host.node], 1.0 if host.node else host.slowdown, host.max_model_bytes)
        for host in task.hosts
    ]


async def plan_over(task: PlanTask, profile_of: Callable[[str], Awaitable[Profile]], tolerated: float) -> Plan:
    """Every option ranked: over two hosts from fused times, over more from the operators' times.

    Args:
        task: what is asked.
        profile_of: the profile of a node by its name; of the empty name: the partitioner's.
        tolerated: disagreement that the measured shares of hard samples were found for.

    Raises PLAN_INFEASIBLE, FIELD_INVALID, and what ``profile_of`` raises.
    """
    profiles = {node: await profile_of(node) for node in dict.fromkeys(host.node for host in task.hosts)}
    tiers = [
        Tier(host.name, profiles[host.node], 1.0 if host.node else host.slowdown, host.max_model_bytes)
        for host in task.hosts
    ]
    workload = replace(
        task.workload,
        picture_bytes={AS_SENT: task.picture_bytes} if task.picture_bytes else {},
        exit_disagreement=tolerated if task.workload.escalation is None else None,
    )
    if len(tiers) > 2:
        return await asyncio.to_thread(plan_chain, tiers, task.links, workload, task.constraints, task.objective)
    edge, cloud = tiers
    return await asyncio.to_thread(
        make_plan,
        edge.profile,
        task.links[0],
        workload,
        task.constraints,
        cloud=cloud.profile,
        edge_slowdown=edge.slowdown,
        cloud_speedup=1 / cloud.slowdown,
        objective=task.objective,
    )
