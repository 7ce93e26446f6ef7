"""Discovery by the Consul agent on this host: registration with a gRPC health check, blocking-query watches.

Knows the agent's HTTP API (of Consul 1.8 and later) and keeps what it registered registered. Does not know servers, ACL
policies or federation, which are the agents' business, and does not believe the catalogue: what is malformed in it
is left out.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.consul_api import ConsulAgentApi
from splitmesh.kernel.discovery import Instance, check_service, in_order, join_address, split_address

log = logging.getLogger(__name__)

_WATCH_BURST = 2.0
_WATCH_REFILL_S = 1.0
"""Consul's advice for blocking queries: two answers in quick succession, then a steady rate."""


@dataclass(frozen=True, slots=True)
class GrpcCheck:
    """How the agent asks an instance for its grpc.health.v1 status."""

    interval_s: float = 5.0
    """Seconds between two questions; Consul's floor is 1."""
    timeout_s: float = 2.0
    """Seconds after which no answer means critical."""
    deregister_after_s: float = 600.0
    """Seconds of being critical after which the agent drops the entry; Consul's floor is 60."""
    service: str = ""
    """The name asked about; empty asks about the server as a whole."""
    tls: bool = False
    """Whether the agent speaks TLS to the instance (for mutual TLS: the agent's ``enable_agent_tls_for_checks``)."""

    def definition(self, address: str) -> dict[str, Any]:
        """The check as the agent wants it."""
        return {
            "Name": "grpc.health.v1",
            "GRPC": f"{address}/{self.service}" if self.service else address,
            "GRPCUseTLS": self.tls,
            "Interval": f"{self.interval_s:g}s",
            "Timeout": f"{self.timeout_s:g}s",
            "DeregisterCriticalServiceAfter": f"{self.deregister_after_s:g}s",
        }


class ConsulDiscovery:
    """A :class:`~splitmesh.kernel.discovery.Discovery` over one Consul agent.

    Args:
        address: the agent's HTTP API, ``host:port``.
        token: ACL token sent with every call.
        tls: speaks HTTPS with these settings when given.
        prefix: put before a service's name in the catalogue.
        check: the health check of what is registered here.
        request_timeout_s: seconds any call may take (a watch's: on top of ``wait_s``).
        wait_s: seconds the agent may hold a watch's question when nothing changes.
        maintain_s: seconds between two looks whether the agent still knows our entries.
        max_backoff_s: the longest pause between two tries while the agent does not answer.
        max_instances: instances of one service handed out at most, first in order.
        rng: jitter of the pauses.

    Raises:
        MeshError: FIELD_INVALID, ``address`` is not host:port.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:8500",
        *,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        prefix: str = "splitmesh-",
        check: GrpcCheck | None = None,
        request_timeout_s: float = 3.0,
        wait_s: float = 60.0,
        maintain_s: float = 10.0,
        max_backoff_s: float = 5.0,
        max_instances: int = 1024,
        rng: random.Random | None = None,
    ) -> None:
        split_address(address, "consul_address")
        self._agent = ConsulAgentApi(address, token, tls, request_timeout_s)
        self._prefix = prefix
        self._check = check or GrpcCheck()
        self._wait_s = wait_s
        self._maintain_s = maintain_s
        self._max_backoff_s = max_backoff_s
        self._max_instances = max_instances
        self._rng = rng or random.Random()
        self._registered: dict[str, _ConsulRegistration] = {}
        self._registering = asyncio.Lock()
        self._closed = asyncio.Event()

    async def register(self, instance: Instance) -> _ConsulRegistration:
        """Enters the instance as healthy (it answers already; the check corrects that) and keeps it entered.

        After a failure the entry may exist all the same; registering again settles it.
        """
        async with self._registering:
            self._check_open()
            registration = _ConsulRegistration(
                self, f"{self._prefix}{instance.service}:{instance.instance_id}", instance
            )
            earlier = self._registered.get(registration.entry_id)
            if earlier is not None:
                await earlier.let_go()
            await self._enter(registration, healthy=True)
            self._registered[registration.entry_id] = registration
            registration.keep()
            return registration

    async def resolve(self, service: str) -> tuple[Instance, ...]:
        """The instances whose checks pass."""
        check_service(service)
        self._check_open()
        return (await self._healthy(service, index=0))[1]

    async def watch(self, service: str) -> AsyncIterator[tuple[Instance, ...]]:
        """Follows the service by blocking queries; see :meth:`Discovery.watch`."""
        check_service(service)
        loop = asyncio.get_running_loop()
        known: tuple[Instance, ...] | None = None
        index, failures = 0, 0
        credit, credited_at = _WATCH_BURST, loop.time()
        while not self._closed.is_set():
            now = loop.time()
            credit = min(_WATCH_BURST, credit + (now - credited_at) / _WATCH_REFILL_S)
            credited_at = now
            if credit < 1.0:
                await self._pause((1.0 - credit) * _WATCH_REFILL_S)
                continue
            credit -= 1.0
            try:
                answered, current = await self._healthy(service, index)
            except MeshError as error:
                failures += 1
                # A restarted agent counts from anew: asked with the old index it would hold the question in vain.
                index = 0
                if failures == 1 and not self._closed.is_set():
                    log.warning("watch of %s keeps its last set: %s", service, error.message)
                await self._pause(self._backoff_s(failures))
                continue
            failures = 0
            index = 0 if answered < index else max(1, answered)
            if current != known:
                known = current
                yield current

    async def close(self) -> None:
        """Deregisters within one deadline each, all at once; what the agent does not take out its check will."""
        self._closed.set()
        async with self._registering:
            left, self._registered = list(self._registered.values()), {}
        outcomes = await asyncio.gather(*(registration.take_out() for registration in left), return_exceptions=True)
        await self._agent.close()
        for outcome in outcomes:
            if isinstance(outcome, MeshError):
                log.warning("not deregistered: %s", outcome.message)
            elif isinstance(outcome, BaseException):
                raise outcome

    async def _enter(self, registration: _ConsulRegistration, *, healthy: bool) -> None:
        instance = registration.instance
        host, port = split_address(instance.address)
        check = self._check.definition(instance.address)
        definition = {
            "ID": registration.entry_id,
            "Name": self._prefix + instance.service,
            "Address": host,
            "Port": port,
            "Tags": list(instance.tags),
            "Meta": dict(instance.metadata),
            "Check": check | {"Status": "passing"} if healthy else check,
        }
        await self._agent.call("PUT", "/v1/agent/service/register", {"replace-existing-checks": "true"}, definition)

    async def _healthy(self, service: str, index: int) -> tuple[int, tuple[Instance, ...]]:
        params, hold_s = {"passing": "1"}, 0.0
        if index:
            params |= {"index": str(index), "wait": f"{self._wait_s:g}s"}
            hold_s = self._wait_s * 17 / 16  # the agent adds up to a sixteenth of its own
        path = f"/v1/health/service/{self._prefix}{service}"
        reply = await self._agent.call("GET", path, params, hold_s=hold_s)
        entries = reply.body if isinstance(reply.body, list) else []
        found = in_order(filter(None, (self._instance(service, entry) for entry in entries)))
        return reply.index, found[: self._max_instances]

    def _instance(self, service: str, entry: Any) -> Instance | None:
        """What a catalogue entry says, or nothing: anyone with a token can write any entry."""
        try:
            listed = entry["Service"]
            entry_id, own = str(listed["ID"]), f"{self._prefix}{service}:"
            return Instance(
                service,
                entry_id.removeprefix(own),
                join_address(str(listed["Address"] or entry["Node"]["Address"]), int(listed["Port"])),
                tuple(listed["Tags"] or ()),
                dict(listed["Meta"] or {}),
            )
        except (MeshError, KeyError, TypeError, ValueError) as error:
            log.debug("left out a malformed entry of %s: %r", service, error)
            return None

    def _backoff_s(self, failures: int) -> float:
        return min(self._max_backoff_s, 0.1 * float(2 ** min(failures, 16))) * self._rng.uniform(0.5, 1.0)

    async def _pause(self, delay_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._closed.wait()

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise MeshError(Reason.SERVICE_UNAVAILABLE, "discovery is closed")


class _ConsulRegistration:
    """One entry and the task that looks after it."""

    def __init__(self, owner: ConsulDiscovery, entry_id: str, instance: Instance) -> None:
        self._owner = owner
        self.entry_id = entry_id
        self._instance = instance
        self._stopping = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def instance(self) -> Instance:
        return self._instance

    async def deregister(self) -> None:
        if self._owner._registered.get(self.entry_id) is self:
            del self._owner._registered[self.entry_id]
            await self.take_out()

    async def take_out(self) -> None:
        await self.let_go()
        path = f"/v1/agent/service/deregister/{quote(self.entry_id, safe='')}"
        await self._owner._agent.call("PUT", path, may_miss=True)

    def keep(self) -> None:
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.entry_id}")

    async def let_go(self) -> None:
        """Ends the keeper without cutting its call short: a half-sent entry could land after the deregistration."""
        self._stopping.set()
        if self._keeper is not None:
            await self._keeper

    async def _keep(self) -> None:
        owner, failures = self._owner, 0
        path = f"/v1/agent/service/{quote(self.entry_id, safe='')}"
        while True:
            pause_s = min(owner._maintain_s, owner._backoff_s(failures)) if failures else owner._maintain_s
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
            if self._stopping.is_set():
                return
            try:
                if (await owner._agent.call("GET", path, may_miss=True)).missing:
                    log.warning("the agent lost %s: registering it again", self.entry_id)
                    # Not as healthy: the agent also drops what its check failed for long.
                    await owner._enter(self, healthy=False)
                failures = 0
            except MeshError:
                failures += 1
