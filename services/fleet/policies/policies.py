"""What the applications of hosts may use: rules by target, kept, and what follows from them for each host.

Knows no stream: who keeps one asks :meth:`HostPolicies.for_hosts` when a host comes, and is told when a rule has
changed what the hosts that there are already are to have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from uuid import uuid4

from sqlalchemy import Connection

from services.fleet.policies import store
from services.fleet.policies.checks import check_policy
from services.fleet.policies.store import Rule, Wanted
from services.fleet.ports import Nodes
from services.fleet.targets import read_target
from services.fleet.values import Host, Target
from splitmesh.api.fleet.v1 import fleet_pb2
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.errors import MeshError, Reason
from splitmesh.sql.database import Threads
from splitmesh.sql.times import utc_now

Told = Callable[[Mapping[str, serving_pb2.HostPolicy]], None]
"""Told in the event loop, after the commit, what hosts by name are to have; must not block or raise."""


class HostPolicies:
    """The host policies of one fleet.

    Args:
        database: where they are kept.
        nodes: the hosts that there are.
        told: see :data:`Told`.
        now: the wall clock.
        new_id: a name that no rule had before.
    """

    def __init__(
        self,
        database: Threads,
        nodes: Nodes,
        told: Told = lambda _policies: None,
        *,
        now: Callable[[], datetime] = utc_now,
        new_id: Callable[[], str] = lambda: uuid4().hex,
    ) -> None:
        self._database = database
        self._nodes = nodes
        self._told = told
        self._now = now
        self._new_id = new_id
        self._rules: Sequence[Rule] = ()
        """As last read, newest first; used in the thread of writes only."""

    async def set(self, request: fleet_pb2.SetHostPolicyRequest) -> fleet_pb2.SetHostPolicyResponse:
        """FIELD_INVALID; NODE_NOT_FOUND, the target means no host; STORAGE_FULL."""
        target = read_target(request.target)
        policies = await self._database.write(lambda connection: self.set_rule(connection, target, request.policy))
        self._told(policies)
        return fleet_pb2.SetHostPolicyResponse(nodes=sorted(policies))

    def set_rule(
        self, connection: Connection, target: Target, policy: serving_pb2.HostPolicy
    ) -> dict[str, serving_pb2.HostPolicy]:
        """As :meth:`set`, within the caller's transaction; what the hosts that the target means are to have now."""
        check_policy(policy)
        hosts = self._nodes.hosts(connection, target)
        if not hosts:
            raise MeshError(Reason.NODE_NOT_FOUND, "the target means no host that there is")
        rule = Rule(self._new_id(), target, _without_generation(policy))
        store.add_rule(connection, rule, self._now())
        settled = store.settle(connection, dict.fromkeys((host.node for host in hosts), rule.policy), {})
        return {node: _message(one) for node, one in settled.items()}

    def for_host(self, connection: Connection, host: Host, held: int = 0) -> serving_pb2.HostPolicy:
        """As :meth:`for_hosts`, for one; without a generation: nothing was ever said of it."""
        return self.for_hosts(connection, [(host, held)]).get(host.node, serving_pb2.HostPolicy())

    def for_hosts(self, connection: Connection, hosts: Iterable[tuple[Host, int]]) -> dict[str, serving_pb2.HostPolicy]:
        """What hosts are to have, by name, without those of which nothing was ever said. In a write transaction.

        Args:
            connection: of the caller's transaction.
            hosts: as they are now, each with the generation that it says it holds; a host that holds a higher one than was given
                here is given a higher one still.
        """
        found = self._current(connection)
        policies: dict[str, bytes | None] = {}
        held: dict[str, int] = {}
        for host, generation in hosts:
            policies[host.node] = store.policy_of(found, host)
            held[host.node] = generation
        settled = store.settle(connection, policies, held)
        return {node: _message(one) for node, one in settled.items()}

    def wanted(self, connection: Connection, nodes: Sequence[str]) -> dict[str, serving_pb2.HostPolicy]:
        """What hosts are to have, as last found out; without those of which nothing was ever said. Changes nothing."""
        return {node: _message(one) for node, one in store.wanted(connection, nodes).items()}

    def _current(self, connection: Connection) -> Sequence[Rule]:
        newest = store.newest_rule(connection)
        if newest != (self._rules[0].id if self._rules else ""):
            self._rules = store.rules(connection)
        return self._rules


def _without_generation(policy: serving_pb2.HostPolicy) -> bytes:
    plain = serving_pb2.HostPolicy()
    plain.CopyFrom(policy)
    plain.ClearField("generation")
    return plain.SerializeToString(deterministic=True)


def _message(one: Wanted) -> serving_pb2.HostPolicy:
    message = serving_pb2.HostPolicy.FromString(one.policy)
    message.generation = one.generation
    return message
