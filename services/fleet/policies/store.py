"""Statements about rules and hosts' policies. Knows no transaction and no thread: the caller has both, and a write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from services.fleet.policies.tables import host_policies, policy_rules
from services.fleet.targets import target_from, target_to
from services.fleet.values import Host, Target
from splitmesh.api.fleet.v1 import fleet_pb2
from splitmesh.errors import MeshError, Reason
from splitmesh.sql.times import to_us

MAX_RULES = 1000
_MOST_NAMES = 1000
"""In one statement."""
_MAX_HELD = 2**62
"""A host that says that it holds more than this is not believed."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The hosts that a target means have this policy, unless a newer rule means them."""

    id: str
    target: Target
    policy: bytes
    """As a message without a generation."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a host is to have."""

    generation: int
    policy: bytes
    """As in :class:`Rule`."""


def newest_rule(connection: Connection) -> str:
    """Its id, empty without any: as long as it stays the same, so do all rules."""
    asked = select(policy_rules.c.id).order_by(policy_rules.c.number.desc()).limit(1)
    return connection.execute(asked).scalar() or ""


def rules(connection: Connection) -> list[Rule]:
    """Newest first."""
    return [
        Rule(row.id, target_from(fleet_pb2.Target.FromString(row.target)), bytes(row.policy))
        for row in connection.execute(select(policy_rules).order_by(policy_rules.c.number.desc()))
    ]


def add_rule(connection: Connection, rule: Rule, now: datetime) -> None:
    """Makes it the newest; those that can mean nothing any more go. STORAGE_FULL when there are as many as may be."""
    number = connection.execute(select(func.coalesce(func.max(policy_rules.c.number), 0))).scalar_one() + 1
    target = target_to(rule.target).SerializeToString(deterministic=True)
    over = delete(policy_rules)
    connection.execute(over if rule.target.every else over.where(policy_rules.c.target == target))
    if connection.execute(select(func.count()).select_from(policy_rules)).scalar_one() >= MAX_RULES:
        raise MeshError(
            Reason.STORAGE_FULL,
            f"there are {MAX_RULES} host policies already; one for all hosts takes the place of those before it",
        )
    values = {"number": number, "id": rule.id, "target": target, "policy": rule.policy, "create_time_us": to_us(now)}
    connection.execute(insert(policy_rules).values(values))


def wanted(connection: Connection, nodes: Sequence[str]) -> dict[str, Wanted]:
    """What hosts are to have, as last found out; without those of which nothing was ever said."""
    found: dict[str, Wanted] = {}
    for names in _parts(nodes):
        for row in connection.execute(select(host_policies).where(host_policies.c.node.in_(names))):
            found[row.node] = Wanted(row.generation, bytes(row.policy))
    return found


def settle(connection: Connection, policies: Mapping[str, bytes | None], held: Mapping[str, int]) -> dict[str, Wanted]:
    """Notes what hosts are to have from now on, and which generation that is: a new one only where it is something new.

    Args:
        connection: of the caller's transaction.
        policies: by host; None: no rule means it.
        held: generations that hosts say they hold, where they do: one that is ahead comes from another fleet's database.
    """
    before = wanted(connection, [*policies])
    settled: dict[str, Wanted] = {}
    changed: list[dict[str, object]] = []
    new: list[dict[str, object]] = []
    for node, policy in policies.items():
        was = before.get(node)
        holds = held.get(node, 0) if held.get(node, 0) < _MAX_HELD else 0
        if was is None and policy is None and not holds:
            continue
        known = was.generation if was else 0
        is_new = was is None or was.policy != (policy or b"") or holds > known
        one = settled[node] = Wanted(max(known, holds) + 1 if is_new else known, policy or b"")
        if is_new:
            row = {"node": node, "generation": one.generation, "policy": one.policy}
            (new if was is None else changed).append(row)
    if new:
        connection.execute(insert(host_policies), new)
    if changed:
        same = host_policies.c.node == bindparam("the_node")
        renamed = [{"the_node": row.pop("node"), **row} for row in changed]
        connection.execute(update(host_policies).where(same), renamed)
    return settled


def policy_of(found: Sequence[Rule], host: Host) -> bytes | None:
    """Of the newest rule that means the host; None: there is none."""
    return next((rule.policy for rule in found if rule.target.fits(host)), None)


def _parts(nodes: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(nodes), _MOST_NAMES):
        yield nodes[start : start + _MOST_NAMES]
