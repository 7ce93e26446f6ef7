"""The streams of agents: one a host, from hello to whatever ends it. Knows the wire's order, and leaves what is said to others.

A stream costs one task that reads, and another one only while there is something to write: thousands are open at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

import grpc

from services.fleet.alternation import Alternation
from services.fleet.messages import check_capabilities, check_heartbeat, check_hello, check_serving, check_update
from services.fleet.nodes.directory import Directory
from services.fleet.tasks.board import TaskBoard
from services.fleet.values import Host
from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.streams import Drain
from splitmesh.sql.times import utc_now

log = logging.getLogger(__name__)

MAX_WAITING = 256
"""Messages to one agent that it has not read yet."""
MISSED_HEARTBEATS = 3
SPARE_STREAMS = 64
"""Streams beside those of hosts: some have not said hello yet, some end."""


@dataclass(frozen=True, slots=True)
class StreamTimes:
    """What is promised to agents, seconds."""

    hello_s: float
    """Until the first message."""
    heartbeat_s: float
    """Between two heartbeats; an agent of which nothing is heard for three of them is gone."""
    lease_s: float

    @property
    def silence_s(self) -> float:
        """Longest time without a word."""
        return MISSED_HEARTBEATS * self.heartbeat_s


class Session:
    """One stream; also the :class:`~services.fleet.tasks.rounds.Line` to its host."""

    def __init__(
        self, write: Callable[[pb.ConnectResponse], Awaitable[None]], times: StreamTimes, on_room: Callable[[str], None]
    ) -> None:
        self.id = uuid4().hex[:12]
        self.error: MeshError | None = None
        """What ended it, when something here did."""
        self.hello = pb.Hello()
        self.host = Host("")
        self.kinds: Collection[int] = frozenset()
        self._write = write
        self._times = times
        self._on_room = on_room
        self._waiting: deque[pb.ConnectResponse] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._scope: asyncio.Timeout | None = None
        self._heard = self._told = 0.0
        """When something was heard of the agent last, and since when it is being told something; the loop's time."""
        self._looking: asyncio.TimerHandle | None = None
        self._was_full = False

    @property
    def max_tasks(self) -> int:
        """See the port."""
        return self.hello.max_tasks

    @property
    def room(self) -> int:
        """See the port."""
        left = MAX_WAITING // 2 - len(self._waiting)  # the rest is for answers to what it says
        self._was_full = self._was_full or left <= 0
        return max(0, left)

    def begin(self, scope: asyncio.Timeout) -> None:
        """It is being read, until the scope's time is over."""
        self._scope = scope
        if self.error is not None:
            self._expire()

    def heard(self) -> None:
        """The agent is there."""
        loop = asyncio.get_running_loop()
        self._heard = loop.time()
        if self._looking is None and self._scope is not None and self.error is None:
            self._scope.reschedule(None)
            self._looking = loop.call_later(self._times.silence_s, self._look)

    def send(self, message: pb.ConnectResponse) -> None:
        """Soon; ends the stream when its agent reads nothing."""
        if self.error is not None:
            return
        if len(self._waiting) >= MAX_WAITING:
            self.end(MeshError(Reason.QUEUE_FULL, f"{MAX_WAITING} messages are not read yet", retry_after_s=1.0))
            return
        self._waiting.append(message)
        if self._writing is None:
            self._told = asyncio.get_running_loop().time()
            self._writing = asyncio.create_task(self._write_on())

    def end(self, error: MeshError) -> None:
        """Its reader stops with this."""
        if self.error is None:
            self.error = error
            self._expire()

    async def close(self) -> None:
        """Nothing more is written."""
        if self.error is None:
            self.error = MeshError(Reason.CANCELLED, "the stream has ended")
        self._scope = None
        if self._looking is not None:
            self._looking.cancel()
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)

    def _look(self) -> None:
        """Whether it is silent for too long, or does not read. One timer, looked at seldom: one that every message moves costs
        more than most messages."""
        loop = asyncio.get_running_loop()
        oldest = min(self._heard, self._told) if self._writing is not None else self._heard
        if self.error is not None:
            return
        if loop.time() < oldest + self._times.silence_s:
            self._looking = loop.call_at(oldest + self._times.silence_s, self._look)
        elif oldest == self._heard:
            self._expire()
        else:
            self.end(MeshError(Reason.DEADLINE_EXPIRED, "the agent does not read", retry_after_s=1.0))

    def _expire(self) -> None:
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(asyncio.get_running_loop().time())

    async def _write_on(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting and self.error is None:
                self._told = loop.time()
                await self._write(self._waiting.popleft())
        except (grpc.RpcError, grpc.aio.BaseError):
            pass  # the connection is gone, which its reader finds out too
        finally:
            self._writing = None
        if self._was_full:
            self._was_full = False
            self._on_room(self.host.node)


class Sessions:
    """All streams of agents.

    Args:
        max_agents: hosts that may be connected.
        drain: ends every stream with NOT_READY, so that agents ask elsewhere or again.
    """

    def __init__(
        self,
        directory: Directory,
        board: TaskBoard,
        *,
        times: StreamTimes,
        max_agents: int,
        drain: Drain,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._directory = directory
        self._board = board
        self._times = times
        self._max_agents = max_agents
        self._drain = drain
        self._now = now
        self._open = 0
        self._sessions: dict[str, Session] = {}
        self._alternation = Alternation()

    def warning(self, node: str) -> str:
        """What an operator should know of a host; empty: nothing."""
        return self._alternation.warning(node, self._now())

    def tell_policies(self, policies: Mapping[str, serving_pb2.HostPolicy]) -> None:
        """Hosts that are connected hear what they are to have now."""
        self._directory.policies_changed(policies)
        for node in policies:
            if session := self._sessions.get(node):
                self._send_policy(session, 0)

    def host_changed(self, node: str) -> None:
        """An operator changed what a target may look at."""
        if session := self._sessions.get(node):
            session.host = self._directory.find(node).host()

    async def serve(self, context: Any) -> None:
        """One stream, until it has ended; see ``Connect``."""
        if self._open >= self._max_agents + SPARE_STREAMS:
            raise self._too_many()
        session = Session(context.write, self._times, lambda node: self._board.wake([node]))
        stopping = MeshError(Reason.NOT_READY, "the fleet is stopping", retry_after_s=0.5)

        def tell() -> None:
            session.end(stopping)

        self._drain.enter(tell)
        self._open += 1
        try:
            async with asyncio.timeout(self._times.hello_s) as scope:
                session.begin(scope)
                await self._converse(session, context)
        except TimeoutError as error:
            if not scope.expired():
                raise
            if session.error is None:
                what = "was heard of the agent for three heartbeats" if session.host.node else "came, not even hello"
                raise MeshError(Reason.DEADLINE_EXPIRED, f"nothing {what}", retry_after_s=1.0) from error
            raise session.error from error
        finally:
            self._open -= 1
            self._leave(session)
            self._drain.leave(tell)
            await session.close()

    async def _converse(self, session: Session, context: Any) -> None:
        first = await context.read()
        if first is grpc.aio.EOF:
            return
        if first.WhichOneof("message") != "hello":
            raise MeshError(Reason.PROTOCOL_VIOLATION, "the first message of a stream is hello")
        await self._welcome(session, check_hello(first.hello), str(context.peer()))
        while (request := await context.read()) is not grpc.aio.EOF:
            session.heard()
            await self._take(session, request)

    async def _welcome(self, session: Session, hello: pb.Hello, peer: str) -> None:
        node = hello.node
        if node not in self._sessions and len(self._sessions) >= self._max_agents:
            raise self._too_many()
        await self._directory.arrive(hello)
        before = self._sessions.get(node)
        if before is not None:
            self._board.leave(node, before)
            before.end(MeshError(Reason.NODE_REPLACED, f"another agent has connected as {node} from {peer}"))
        self._alternation.connected(node, hello.boot_id, peer, self._now(), replaced=before is not None)
        self._sessions[node] = session
        session.hello, session.host = hello, self._directory.find(node).host()
        session.kinds = frozenset(hello.capabilities.task_kinds)
        session.heard()
        session.send(self._welcome_message(session))
        self._send_policy(session, hello.policy_generation)
        log.debug("%s has connected from %s, session %s", node, peer, session.id)
        await self._board.arrive(node, session, hello.held)
        # What it said once is kept where it belongs; what it serves and holds need not be in memory twice.
        session.hello = pb.Hello(node=node, boot_id=hello.boot_id, max_tasks=hello.max_tasks)
        if self._sessions.get(node) is session:
            self._directory.connected(node)

    async def _take(self, session: Session, request: pb.ConnectRequest) -> None:
        node = session.host.node
        match request.WhichOneof("message"):
            case "heartbeat":
                check_heartbeat(request.heartbeat)
                self._directory.heard(node, request.heartbeat)
            case "task":
                self._directory.heard(node)
                update = check_update(request.task)
                if not self._board.note(node, update):
                    await self._board.hear(node, update)
            case "serving":
                check_serving(request.serving)
                self._directory.heard(node)
                self._directory.serves(node, request.serving.states, request.serving.gone)
            case "capabilities":
                check_capabilities("capabilities", request.capabilities)
                self._directory.can(node, request.capabilities)
                session.kinds = frozenset(request.capabilities.task_kinds)
                self._board.wake([node])
            case other:
                raise MeshError(
                    Reason.PROTOCOL_VIOLATION, f"{other or 'an empty message'} came where it has no meaning"
                )

    def _leave(self, session: Session) -> None:
        node = session.host.node
        if node:
            self._board.leave(node, session)
        if node and self._sessions.get(node) is session:
            del self._sessions[node]
            with suppress(MeshError):  # it may have been removed
                self._directory.heard(node)
            self._directory.disconnected(node)
            log.debug("%s has left, session %s", node, session.id)

    def _welcome_message(self, session: Session) -> pb.ConnectResponse:
        welcome = pb.Welcome(session_id=session.id)
        welcome.heartbeat.FromMilliseconds(round(self._times.heartbeat_s * 1000))
        welcome.lease.FromMilliseconds(round(self._times.lease_s * 1000))
        welcome.time.FromDatetime(self._now())
        return pb.ConnectResponse(welcome=welcome)

    def _send_policy(self, session: Session, held: int) -> None:
        policy = self._directory.policy(session.host.node)
        if policy.generation > held:
            session.send(pb.ConnectResponse(policy=policy))

    def _too_many(self) -> MeshError:
        return MeshError(
            Reason.QUEUE_FULL,
            f"{self._max_agents} agents are connected, which is the limit",
            metadata={"limit": str(self._max_agents)},
            retry_after_s=5.0,
        )
