"""Host policies: the newest rule that means a host is the host's, and a generation grows only with something new."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from sqlalchemy import Connection

from services.fleet.policies import store
from services.fleet.policies.policies import HostPolicies
from services.fleet.ports import NodeObserver
from services.fleet.values import Host, Target
from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.errors import MeshError, Reason
from splitmesh.sql.database import Threads
from tests.support.fleet_database import opened_database
from tests.support.stores import DURABLE, NOON, durable_url, refused

PRESS, LATHE, OVEN = Host("press", site="ulm"), Host("lathe", site="ulm", line="2"), Host("oven", site="graz")
ULM, ALL = pb.Target(sites=["ulm"]), pb.Target(all=True)


class Hosts:
    """The hosts that there are."""

    def __init__(self, *hosts: Host) -> None:
        self.there = list(hosts)

    def hosts(self, _connection: Connection, target: Target) -> list[Host]:
        return sorted((host for host in self.there if target.fits(host)), key=lambda host: host.node)

    def is_online(self, _node: str) -> bool:
        return True

    def serving(self, _node: str) -> Sequence[serving_pb2.ServingState]:
        return ()

    def observe(self, _observer: NodeObserver) -> None:
        pass


class World:
    """Policies on a database, and what was told."""

    def __init__(self, threads: Threads, *hosts: Host) -> None:
        self.threads = threads
        self.nodes = Hosts(*hosts)
        self.told: list[Mapping[str, serving_pb2.HostPolicy]] = []
        self.policies = HostPolicies(threads, self.nodes, self.told.append, now=lambda: NOON)

    async def set(self, target: pb.Target, policy: serving_pb2.HostPolicy) -> list[str]:
        found = await self.policies.set(pb.SetHostPolicyRequest(target=target, policy=policy))
        return list(found.nodes)

    async def for_host(self, host: Host, held: int = 0) -> tuple[int, int]:
        """Generation and memory."""
        found = await self.threads.write(lambda connection: self.policies.for_host(connection, host, held))
        return found.generation, found.memory_bytes

    async def for_hosts(self, hosts: Iterable[Host]) -> dict[str, tuple[int, int]]:
        asked = [(host, 0) for host in hosts]
        found = await self.threads.write(lambda connection: self.policies.for_hosts(connection, asked))
        return {node: (one.generation, one.memory_bytes) for node, one in found.items()}


@pytest.fixture(params=DURABLE)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with durable_url(request.param, tmp_path) as url:
        yield url


@pytest.fixture
async def world(url: str) -> AsyncIterator[World]:
    async with opened_database(url) as threads:
        yield World(threads, PRESS, LATHE, OVEN)


def memory(size_bytes: int) -> serving_pb2.HostPolicy:
    return serving_pb2.HostPolicy(memory_bytes=size_bytes)


async def test_the_newest_rule_that_means_a_host_is_the_hosts(world: World) -> None:
    assert await world.set(ALL, memory(1)) == ["lathe", "oven", "press"]
    assert await world.set(ULM, memory(2)) == ["lathe", "press"]
    assert await world.set(pb.Target(nodes=["lathe"]), memory(3)) == ["lathe"]
    assert await world.for_hosts([PRESS, LATHE, OVEN]) == {"press": (2, 2), "lathe": (3, 3), "oven": (1, 1)}
    await world.set(ALL, memory(4))
    assert await world.for_hosts([PRESS, LATHE, OVEN]) == {"press": (3, 4), "lathe": (4, 4), "oven": (2, 4)}


async def test_hosts_that_come_later_have_the_rules_of_before(world: World) -> None:
    await world.set(ULM, memory(2))
    late = Host("mill", site="ulm")
    assert await world.for_host(late) == (1, 2)
    assert await world.for_host(late, held=1) == (1, 2)
    assert await world.for_host(Host("kiln", site="graz")) == (0, 0)


async def test_a_generation_grows_only_when_the_policy_of_the_host_changes(world: World) -> None:
    await world.set(ULM, memory(2))
    await world.set(ULM, memory(2))
    await world.set(pb.Target(nodes=["press"]), memory(2))
    assert await world.for_hosts([PRESS, LATHE]) == {"press": (1, 2), "lathe": (1, 2)}
    await world.set(ULM, memory(3))
    assert await world.for_host(PRESS) == (2, 3)
    assert [(one["press"].generation, one["press"].memory_bytes) for one in world.told] == [
        (1, 2),
        (1, 2),
        (1, 2),
        (2, 3),
    ]


async def test_a_host_that_moves_has_the_policy_of_where_it_is_now(world: World) -> None:
    await world.set(ULM, memory(2))
    await world.set(pb.Target(sites=["graz"]), memory(3))
    assert await world.for_host(PRESS) == (1, 2)
    assert await world.for_host(Host("press", site="graz")) == (2, 3)
    assert await world.for_host(Host("press", site="linz")) == (3, 0)
    assert await world.for_host(PRESS) == (4, 2)


async def test_a_host_that_holds_what_another_database_gave_it_is_given_a_higher_generation(world: World) -> None:
    await world.set(ULM, memory(2))
    assert await world.for_host(PRESS, held=7) == (8, 2)
    assert await world.for_host(PRESS, held=8) == (8, 2)
    assert await world.for_host(OVEN, held=3) == (4, 0)
    assert await world.for_host(LATHE, held=2**64 - 1) == (1, 2)


async def test_everything_is_kept_over_a_restart(url: str) -> None:
    async with opened_database(url) as threads:
        world = World(threads, PRESS, LATHE)
        await world.set(ULM, memory(2))
        await world.set(ULM, memory(3))
    async with opened_database(url) as threads:
        again = World(threads, PRESS, LATHE)
        assert await again.for_hosts([PRESS, LATHE, Host("mill", site="ulm")]) == {
            "press": (2, 3),
            "lathe": (2, 3),
            "mill": (1, 3),
        }
        found = await threads.read(lambda connection: again.policies.wanted(connection, ["press", "nobody"]))
        assert {node: one.generation for node, one in found.items()} == {"press": 2}


async def test_a_rule_that_was_taken_back_with_its_transaction_is_not_remembered(world: World) -> None:
    await world.set(ULM, memory(1))

    def set_and_fail(connection: Connection) -> None:
        world.policies.set_rule(connection, Target(sites=frozenset({"ulm"})), memory(2))
        assert world.policies.for_host(connection, PRESS).memory_bytes == 2
        raise MeshError(Reason.FIELD_INVALID, "no")

    await refused(world.threads.write(set_and_fail), Reason.FIELD_INVALID)
    assert await world.for_host(PRESS) == (1, 1)
    await world.set(ULM, memory(3))
    assert await world.for_host(Host("mill", site="ulm")) == (1, 3)


async def test_the_whole_policy_arrives(world: World) -> None:
    policy = serving_pb2.HostPolicy(
        shares=[serving_pb2.HostShare(model="solder", priority=9, cpu_weight=2.5, memory_bytes=2**40)], memory_bytes=7
    )
    policy.generation = 99  # the fleet's to give
    await world.set(ALL, policy)
    policy.generation = 1
    assert world.told == [{"press": policy, "lathe": policy, "oven": policy}]
    assert await world.threads.write(lambda connection: world.policies.for_host(connection, OVEN)) == policy


async def test_a_target_that_means_no_host_is_refused_and_makes_no_rule(world: World) -> None:
    await refused(world.set(pb.Target(sites=["linz"]), memory(1)), Reason.NODE_NOT_FOUND)
    assert await world.for_host(Host("mill", site="linz")) == (0, 0)
    assert world.told == []


def share(**values: object) -> serving_pb2.HostPolicy:
    return serving_pb2.HostPolicy(shares=[serving_pb2.HostShare(**{"model": "m", **values})])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "policy", "field"),
    [
        (pb.Target(), memory(1), "target"),
        (ALL, share(model=""), "policy.shares[0].model"),
        (ALL, share(model="A/B"), "policy.shares[0].model"),
        (ALL, share(priority=10), "policy.shares[0].priority"),
        (ALL, share(cpu_weight=-1.0), "policy.shares[0].cpu_weight"),
        (ALL, share(cpu_weight=float("nan")), "policy.shares[0].cpu_weight"),
        (ALL, share(memory_bytes=2**63), "policy.shares[0].memory_bytes"),
        (ALL, memory(2**63), "policy.memory_bytes"),
        (ALL, serving_pb2.HostPolicy(shares=[serving_pb2.HostShare(model="m")] * 2), "policy.shares"),
        (
            ALL,
            serving_pb2.HostPolicy(shares=[serving_pb2.HostShare(model=f"m{number}") for number in range(257)]),
            "policy.shares",
        ),
    ],
    ids=[
        "no-target",
        "no-model",
        "model",
        "priority",
        "negative-weight",
        "weight",
        "share-memory",
        "memory",
        "twice",
        "many",
    ],
)
async def test_a_policy_that_cannot_be_is_refused(
    tmp_path: Path, target: pb.Target, policy: serving_pb2.HostPolicy, field: str
) -> None:
    async with opened_database(f"sqlite:///{tmp_path}/fleet.db") as threads:
        world = World(threads, PRESS)
        error = await refused(world.set(target, policy), Reason.FIELD_INVALID)
        assert error.fields[0][0] == field
        assert await world.for_host(PRESS) == (0, 0)


async def test_rules_that_can_mean_nothing_any_more_go_and_the_rest_is_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_RULES", 3)
    for number in range(1, 6):
        await world.set(pb.Target(nodes=["press", "lathe"]), memory(number))
        await world.set(pb.Target(nodes=["lathe", "press"]), memory(number))
    await world.set(ULM, memory(6))
    await world.set(pb.Target(nodes=["oven"]), memory(7))
    await refused(world.set(pb.Target(nodes=["press"]), memory(8)), Reason.STORAGE_FULL)
    assert await world.for_hosts([PRESS, OVEN]) == {"press": (6, 6), "oven": (1, 7)}
    await world.set(ALL, memory(9))
    await world.set(pb.Target(nodes=["press"]), memory(10))
    assert await world.for_hosts([PRESS, OVEN]) == {"press": (8, 10), "oven": (2, 9)}


async def test_a_rule_for_thousands_of_hosts_is_set_at_once(url: str) -> None:
    hosts = [Host(f"host{number}", site="ulm") for number in range(3000)]
    async with opened_database(url) as threads:
        world = World(threads, *hosts)
        assert len(await world.set(ULM, memory(1))) == 3000
        await world.set(pb.Target(nodes=["host7"]), memory(2))
        await world.set(ULM, memory(3))
        found = await world.for_hosts(hosts)
        assert found.pop("host7") == (3, 3)
        assert set(found.values()) == {(2, 3)}
