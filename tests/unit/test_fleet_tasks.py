"""The lease table on SQLite and PostgreSQL, with hosts that only listen and a clock that a test moves."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from services.fleet.config import FleetSettings
from services.fleet.schema import open_database
from services.fleet.tasks.board import TaskBoard
from services.fleet.tasks.following import Followers
from services.fleet.tasks.lease import CANCELLED, DONE, ENDED, FAILED, OFFERED, QUEUED, RUNNING, SUPERSEDED, WITH_HOST
from services.fleet.tasks.making import Maker
from services.fleet.tasks.store import Filter
from services.fleet.values import Host, Target, TaskDraft
from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.streams import Drain
from tests.support.stores import DURABLE, NOON, durable_url

KINDS = frozenset({pb.TASK_KIND_DEPLOY, pb.TASK_KIND_PROFILE, pb.TASK_KIND_COLLECT})
LEASE_S = 30.0


class Listener:
    """A host that notes what it is told, and has begun whatever it was offered."""

    def __init__(self, node: str, *, max_tasks: int = 1, room: int = 100) -> None:
        self.host = Host(node, site="hamburg")
        self.kinds = KINDS
        self.max_tasks = max_tasks
        self.room = room
        self.told: list[pb.ConnectResponse] = []

    def send(self, message: pb.ConnectResponse) -> None:
        self.told.append(message)

    def take(self, kind: str) -> list[tuple[str, int]]:
        """Tasks and tries of what it was told of this kind, which it forgets."""
        found = [getattr(one, kind) for one in self.told if one.WhichOneof("message") == kind]
        self.told = [one for one in self.told if one.WhichOneof("message") != kind]
        return [(one.id if kind == "offer" else one.task_id, one.attempt) for one in found]


class World:
    """A board whose time stands still."""

    def __init__(self, settings: FleetSettings) -> None:
        self.seconds = 0.0
        self._settings = settings
        self._ids = 0

    def _new_id(self) -> str:
        self._ids += 1
        return f"t-{self._ids}"

    @asynccontextmanager
    async def open(self, *, max_queued: int = 1000) -> AsyncIterator[TaskBoard]:
        """A life of it."""
        threads = open_database(self._settings, lambda _error: None)
        now = lambda: NOON + timedelta(seconds=self.seconds)  # noqa: E731
        self.threads = threads
        self.board = TaskBoard(
            threads,
            Maker(now, self._new_id, max_queued),
            Followers(Drain(), most=10, stream_s=60.0),
            lease_s=LEASE_S,
            flush_s=1e9,
            keep_ended_s=1e9,
            clock=lambda: self.seconds,
            now=now,
        )
        await threads.start()
        try:
            await self.board.start()
            yield self.board
        finally:
            await self.board.stop()
            await threads.stop()

    async def settle(self) -> None:
        """Everything that has come up until now was looked at."""
        self.board.tick()
        await self.board.hear("nobody", pb.TaskUpdate(task_id="nothing", attempt=1, state=DONE))

    async def later(self, seconds: float) -> None:
        """So much later."""
        self.seconds += seconds
        await self.settle()

    async def add(self, *drafts: TaskDraft) -> Sequence[pb.Task]:
        """Tasks, and hosts hear of them."""
        made = await self.threads.write(lambda connection: self.board.insert(connection, drafts))
        self.board.wake({draft.node for draft in drafts if draft.node})
        await self.settle()
        return made

    async def say(self, node: str, task_id: str, attempt: int, state: pb.TaskState.ValueType) -> None:
        await self.board.hear(node, pb.TaskUpdate(task_id=task_id, attempt=attempt, state=state))


@pytest.fixture(params=DURABLE)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with durable_url(request.param, tmp_path) as url:
        database = SecretStr("") if request.param == "sqlite" else SecretStr(url)
        yield World(FleetSettings(data_dir=tmp_path, database_url=database))


def deploy(node: str, version: int, model: str = "m") -> TaskDraft:
    assignment = serving_pb2.Assignment(model=model, version=version, generation=version)
    return TaskDraft(pb.DeployWork(assignment=assignment), node=node)


def profile(node: str = "", **fields: object) -> TaskDraft:
    target = None if node else Target(sites=frozenset({"hamburg"}))
    return TaskDraft(pb.ProfileWork(model="m", version=1), node=node, target=target, **fields)  # type: ignore[arg-type]


async def states(board: TaskBoard) -> dict[str, int]:
    found, _ = await board.page(Filter(), 1000, "")
    return {one.id: one.state for one in found}


async def test_a_newer_deployment_of_the_same_model_takes_the_place_of_the_older_one(world: World) -> None:
    async with world.open() as board:
        line = Listener("a")
        await board.arrive("a", line, [])
        await world.add(deploy("a", 1), deploy("a", 1, "other"), deploy("b", 1))
        assert line.take("offer") == [("t-1", 1), ("t-2", 1)]
        await world.add(deploy("a", 2), deploy("b", 2))
        assert line.take("cancel") == [("t-1", 1)]
        assert line.take("offer") == [("t-4", 1)]
        assert await states(board) == {
            "t-1": SUPERSEDED, "t-2": OFFERED, "t-3": SUPERSEDED, "t-4": OFFERED, "t-5": QUEUED
        }  # fmt: skip


async def test_deployments_do_not_wait_for_other_work_and_other_work_waits_for_its_turn(world: World) -> None:
    async with world.open() as board:
        line = Listener("a")
        await board.arrive("a", line, [])
        await world.add(profile("a"), profile("a"), deploy("a", 1))
        assert line.take("offer") == [("t-1", 1), ("t-3", 1)]
        await world.say("a", "t-1", 1, DONE)
        assert (line.take("acknowledged"), line.take("offer")) == ([("t-1", 1)], [("t-2", 1)])


async def test_what_was_not_committed_is_not_offered(world: World) -> None:
    async with world.open() as board:
        line = Listener("a")
        await board.arrive("a", line, [])

        def fails(connection: object) -> None:
            board.insert(connection, [profile("a")])  # type: ignore[arg-type]
            raise MeshError(Reason.FIELD_INVALID, "no")

        with pytest.raises(MeshError):
            await world.threads.write(fails)
        board.wake()
        await world.settle()
        assert (line.told, await states(board)) == ([], {})


async def test_progress_renews_a_lease_and_silence_ends_it(world: World) -> None:
    async with world.open() as board:
        line = Listener("a")
        await board.arrive("a", line, [])
        await world.add(profile("a"))
        for _ in range(3):
            await world.later(LEASE_S - 1)
            await world.say("a", "t-1", 1, RUNNING)
        assert line.take("offer") == [("t-1", 1)]
        await world.later(LEASE_S + 1)
        assert line.take("offer") == [("t-1", 2)]


async def test_that_a_host_has_begun_shares_the_round_of_what_it_says_next(world: World) -> None:
    async with world.open() as board:
        line = Listener("a")
        await board.arrive("a", line, [])
        await world.add(deploy("a", 1))
        begun = pb.TaskUpdate(task_id="t-1", attempt=1, state=RUNNING)
        assert not board.note("b", begun)
        assert not board.note("a", pb.TaskUpdate(task_id="t-1", attempt=2, state=RUNNING))
        assert not board.note("a", pb.TaskUpdate(task_id="t-1", attempt=1, state=DONE))
        assert board.note("a", begun)
        assert not board.note("a", begun), "a host that goes on saying it waits"
        await world.settle()
        assert (await board.get("t-1")).state == RUNNING
        await world.say("a", "t-1", 1, DONE)
        assert (line.take("acknowledged"), await states(board)) == ([("t-1", 1)], {"t-1": DONE})


async def test_after_a_start_every_host_has_a_full_lease_to_come_back(world: World) -> None:
    async with world.open() as board:
        await board.arrive("a", Listener("a"), [])
        await world.add(profile("a"))
        await world.say("a", "t-1", 1, RUNNING)
    world.seconds += 10 * LEASE_S
    async with world.open() as board:
        await world.later(LEASE_S - 1)
        assert await states(board) == {"t-1": RUNNING}
        await world.later(2)
        assert await states(board) == {"t-1": QUEUED}
        line = Listener("a")
        await board.arrive("a", line, [pb.HeldTask(task_id="t-1", attempt=1)])
        assert (line.told, await states(board)) == ([], {"t-1": RUNNING})


async def test_a_host_that_has_no_room_hears_the_rest_when_it_has(world: World) -> None:
    async with world.open() as board:
        line = Listener("a", room=2)
        await board.arrive("a", line, [])
        await world.add(*(deploy("a", 1, f"m{n}") for n in range(3)))
        assert len(line.take("offer")) == 2
        board.wake(["a"])
        await world.settle()
        assert line.take("offer") == [("t-3", 1)]


async def test_many_tasks_that_nobody_can_take_do_not_hide_one_that_somebody_can(world: World) -> None:
    async with world.open(max_queued=5000) as board:
        line = Listener("a")
        await board.arrive("a", line, [])
        nowhere = Target(sites=frozenset({"nowhere"}))
        await world.add(*(TaskDraft(pb.ProfileWork(model="m"), target=nowhere) for _ in range(2100)), profile())
        for _ in range(3):
            await world.settle()
        assert line.take("offer") == [("t-2101", 1)]


async def test_only_so_many_may_wait_and_a_request_is_answered_all_the_same(world: World) -> None:
    async with world.open(max_queued=2) as board:
        await world.add(profile("a"), profile("a", request_id="r"))
        with pytest.raises(MeshError) as caught:
            await world.add(profile("a"))
        assert caught.value.reason is Reason.QUEUE_FULL
        assert [one.id for one in await world.add(profile("a", request_id="r"))] == ["t-2"]
        assert len(await states(board)) == 2


async def test_a_removed_hosts_own_tasks_go_and_shared_ones_are_for_others(world: World) -> None:
    async with world.open() as board:
        gone, other = Listener("a", max_tasks=2), Listener("b")
        await board.arrive("a", gone, [])
        await world.add(profile("a"), profile())
        board.leave("a", gone)
        await world.threads.write(lambda connection: board.forget_node(connection, "a"))
        board.wake(["a"])
        await board.arrive("b", other, [])
        await world.settle()
        assert other.take("offer") == [("t-2", 2)]
        assert await states(board) == {"t-2": OFFERED}


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_happens_no_try_is_given_to_two_hosts_and_every_task_ends(world: World, seed: int) -> None:
    chance = random.Random(seed)
    nodes = ("a", "b", "c")
    given: dict[tuple[str, int], str] = {}
    ended: dict[str, int] = {}
    lines: dict[str, Listener] = {}
    holds: dict[str, dict[str, int]] = {node: {} for node in nodes}

    def listen(board: TaskBoard) -> None:
        for node, line in lines.items():
            for task_id, attempt in line.take("cancel"):
                if holds[node].get(task_id) == attempt:
                    del holds[node][task_id]
            for task_id, attempt in line.take("offer"):
                assert given.setdefault((task_id, attempt), node) == node
                holds[node][task_id] = attempt

    async def step(board: TaskBoard) -> None:
        node = chance.choice(nodes)
        line, mine = lines.get(node), holds[node]
        match chance.randrange(7):
            case 0:
                await world.add(profile(chance.choice(["", node]), max_attempts=chance.choice([1, 3])))
            case 1 if line:
                board.leave(node, line)
                del lines[node]
                if chance.random() < 0.4:
                    mine.clear()
            case 2 if not line:
                lines[node] = Listener(node)
                await board.arrive(node, lines[node], [pb.HeldTask(task_id=one, attempt=n) for one, n in mine.items()])
            case 3 if line and mine:
                task_id = chance.choice(sorted(mine))
                await world.say(node, task_id, mine[task_id], RUNNING)
            case 4 if line and mine:
                task_id = chance.choice(sorted(mine))
                attempt = mine.pop(task_id)
                await world.say(node, task_id, attempt, chance.choice([DONE, FAILED]))
                assert (task_id, attempt) in line.take("acknowledged")
            case 5:
                await world.later(chance.choice([1.0, LEASE_S + 1]))
            case 6:
                known = await states(board)
                if known:
                    await board.end(chance.choice(sorted(known)))
        await world.settle()
        listen(board)
        found = await states(board)
        assert all(found[one] == state for one, state in ended.items()), "what has ended changed"
        ended.update({one: state for one, state in found.items() if state in ENDED})

    for _ in range(3):  # lives of the board; hosts live on
        lines.clear()
        async with world.open() as board:
            for _ in range(25):
                await step(board)
    lines.clear()
    async with world.open() as board:
        for node in nodes:
            lines[node] = Listener(node)
            held = [pb.HeldTask(task_id=one, attempt=n) for one, n in holds[node].items()]
            await board.arrive(node, lines[node], held)
        for _ in range(200):
            await world.later(1.0)
            listen(board)
            found = await states(board)
            if all(state in ENDED for state in found.values()):
                break
            for node in nodes:
                for task_id, attempt in sorted(holds[node].items()):
                    await world.say(node, task_id, attempt, DONE)
                holds[node].clear()
        assert all(state in ENDED for state in (await states(board)).values())
        assert {CANCELLED, DONE} & set(found.values())
        assert not set(found.values()) & set(WITH_HOST)


async def test_one_hosts_part_of_a_deployment_cannot_be_cancelled_by_itself(world: World) -> None:
    async with world.open() as board:
        host = Listener("a")
        await board.arrive("a", host, [])
        assignment = serving_pb2.Assignment(model="m", version=1, generation=1)
        await world.add(TaskDraft(pb.DeployWork(assignment=assignment), node="a", deployment_id="d-7"))
        ((task, attempt),) = host.take("offer")
        with pytest.raises(MeshError, match="pause d-7, or roll it back") as refused:
            await board.end(task)
        assert refused.value.reason is Reason.DEPLOYMENT_ACTIVE
        assert refused.value.metadata["deployment_id"] == "d-7"
        assert await states(board) == {task: OFFERED}
        assert not host.take("cancel")
        await world.say("a", task, attempt, DONE)
        assert (await board.end(task)).state == DONE
