"""A fleet that does what a test says, on a real server: offers tasks on every connection until it has heard how they ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import transport_options
from splitmesh.kernel.errors import to_grpc
from splitmesh.kernel.server import MIN_PING_INTERVAL_MS

SERVICE = pb.DESCRIPTOR.services_by_name["FleetService"].full_name
WAIT_S = 20.0
ENDED = (pb.TASK_STATE_DONE, pb.TASK_STATE_FAILED, pb.TASK_STATE_CANCELLED)


class Session:
    """One connection of an agent."""

    def __init__(self, hello: pb.Hello, context: Any) -> None:
        self.hello = hello
        self.received: list[pb.ConnectRequest] = []
        self.over = asyncio.Event()
        self.error: MeshError | None = None
        self._context = context

    async def send(self, **message: Any) -> None:
        """One message, by the name of its field."""
        await self._context.write(pb.ConnectResponse(**message))

    def cut(self, reason: Reason = Reason.SERVICE_UNAVAILABLE, retry_after_s: float | None = None) -> None:
        """The stream ends with an error."""
        self.error = MeshError(reason, "cut by the test", retry_after_s=retry_after_s)
        self.over.set()


@dataclass
class FakeFleet:
    """``tasks`` are offered to whoever connects, each until its end was heard; ``policy`` is sent when the host's is older."""

    heartbeat_s: float = 0.2
    lease_s: float = 0.6
    tasks: dict[str, pb.Task] = field(default_factory=dict)
    policy: serving_pb2.HostPolicy | None = None
    acknowledges: bool = True
    cuts: list[int] = field(default_factory=list)
    """The first connection ends after so many messages of the agent, the second after so many, and so on; hello counts."""
    refusal: MeshError | None = None
    """Instead of welcome."""
    raw_first: pb.ConnectResponse | None = None
    """Instead of welcome."""
    sessions: list[Session] = field(default_factory=list)
    updates: list[pb.TaskUpdate] = field(default_factory=list)
    ended: dict[str, pb.TaskUpdate] = field(default_factory=dict)
    """By task, the first end that was heard."""
    acknowledged: list[tuple[str, int]] = field(default_factory=list)
    address: str = ""
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def session(self) -> Session:
        """The newest one."""
        return self.sessions[-1]

    def states(self) -> dict[tuple[str, str], serving_pb2.ServingState]:
        """What the host serves as last heard, by model and head."""
        known = {(one.model, one.node): one for one in self.session.hello.serving}
        for message in self.session.received:
            known = {key: one for key, one in known.items() if key[0] not in message.serving.gone}
            for state in message.serving.states:
                known[state.model, state.node] = state
        return known

    def beats(self) -> list[pb.Heartbeat]:
        """Of the newest connection."""
        return [one.heartbeat for one in self.session.received if one.HasField("heartbeat")]

    async def until(self, true: Callable[[], bool]) -> None:
        """Waits for something that agents say; TimeoutError when they do not."""
        async with asyncio.timeout(WAIT_S), self._changed:
            await self._changed.wait_for(true)

    async def offer(self, task: pb.Task) -> None:
        """Now, and on every connection until it has ended."""
        self.tasks[task.id] = task
        await self.session.send(offer=task)

    async def Connect(self, requests: AsyncIterator[pb.ConnectRequest], context: Any) -> None:
        messages = aiter(requests)
        first = await anext(messages)
        if self.refusal is not None:
            await context.abort_with_status(to_grpc(self.refusal))
        session = Session(first.hello, context)
        limit = self.cuts[len(self.sessions)] if len(self.sessions) < len(self.cuts) else None
        self.sessions.append(session)
        if limit == 1:
            await self._notify()
            await context.abort_with_status(to_grpc(MeshError(Reason.SERVICE_UNAVAILABLE, "cut by the test")))
        if self.raw_first is not None:
            await context.write(self.raw_first)
        else:
            await self._welcome(session)
        await self._notify()
        reading = asyncio.create_task(self._read(session, messages, limit))
        over = asyncio.create_task(session.over.wait())
        try:
            await asyncio.wait({reading, over}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (reading, over):
                task.cancel()
            await asyncio.gather(reading, over, return_exceptions=True)
        await self._notify()
        if session.error is not None:
            await context.abort_with_status(to_grpc(session.error))

    async def _welcome(self, session: Session) -> None:
        welcome = pb.Welcome(session_id=f"session-{len(self.sessions)}")
        welcome.heartbeat.FromMicroseconds(round(self.heartbeat_s * 1e6))
        welcome.lease.FromMicroseconds(round(self.lease_s * 1e6))
        await session.send(welcome=welcome)
        if self.policy is not None and session.hello.policy_generation < self.policy.generation:
            await session.send(policy=self.policy)
        for task in self.tasks.values():
            if task.id not in self.ended:
                await session.send(offer=task)

    async def _read(self, session: Session, messages: AsyncIterator[pb.ConnectRequest], limit: int | None) -> None:
        async for message in messages:
            session.received.append(message)
            if message.HasField("task"):
                await self._heard(session, message.task)
            if limit is not None and len(session.received) + 1 >= limit:
                session.cut()
            await self._notify()

    async def _heard(self, session: Session, update: pb.TaskUpdate) -> None:
        self.updates.append(update)
        if update.state in ENDED:
            self.ended.setdefault(update.task_id, update)
            if self.acknowledges:
                heard = pb.UpdateAcknowledged(task_id=update.task_id, attempt=update.attempt)
                self.acknowledged.append((update.task_id, update.attempt))
                await session.send(acknowledged=heard)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


@asynccontextmanager
async def served(fleet: FakeFleet, port: int = 0) -> AsyncIterator[FakeFleet]:
    """The fleet on a port."""
    # As the real ones: a client's keepalive would be taken for an attack otherwise.
    names = ("grpc.http2.min_recv_ping_interval_without_data_ms", "grpc.http2.min_ping_interval_without_data_ms")
    pings = [(name, MIN_PING_INTERVAL_MS) for name in names]
    server = grpc.aio.server(options=[*transport_options(8 << 20), ("grpc.so_reuseport", 0), *pings])
    connect = grpc.stream_stream_rpc_method_handler(
        fleet.Connect,
        request_deserializer=pb.ConnectRequest.FromString,
        response_serializer=pb.ConnectResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Connect": connect}),))
    fleet.address = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    await server.start()
    try:
        yield fleet
    finally:
        await server.stop(None)


def deploy_task(
    task_id: str, model: str = "parts", version: int = 1, generation: int = 1, attempt: int = 1, candidate: int = 0
) -> pb.Task:
    """Brings a version to the host."""
    assignment = serving_pb2.Assignment(model=model, version=version, generation=generation)
    if candidate:
        assignment.trial.CopyFrom(serving_pb2.Trial(trial_id="trial", candidate=candidate, pair_share=0.5))
    return pb.Task(
        id=task_id,
        kind=pb.TASK_KIND_DEPLOY,
        attempt=attempt,
        deploy=pb.DeployWork(assignment=assignment),
        max_attempts=3,
    )
