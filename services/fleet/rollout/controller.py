"""Deployments for whoever asks and for the rest of the fleet: requests, watches, and one worker that takes turn after turn.

The rules of one deployment are in ``rollout``, turns in ``course``, what the registry is asked in ``keeping``.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection

from services.fleet.ports import Nodes, Tasks
from services.fleet.rollout import assignments, store
from services.fleet.rollout.assignments import of_hosts
from services.fleet.rollout.course import Action, Course
from services.fleet.rollout.deploying import Draft, first_status, make_plan, plan_hosts, read_request
from services.fleet.rollout.inbox import Inbox
from services.fleet.rollout.keeping import Keeping, Registry
from services.fleet.rollout.messages import from_host, from_parts, from_rollout, has_ended
from services.fleet.rollout.news import News
from services.fleet.rollout.rollout import Rollout
from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.pages import MAX_PAGE, from_token, number_from_token, page, page_size, to_token
from splitmesh.kernel.streams import Drain
from splitmesh.sql.database import Threads
from splitmesh.sql.times import to_us, utc_now

T = TypeVar("T")

TICK_S = 0.25
"""Between two looks at the clock while something is under way."""
MOST_REST_S = 0.25
"""After a turn the next one waits twice as long as it took, and no longer than this: a turn looks at every host of a deployment,
whether one or a thousand of them have said something."""
RETRY_S = 1.0
LONGEST_REASON = 1000

log = logging.getLogger(__name__)


class Rollouts:
    """A part of the fleet; observes nodes and tasks.

    Args:
        database: started before this part.
        nodes: the hosts.
        tasks: the lease table.
        registry: where versions and aliases are.
        drain: ends every watch with NOT_READY.
        registry_deadline_s: for one question to the registry.
        max_watchers: watches at once.
        watch_stream_s: longest life of one watch; then it ends well and the client asks again.
        watch_gap_s: between two messages of one watch.
        now_us: the clock, microseconds since 1970.
        new_id: makes ids of deployments, unique for ever.
    """

    def __init__(
        self,
        database: Threads,
        nodes: Nodes,
        tasks: Tasks,
        registry: Registry,
        *,
        drain: Drain,
        registry_deadline_s: float = 10.0,
        max_watchers: int = 100,
        watch_stream_s: float = 3600.0,
        watch_gap_s: float = 0.25,
        now_us: Callable[[], int] = lambda: to_us(utc_now()),
        new_id: Callable[[], str] = lambda: f"d-{secrets.token_hex(6)}",
    ) -> None:
        self._database = database
        self._nodes = nodes
        self._watch_stream_s = watch_stream_s
        self._watch_gap_s = watch_gap_s
        self._now_us = now_us
        self._new_id = new_id
        self._news = News(max_watchers, drain)
        self._course = Course(database, nodes, tasks, self._news, now_us=now_us)
        self._keeping = Keeping(registry, database, self._course, deadline_s=registry_deadline_s)
        self._inbox = Inbox()
        self._heard = asyncio.Event()
        self._running: list[asyncio.Task[None]] = []
        self._acting: set[asyncio.Task[Any]] = set()
        nodes.observe(self)
        tasks.observe(self)

    @property
    def has_news(self) -> bool:
        """Something was heard that no turn has looked at."""
        return bool(self._inbox or self._course.due)

    async def open(self) -> None:
        """Reads what stands; from then on turns can be taken."""
        await self._course.open()

    async def start(self) -> None:
        """Reads what stands and goes on with it."""
        await self.open()
        self._running = [asyncio.create_task(self._work()), asyncio.create_task(self._keeping.run())]
        self._heard.set()

    async def stop(self) -> None:
        """Finishes what was accepted; safe after a failed start."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, *self._acting, return_exceptions=True)
        self._running = []

    # ---- what the other parts tell

    def connected(self, node: str) -> None:
        """See ``ports.NodeObserver``."""
        self._inbox.connected.add(node)
        self._inbox.hear(node, self._nodes.serving(node))
        self._heard.set()

    def disconnected(self, node: str) -> None:
        """See ``ports.NodeObserver``."""
        self._inbox.changed.add(node)
        self._heard.set()

    def serving_changed(self, node: str, states: Sequence[serving_pb2.ServingState]) -> None:
        """See ``ports.NodeObserver``."""
        self._inbox.hear(node, states)
        self._heard.set()

    def task_changed(self, task: pb.Task) -> None:
        """See ``ports.TaskObserver``."""
        self._inbox.hear_task(task)
        if task.id in self._inbox.tasks:
            self._heard.set()

    def forget_node(self, connection: Connection, node: str) -> None:
        """Within the transaction that removes a host: its assignments and places in deployments go."""
        assignments.forget(connection, node)
        store.forget(connection, node)

    def node_removed(self, node: str) -> None:
        """After the commit of :meth:`forget_node`."""
        self._inbox.removed.add(node)
        self._heard.set()

    # ---- requests

    async def deploy(self, request: pb.DeployRequest) -> pb.DeployResponse:
        """See the contract."""
        draft = read_request(request)
        made = await self._database.read(partial(store.find_request, request_id=request.request_id))
        if not made:
            made = await self._shielded(self._deploy(draft))
        return pb.DeployResponse(deployment=from_rollout(await self._find(made), self._nodes.is_online))

    async def get(self, request: pb.GetDeploymentRequest) -> pb.GetDeploymentResponse:
        """See the contract."""
        rollout = await self._find(request.id)
        hosts = sorted(rollout.hosts.values(), key=lambda host: (host.wave, host.node))
        if request.page_token:
            place = from_token("deployment", request.page_token)
            wave, _, node = place.partition("/")
            if not (wave.isascii() and wave.isdigit()):
                raise field_error("page_token", "was not made by this service")
            hosts = [host for host in hosts if (host.wave, host.node) > (int(wave), node)]
        size = page_size(request.page_size or MAX_PAGE)
        shown = hosts[:size]
        token = to_token("deployment", f"{shown[-1].wave}/{shown[-1].node}") if len(hosts) > size else ""
        return pb.GetDeploymentResponse(
            deployment=from_rollout(rollout, self._nodes.is_online),
            nodes=[from_host(rollout, host, self._nodes.is_online, self._nodes.serving) for host in shown],
            next_page_token=token,
        )

    async def list(self, request: pb.ListDeploymentsRequest) -> pb.ListDeploymentsResponse:
        """See the contract."""
        size, before = page_size(request.page_size), number_from_token("deployments", request.page_token)
        found = await self._database.read(partial(store.page, model=request.model, before=before, limit=size + 1))
        shown, token = page("deployments", found, size, lambda one: one[0].number)
        known = self._course.rollouts
        return pb.ListDeploymentsResponse(
            deployments=[
                from_rollout(known[parts[0].id], self._nodes.is_online) if parts[0].id in known else from_parts(*parts)
                for parts in shown
            ],
            next_page_token=token,
        )

    async def pause(self, request: pb.PauseDeploymentRequest) -> pb.PauseDeploymentResponse:
        """See the contract."""
        reason = _reason(request.reason)
        rollout = await self._act(request.id, lambda one: one.pause(reason))
        return pb.PauseDeploymentResponse(deployment=from_rollout(rollout, self._nodes.is_online))

    async def resume(self, request: pb.ResumeDeploymentRequest) -> pb.ResumeDeploymentResponse:
        """See the contract."""
        rollout = await self._act(request.id, lambda one: one.resume(promote=request.promote, now_us=self._now_us()))
        return pb.ResumeDeploymentResponse(deployment=from_rollout(rollout, self._nodes.is_online))

    async def rollback(self, request: pb.RollbackRequest) -> pb.RollbackResponse:
        """See the contract; of one that went back, or does, it changes nothing."""
        reason = _reason(request.reason) or "somebody rolled it back"
        found = request.id or await self._newest(request.model)
        rollout = await self._act(found, lambda one: one.roll_back(reason, self._now_us()))
        return pb.RollbackResponse(deployment=from_rollout(rollout, self._nodes.is_online))

    async def watch(self, request: pb.WatchDeploymentRequest) -> AsyncGenerator[pb.WatchDeploymentResponse, None]:
        """See the contract."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._watch_stream_s
        await self._find(request.id)
        with self._news.watch(request.id) as topic:
            told = -1
            while True:
                rollout = await self._find(request.id)
                nodes = topic.since(told) if told >= 0 else sorted(rollout.hosts)
                told = topic.number
                response = None
                for response in self._responses(rollout, nodes):
                    yield response
                if response is not None and has_ended(response.deployment):
                    return
                await asyncio.sleep(self._watch_gap_s)
                self._news.require_running()
                if not await topic.wait(told, end):
                    return

    # ---- the worker

    async def turn(self, *, everything: bool = False) -> None:
        """Takes one turn with what was heard; when it fails what was heard stays."""
        inbox, self._inbox = self._inbox, Inbox()
        inbox.due |= self._course.due
        self._course.due = set()
        try:
            await self._course.turn(inbox, everything=everything)
        except BaseException:
            self._inbox.put_back(inbox)
            raise
        self._keeping.wake()

    async def tidy(self) -> None:
        """Asks the registry what there is to ask; the worker does it by itself."""
        await self._keeping.tidy()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        looked = 0.0
        while True:
            if not self._course.due:
                await self._sleep()
            self._heard.clear()
            everything = loop.time() >= looked + TICK_S
            looked = loop.time() if everything else looked
            began = loop.time()
            try:
                await self.turn(everything=everything)
                await asyncio.sleep(min(MOST_REST_S, 2 * (loop.time() - began)))
            except MeshError as error:
                log.warning("deployments go on in %g s: %s", RETRY_S, error)
                await asyncio.sleep(RETRY_S)
                self._heard.set()
            except Exception:
                log.exception("a turn of the deployments failed; it is tried again in %g s", RETRY_S)
                await asyncio.sleep(RETRY_S)
                self._heard.set()

    async def _sleep(self) -> None:
        """Until something is heard, or, while something is under way, for a moment."""
        with suppress(TimeoutError):
            async with asyncio.timeout(TICK_S if self._course.is_moving else None):
                await self._heard.wait()

    # ---- pieces

    async def _deploy(self, draft: Draft) -> str:
        request = draft.request
        async with self._keeping.pinned(request.model, request.version, draft.strategy.alias):
            made, _ = await self._course.create(partial(self._write_new, draft=draft), request.model)
        self._heard.set()
        return made

    def _write_new(self, connection: Connection, draft: Draft) -> str:
        """Runs in the database's thread; what hosts serve and who is connected is only read."""
        request = draft.request
        if made := store.find_request(connection, request.request_id):
            return made
        hosts = self._nodes.hosts(connection, draft.target)
        if not hosts:
            raise MeshError(Reason.NODE_NOT_FOUND, "the target means no host that the fleet knows")
        names = [host.node for host in hosts]
        if busy := store.active_on(connection, request.model, names):
            raise MeshError(
                Reason.DEPLOYMENT_ACTIVE,
                f"deployment {busy[0]} of {request.model!r} is under way on {busy[1]!r}: wait for it, or roll it back",
                metadata={"deployment": busy[0], "node": busy[1]},
            )
        assigned = of_hosts(connection, names, request.model)
        rows = [self._course.host_row(node, 1, request.model, assigned.get((node, request.model))) for node in names]
        planned = plan_hosts(draft, rows, {node: self._nodes.is_online(node) for node in names})
        now = self._now_us()
        plan = make_plan(draft, self._new_id(), store.next_number(connection), planned, now)
        store.create(connection, plan, first_status(draft, now), planned)
        return plan.id

    async def _act(self, deployment_id: str, action: Action) -> Rollout:
        await self._find(deployment_id)
        rollout = await self._shielded(self._course.act(deployment_id, action))
        self._heard.set()
        self._keeping.wake()
        return rollout

    async def _shielded(self, work: Coroutine[Any, Any, T]) -> T:
        """Goes on to its end when the caller leaves: memory must learn what was written."""
        task = asyncio.create_task(work)
        self._acting.add(task)
        task.add_done_callback(self._acting.discard)
        return await asyncio.shield(task)

    async def _newest(self, model: str) -> str:
        if not model:
            raise field_error("id", "is missing: name a deployment or a model")
        if found := await self._database.read(partial(store.newest, model=model)):
            return found
        raise MeshError(Reason.MODEL_NOT_FOUND, f"{model!r} was never deployed", metadata={"model": model})

    async def _find(self, deployment_id: str) -> Rollout:
        if found := await self._course.get(deployment_id):
            return found
        raise MeshError(
            Reason.DEPLOYMENT_NOT_FOUND,
            f"there is no deployment {deployment_id!r}",
            metadata={"deployment": deployment_id},
        )

    def _responses(self, rollout: Rollout, nodes: Sequence[str]) -> Sequence[pb.WatchDeploymentResponse]:
        deployment = from_rollout(rollout, self._nodes.is_online)
        hosts = [
            from_host(rollout, rollout.hosts[node], self._nodes.is_online, self._nodes.serving)
            for node in nodes
            if node in rollout.hosts
        ]
        return [
            pb.WatchDeploymentResponse(deployment=deployment, nodes=hosts[begin : begin + MAX_PAGE])
            for begin in range(0, max(1, len(hosts)), MAX_PAGE)
        ]


def _reason(text: str) -> str:
    if len(text) > LONGEST_REASON:
        raise field_error("reason", f"has {len(text)} characters, at most {LONGEST_REASON} are allowed")
    return text
