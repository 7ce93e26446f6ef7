"""Keeps the one stream to the fleet open: says who this is, hands on what the fleet asks for, says what became of it.

Nothing is lost when it breaks: tasks, their ends, assignments and the policy are on disk, and everything else is said anew on the
next stream. A dead link is seen by the channel's keepalive, by a send that takes too long, and by ends of tasks that nobody
acknowledges. Knows no kind of work.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from importlib import metadata
from uuid import uuid4

from edge.agent.capabilities import HostCapabilities
from edge.agent.config import AgentSettings
from edge.agent.desired import Desired
from edge.agent.desk import TaskDesk
from edge.agent.heads import Heads
from edge.agent.outbox import Outbox
from edge.agent.together import together
from edge.agent.vitals import Vitals
from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.client.fleet_bounds import MAX_STATES
from splitmesh.client.fleet_stream import FleetStream, fleet_stream
from splitmesh.client.transfer import Patience
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels

log = logging.getLogger(__name__)

STEADY_S = 5.0
"""A stream that lived so long worked: the next one is opened at once when it breaks."""
MISSED = 3
"""Heartbeats that a send may take, and half of those for which an end may stay unacknowledged."""
REFUSED = frozenset({Reason.FIELD_INVALID, Reason.PROTOCOL_VIOLATION, Reason.UNIMPLEMENTED})
"""Why a fleet does not want this agent; coming back at once would not help."""


class FleetConnection:
    """A part of an app, the last one to start.

    Args:
        settings: who this is.
        channels: find the fleet; closed with this.
        desk: has the tasks.
        outbox: has what is to be said.
        desired: takes the policy.
        heads: say what is served.
        capabilities: say what the host can do.
        vitals: read its figures.
        spooled: records that wait for the link, and that were dropped.
        monotonic: seconds.
    """

    def __init__(
        self,
        settings: AgentSettings,
        channels: Channels,
        desk: TaskDesk,
        outbox: Outbox,
        desired: Desired,
        heads: Heads,
        capabilities: HostCapabilities,
        vitals: Vitals,
        spooled: Callable[[], tuple[int, int]] = lambda: (0, 0),
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._channels = channels
        self._desk = desk
        self._outbox = outbox
        self._desired = desired
        self._heads = heads
        self._capabilities = capabilities
        self._vitals = vitals
        self._spooled = spooled
        self._monotonic = monotonic
        self._boot_id = uuid4().hex
        self._release = _release()
        self._told_policy = -1
        self._beat_now = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.session_id = ""
        """Of the stream that is open; empty: none is."""

    async def start(self) -> None:
        """Begins to connect; returns at once."""
        self._heads.observe(self._outbox.serving)
        self._task = asyncio.create_task(self._for_ever())
        self._noticing = asyncio.create_task(self._notice_policy())

    async def stop(self) -> None:
        """Ends the stream."""
        tasks = [self._task, self._noticing] if self._task is not None else []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._channels.close()

    async def _for_ever(self) -> None:
        patience = Patience(tries=None, longest_s=self._settings.reconnect_longest_s)
        last = ""
        while True:
            begun = self._monotonic()
            try:
                await self._once()
                error = MeshError(Reason.SERVICE_UNAVAILABLE, "the stream has ended")
            except MeshError as broken:
                error = broken
            except Exception as unforeseen:
                log.exception("the stream to the fleet broke unexpectedly")
                error = MeshError(Reason.INTERNAL, str(unforeseen))
            self.session_id = ""
            if self._monotonic() - begun >= STEADY_S:
                patience.renewed()
            # The same again and again is said once.
            log.log(logging.DEBUG if error.reason == last else logging.WARNING, "no stream to the fleet: %s", error)
            last = error.reason
            if error.reason is Reason.NODE_REPLACED or error.reason in REFUSED:
                wait_s = self._settings.replaced_wait_s
                log.error("again in about %.0f s: %s", wait_s, error)
                await asyncio.sleep(wait_s * random.uniform(0.75, 1.25))
            else:
                await patience.after(error)

    async def _once(self) -> None:
        hello = await self._hello()
        service = self._settings.fleet_service
        async with fleet_stream(self._channels, hello, service=service) as stream:
            self.session_id = stream.session_id
            log.info(
                "connected to the fleet: session %s, a heartbeat each %.1f s", stream.session_id, stream.heartbeat_s
            )
            await together(self._receive(stream), self._send(stream), self._beat(stream))

    async def _hello(self) -> pb.Hello:
        settings = self._settings
        capabilities = await self._capabilities.message()
        # From here on without a wait: what changes after it is in the outbox.
        self._outbox.clear()
        self._desk.connected()
        states = self._heads.states()
        # What a hello has no room for follows it.
        self._outbox.serving(states[MAX_STATES:], [])
        return pb.Hello(
            node=settings.node,
            tenant=settings.tenant,
            site=settings.site,
            line=settings.line,
            camera_groups=settings.group_names(),
            labels=settings.label_values(),
            boot_id=self._boot_id,
            agent_version=self._release,
            capabilities=capabilities,
            serving=states[:MAX_STATES],
            held=self._desk.held(),
            max_tasks=settings.max_tasks,
            policy_generation=self._heads.policy_generation(),
        )

    async def _receive(self, stream: FleetStream) -> None:
        handlers: dict[str, Callable[[pb.ConnectResponse], Awaitable[None]]] = {
            "offer": lambda message: self._desk.offered(message.offer),
            "cancel": lambda message: self._desk.cancelled(message.cancel),
            "acknowledged": lambda message: self._desk.acknowledged(message.acknowledged),
            "policy": self._policy,
        }
        while True:
            message = await stream.receive()
            handle = handlers.get(message.WhichOneof("message") or "")
            if handle is None:
                log.warning("the fleet sends something that this agent does not know")
                continue
            await handle(message)

    async def _policy(self, message: pb.ConnectResponse) -> None:
        try:
            await self._desired.set_policy(message.policy)
        except MeshError as error:
            log.error("the host's policy is not kept and not followed: %s", error)

    async def _send(self, stream: FleetStream) -> None:
        while True:
            await stream.send(await self._outbox.next(), within_s=MISSED * stream.heartbeat_s)

    async def _beat(self, stream: FleetStream) -> None:
        while True:
            beat = await asyncio.to_thread(self._vitals.read)
            beat.policy_generation = self._told_policy = self._heads.policy_generation()
            beat.spooled_records, beat.dropped_records = await asyncio.to_thread(self._spooled)
            self._outbox.heartbeat(beat)
            self._desk.remind(min(stream.lease_s / 3, MISSED * stream.heartbeat_s))
            unheard_s = self._desk.unheard_s()
            if unheard_s > 2 * MISSED * stream.heartbeat_s:
                raise MeshError(
                    Reason.DEADLINE_EXPIRED,
                    f"the fleet has acknowledged nothing for {unheard_s:.0f} s",
                    retry_after_s=1.0,
                )
            self._beat_now.clear()
            try:
                async with asyncio.timeout(stream.heartbeat_s):
                    await self._beat_now.wait()
            except TimeoutError:
                continue

    async def _notice_policy(self) -> None:
        """A policy that has reached all heads is told with a heartbeat of its own."""
        while True:
            changed = self._heads.changed
            if self._heads.policy_generation() != self._told_policy:
                self._beat_now.set()
            await changed.wait()


def _release() -> str:
    try:
        return metadata.version("splitmesh")
    except metadata.PackageNotFoundError:
        return "unknown"
