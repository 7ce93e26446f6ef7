"""Random walks through deployments: whatever happens, in whatever order, some things always hold."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from services.fleet.rollout.tables import assignments
from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.errors import MeshError, Reason
from tests.support.rollout_world import World, world

HOSTS = [f"h{number}" for number in range(6)]
STEPS = 120
WEIGHTS = {
    "deploy": 2,
    "rollback": 1,
    "pause": 1,
    "resume": 2,
    "offline": 2,
    "online": 3,
    "deliver": 8,
    "refuse": 1,
    "count": 6,
    "wait": 2,
    "restart": 1,
    "full": 1,
    "turn": 1,
}
"""What happens how often."""
FINE = {
    Reason.DEPLOYMENT_ACTIVE,
    Reason.DEPLOYMENT_ENDED,
    Reason.FIELD_INVALID,
    Reason.QUEUE_FULL,
    Reason.MODEL_NOT_FOUND,
}


class Walk:
    """One of them."""

    def __init__(self, seed: int, fleet: World) -> None:
        self.random = random.Random(seed)
        self.fleet = fleet
        self.made: list[str] = []
        self.counted: dict[str, Counter[str]] = {}
        self.taken: Counter[str] = Counter()

    async def step(self) -> None:
        """Something happens."""
        name = self.random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        self.taken[name] += 1
        try:
            await getattr(self, name)()
        except MeshError as error:
            if error.reason not in FINE:
                raise
        await self.check()

    async def deploy(self) -> None:
        strategy: dict[str, object] = {"wave_percents": self.random.choice([[], [20, 100], [10, 50, 100]])}
        strategy["max_failed_share"] = self.random.choice([0.0, 0.5])
        if self.random.random() < 0.5:
            strategy["gate"] = pb.Gate(shadow_pairs=10, max_pairs=500)
        if self.random.random() < 0.3:
            strategy["nodes"] = self.random.sample(HOSTS, 3)
        self.made.append(await self.fleet.deploy(self.random.randint(1, 9), **strategy))

    async def rollback(self) -> None:
        if self.made:
            await self.fleet.rollback(self.random.choice(self.made[-2:]))

    async def pause(self) -> None:
        if self.made:
            await self.fleet.rollouts.pause(pb.PauseDeploymentRequest(id=self.made[-1]))

    async def resume(self) -> None:
        if self.made:
            promote = self.random.random() < 0.2
            await self.fleet.rollouts.resume(pb.ResumeDeploymentRequest(id=self.made[-1], promote=promote))

    async def offline(self) -> None:
        self.fleet.offline(self.random.choice(HOSTS))

    async def online(self) -> None:
        self.fleet.online(self.random.choice(HOSTS))

    async def deliver(self) -> None:
        await self.fleet.turn()
        if online := sorted(self.fleet.nodes.online):
            self.fleet.deliver(*self.random.choice([online, [self.random.choice(online)]]))

    async def refuse(self) -> None:
        head = self.fleet.nodes.heads[self.random.choice(HOSTS)]
        head.refuses = {self.random.randint(1, 9): "MODEL_CORRUPT"} if self.random.random() < 0.5 else {}

    async def count(self) -> None:
        node = self.random.choice(HOSTS)
        trial = self.fleet.nodes.heads[node].state.counts.trial_id
        if not trial or node not in self.fleet.nodes.online:
            return
        sums = self.counted.setdefault(f"{trial} {node}", Counter())
        sums["both_right"] += self.random.randint(1, 300)
        sums[self.random.choice(["only_serving_right", "only_candidate_right"])] += self.random.randint(0, 2)
        self.fleet.count(node, **sums)

    async def wait(self) -> None:
        await self.fleet.wait(self.random.choice([1, 700]))

    async def restart(self) -> None:
        await self.fleet.turn()  # what was heard and not looked at comes again by itself in a fleet with streams
        await self.fleet.restart()

    async def full(self) -> None:
        self.fleet.tasks.full = self.random.random() < 0.3

    async def turn(self) -> None:
        await self.fleet.turn()

    async def check(self) -> None:
        """What always holds."""
        for node, head in self.fleet.nodes.heads.items():
            orders = [(order.generation, order.version) for order in head.ordered]
            assert [one for one, _ in orders] == sorted(one for one, _ in orders), node
            by_generation: dict[int, set[int]] = {}
            for generation, version in orders:
                by_generation.setdefault(generation, set()).add(version)
            assert all(len(versions) == 1 for versions in by_generation.values()), (node, orders)
            assert len(self.fleet.tasks.open(node)) <= 1, node
        for one in self.made:
            found = await self.fleet.get(one)
            counts = found.counts
            parts = (
                counts.waiting,
                counts.under_way,
                counts.serving,
                counts.failed,
                counts.offline,
                counts.rolled_back,
            )
            assert counts.total == sum(parts), found
            told = sum((sums for key, sums in self.counted.items() if key.startswith(f"{one}/")), Counter())
            assert found.evidence.pairs <= told.total(), found

    async def end(self) -> None:
        """Everything that was broken works again; then every host has what it was told last."""
        fleet = self.fleet
        fleet.tasks.full = False
        for head in fleet.nodes.heads.values():
            head.refuses = {}
        fleet.online(*[node for node in HOSTS if node not in fleet.nodes.online])
        await fleet.settle()
        if self.made and (await fleet.state(self.made[-1])) in ("SHADOW", "CANARY", "PAUSED"):
            await fleet.rollouts.resume(pb.ResumeDeploymentRequest(id=self.made[-1], promote=True))
        await fleet.settle()
        for one in self.made:
            if await fleet.state(one) in ("SHADOW", "CANARY", "PAUSED", "ROLLING"):
                await fleet.rollback(one)
                await fleet.settle()
        await fleet.wait(700)
        await fleet.settle()
        await self.check()
        wanted = await fleet.database.read(
            lambda connection: {row.node: row for row in connection.execute(assignments.select())}
        )
        for node, row in wanted.items():
            head = fleet.nodes.heads[node]
            assert head.state.active_version == (row.version or head.alias_version), (node, row, head)
        states = [await fleet.state(one) for one in self.made]
        assert set(states) <= {"DONE", "ROLLED_BACK", "SUPERSEDED"}, states
        for one, state in zip(self.made, states, strict=True):
            for node, host in (await fleet.hosts(one)).items():
                if state == "DONE" and wanted[node].deployment_id == one:
                    assert fleet.active()[node] in (wanted[node].version, host.from_version)


@pytest.mark.parametrize("seed", range(25))
async def test_generations_only_grow_nothing_counts_twice_and_every_host_ends_where_it_should(
    tmp_path: Path, seed: int
) -> None:
    async with world(tmp_path) as fleet:
        fleet.add(*HOSTS, serves=1)
        walk = Walk(seed, fleet)
        for _ in range(STEPS):
            await walk.step()
        await walk.end()
        assert len(walk.made) >= 1
