"""What each host shall serve: written here, brought by a task, told again to a host that has less. Statements only.

An assignment is a wanted state with a generation that only grows, not an event: the newest one says everything, however many a
host has missed. A task is made for it where the host is connected; one that is not gets its task when it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, delete, select, update

from services.fleet.ports import Tasks
from services.fleet.rollout.rollout import Rollout
from services.fleet.rollout.sql import portions, put
from services.fleet.rollout.tables import assignments, deployments
from services.fleet.rollout.values import ACTIVE, DONE, HostRow, Order, Plan
from services.fleet.values import TaskDraft
from splitmesh.api.fleet.v1 import fleet_pb2
from splitmesh.api.serving.v1 import serving_pb2

MAX_ATTEMPTS = 20
"""Of a task that brings an assignment: a host on a bad link tries often; the deployment's time-out says when it failed."""

Generations = Callable[[str, str], tuple[int, int]]
"""The lowest and highest generation that the heads of a host have of a model."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """What one host shall serve of one model."""

    node: str
    model: str
    version: int
    generation: int
    previous_version: int
    assignment: serving_pb2.Assignment
    deployment_id: str
    task_id: str
    settled: bool


@dataclass(frozen=True, slots=True)
class Told:
    """An order that was written down."""

    node: str
    model: str
    generation: int
    task_id: str


def of_hosts(connection: Connection, nodes: Iterable[str], model: str = "") -> dict[tuple[str, str], Assigned]:
    """Assignments of these hosts by host and model; of one model, or all."""
    found: dict[tuple[str, str], Assigned] = {}
    for some in portions(nodes):
        asked = select(assignments).where(assignments.c.node.in_(some))
        for row in connection.execute(asked.where(assignments.c.model == model) if model else asked):
            found[row.node, row.model] = _assigned(row)
    return found


def place(
    connection: Connection,
    tasks: Tasks,
    rollout: Rollout,
    orders: Sequence[Order],
    is_online: Callable[[str], bool],
    generations: Generations,
) -> list[Told]:
    """Writes orders of one deployment down and makes their tasks."""
    plan = rollout.plan
    before = of_hosts(connection, (order.node for order in orders), plan.model)
    placed = []
    for order in orders:
        host, old = rollout.hosts[order.node], before.get((order.node, plan.model))
        reached = max(old.generation if old else 0, generations(order.node, plan.model)[1])
        message = serving_pb2.Assignment(model=plan.model, generation=reached + 1)
        if order.version:
            message.version, message.require_tail = order.version, plan.strategy.require_tail
            if order.trial is not None:
                message.trial.CopyFrom(order.trial)
        placed.append(_placed(plan.id, host, order, message, old))
    connected = {order.node for order in orders if is_online(order.node)}
    # Also where none is thought to be under way: a task from before a restart may still come to a host that is away.
    outdated = [one.task_id for one in before.values() if one.node not in connected and one.task_id]
    tasks.cancel(connection, outdated)
    return _write(connection, tasks, placed, connected, dict.fromkeys(connected, plan))


def tell_again(connection: Connection, tasks: Tasks, again: Sequence[Assigned], generations: Generations) -> list[Told]:
    """Makes new tasks for assignments that hosts do not have; above what a host has from an older life of the fleet."""
    renewed = []
    for one in again:
        highest = generations(one.node, one.model)[1]
        message = serving_pb2.Assignment()
        message.CopyFrom(one.assignment)
        message.generation = one.generation if highest <= one.generation else highest + 1
        renewed.append(replace(one, assignment=message, generation=message.generation))
    return _write(connection, tasks, renewed, {one.node for one in again}, {})


def settle_all(connection: Connection) -> None:
    """Nobody knows which tasks have ended: every host that comes with less than it should have is told again."""
    connection.execute(update(assignments).where(assignments.c.settled == 0).values(settled=1))


def settle(connection: Connection, task_ids: Iterable[str]) -> None:
    """These tasks have ended."""
    for some in portions(task_ids):
        connection.execute(update(assignments).where(assignments.c.task_id.in_(some)).values(settled=1))


def behind(found: Iterable[Assigned], generations: Generations) -> list[Assigned]:
    """Those that a host does not have though no task is bringing them."""
    return [one for one in found if one.settled and _is_behind(one, generations)]


def needed_versions(connection: Connection) -> set[tuple[str, int]]:
    """Versions that a host has, or had before, or may get."""
    coming = select(deployments.c.model, deployments.c.version).where(deployments.c.state.in_((*ACTIVE, DONE)))
    needed = {(model, version) for model, version in connection.execute(coming.distinct())}
    for name in ("version", "previous_version"):
        column = assignments.c[name]
        asked = select(assignments.c.model, column).where(column > 0).distinct()
        needed |= {(model, version) for model, version in connection.execute(asked)}
    return needed


def forget(connection: Connection, node: str) -> None:
    """A host is gone for good."""
    connection.execute(delete(assignments).where(assignments.c.node == node))


def _is_behind(one: Assigned, generations: Generations) -> bool:
    lowest, highest = generations(one.node, one.model)
    if not one.version:
        return lowest not in (0, one.generation)
    return lowest != one.generation or highest != one.generation


def _placed(
    deployment_id: str, host: HostRow, order: Order, message: serving_pb2.Assignment, old: Assigned | None
) -> Assigned:
    owner, previous = deployment_id, old.previous_version if old else 0
    if order.back:
        owner, previous = host.from_deployment, host.from_previous
    elif order.trial is None and order.version != host.from_version:
        previous = host.from_version or host.base_version
    return Assigned(
        node=order.node,
        model=message.model,
        version=message.version,
        generation=message.generation,
        previous_version=previous,
        assignment=message,
        deployment_id=owner,
        task_id="",
        settled=True,
    )


def _write(
    connection: Connection, tasks: Tasks, placed: Sequence[Assigned], connected: set[str], plans: Mapping[str, Plan]
) -> list[Told]:
    going = [one for one in placed if one.node in connected]
    drafts = [
        TaskDraft(
            fleet_pb2.DeployWork(assignment=one.assignment),
            node=one.node,
            max_attempts=MAX_ATTEMPTS,
            created_by=plans[one.node].created_by if one.node in plans else "",
            deployment_id=plans[one.node].id if one.node in plans else one.deployment_id,
        )
        for one in going
    ]
    made = tasks.insert(connection, drafts) if drafts else []
    ids = {(one.node, one.model): task.id for one, task in zip(going, made, strict=True)}
    rows = [_row(one, ids.get((one.node, one.model), "")) for one in placed]
    put(connection, assignments, rows)
    return [Told(one.node, one.model, one.assignment.generation, ids.get((one.node, one.model), "")) for one in placed]


def _row(one: Assigned, task_id: str) -> dict[str, Any]:
    return {
        "node": one.node,
        "model": one.model,
        "version": one.version,
        "generation": one.generation,
        "previous_version": one.previous_version,
        "assignment": one.assignment.SerializeToString(),
        "deployment_id": one.deployment_id,
        "task_id": task_id,
        "settled": int(not task_id),
    }


def _assigned(row: Row[Any]) -> Assigned:
    return Assigned(
        node=row.node,
        model=row.model,
        version=row.version,
        generation=row.generation,
        previous_version=row.previous_version,
        assignment=serving_pb2.Assignment.FromString(row.assignment),
        deployment_id=row.deployment_id,
        task_id=row.task_id,
        settled=bool(row.settled),
    )
