"""One round of the lease table: everything that has come up, in one transaction, and what hosts are to be told of it afterwards.

Many things come up at once when thousands of hosts connect or are told of a version; each of them as a transaction of its own
would wait for the disk on its own. A round reads what it needs of all of them, applies the rules (``lease``), writes what changed
and says what to tell whom. Knows no stream: hosts are :class:`Line`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from sqlalchemy import Connection

from services.fleet.targets import target_from
from services.fleet.tasks import lease, store
from services.fleet.tasks.lease import Heard
from services.fleet.tasks.store import Kept
from services.fleet.values import Host
from splitmesh.api.fleet.v1 import fleet_pb2
from splitmesh.sql.times import to_us

UNPLACED_AT_ONCE = 1000
"""Tasks for any of several hosts that one round looks at; the next round looks at those after them."""


class Line(Protocol):
    """The way to a host whose agent is connected."""

    @property
    def host(self) -> Host:
        """Who it is."""

    @property
    def kinds(self) -> Collection[int]:
        """Kinds of tasks that it takes."""

    @property
    def max_tasks(self) -> int:
        """Tasks other than deployments that it works on at once."""

    @property
    def room(self) -> int:
        """Messages that it can be told now without waiting."""

    def send(self, message: fleet_pb2.ConnectResponse) -> None:
        """Tells it soon; nothing when it is gone."""


@dataclass(slots=True)
class Round:
    """What has come up."""

    updates: list[tuple[str, fleet_pb2.TaskUpdate]] = field(default_factory=list)
    """What hosts say."""
    arrivals: list[tuple[str, Sequence[fleet_pb2.HeldTask]]] = field(default_factory=list)
    """Hosts whose agents have connected, and what they have."""
    expired: list[tuple[str, str, int]] = field(default_factory=list)
    """Hosts, with the task and the try of it whose lease has run out."""
    progress: list[fleet_pb2.Task] = field(default_factory=list)
    """Running tasks that got on since they were written."""
    nodes: set[str] = field(default_factory=set)
    """Hosts to look at."""
    watched: list[str] = field(default_factory=list)
    """Tasks that others may have changed, and that somebody follows."""
    unplaced: bool = False
    """Look at what any of several hosts may have."""
    after: int = 0
    """Of these, those after this sequence."""
    known: dict[str, Mapping[str, int]] = field(default_factory=dict)
    """What the hosts to look at have as far as they were told, with the try."""
    lines: Mapping[str, Line] = field(default_factory=dict)
    """Hosts that are connected."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """How many tasks other than deployments each of them has."""

    @property
    def is_empty(self) -> bool:
        """Nothing has come up."""
        return not (
            self.updates
            or self.arrivals
            or self.expired
            or self.progress
            or self.nodes
            or self.watched
            or self.unplaced
        )


@dataclass(slots=True)
class Outcome:
    """What has become of it."""

    changed: dict[str, fleet_pb2.Task] = field(default_factory=dict)
    """Tasks that stand elsewhere than before, or that others have changed."""
    sends: list[tuple[str, fleet_pb2.ConnectResponse]] = field(default_factory=list)
    """What to tell which host, in this order."""
    after: int = 0
    """Where the next look at tasks for any of several hosts begins; 0: all were looked at."""
    rests: list[tuple[int, str]] = field(default_factory=list)
    """From when on resting tasks may be offered, microseconds since 1970, and the host that may have each; empty: several."""


def run(connection: Connection, work: Round, now: datetime, lease_s: float) -> Outcome:
    """In the caller's transaction."""
    return _Table(connection, work, now, lease_s).run()


class _Table:
    """The tasks that one round is about."""

    def __init__(self, connection: Connection, work: Round, now: datetime, lease_s: float) -> None:
        self._connection = connection
        self._work = work
        self._now = now
        self._lease_until = now + timedelta(seconds=lease_s)
        self._tasks: dict[str, Kept] = {}
        self._written: set[str] = set()
        self._out = Outcome()
        self._told: Counter[str] = Counter()
        self._arrived_nodes = {node for node, _ in work.arrivals}
        self._busy: Counter[str] = Counter()
        """Tasks other than deployments of the hosts that are looked at; of others only those that this round gives them."""

    def run(self) -> Outcome:
        work, out = self._work, self._out
        work.nodes |= self._arrived_nodes
        work.nodes.update(node for node, update in work.updates if update.state != lease.RUNNING)
        work.nodes.update(node for node, _, _ in work.expired)
        self._tasks.update({kept.task.id: kept for kept in store.active_of(self._connection, work.nodes)})
        self._read(self._named() - self._tasks.keys())
        for task in work.progress:
            self._got_on(task)
        for node, update in work.updates:
            self._heard(node, update)
        for node, task_id, attempt in work.expired:
            self._expired(node, task_id, attempt)
        before = self._by_node()
        for node, held in work.arrivals:
            self._arrived(node, held, before.get(node, ()))
        self._tell_what_others_ended()
        self._offer_to_nodes()
        if work.unplaced:
            self._place()
        store.write(self._connection, [self._tasks[task_id] for task_id in self._written])
        out.changed.update({one: self._tasks[one].task for one in work.watched if one in self._tasks})
        now_us = to_us(self._now)
        for kept in self._tasks.values():
            if kept.rest_until_us > now_us and kept.task.state == lease.QUEUED:
                out.rests.append((kept.rest_until_us, kept.task.node))
        return out

    def _named(self) -> set[str]:
        work = self._work
        ids = {update.task_id for _, update in work.updates} | {one for _, one, _ in work.expired} | set(work.watched)
        ids.update(one.task_id for _, held in work.arrivals for one in held)
        ids.update(one.id for one in work.progress)
        ids.update(one for node in work.nodes for one in work.known.get(node, ()))
        return ids

    def _read(self, ids: Iterable[str]) -> None:
        self._tasks.update({kept.task.id: kept for kept in store.find(self._connection, ids)})

    def _got_on(self, task: fleet_pb2.Task) -> None:
        kept = self._tasks.get(task.id)
        if kept and kept.task.state == lease.RUNNING and kept.task.attempt == task.attempt:
            kept.task.progress.CopyFrom(task.progress)
            kept.task.lease_time.CopyFrom(task.lease_time)
            kept.task.update_time.CopyFrom(task.update_time)
            self._written.add(task.id)

    def _heard(self, node: str, update: fleet_pb2.TaskUpdate) -> None:
        kept = self._tasks.get(update.task_id)
        heard = Heard.OLD if kept is None else lease.hear(kept.task, node, update)
        if kept is not None and heard is not Heard.OLD:
            if kept.task.state == lease.QUEUED:
                kept.rest_until_us = to_us(self._now + timedelta(seconds=lease.rest_s(kept.task.attempt)))
            elif kept.task.state == lease.RUNNING:
                kept.task.lease_time.FromDatetime(self._lease_until)
            self._change(kept)
            self._work.unplaced = True
        if update.state == lease.RUNNING:
            if heard is Heard.OLD:
                self._tell(node, _stop(update.task_id, update.attempt))
        else:
            self._tell(node, _acknowledge(update.task_id, update.attempt))

    def _expired(self, node: str, task_id: str, attempt: int) -> None:
        kept = self._tasks.get(task_id)
        if kept is None or kept.task.state not in lease.WITH_HOST or kept.task.attempt != attempt:
            return
        lease.lose(kept.task, f"nothing was heard of try {attempt} on {node}")
        self._change(kept)
        self._work.unplaced = True
        if not lease.is_bound(kept.task):
            self._tell(node, _stop(task_id, attempt))

    def _arrived(self, node: str, held: Sequence[fleet_pb2.HeldTask], before: Sequence[Kept]) -> None:
        self._work.unplaced = True
        goes_on = set()
        for one in held:
            kept = self._tasks.get(one.task_id)
            if kept is not None and lease.resume(kept.task, node, one.attempt):
                goes_on.add(one.task_id)
                kept.task.lease_time.FromDatetime(self._lease_until)
                self._change(kept)
            else:
                self._tell(node, _stop(one.task_id, one.attempt))
        for kept in before:
            task = kept.task
            if task.id in goes_on:
                continue
            if task.state == lease.OFFERED:
                task.lease_time.FromDatetime(self._lease_until)
                self._change(kept)
                self._tell(node, _offer(task))
            elif task.state == lease.RUNNING:
                lease.lose(task, f"{node} came back without it")
                self._change(kept)

    def _tell_what_others_ended(self) -> None:
        """What a host was told to do and what somebody ended since, or gave to another."""
        for node in self._work.nodes:
            for task_id, attempt in self._work.known.get(node, {}).items():
                kept = self._tasks.get(task_id)
                gone = kept is None or kept.task.state in lease.ENDED or kept.task.node != node
                if not gone or task_id in self._written:
                    continue
                if node not in self._arrived_nodes:
                    self._tell(node, _stop(task_id, attempt))
                if kept is not None:
                    self._out.changed[task_id] = kept.task
                    self._work.unplaced = True
                else:
                    self._out.changed[task_id] = fleet_pb2.Task(id=task_id, state=lease.CANCELLED, node=node)

    def _offer_to_nodes(self) -> None:
        """What only one host may have, oldest first."""
        queued: dict[str, list[Kept]] = {}
        busy = self._busy
        for kept in sorted(self._tasks.values(), key=lambda one: one.sequence):
            task = kept.task
            if task.state == lease.QUEUED and task.node in self._work.nodes and lease.is_bound(task):
                queued.setdefault(task.node, []).append(kept)
            elif task.state in lease.WITH_HOST and task.node in self._work.nodes and not _deploys(task):
                busy[task.node] += 1
        for node, waiting in queued.items():
            line = self._work.lines.get(node)
            for kept in waiting:
                if line is None:
                    self._wait(kept, f"{node} is not connected")
                elif kept.task.kind not in line.kinds:
                    self._wait(kept, f"{node} does not take tasks of this kind")
                elif not _deploys(kept.task) and busy[node] >= line.max_tasks:
                    self._wait(kept, f"{node} is busy")
                else:
                    self._give(kept, node, line)

    def _place(self) -> None:
        """What any of several hosts may have goes to the one that has the fewest."""
        found = store.without_host(self._connection, self._work.after, UNPLACED_AT_ONCE)
        waiting = {kept.task.id: self._tasks.setdefault(kept.task.id, kept) for kept in found}
        if len(found) == UNPLACED_AT_ONCE:
            self._out.after = found[-1].sequence
        for kept in self._tasks.values():
            if kept.task.state == lease.QUEUED and not lease.is_bound(kept.task):
                waiting.setdefault(kept.task.id, kept)
        for kept in waiting.values():
            if kept.task.state == lease.QUEUED:
                self._place_one(kept)

    def _place_one(self, kept: Kept) -> None:
        target = target_from(kept.task.target)
        fitting = [(node, line) for node, line in self._work.lines.items() if target.fits(line.host)]
        taking = [(node, line) for node, line in fitting if kept.task.kind in line.kinds]
        free = [
            (node, line) for node, line in taking if self._has(node) < line.max_tasks and line.room > self._told[node]
        ]
        if free:
            node, line = min(free, key=lambda one: (self._has(one[0]), one[0]))
            self._give(kept, node, line)
        elif not fitting:
            self._wait(kept, "no host that it is meant for is connected")
        elif not taking:
            self._wait(kept, "no host that it is meant for takes tasks of this kind")
        else:
            self._wait(kept, "all hosts that it is meant for are busy")

    def _has(self, node: str) -> int:
        return self._busy[node] + (0 if node in self._work.nodes else self._work.counts.get(node, 0))

    def _give(self, kept: Kept, node: str, line: Line) -> None:
        if kept.rest_until_us > to_us(self._now):
            return
        if lease.is_exhausted(kept.task):
            lease.give_up(kept.task)
            self._change(kept)
            return
        if line.room <= self._told[node]:
            return  # it is looked at again when it has room
        lease.offer(kept.task, node)
        kept.rest_until_us = 0
        kept.task.lease_time.FromDatetime(self._lease_until)
        self._change(kept)
        self._tell(node, _offer(kept.task))
        if not _deploys(kept.task):
            self._busy[node] += 1

    def _wait(self, kept: Kept, why: str) -> None:
        if kept.task.message != why and not kept.task.reason:
            kept.task.message = why
            self._change(kept)

    def _by_node(self) -> dict[str, list[Kept]]:
        found: dict[str, list[Kept]] = {}
        for kept in self._tasks.values():
            found.setdefault(kept.task.node, []).append(kept)
        return found

    def _change(self, kept: Kept) -> None:
        kept.task.update_time.FromDatetime(self._now)
        self._written.add(kept.task.id)
        self._out.changed[kept.task.id] = kept.task

    def _tell(self, node: str, message: fleet_pb2.ConnectResponse) -> None:
        self._told[node] += 1
        self._out.sends.append((node, message))


def _deploys(task: fleet_pb2.Task) -> bool:
    return task.kind == fleet_pb2.TASK_KIND_DEPLOY


def _offer(task: fleet_pb2.Task) -> fleet_pb2.ConnectResponse:
    return fleet_pb2.ConnectResponse(offer=task)


def _stop(task_id: str, attempt: int) -> fleet_pb2.ConnectResponse:
    return fleet_pb2.ConnectResponse(cancel=fleet_pb2.CancelOffer(task_id=task_id, attempt=attempt))


def _acknowledge(task_id: str, attempt: int) -> fleet_pb2.ConnectResponse:
    acknowledged = fleet_pb2.UpdateAcknowledged(task_id=task_id, attempt=attempt)
    return fleet_pb2.ConnectResponse(acknowledged=acknowledged)
