"""Statements about deployments and their hosts. Knows no rule, no transaction and no thread: the caller has them.

What is said to hosts is in ``assignments``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, exists, func, insert, select, update

from services.fleet.rollout.assignments import Told
from services.fleet.rollout.evidence import SUMS, Key, Ledger, Sums, Tally
from services.fleet.rollout.rollout import Rollout
from services.fleet.rollout.sql import portions, put
from services.fleet.rollout.strategy import read_strategy
from services.fleet.rollout.tables import deployment_nodes, deployments, trial_counts
from services.fleet.rollout.values import (
    ACTIVE,
    DONE,
    ROLLED_BACK,
    SUPERSEDED,
    Figures,
    HostRow,
    Plan,
    Stage,
    Status,
)
from services.fleet.targets import target_from
from splitmesh.api.fleet.v1 import fleet_pb2

_STATUS = [field.name for field in fields(Status)]
_HOST = [field.name for field in fields(HostRow)]
_STILL_GOING_BACK = (Stage.RETURNING, Stage.STUCK)


def find_request(connection: Connection, request_id: str) -> str:
    """Id of the deployment that a request made; empty: none."""
    if not request_id:
        return ""
    asked = select(deployments.c.id).where(deployments.c.request_id == request_id)
    return connection.execute(asked).scalar() or ""


def next_number(connection: Connection) -> int:
    """Of the next deployment."""
    return int(connection.execute(select(func.coalesce(func.max(deployments.c.number), 0))).scalar_one()) + 1


def create(connection: Connection, plan: Plan, status: Status, hosts: Sequence[HostRow]) -> None:
    """A new deployment; earlier ones lose their hosts to it, and one that has lost all is superseded."""
    connection.execute(
        insert(deployments).values(
            number=plan.number,
            id=plan.id,
            request_id=plan.request_id or None,
            model=plan.model,
            version=plan.version,
            target=plan.asked_target.SerializeToString(),
            strategy=plan.asked_strategy.SerializeToString(),
            created_by=plan.created_by,
            description=plan.description,
            create_time_us=plan.create_time_us,
            waves=plan.waves,
            **_status_row(status),
        )
    )
    put(connection, deployment_nodes, [_host_row(plan.id, host) for host in hosts])
    others = select(deployments.c.id).where(deployments.c.model == plan.model, deployments.c.id != plan.id)
    mine = select(deployment_nodes.c.node).where(deployment_nodes.c.deployment_id == plan.id)
    connection.execute(
        update(deployment_nodes)
        .where(
            deployment_nodes.c.deployment_id.in_(others.scalar_subquery()),
            deployment_nodes.c.node.in_(mine.scalar_subquery()),
            deployment_nodes.c.taken_by == "",
        )
        .values(taken_by=plan.id)
    )
    left = exists().where(deployment_nodes.c.deployment_id == deployments.c.id, deployment_nodes.c.taken_by == "")
    connection.execute(
        update(deployments)
        .where(deployments.c.model == plan.model, deployments.c.id != plan.id, deployments.c.state == DONE, ~left)
        .values(state=SUPERSEDED, superseded_by=plan.id, update_time_us=plan.create_time_us)
    )


def give_back(connection: Connection, deployment_id: str) -> None:
    """One has been rolled back: the deployments before it have their hosts again."""
    taken = deployment_nodes.c.taken_by == deployment_id
    connection.execute(update(deployment_nodes).where(taken).values(taken_by=""))
    superseded = deployments.c.superseded_by == deployment_id
    connection.execute(update(deployments).where(superseded).values(state=DONE, superseded_by=""))


def save(connection: Connection, rollout: Rollout, told: Iterable[Told] = ()) -> None:
    """What changed since it was saved, and what hosts were told; memory learns both after the commit."""
    orders = {one.node: {"generation": one.generation, "task_id": one.task_id} for one in told}
    of_it = deployments.c.id == rollout.plan.id
    connection.execute(update(deployments).where(of_it).values(**_status_row(rollout.status)))
    put(
        connection,
        deployment_nodes,
        [_host_row(rollout.plan.id, rollout.hosts[node]) | orders.get(node, {}) for node in rollout.changed],
    )
    counted = [
        {"deployment_id": rollout.plan.id, "trial_id": trial, "node": node, "source": source}
        | dict(zip(SUMS, sums, strict=True))
        for (trial, node, source), sums in rollout.ledger.changed.items()
    ]
    put(connection, trial_counts, counted)


def told_again(connection: Connection, told: Sequence[Told]) -> None:
    """Hosts have new tasks for what they were told before."""
    of_model = select(deployments.c.id).where(deployments.c.model == bindparam("of_model"))
    again = (
        update(deployment_nodes)
        .where(
            deployment_nodes.c.node == bindparam("of_node"),
            deployment_nodes.c.taken_by == "",
            deployment_nodes.c.generation > 0,
            deployment_nodes.c.deployment_id.in_(of_model.scalar_subquery()),
        )
        .values(generation=bindparam("new_generation"), task_id=bindparam("new_task"))
    )
    rows = [
        {"of_model": one.model, "of_node": one.node, "new_generation": one.generation, "new_task": one.task_id}
        for one in told
    ]
    connection.execute(again, rows)


def active_on(connection: Connection, model: str, nodes: Iterable[str]) -> tuple[str, str] | None:
    """A deployment of the model that is under way on one of these hosts, and which."""
    of_model = (deployments.c.id == deployment_nodes.c.deployment_id) & (deployments.c.model == model)
    asked = (
        select(deployments.c.id, deployment_nodes.c.node)
        .join(deployments, of_model)
        .where(deployments.c.state.in_(ACTIVE), deployment_nodes.c.taken_by == "")
        .limit(1)
    )
    for some in portions(nodes):
        if found := connection.execute(asked.where(deployment_nodes.c.node.in_(some))).first():
            return found.id, found.node
    return None


def newest(connection: Connection, model: str) -> str:
    """Id of a model's newest deployment; empty: it was never deployed."""
    asked = select(deployments.c.id).where(deployments.c.model == model).order_by(deployments.c.number.desc()).limit(1)
    return connection.execute(asked).scalar() or ""


def standing(connection: Connection) -> list[str]:
    """Those that may still have something to say to a host."""
    going_back = exists().where(
        deployment_nodes.c.deployment_id == deployments.c.id,
        deployment_nodes.c.stage.in_(_STILL_GOING_BACK),
        deployment_nodes.c.taken_by == "",
    )
    stands = deployments.c.state.in_((*ACTIVE, DONE)) | (
        (deployments.c.state == ROLLED_BACK) & (going_back | (deployments.c.alias_moved == 1))
    )
    return list(connection.execute(select(deployments.c.id).where(stands).order_by(deployments.c.number)).scalars())


def of_model(connection: Connection, model: str) -> list[str]:
    """The standing ones of a model."""
    asked = select(deployments.c.id).where(deployments.c.model == model)
    known = set(connection.execute(asked).scalars())
    return [one for one in standing(connection) if one in known]


def load(connection: Connection, deployment_id: str) -> Rollout | None:
    """All of one; None: there is none."""
    row = connection.execute(select(deployments).where(deployments.c.id == deployment_id)).first()
    if row is None:
        return None
    asked = select(*(deployment_nodes.c[name] for name in _HOST))
    of_it = asked.where(deployment_nodes.c.deployment_id == deployment_id)
    hosts = [
        HostRow(node, wave, Stage(stage), *rest)
        for node, wave, stage, *rest in connection.execute(
            of_it.order_by(deployment_nodes.c.wave, deployment_nodes.c.node)
        )
    ]
    counted: dict[Key, Sums] = {}
    for found in connection.execute(select(trial_counts).where(trial_counts.c.deployment_id == deployment_id)):
        counted[found.trial_id, found.node, found.source] = tuple(getattr(found, name) for name in SUMS)
    return Rollout(_plan(row), _status(row), hosts, Ledger(counted))


def page(connection: Connection, model: str, before: int, limit: int) -> list[tuple[Plan, Status, Figures, Tally]]:
    """Some deployments, newest first, with their hosts counted, none of them as offline."""
    asked = select(deployments).order_by(deployments.c.number.desc()).limit(limit)
    if model:
        asked = asked.where(deployments.c.model == model)
    if before:
        asked = asked.where(deployments.c.number < before)
    rows = connection.execute(asked).all()
    ids = [row.id for row in rows]
    stages: dict[str, list[tuple[int, int, bool]]] = defaultdict(list)
    taken = deployment_nodes.c.taken_by
    grouped = (
        select(deployment_nodes.c.deployment_id, deployment_nodes.c.stage, taken, func.count())
        .where(deployment_nodes.c.deployment_id.in_(ids))
        .group_by(deployment_nodes.c.deployment_id, deployment_nodes.c.stage, taken)
    )
    for deployment_id, stage, taker, count in connection.execute(grouped):
        stages[deployment_id].append((stage, count, bool(taker)))
    sums = [func.sum(trial_counts.c[name]) for name in SUMS]
    tallied = (
        select(trial_counts.c.deployment_id, *sums)
        .where(trial_counts.c.deployment_id.in_(ids))
        .group_by(trial_counts.c.deployment_id)
    )
    tallies = {row[0]: Tally.of(tuple(int(value) for value in row[1:])) for row in connection.execute(tallied)}
    return [
        (_plan(row), _status(row), _figures(stages[row.id], row.superseded_by), tallies.get(row.id, Tally()))
        for row in rows
    ]


def forget(connection: Connection, node: str) -> None:
    """A host is gone for good."""
    connection.execute(delete(deployment_nodes).where(deployment_nodes.c.node == node))


def _figures(stages: Sequence[tuple[int, int, bool]], superseded_by: str) -> Figures:
    found = Figures()
    for stage, count, taken in stages:
        if taken and not superseded_by:
            continue
        found.total += count
        match stage:
            case Stage.FAILED | Stage.STUCK:
                found.failed += count
            case Stage.SERVING:
                found.serving += count
            case Stage.RETURNED:
                found.rolled_back += count
            case Stage.WAITING:
                found.waiting += count
            case _:
                found.under_way += count
    return found


def _host_row(deployment_id: str, host: HostRow) -> dict[str, Any]:
    row = {name: getattr(host, name) for name in _HOST}
    row["deployment_id"], row["stage"] = deployment_id, int(host.stage)
    return row


def _status_row(status: Status) -> dict[str, Any]:
    return {name: int(value) if isinstance(value := getattr(status, name), bool) else value for name in _STATUS}


def _status(row: Row[Any]) -> Status:
    found = Status(**{name: getattr(row, name) for name in _STATUS})
    found.alias_moved = bool(found.alias_moved)
    return found


def _plan(row: Row[Any]) -> Plan:
    target = fleet_pb2.Target.FromString(row.target)
    strategy = fleet_pb2.Strategy.FromString(row.strategy)
    return Plan(
        number=row.number,
        id=row.id,
        model=row.model,
        version=row.version,
        target=target_from(target),
        asked_target=target,
        strategy=read_strategy(strategy),
        asked_strategy=strategy,
        waves=row.waves,
        created_by=row.created_by,
        description=row.description,
        create_time_us=row.create_time_us,
        request_id=row.request_id or "",
    )
