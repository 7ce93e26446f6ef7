"""The lease table at work: gathers what comes up into rounds, tells hosts, renews and ends leases. Knows no gRPC.

What hosts have is in memory beside the table, so that progress, which is most of what they say, costs no transaction: it renews a
lease in memory and is written now and then. After a start every host has a full lease to come back. All else is on disk before
anybody is told.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection

from services.fleet.ports import TaskObserver
from services.fleet.tasks import lease, store
from services.fleet.tasks.following import Followers
from services.fleet.tasks.making import Maker
from services.fleet.tasks.rounds import Line, Outcome, Round, run
from services.fleet.values import TaskDraft
from splitmesh.api.fleet.v1 import fleet_pb2
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.pages import number_from_token, page, page_size
from splitmesh.sql.database import Threads
from splitmesh.sql.times import to_us, utc_now

log = logging.getLogger(__name__)

TICK_S = 0.5
"""Between two looks for leases that have run out and progress that is to be written."""
MOST_REST_S = 0.2
"""After a round about many things the next one waits for as long as it took, and no longer than this: what comes up meanwhile
shares it. A round costs much for being one, and little for each task."""
MANY = 64
AGAIN_S = 1.0
"""After a round that could not be written."""
SWEEP_EVERY_S = 3600.0


@dataclass(slots=True)
class _Held:
    """A task that a host has."""

    task: fleet_pb2.Task
    until: float
    """Its lease, on the board's clock."""
    got_on: bool = False
    """Its progress was not written yet."""
    begins: bool = False
    """The next round hears that its host has begun."""


class TaskBoard:
    """Implements :class:`services.fleet.ports.Tasks`; started after its database.

    Args:
        lease_s: a try of which nothing is heard for so long is offered again.
        flush_s: longest time that progress is in memory only.
        keep_ended_s: tasks that ended longer ago are forgotten.
        clock: monotonic, seconds.
    """

    def __init__(
        self,
        threads: Threads,
        maker: Maker,
        followers: Followers,
        *,
        lease_s: float,
        flush_s: float,
        keep_ended_s: float,
        clock: Callable[[], float],
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._threads = threads
        self._maker = maker
        self._followers = followers
        self._lease_s = lease_s
        self._flush_s = flush_s
        self._keep_ended_s = keep_ended_s
        self._clock = clock
        self._now = now
        self._observers: list[TaskObserver] = []
        self._lines: dict[str, Line] = {}
        self._joining: dict[str, Line] = {}
        self._held: dict[str, _Held] = {}
        self._of_node: dict[str, dict[str, int]] = {}
        self._counts: Counter[str] = Counter()
        self._rests: list[tuple[int, str]] = []
        self._round = Round()
        self._waiting: list[asyncio.Future[None]] = []
        self._all = False
        self._after = 0
        self._flushed = self._swept = clock()
        self._woken = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Reads what hosts have."""
        held, self._rests = await self._threads.read(
            lambda connection: (store.with_hosts(connection), store.resting(connection, self._now()))
        )
        heapq.heapify(self._rests)
        for kept in held:
            self._keep(kept.task)
        self._tasks = [asyncio.create_task(self._run_rounds()), asyncio.create_task(self._tick_on())]

    async def stop(self) -> None:
        """What was told to it is written, as far as the database takes it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._tasks:
            self._write_progress()
            with suppress(MeshError):
                await self._one_round()
        self._tasks = []

    # ---- ports.Tasks

    def insert(self, connection: Connection, drafts: Sequence[TaskDraft]) -> list[fleet_pb2.Task]:
        """See the port."""
        return self._maker.insert(connection, drafts)

    def cancel(self, connection: Connection, task_ids: Iterable[str]) -> None:
        """See the port."""
        self._maker.cancel(connection, task_ids)

    def wake(self, nodes: Iterable[str] = ()) -> None:
        """See the port."""
        named = set(nodes)
        self._round.nodes |= named
        self._all = self._all or not named
        self._round.unplaced = True
        self._round.watched = self._followers.watched
        self._woken.set()

    def observe(self, observer: TaskObserver) -> None:
        """See the port."""
        self._observers.append(observer)

    # ---- hosts

    async def arrive(self, node: str, line: Line, held: Sequence[fleet_pb2.HeldTask]) -> None:
        """A host's agent has connected and has these tasks; it is told what it has to know before this returns."""
        self._joining[node] = line
        self._round.arrivals.append((node, held))
        await self._next_round()

    def leave(self, node: str, line: Line) -> None:
        """Its agent is gone, or another one has its place; what it has stays its own until the leases end."""
        for lines in (self._lines, self._joining):
            if lines.get(node) is line:
                del lines[node]

    def note(self, node: str, update: fleet_pb2.TaskUpdate) -> bool:
        """A host says that it has begun what it was offered: whether that is heard by the next round without anybody waiting for
        it. No host is told that it was heard, and the end of a short task comes in the same moment."""
        held = self._held.get(update.task_id)
        if held is None or held.begins or update.state != lease.RUNNING or held.task.state != lease.OFFERED:
            return False
        if not _is_try(held.task, node, update):
            return False
        held.begins = True
        self._round.updates.append((node, update))
        self._woken.set()
        return True

    async def hear(self, node: str, update: fleet_pb2.TaskUpdate) -> None:
        """What a host says of a task; on disk, and acknowledged where it is its end, when this returns."""
        held = self._held.get(update.task_id)
        if held is None or not (held.task.state == update.state == lease.RUNNING and _is_try(held.task, node, update)):
            self._round.updates.append((node, update))
            await self._next_round()
            return
        task, now = fleet_pb2.Task(), self._now()
        task.CopyFrom(held.task)
        task.progress.CopyFrom(update.progress)
        task.update_time.FromDatetime(now)
        task.lease_time.FromDatetime(now + timedelta(seconds=self._lease_s))
        held.task, held.until, held.got_on = task, self._clock() + self._lease_s, True
        self._tell(task)

    # ---- calls

    async def submit(self, draft: TaskDraft) -> fleet_pb2.Task:
        """Makes a task; FIELD_INVALID, QUEUE_FULL."""
        (task,) = await self._threads.write(lambda connection: self._maker.insert(connection, [draft]))
        self.wake([task.node])
        return task

    async def end(self, task_id: str) -> fleet_pb2.Task:
        """Cancels it; TASK_NOT_FOUND, DEPLOYMENT_ACTIVE for one host's part of a deployment."""

        def work(connection: Connection) -> tuple[str, fleet_pb2.Task]:
            found = _one(connection, task_id)
            if found.kind == fleet_pb2.TASK_KIND_DEPLOY and found.state not in lease.ENDED:
                raise _part_of_deployment(found)
            self._maker.cancel(connection, [task_id])
            return found.node, _one(connection, task_id)

        node, task = await self._threads.write(work)
        self.wake([node])
        return task

    async def get(self, task_id: str) -> fleet_pb2.Task:
        """As it stands; TASK_NOT_FOUND."""
        return self._newest(await self._threads.read(lambda connection: _one(connection, task_id)))

    async def page(self, wanted: store.Filter, size: int, token: str) -> tuple[list[fleet_pb2.Task], str]:
        """Newest first; FIELD_INVALID."""
        count, before = page_size(size), number_from_token("tasks", token)
        found = await self._threads.read(lambda connection: store.page(connection, wanted, before, count + 1))
        some, following = page("tasks", found, count, lambda kept: kept.sequence)
        return [self._newest(kept.task) for kept in some], following

    def follow(self, task_id: str) -> AsyncGenerator[fleet_pb2.Task]:
        """See ``WatchTask``."""
        return self._followers.follow(task_id, self.get)

    def forget_node(self, connection: Connection, node: str) -> None:
        """A host is no more: what it alone may have goes, what others may have is theirs. Wake afterwards."""
        found = store.of_node(connection, node)
        others = [kept for kept in found if not lease.is_bound(kept.task)]
        for kept in others:
            if kept.task.state in lease.ACTIVE:
                lease.lose(kept.task, f"{node} was removed")
        store.write(connection, others)
        store.forget(connection, [kept.task.id for kept in found if lease.is_bound(kept.task)])

    # ---- rounds

    async def _next_round(self) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._woken.set()
        await done

    async def _run_rounds(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            began = time.monotonic()
            try:
                if await self._one_round() >= MANY:
                    await asyncio.sleep(min(MOST_REST_S, time.monotonic() - began))
            except MeshError as error:
                log.warning("tasks: a round was not written: %s", error.message)
                for held in self._held.values():
                    held.begins = False
                await asyncio.sleep(AGAIN_S)
                self._woken.set()

    async def _one_round(self) -> int:
        """About how many things it was."""
        work, waiting = self._take()
        try:
            outcome = await self._threads.write(lambda connection: run(connection, work, self._now(), self._lease_s))
        except BaseException as error:
            known = error if isinstance(error, MeshError) else MeshError(Reason.INTERNAL, "a task could not be written")
            for done in waiting:
                if not done.done():
                    done.set_exception(known)
            self._round.nodes |= work.nodes
            self._round.unplaced = self._round.unplaced or work.unplaced
            if isinstance(error, MeshError) or not isinstance(error, Exception):
                raise
            log.exception("tasks: a round failed")
            raise known from error
        self._settle(outcome)
        for done in waiting:
            if not done.done():
                done.set_result(None)
        return len(work.updates) + len(work.nodes)

    def _take(self) -> tuple[Round, list[asyncio.Future[None]]]:
        work, waiting = self._round, self._waiting
        self._round, self._waiting = Round(), []
        self._lines.update(self._joining)
        self._joining = {}
        if self._all:
            work.nodes.update(self._lines, self._of_node)
            self._all = False
        work.nodes.discard("")
        about = {node for node, _ in work.arrivals} | {node for node, _ in work.updates} | work.nodes
        work.known = {node: dict(self._of_node[node]) for node in about if node in self._of_node}
        work.lines, work.counts = dict(self._lines), dict(self._counts)
        if self._after:
            # A long look goes on where it was; what has come up meanwhile is looked at after it.
            self._round.unplaced = self._round.unplaced or work.unplaced
            work.unplaced, work.after = True, self._after
        return work, waiting

    def _settle(self, outcome: Outcome) -> None:
        for task in outcome.changed.values():
            if task.state in lease.WITH_HOST:
                self._keep(task)
            else:
                self._drop(task.id)
        for node, message in outcome.sends:
            if line := self._lines.get(node):
                line.send(message)
        for task in outcome.changed.values():
            self._tell(task)
        for rest in outcome.rests:
            heapq.heappush(self._rests, rest)
        self._after = outcome.after
        if self._after or self._round.unplaced:
            self._woken.set()

    def _keep(self, task: fleet_pb2.Task) -> None:
        self._drop(task.id)
        self._held[task.id] = _Held(task, self._clock() + self._lease_s)
        self._of_node.setdefault(task.node, {})[task.id] = task.attempt
        self._counts[task.node] += task.kind != fleet_pb2.TASK_KIND_DEPLOY

    def _drop(self, task_id: str) -> None:
        held = self._held.pop(task_id, None)
        if held is None:
            return
        of_node = self._of_node[held.task.node]
        del of_node[task_id]
        if not of_node:
            del self._of_node[held.task.node]
        self._counts[held.task.node] -= held.task.kind != fleet_pb2.TASK_KIND_DEPLOY
        if not self._counts[held.task.node]:
            del self._counts[held.task.node]

    def _tell(self, task: fleet_pb2.Task) -> None:
        self._followers.changed(task)
        for observer in self._observers:
            observer.task_changed(task)

    def _newest(self, task: fleet_pb2.Task) -> fleet_pb2.Task:
        """With progress that is not written yet."""
        held = self._held.get(task.id)
        same = held is not None and held.task.attempt == task.attempt and held.task.state == task.state
        return held.task if held is not None and same else task

    # ---- time

    async def _tick_on(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.tick()
            if self._clock() - self._swept > SWEEP_EVERY_S:
                self._swept = self._clock()
                await self._sweep()

    async def _sweep(self) -> None:
        before = self._now() - timedelta(seconds=self._keep_ended_s)
        with suppress(MeshError):
            gone = await self._threads.write(lambda connection: store.forget_ended(connection, before))
            log.info("tasks: %d that had ended were forgotten", gone)

    def tick(self) -> None:
        """Looks at the clock: leases that have run out, rests that are over, progress that is to be written."""
        clock, now_us = self._clock(), to_us(self._now())
        for held in self._held.values():
            if held.until < clock:
                self._round.expired.append((held.task.node, held.task.id, held.task.attempt))
        while self._rests and self._rests[0][0] <= now_us:
            _, node = heapq.heappop(self._rests)
            self._round.nodes.add(node)
            self._round.unplaced = True
        if clock - self._flushed >= self._flush_s:
            self._write_progress()
        if not self._round.is_empty:
            self._woken.set()

    def _write_progress(self) -> None:
        self._flushed = self._clock()
        for held in self._held.values():
            if held.got_on:
                self._round.progress.append(held.task)
                held.got_on = False


def _is_try(task: fleet_pb2.Task, node: str, update: fleet_pb2.TaskUpdate) -> bool:
    return task.node == node and task.attempt == update.attempt


def _part_of_deployment(task: fleet_pb2.Task) -> MeshError:
    name = task.deployment_id or "the deployment"
    return MeshError(
        Reason.DEPLOYMENT_ACTIVE,
        f"the task is {task.node}'s part of a deployment, which would take it for failed and go back everywhere: pause {name}, "
        "or roll it back",
        metadata={"task_id": task.id, "deployment_id": task.deployment_id},
    )


def _one(connection: Connection, task_id: str) -> fleet_pb2.Task:
    found = store.find(connection, [task_id])
    if not found:
        raise MeshError(Reason.TASK_NOT_FOUND, f"there is no task {task_id!r}", metadata={"task_id": task_id})
    return found[0].task
