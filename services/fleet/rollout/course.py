"""Deployments in memory, turn by turn: what was heard is applied, what follows is written in one transaction, then it is told.

When writing fails nothing has happened: memory is read anew from the database, and what was heard is news again. One turn at a
time. Knows no request and no stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Connection

from services.fleet.ports import Nodes, Tasks
from services.fleet.rollout import assignments, said, store
from services.fleet.rollout.assignments import Assigned, Told
from services.fleet.rollout.inbox import Inbox
from services.fleet.rollout.news import News
from services.fleet.rollout.rollout import Rollout
from services.fleet.rollout.values import ACTIVE, DONE, ROLLED_BACK, HostRow, Order, State
from services.fleet.values import Host, Target
from splitmesh.errors import MeshError
from splitmesh.sql.database import Threads

log = logging.getLogger(__name__)

Action = Callable[[Rollout], None]


@dataclass(frozen=True, slots=True)
class _Seen:
    """Read at the begin of a turn."""

    hosts: dict[str, Host]
    """That came, or that the target of a deployment means which is due."""
    assigned: dict[tuple[str, str], Assigned]


class Course:
    """See the module.

    Args:
        database: started before.
        nodes: the hosts.
        tasks: what hosts are told by.
        news: told of every change.
        now_us: the clock, microseconds since 1970.
    """

    def __init__(self, database: Threads, nodes: Nodes, tasks: Tasks, news: News, *, now_us: Callable[[], int]) -> None:
        self._database = database
        self._nodes = nodes
        self._tasks = tasks
        self._news = news
        self._now_us = now_us
        self._rollouts: dict[str, Rollout] = {}
        self._stale: set[str] = set()
        self._stood: set[str] = set()
        self._opened_us = 0
        self._turn = asyncio.Lock()
        self.due: set[str] = set()
        """Deployments that were done just now: for the next inbox."""

    @property
    def rollouts(self) -> dict[str, Rollout]:
        """Those that may still have something to say to a host, by id."""
        return self._rollouts

    @property
    def is_moving(self) -> bool:
        """Time alone may change something."""
        return any(rollout.is_moving for rollout in self._rollouts.values())

    async def open(self) -> None:
        """Reads what stands; whoever is behind is told again when it comes, for nobody knows which tasks ended meanwhile."""
        await self._database.write(assignments.settle_all)
        ids = await self._database.read(store.standing)
        self._stood, self._opened_us = set(ids), self._now_us()
        await self._load(ids)
        self.due |= {one for one, rollout in self._rollouts.items() if rollout.status.state == DONE}

    async def get(self, deployment_id: str) -> Rollout | None:
        """One, from memory where it is there; to be looked at only."""
        if (known := self._rollouts.get(deployment_id)) is not None:
            return known
        return await self._database.read(partial(store.load, deployment_id=deployment_id))

    async def turn(self, inbox: Inbox, *, everything: bool = False) -> None:
        """One turn; with ``everything`` also where nothing was heard of, because time has passed."""
        async with self._turn:
            await self._take_turn(inbox, everything, {})

    async def act(self, deployment_id: str, action: Action) -> Rollout:
        """Does something to one deployment, and what follows; what ``action`` raises it raises before it changes anything."""
        async with self._turn:
            await self._freshen()
            if deployment_id not in self._rollouts:
                await self._load([deployment_id])
            await self._take_turn(Inbox(), False, {deployment_id: action})
            return self._rollouts.get(deployment_id) or await self._found(deployment_id)

    async def create(self, make: Callable[[Connection], str], model: str) -> tuple[str, Rollout]:
        """Writes a new deployment of a model down by ``make``, which says its id, and begins it."""
        async with self._turn:
            made = await self._database.write(make)
            try:
                await self._reload_model(model)
                await self._take_turn(Inbox(due={made}), False, {})
            except MeshError as error:
                log.warning("deployment %s is made and begins later: %s", made, error)
            return made, self._rollouts.get(made) or await self._found(made)

    # ---- a turn

    async def _take_turn(self, inbox: Inbox, everything: bool, actions: dict[str, Action]) -> None:
        await self._freshen()
        seen = await self._look(inbox)
        before: dict[str, State] = {one: rollout.status.state for one, rollout in self._rollouts.items()}
        for one, action in actions.items():
            action(self._rollouts[one])
        try:
            touched = self._apply(inbox, seen) | actions.keys()
            now = self._now_us()
            for one in self._rollouts if everything else touched:
                self._rollouts[one].advance(now, self._nodes.is_online)
            await self._write(inbox, seen, before)
        except BaseException:
            self._stale |= self._rollouts.keys()
            raise
        for one in touched & self._rollouts.keys():
            self._news.tell(one, (inbox.changed | inbox.connected) & self._rollouts[one].hosts.keys())
        for one in [one for one, rollout in self._rollouts.items() if rollout.has_gone]:
            del self._rollouts[one]

    async def _look(self, inbox: Inbox) -> _Seen:
        due = [self._rollouts[one] for one in inbox.due if one in self._rollouts]
        # Only one that is done takes hosts in, and what its own hosts were told does not matter for that.
        done = [rollout for rollout in due if rollout.status.state == DONE]
        targets = [rollout.plan.target for rollout in done]
        known = {node for rollout in done for node in rollout.hosts} - inbox.connected
        if inbox.connected:
            targets.append(Target(nodes=frozenset(inbox.connected)))
        if not targets:
            return _Seen({}, {})

        def read(connection: Connection) -> _Seen:
            found = (host for target in targets for host in self._nodes.hosts(connection, target))
            hosts = {host.node: host for host in found if host.node not in known}
            return _Seen(hosts, assignments.of_hosts(connection, hosts))

        return await self._database.read(read)

    def _apply(self, inbox: Inbox, seen: _Seen) -> set[str]:
        """Which deployments it is news to."""
        touched = set(inbox.due & self._rollouts.keys()) | self._take_in(seen)
        news = inbox.connected | inbox.changed
        counts: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for node, trial, source in inbox.counts:
            counts[node].append((trial, source))
        for one, rollout in self._rollouts.items():
            for node in inbox.removed & rollout.hosts.keys():
                del rollout.hosts[node]
                touched.add(one)
            for task in inbox.tasks.values():
                if task.node in rollout.hosts and rollout.hosts[task.node].task_id == task.id:
                    rollout.task_ended(task.node, task.id, task.state, task.reason, task.message)
                    touched.add(one)
            for node in news & rollout.hosts.keys():
                rollout.heard(node, said.of_model(self._nodes.serving(node), rollout.plan.model))
                touched.add(one)
            for node in counts.keys() & rollout.hosts.keys():
                for trial, source in counts[node]:
                    rollout.counted(node, inbox.counts[node, trial, source])
                touched.add(one)
        return touched

    def _take_in(self, seen: _Seen) -> set[str]:
        """Hosts that came after a deployment was done get the version of the newest one whose target means them."""
        if not seen.hosts:
            return set()
        models: dict[str, list[Rollout]] = defaultdict(list)
        for rollout in sorted(self._rollouts.values(), key=lambda one: -one.plan.number):
            if rollout.status.state in (*ACTIVE, DONE):
                models[rollout.plan.model].append(rollout)
        touched = set()
        for model, rollouts in models.items():
            for node, host in seen.hosts.items():
                if any(node in one.hosts and not one.hosts[node].taken_by for one in rollouts):
                    continue
                done = (one for one in rollouts if one.status.state == DONE and node not in one.hosts)
                if fitting := next((one for one in done if one.plan.target.fits(host)), None):
                    fitting.add(self.host_row(node, fitting.plan.waves, model, seen.assigned.get((node, model))))
                    touched.add(fitting.plan.id)
        return touched

    def host_row(self, node: str, wave: int, model: str, assigned: Assigned | None) -> HostRow:
        """A host as a deployment finds it."""
        row = HostRow(node, wave)
        if assigned is not None:
            row.from_version, row.from_previous = assigned.version, assigned.previous_version
            row.from_deployment = assigned.deployment_id
        row.base_version = row.from_version or said.answering(said.of_model(self._nodes.serving(node), model))
        return row

    async def _write(self, inbox: Inbox, seen: _Seen, before: dict[str, State]) -> None:
        unsaved = [rollout for rollout in self._rollouts.values() if rollout.is_unsaved]
        orders = [(rollout, rollout.take_orders()) for rollout in unsaved]
        ordered = {(order.node, rollout.plan.model) for rollout, some in orders for order in some}
        came = [one for (node, _), one in seen.assigned.items() if node in inbox.connected]
        again = [
            one
            for one in assignments.behind(came, self._generations)
            if (one.node, one.model) not in ordered and self._nodes.is_online(one.node)
        ]
        back = [one.plan.id for one in unsaved if one.status.state == ROLLED_BACK != before[one.plan.id]]
        if not (unsaved or again or inbox.tasks):
            return
        online = {node for node, _ in ordered if self._nodes.is_online(node)}
        levels = {key: self._generations(*key) for key in ordered | {(one.node, one.model) for one in again}}

        def work(connection: Connection) -> list[tuple[Rollout | None, list[Told]]]:
            assignments.settle(connection, inbox.tasks)
            told: list[tuple[Rollout | None, list[Told]]] = []
            for rollout, some in orders:
                if some:
                    placed = assignments.place(
                        connection, self._tasks, rollout, some, online.__contains__, lambda *key: levels[key]
                    )
                    told.append((rollout, placed))
            if again:
                told.append((None, assignments.tell_again(connection, self._tasks, again, lambda *key: levels[key])))
            by_rollout = {rollout.plan.id: placed for rollout, placed in told if rollout is not None}
            for rollout in unsaved:
                store.save(connection, rollout, by_rollout.get(rollout.plan.id, ()))
            if again:
                store.told_again(connection, told[-1][1])
            for one in back:
                store.give_back(connection, one)
            return told

        for rollout, placed in await self._database.write(work):
            for one in placed:
                self._note(rollout, one)
        self._saved(unsaved, orders, before)
        self._tasks.wake(online | {one.node for one in again})
        for model in {self._rollouts[one].plan.model for one in back}:
            await self._reload_model(model)

    def _note(self, rollout: Rollout | None, told: Told) -> None:
        if rollout is not None:
            rollout.told(told.node, told.generation, told.task_id)
            return
        for other in self._rollouts.values():
            host = other.hosts.get(told.node)
            if host is not None and other.plan.model == told.model and host.generation and not host.taken_by:
                other.told(told.node, told.generation, told.task_id)

    def _saved(
        self, unsaved: Sequence[Rollout], orders: Iterable[tuple[Rollout, list[Order]]], before: dict[str, State]
    ) -> None:
        for rollout in unsaved:
            self._news.tell(rollout.plan.id, list(rollout.changed))
            rollout.saved()
            if rollout.status.state == DONE != before.get(rollout.plan.id):
                self.due.add(rollout.plan.id)

    # ---- memory

    def _generations(self, node: str, model: str) -> tuple[int, int]:
        return said.generations(said.of_model(self._nodes.serving(node), model))

    async def _found(self, deployment_id: str) -> Rollout:
        found = await self._database.read(partial(store.load, deployment_id=deployment_id))
        if found is None:
            raise AssertionError("deployments are never deleted")
        return found

    async def _freshen(self) -> None:
        if stale := list(self._stale):
            await self._load(stale)
            self._stale.clear()

    async def _reload_model(self, model: str) -> None:
        """Other deployments of the model gained or lost hosts."""
        known = [one for one, rollout in self._rollouts.items() if rollout.plan.model == model]
        self._stale |= set(known)
        stands = await self._database.read(partial(store.of_model, model=model))
        await self._load(stands)
        for one in known:
            if one not in stands:
                self._rollouts.pop(one, None)
            self._news.tell(one, self._rollouts[one].hosts if one in self._rollouts else ())
        self._stale -= {*known, *stands}

    async def _load(self, ids: Iterable[str]) -> None:
        wanted = list(ids)

        def read(connection: Connection) -> list[Rollout | None]:
            return [store.load(connection, one) for one in wanted]

        for one, found in zip(wanted, await self._database.read(read), strict=True):
            if found is None:
                self._rollouts.pop(one, None)
                continue
            self._rollouts[one] = found
            found.opened_us = self._opened_us if one in self._stood else 0
            for node in found.hosts:
                found.heard(node, said.of_model(self._nodes.serving(node), found.plan.model))
