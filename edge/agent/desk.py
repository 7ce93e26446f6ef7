"""The tasks of this host: each is on disk before it begins and until the fleet has acknowledged its end.

The same attempt offered again is answered from here and never run twice; one that was under way when the agent was killed begins
again by itself. Knows kinds of work by their runner, and no connection: what is to be said is asked of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edge.agent.runners.port import Runner, progress
from edge.agent.store import AgentStore
from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.client.fleet_bounds import MAX_HELD
from splitmesh.client.transfer import is_passing
from splitmesh.errors import MeshError, Reason, field_error

log = logging.getLogger(__name__)

MAX_ID = 200
MAX_TASK_BYTES = 1 << 20
"""A larger task is refused: everything that a task needs and that is large is in the registry."""
MAX_REFUSALS = 1000
"""Refusals that wait to be said; the oldest goes, and its task is offered again when its lease is over."""
MAX_WORDS = 2000

Kinds = Mapping[pb.TaskKind.ValueType, Runner]


@dataclass(slots=True)
class _Entry:
    task: pb.Task
    progress: pb.TaskProgress = field(default_factory=lambda: progress("queued", 0.0))
    ended: pb.TaskUpdate | None = None
    acknowledged: bool = False
    running: asyncio.Task[None] | None = None
    ending: bool = False
    """The work is over and its end is being written: too late to stop anything."""
    cancelled: bool = False
    """By the fleet, or because a later attempt stands in its place; not because the agent stops."""
    said_s: float = float("-inf")
    """When it was last told to the fleet."""
    waits_since_s: float | None = None
    """When its end was first told on this connection."""


class TaskDesk:
    """A part of an app; started after the store is open.

    Args:
        store: keeps the tasks.
        runners: by kind; a task of another kind fails with UNIMPLEMENTED.
        due: told, in the event loop, the id of a task about which there is something new to say.
        max_running: tasks that are worked on at once, beside those that begin at once.
        max_held: tasks that have not ended or are not acknowledged.
        monotonic: seconds.
    """

    def __init__(
        self,
        store: AgentStore,
        runners: Kinds,
        due: Callable[[str], None],
        *,
        max_running: int = 1,
        max_held: int = 1000,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._runners = runners
        self._due = due
        self._places = asyncio.Semaphore(max_running)
        self._max_held = max_held
        self._monotonic = monotonic
        self._entries: dict[str, _Entry] = {}
        self._refusals: dict[str, pb.TaskUpdate] = {}

    async def start(self) -> None:
        """Goes on with what had not ended."""
        for logged in await asyncio.to_thread(self._store.tasks):
            entry = _Entry(logged.task, ended=logged.ended, acknowledged=logged.acknowledged)
            self._entries[logged.task.id] = entry
            if entry.ended is None:
                log.info("goes on with the task %s", logged.task.id)
                self._run(entry)

    async def stop(self) -> None:
        """What runs is stopped and stays begun: the next start goes on with it."""
        running = [entry.running for entry in self._entries.values() if entry.running is not None]
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    # ---- what the fleet says

    async def offered(self, task: pb.Task) -> None:
        """Takes it, or says what became of it. Nothing is raised: what cannot be taken fails."""
        if not _is_id(task.id):
            log.error("the fleet offers a task whose id is none: %r", task.id[:80])
            return
        known = self._entries.get(task.id)
        if known is not None and known.task.attempt >= task.attempt:
            if known.task.attempt > task.attempt:
                log.info("attempt %d at the task %s is over", task.attempt, task.id)
            known.acknowledged = False
            self._due(task.id)
            return
        try:
            self._check(task)
            if known is not None:
                await self._give_way(known)
            # Before it is anywhere else: a task that is begun and not on disk could be begun twice.
            await asyncio.to_thread(self._store.begin, task)
        except MeshError as error:
            log.warning("the task %s is not taken: %s", task.id, error)
            self._refuse(_failed(task.id, task.attempt, error))
            return
        entry = self._entries[task.id] = _Entry(task)
        self._refusals.pop(task.id, None)
        log.info("takes the task %s: %s, attempt %d", task.id, pb.TaskKind.Name(task.kind), task.attempt)
        self._due(task.id)
        self._run(entry)

    async def cancelled(self, order: pb.CancelOffer) -> None:
        """Stops it; one that has ended, or was never here, is answered all the same."""
        entry = self._entries.get(order.task_id)
        if entry is not None and entry.task.attempt <= order.attempt:
            if entry.running is not None and not entry.ending:
                entry.cancelled = True
                entry.running.cancel()
            self._due(order.task_id)
        elif entry is None and _is_id(order.task_id):
            self._refuse(
                pb.TaskUpdate(
                    task_id=order.task_id,
                    attempt=order.attempt,
                    state=pb.TASK_STATE_CANCELLED,
                    message="this host does not have it",
                )
            )

    async def acknowledged(self, heard: pb.UpdateAcknowledged) -> None:
        """The fleet has the end of a task on disk."""
        refusal = self._refusals.get(heard.task_id)
        if refusal is not None and refusal.attempt == heard.attempt:
            del self._refusals[heard.task_id]
        entry = self._entries.get(heard.task_id)
        if entry is None or entry.ended is None or entry.task.attempt != heard.attempt:
            return
        entry.acknowledged, entry.waits_since_s = True, None
        try:
            forgotten = await asyncio.to_thread(self._store.acknowledge, heard.task_id, heard.attempt)
        except MeshError as error:
            log.warning("that the task %s is acknowledged is not kept: %s", heard.task_id, error)
            return
        for task_id in forgotten:
            self._entries.pop(task_id, None)

    # ---- what is said to the fleet

    def held(self) -> list[pb.HeldTask]:
        """Those that have not ended, or whose end was not acknowledged; as many as a hello may name, those under way first."""
        open_ones = [(task_id, entry) for task_id, entry in self._entries.items() if not entry.acknowledged]
        # One that is left out is at worst offered again, and answered from here.
        open_ones.sort(key=lambda one: one[1].ended is not None)
        return [pb.HeldTask(task_id=task_id, attempt=entry.task.attempt) for task_id, entry in open_ones[:MAX_HELD]]

    def connected(self) -> None:
        """A connection begins: everything is to be said again."""
        for task_id, entry in self._entries.items():
            entry.waits_since_s = None
            if not entry.acknowledged:
                self._due(task_id)
        for task_id in self._refusals:
            self._due(task_id)

    def update(self, task_id: str) -> pb.TaskUpdate | None:
        """What is to be said of a task now; None: nothing."""
        refusal = self._refusals.get(task_id)
        if refusal is not None:
            return refusal
        entry = self._entries.get(task_id)
        if entry is None or entry.acknowledged:
            return None
        entry.said_s = self._monotonic()
        if entry.ended is not None:
            if entry.waits_since_s is None:
                entry.waits_since_s = entry.said_s
            return entry.ended
        return pb.TaskUpdate(
            task_id=task_id, attempt=entry.task.attempt, state=pb.TASK_STATE_RUNNING, progress=entry.progress
        )

    def remind(self, every_s: float) -> None:
        """Says again what was said longer ago than that: it renews the lease of what runs, and may have been lost."""
        before = self._monotonic() - every_s
        for task_id, entry in self._entries.items():
            if not entry.acknowledged and entry.said_s <= before:
                self._due(task_id)

    def unheard_s(self) -> float:
        """For how long the fleet has left the end of a task unacknowledged on this connection."""
        since = [entry.waits_since_s for entry in self._entries.values() if entry.waits_since_s is not None]
        return self._monotonic() - min(since) if since else 0.0

    # ---- the work

    def _check(self, task: pb.Task) -> None:
        if task.kind not in self._runners:
            raise MeshError(Reason.UNIMPLEMENTED, f"this agent does no tasks of kind {task.kind}")
        if task.ByteSize() > MAX_TASK_BYTES:
            raise MeshError(
                Reason.FRAME_TOO_LARGE, f"the task has {task.ByteSize()} bytes; at most {MAX_TASK_BYTES} are taken"
            )
        if task.WhichOneof("work") != _WORK.get(task.kind):
            raise field_error("work", f"is not what a task of kind {task.kind} is about")
        if sum(not entry.acknowledged for entry in self._entries.values()) >= self._max_held:
            raise MeshError(Reason.QUEUE_FULL, f"this host has {self._max_held} tasks already", retry_after_s=30.0)

    async def _give_way(self, entry: _Entry) -> None:
        """An earlier attempt ends before the next one begins: they would work on the same things."""
        if entry.running is not None:
            entry.cancelled = True
            entry.running.cancel()
            await asyncio.gather(entry.running, return_exceptions=True)

    def _run(self, entry: _Entry) -> None:
        entry.running = asyncio.create_task(self._work(entry))

    async def _work(self, entry: _Entry) -> None:
        task = entry.task
        try:
            result = await self._result(entry)
        except asyncio.CancelledError:
            if not entry.cancelled:
                raise
            update = pb.TaskUpdate(state=pb.TASK_STATE_CANCELLED, message="cancelled")
        except MeshError as error:
            if error.reason is Reason.CANCELLED:
                update = pb.TaskUpdate(state=pb.TASK_STATE_CANCELLED, message=error.message[:MAX_WORDS])
            else:
                update = _failed(task.id, task.attempt, error)
        except Exception:
            # The text may hold paths or data: it goes to the log; the task still ends.
            log.exception("the task %s failed unexpectedly", task.id)
            update = _failed(
                task.id, task.attempt, MeshError(Reason.INTERNAL, "unexpected failure; see the agent's log")
            )
        else:
            update = pb.TaskUpdate(state=pb.TASK_STATE_DONE, result=result, progress=progress("done", 1.0))
        update.task_id, update.attempt = task.id, task.attempt
        if not update.HasField("progress"):
            update.progress.CopyFrom(entry.progress)
        await self._end(entry, update)

    async def _result(self, entry: _Entry) -> Mapping[str, str]:
        def tell(word: pb.TaskProgress) -> None:
            if word != entry.progress:
                entry.progress = word
                self._due(entry.task.id)

        runner = self._runners.get(entry.task.kind)
        if runner is None:  # taken by a release that could do it
            raise MeshError(Reason.UNIMPLEMENTED, f"this agent does no tasks of kind {entry.task.kind}")
        if runner.at_once:
            return await runner.run(entry.task, tell)
        async with self._places:
            return await runner.run(entry.task, tell)

    async def _end(self, entry: _Entry, update: pb.TaskUpdate) -> None:
        entry.ending = True
        # Before it is said: the fleet may count on it from then on.
        try:
            await asyncio.to_thread(self._store.end, update)
        except MeshError as error:
            log.error(
                "how the task %s ended is not kept; killed now, the agent would run it again: %s", update.task_id, error
            )
        entry.ended = update
        log.info("the task %s has ended: %s", update.task_id, pb.TaskState.Name(update.state))
        if self._entries.get(update.task_id) is entry:
            self._due(update.task_id)

    def _refuse(self, update: pb.TaskUpdate) -> None:
        self._refusals.pop(update.task_id, None)
        while len(self._refusals) >= MAX_REFUSALS:
            del self._refusals[next(iter(self._refusals))]
        self._refusals[update.task_id] = update
        self._due(update.task_id)


_WORK = {pb.TASK_KIND_DEPLOY: "deploy", pb.TASK_KIND_PROFILE: "profile", pb.TASK_KIND_COLLECT: "collect"}


def _is_id(text: str) -> bool:
    return 0 < len(text) <= MAX_ID and text.isprintable()


def _failed(task_id: str, attempt: int, error: MeshError) -> pb.TaskUpdate:
    return pb.TaskUpdate(
        task_id=task_id,
        attempt=attempt,
        state=pb.TASK_STATE_FAILED,
        reason=error.reason.value,
        message=error.message[:MAX_WORDS],
        retry=is_passing(error) or error.reason is Reason.STORAGE_FULL,
    )
