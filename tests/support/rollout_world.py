"""A fleet without streams for tests of deployments: hosts with heads that do what they are told, a clock that stands, a registry.

The store is real. Hosts and tasks stand in memory; what a transaction that fails had inserted is taken back with it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection, event

from services.fleet.ports import NodeObserver, TaskObserver
from services.fleet.rollout.controller import Rollouts
from services.fleet.schema import SCHEMA
from services.fleet.values import Host, Target, TaskDraft
from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.streams import Drain
from splitmesh.sql.database import Threads
from splitmesh.sql.database_url import database_at
from tests.support.postgres import fresh_database

MODEL = "joints"
ENDED = (pb.TASK_STATE_DONE, pb.TASK_STATE_FAILED, pb.TASK_STATE_CANCELLED, pb.TASK_STATE_SUPERSEDED)


@dataclass
class Head:
    """What one host serves of the model, and how it takes orders."""

    state: serving_pb2.ServingState
    alias_version: int = 0
    """What it serves without an assignment."""
    refuses: dict[int, str] = field(default_factory=dict)
    """Versions that it cannot use, with the reason."""
    is_slow: bool = False
    """It does not get round to what it is told."""
    ordered: list[serving_pb2.Assignment] = field(default_factory=list)

    def take(self, order: serving_pb2.Assignment) -> None:
        """As a head does: the highest generation counts; what it cannot load it says."""
        if order.generation < self.state.generation:
            return
        self.ordered.append(order)
        state = serving_pb2.ServingState(
            model=MODEL, node="head", generation=order.generation, active_version=self.state.active_version
        )
        if not order.version:
            state.generation, state.active_version = 0, self.alias_version
        elif reason := self.refuses.get(order.version, ""):
            state.wanted.CopyFrom(_version(order.version, reason))
        else:
            state.active_version = order.version
            state.wanted.CopyFrom(_version(order.version, ""))
        if order.HasField("trial"):
            candidate = order.trial.candidate
            state.candidate.CopyFrom(_version(candidate, self.refuses.get(candidate, "")))
            state.counts.trial_id, state.counts.source = order.trial.trial_id, "boot-1"
        self.state = state


class FakeNodes:
    """``ports.Nodes``."""

    def __init__(self) -> None:
        self.known: dict[str, Host] = {}
        self.online: set[str] = set()
        self.heads: dict[str, Head] = {}
        self.observers: list[NodeObserver] = []

    def hosts(self, _connection: Connection, target: Target) -> list[Host]:
        return sorted((host for host in self.known.values() if target.fits(host)), key=lambda host: host.node)

    def is_online(self, node: str) -> bool:
        return node in self.online

    def serving(self, node: str) -> Sequence[serving_pb2.ServingState]:
        head = self.heads.get(node)
        return [head.state] if head and head.state.model else []

    def observe(self, observer: NodeObserver) -> None:
        self.observers = [observer]


class FakeTasks:
    """``ports.Tasks``: a table in memory that a transaction's end makes true."""

    def __init__(self) -> None:
        self.table: dict[str, pb.Task] = {}
        self.observers: list[TaskObserver] = []
        self.full = False
        self._made = 0
        self._of_node: dict[str, list[str]] = defaultdict(list)

    def insert(self, connection: Connection, drafts: Sequence[TaskDraft]) -> list[pb.Task]:
        if self.full:
            raise MeshError(Reason.QUEUE_FULL, "as many tasks wait as may", retry_after_s=1.0)
        before = dict(self.table)
        made = []
        for draft in drafts:
            assert isinstance(draft.work, pb.DeployWork)
            self._made += 1
            task = pb.Task(id=f"t{self._made}", kind=pb.TASK_KIND_DEPLOY, node=draft.node, deploy=draft.work)
            task.state, task.deployment_id = pb.TASK_STATE_QUEUED, draft.deployment_id
            for old in self.open(draft.node):
                if old.deploy.assignment.model == draft.work.assignment.model:
                    self.table[old.id] = _ended(old, pb.TASK_STATE_SUPERSEDED)
            self.table[task.id] = task
            self._of_node[draft.node].append(task.id)
            made.append(task)
        self._follow(connection, before)
        return made

    def cancel(self, _connection: Connection, task_ids: Iterable[str]) -> None:
        for one in task_ids:
            if one in self.table and self.table[one].state not in ENDED:
                self.table[one] = _ended(self.table[one], pb.TASK_STATE_CANCELLED)

    def wake(self, nodes: Iterable[str] = ()) -> None:
        """The world delivers when it is told to."""

    def observe(self, observer: TaskObserver) -> None:
        self.observers = [observer]

    def open(self, node: str) -> list[pb.Task]:
        """Those of a host that have not ended, oldest first."""
        of_node = (self.table.get(one) for one in self._of_node[node])
        return [task for task in of_node if task is not None and task.state not in ENDED]

    def end(self, task_id: str, state: int, reason: str = "", message: str = "") -> None:
        """A task ends and everybody is told."""
        task = self.table[task_id] = _ended(self.table[task_id], state)
        task.reason, task.message = reason, message
        for observer in self.observers:
            observer.task_changed(task)

    def _follow(self, connection: Connection, before: dict[str, pb.Task]) -> None:
        ended: list[bool] = []

        def end(*_: object) -> None:
            ended.append(True)

        def take_back(*_: object) -> None:
            if not ended:
                self.table = before
            ended.append(True)

        for name in ("commit", "release_savepoint"):
            event.listen(connection, name, end)
        for name in ("rollback", "rollback_savepoint"):
            event.listen(connection, name, take_back)


class FakeRegistry:
    """Versions 1 to 9 of the model; who holds them, and where aliases point."""

    def __init__(self) -> None:
        self.versions = set(range(1, 10))
        self.held: set[tuple[str, int]] = set()
        self.aliases: dict[str, int] = {}
        self.problem: MeshError | None = None

    async def get_version(self, model: str, version: int | None = None, *, alias: str | None = None) -> Found:
        self._answer()
        if model != MODEL:
            raise MeshError(Reason.MODEL_NOT_FOUND, f"no model {model}")
        if alias is not None:
            if alias not in self.aliases:
                raise MeshError(Reason.ALIAS_NOT_FOUND, f"no alias {alias}")
            return Found(self.aliases[alias])
        if version not in self.versions:
            raise MeshError(Reason.VERSION_NOT_FOUND, f"no version {version}")
        assert version is not None
        return Found(version)

    async def hold_version(self, model: str, version: int, holder: str, *, hold_s: float = 0.0) -> None:
        self._answer()
        assert (holder, hold_s) == ("fleet", 0.0)
        await self.get_version(model, version)
        self.held.add((model, version))

    async def release_version(self, model: str, version: int, holder: str) -> None:
        self._answer()
        assert holder == "fleet"
        self.held.discard((model, version))

    async def set_alias(
        self, model: str, alias: str, version: int, *, expected: int | None = None, moved_by: str = "", reason: str = ""
    ) -> int:
        self._answer()
        assert (model, bool(reason), bool(moved_by)) == (MODEL, True, True)
        before = self.aliases.get(alias, 0)
        if expected is not None and before != expected:
            raise MeshError(Reason.ALIAS_MOVED, f"{alias} points at {before}")
        self.aliases[alias] = version
        return before

    def _answer(self) -> None:
        if self.problem is not None:
            raise self.problem


@dataclass(frozen=True)
class Found:
    """A version."""

    version: int


class World:
    """All of it; ``rollouts`` is the part under test, driven turn by turn."""

    def __init__(self, database: Threads) -> None:
        self.database = database
        self.nodes, self.tasks, self.registry = FakeNodes(), FakeTasks(), FakeRegistry()
        self.now_us = 1_800_000_000_000_000
        self.drain = Drain()
        self._ids = 0
        self.rollouts = self._new()

    def _new(self) -> Rollouts:
        return Rollouts(
            self.database,
            self.nodes,
            self.tasks,
            self.registry,
            drain=self.drain,
            registry_deadline_s=5.0,
            watch_gap_s=0.0,
            now_us=lambda: self.now_us,
            new_id=self._new_id,
        )

    def _new_id(self) -> str:
        self._ids += 1
        return f"d{self._ids}"

    async def restart(self, *, back: bool = True) -> None:
        """The service dies and starts: nobody is connected, what was heard and not written is lost; then all come ``back``."""
        online, self.nodes.online = self.nodes.online, set()
        self.rollouts = self._new()
        await self.rollouts.open()
        await self.turn()  # as the worker does: its first turn looks at everything
        for node in sorted(online) if back else ():
            self.online(node)

    # ---- hosts

    def add(self, *nodes: str, serves: int = 0, online: bool = True, site: str = "a") -> None:
        """Hosts, which serve a version by an alias where one is given."""
        for node in nodes:
            self.nodes.known[node] = Host(node, site=site)
            state = serving_pb2.ServingState()
            if serves:
                state = serving_pb2.ServingState(model=MODEL, node="head", active_version=serves)
            self.nodes.heads[node] = Head(state, serves)
            if online:
                self.online(node)

    def online(self, *nodes: str) -> None:
        """Their agents connect."""
        for node in nodes:
            self.nodes.online.add(node)
            for observer in self.nodes.observers:
                observer.connected(node)

    def offline(self, *nodes: str) -> None:
        """Their agents are gone."""
        for node in nodes:
            self.nodes.online.discard(node)
            for observer in self.nodes.observers:
                observer.disconnected(node)

    def deliver(self, *nodes: str) -> int:
        """These hosts, or all that are connected, do what they were told; how many tasks ended."""
        done = 0
        for node in nodes or sorted(self.nodes.online):
            head = self.nodes.heads[node]
            for task in [] if head.is_slow else self.tasks.open(node):
                order = serving_pb2.Assignment()
                order.CopyFrom(task.deploy.assignment)
                head.take(order)
                self.say(node)
                self.tasks.end(task.id, pb.TASK_STATE_DONE)
                done += 1
        return done

    def say(self, node: str) -> None:
        """A host's heads tell what they serve."""
        for observer in self.nodes.observers:
            observer.serving_changed(node, self.nodes.serving(node))

    def count(self, node: str, source: str = "boot-1", /, **sums: int) -> None:
        """A host's head has counted so much since it began."""
        state = self.nodes.heads[node].state
        counts = serving_pb2.TrialCounts(trial_id=state.counts.trial_id, source=source, **sums)
        told = serving_pb2.ServingState()
        told.CopyFrom(state)
        told.counts.CopyFrom(counts)
        for observer in self.nodes.observers:
            observer.serving_changed(node, [told])

    def active(self) -> dict[str, int]:
        """What each host answers with."""
        return {node: head.state.active_version for node, head in self.nodes.heads.items()}

    # ---- time and turns

    async def settle(self, limit: int = 200) -> None:
        """Turns and deliveries until nothing follows any more."""
        for _ in range(limit):
            await self.turn()
            if not self.deliver() and not self.rollouts.has_news:
                return
        raise AssertionError("it never comes to rest")

    async def turn(self) -> None:
        """One turn, at this time."""
        await self.rollouts.turn(everything=True)

    async def wait(self, seconds: float) -> None:
        """Time passes, then one turn."""
        self.now_us += round(seconds * 1e6)
        await self.turn()

    # ---- requests

    async def deploy(self, version: int, **strategy: object) -> str:
        """A deployment on all hosts, or of ``nodes``; its id."""
        nodes = strategy.pop("nodes", None)
        target = pb.Target(nodes=nodes) if nodes else pb.Target(all=True)  # type: ignore[arg-type]
        request = pb.DeployRequest(
            model=MODEL,
            version=version,
            target=target,
            strategy=pb.Strategy(**strategy),  # type: ignore[arg-type]
            created_by="anna",
        )
        return (await self.rollouts.deploy(request)).deployment.id

    async def get(self, deployment_id: str) -> pb.Deployment:
        """As it stands."""
        return (await self.rollouts.get(pb.GetDeploymentRequest(id=deployment_id))).deployment

    async def hosts(self, deployment_id: str) -> dict[str, pb.DeploymentNode]:
        """Its hosts."""
        found = await self.rollouts.get(pb.GetDeploymentRequest(id=deployment_id))
        return {one.node: one for one in found.nodes}

    async def rollback(self, deployment_id: str = "", model: str = "") -> pb.Deployment:
        """In one step."""
        return (await self.rollouts.rollback(pb.RollbackRequest(id=deployment_id, model=model))).deployment

    async def state(self, deployment_id: str) -> str:
        """Its state's name, without the prefix."""
        name = pb.DeploymentState.Name((await self.get(deployment_id)).state)
        return name.removeprefix("DEPLOYMENT_STATE_")


@contextmanager
def database_url(kind: str, folder: Path) -> Iterator[str]:
    """Of an SQLite file that is not there yet, or an empty PostgreSQL database."""
    if kind == "sqlite":
        yield f"sqlite:///{folder}/fleet.db"
        return
    with fresh_database() as url:
        yield url


@asynccontextmanager
async def world(folder: Path, kind: str = "sqlite") -> AsyncIterator[World]:
    """On a database of its own."""
    with database_url(kind, folder) as url:
        threads = Threads(database_at(url, SCHEMA), open_wait_s=5.0, check_every_s=60.0, on_lost=lambda _: None)
        await threads.start()
        try:
            found = World(threads)
            await found.rollouts.open()
            yield found
        finally:
            await threads.stop()


def _version(version: int, reason: str) -> serving_pb2.VersionState:
    phase = serving_pb2.PHASE_FAILED if reason else serving_pb2.PHASE_SERVING
    return serving_pb2.VersionState(version=version, phase=phase, reason=reason, message=reason and f"says {reason}")


def _ended(task: pb.Task, state: int) -> pb.Task:
    found = pb.Task()
    found.CopyFrom(task)
    found.state = state  # type: ignore[assignment]
    return found
