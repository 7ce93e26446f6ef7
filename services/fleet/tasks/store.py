"""Statements about tasks. Knows no rule, no transaction and no thread: the caller has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Select, bindparam, delete, func, insert, select, update

from services.fleet.tasks import lease
from services.fleet.tasks.tables import tasks
from splitmesh.api.fleet.v1 import fleet_pb2
from splitmesh.sql.times import to_us

AT_ONCE = 500
"""Values in one IN: SQLite takes 32,766, and what a plan costs grows with them."""


@dataclass(slots=True)
class Kept:
    """A task with what only the table knows of it."""

    task: fleet_pb2.Task
    sequence: int
    """Counts the tasks."""
    rest_until_us: int = 0
    """Not offered before, microseconds since 1970."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which tasks a list has."""

    node: str = ""
    states: tuple[int, ...] = ()
    kind: int = 0
    deployment_id: str = ""


_ALL = select(tasks.c.sequence, tasks.c.rest_until_us, tasks.c.task)
_ACTIVE = _ALL.where(tasks.c.state.in_(lease.ACTIVE))
_CHANGING = ("state", "node", "attempt", "rest_until_us", "update_time_us", "task")
_UPDATE = (
    update(tasks).where(tasks.c.id == bindparam("of_id")).values({name: bindparam(f"new_{name}") for name in _CHANGING})
)


def last_sequence(connection: Connection) -> int:
    """Of the newest task; 0: there is none."""
    return int(connection.execute(select(func.coalesce(func.max(tasks.c.sequence), 0))).scalar_one())


def count_queued(connection: Connection) -> int:
    """How many wait for a host."""
    asked = select(func.count()).select_from(tasks).where(tasks.c.state == lease.QUEUED)
    return int(connection.execute(asked).scalar_one())


def add(connection: Connection, made: Sequence[tuple[Kept, str]]) -> None:
    """New tasks with their request ids."""
    if made:
        rows = [{**_row(one), "request_id": request or None} for one, request in made]
        connection.execute(insert(tasks), rows)


def write(connection: Connection, changed: Iterable[Kept]) -> None:
    """Tasks as they are now."""
    rows = [(row["id"], row) for row in map(_row, changed)]
    if rows:
        connection.execute(
            _UPDATE, [{"of_id": of, **{f"new_{name}": row[name] for name in _CHANGING}} for of, row in rows]
        )


def find(connection: Connection, ids: Iterable[str]) -> list[Kept]:
    """Those that there are."""
    return _among(connection, ids, lambda some: _ALL.where(tasks.c.id.in_(some)))


def find_requests(connection: Connection, requests: Iterable[str]) -> dict[str, fleet_pb2.Task]:
    """What was made of these requests."""
    found = {}
    for some in _pieces(requests):
        asked = select(tasks.c.request_id, tasks.c.task).where(tasks.c.request_id.in_(some))
        found.update({row.request_id: fleet_pb2.Task.FromString(row.task) for row in connection.execute(asked)})
    return found


def active_of(connection: Connection, nodes: Iterable[str]) -> list[Kept]:
    """What these hosts have or alone may have, and has not ended, oldest first."""
    found = _among(connection, nodes, lambda some: _ACTIVE.where(tasks.c.node.in_(some)))
    return sorted(found, key=lambda one: one.sequence)


def deploying(connection: Connection, nodes: Iterable[str]) -> list[Kept]:
    """What brings versions to these hosts and has not ended."""
    deploys = _ACTIVE.where(tasks.c.kind == fleet_pb2.TASK_KIND_DEPLOY)
    return _among(connection, nodes, lambda some: deploys.where(tasks.c.node.in_(some)))


def with_hosts(connection: Connection) -> list[Kept]:
    """All that hosts have."""
    return _kept(connection, _ALL.where(tasks.c.state.in_(lease.WITH_HOST)))


def without_host(connection: Connection, after: int, limit: int) -> list[Kept]:
    """What any of several hosts may have and none has, oldest first, with sequences above ``after``."""
    asked = _ALL.where(tasks.c.state == lease.QUEUED, tasks.c.node == "", tasks.c.sequence > after)
    return _kept(connection, asked.order_by(tasks.c.sequence).limit(limit))


def resting(connection: Connection, now: datetime) -> list[tuple[int, str]]:
    """From when on queued tasks may be offered, where that is later than now, and the hosts that may have them."""
    asked = select(tasks.c.rest_until_us, tasks.c.node).where(
        tasks.c.state == lease.QUEUED, tasks.c.rest_until_us > to_us(now)
    )
    return [(row.rest_until_us, row.node) for row in connection.execute(asked)]


def page(connection: Connection, wanted: Filter, before: int, limit: int) -> list[Kept]:
    """Newest first, below a sequence unless that is 0."""
    asked = _ALL.order_by(tasks.c.sequence.desc()).limit(limit)
    if before:
        asked = asked.where(tasks.c.sequence < before)
    if wanted.node:
        asked = asked.where(tasks.c.node == wanted.node)
    if wanted.states:
        asked = asked.where(tasks.c.state.in_(wanted.states))
    if wanted.kind:
        asked = asked.where(tasks.c.kind == wanted.kind)
    if wanted.deployment_id:
        asked = asked.where(tasks.c.deployment_id == wanted.deployment_id)
    return _kept(connection, asked)


def forget(connection: Connection, ids: Iterable[str]) -> None:
    """As if they had never been."""
    for some in _pieces(ids):
        connection.execute(delete(tasks).where(tasks.c.id.in_(some)))


def of_node(connection: Connection, node: str) -> list[Kept]:
    """What a host has or had, or alone may have."""
    return _kept(connection, _ALL.where(tasks.c.node == node))


def forget_ended(connection: Connection, before: datetime) -> int:
    """How many went: those that ended before, but for those of a request, which makes no second task, ever."""
    gone = delete(tasks).where(
        tasks.c.state.in_(lease.ENDED), tasks.c.update_time_us < to_us(before), tasks.c.request_id.is_(None)
    )
    return int(connection.execute(gone).rowcount)


def _row(kept: Kept) -> dict[str, Any]:
    task = kept.task
    return {
        "id": task.id,
        "sequence": kept.sequence,
        "kind": task.kind,
        "state": task.state,
        "node": task.node,
        "attempt": task.attempt,
        "deployment_id": task.deployment_id,
        "model": task.deploy.assignment.model if task.HasField("deploy") else "",
        "rest_until_us": kept.rest_until_us,
        "update_time_us": task.update_time.ToMicroseconds(),
        "task": task.SerializeToString(),
    }


def _among(connection: Connection, values: Iterable[str], asked: Callable[[Sequence[str]], Select[Any]]) -> list[Kept]:
    return [kept for some in _pieces(values) for kept in _kept(connection, asked(some))]


def _kept(connection: Connection, asked: Select[Any]) -> list[Kept]:
    return [Kept(fleet_pb2.Task.FromString(body), number, rest) for number, rest, body in connection.execute(asked)]


def _pieces(values: Iterable[str]) -> Iterator[Sequence[str]]:
    left = iter(values)
    while some := list(islice(left, AT_ONCE)):
        yield some
