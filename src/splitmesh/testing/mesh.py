"""A whole mesh on this machine: the services, with a link relay before each tail and each node of a chain's middle.

One layout, several worlds: a :class:`Launcher` decides whether a service is a process (here) or lives in the test's own
process. Services are run from a checkout (``python -m services.registry``), so a wheel alone cannot launch them. Used
by the demo, the benchmarks and the tests.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path

from splitmesh.client import Mesh
from splitmesh.client.registry import RegistryClient
from splitmesh.client.trust import registry_client
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.config import ServiceSettings
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.testing.keys import OPERATOR, MeshKeys
from splitmesh.testing.links import PROFILES, LinkProfile
from splitmesh.testing.processes import (
    MODULES,
    WITHOUT_FLEET,
    Launcher,
    ProcessLauncher,
    Running,
    ServiceProcess,
)
from splitmesh.testing.relay import LinkRelay

__all__ = ["MODULES", "WITHOUT_FLEET", "Launcher", "LocalMesh", "ProcessLauncher", "Running", "ServiceProcess"]

EDGE = ("head", "agent")
"""Beside the line; all others are on the far side of the cable."""
SITE = "site-1"


class _Operator(ServiceSettings):
    data_dir: Path
    """Where it keeps the keyrings it knows."""


class LocalMesh:
    """The services and the relay, started in order and stopped in reverse."""

    def __init__(
        self,
        launcher: Launcher,
        work_dir: Path,
        *,
        link: LinkProfile = PROFILES["loopback"],
        otlp_endpoint: str = "",
        settings: Mapping[str, Mapping[str, str]] | None = None,
        services: Collection[str] = WITHOUT_FLEET,
        middle: Sequence[str] = (),
        tails: int = 1,
        trust: bool = True,
        cable: bool = False,
    ) -> None:
        """Nothing runs yet.

        Args:
            launcher: starts each service.
            work_dir: where services keep their state.
            link: profile of every relay, uplink and round trip.
            otlp_endpoint: where every service sends its spans.
            settings: more settings by service and field name; those of the tail are every tail's.
            services: which to start, always in the order of ``MODULES``; the tail is one of them. Fleet and agent only run
                where they are named.
            middle: names of nodes between head and tail, nearest to the head first; each runs the tail's program.
            tails: how many nodes run the last segment, each behind a relay of its own: `tail`, `tail-2`, `tail-3` …
            trust: every version is signed, and verified before it is used; a registry that comes with versions has them
                signed by the operator.
            cable: head and agent reach everything else over relays, so that :meth:`cut` takes all of it away at once.
        """
        self._launcher = launcher
        self._work_dir = work_dir
        self._link = link
        self._otlp_endpoint = otlp_endpoint
        self._extra = settings or {}
        self.keys = MeshKeys(work_dir / "keys") if trust else None
        """Of those who sign; None: nobody verifies."""
        self._chain = [*middle, "tail"]
        self._wanted = [service for service in MODULES if service in services]
        behind = self._wanted.index("tail") + 1
        self._cable = cable
        self._tails = ["tail", *(f"tail-{number}" for number in range(2, tails + 1))]
        self._wanted[behind:behind] = [*self._tails[1:], *reversed(middle)]
        self._services: dict[str, Running] = {}
        self._addresses: dict[str, str] = {}
        self._stack = AsyncExitStack()
        self.relays: dict[str, LinkRelay] = {}
        """By the service they lead to: the tails, nodes in the middle, and with a cable all that the edge asks."""
        self.channels: Channels

    async def __aenter__(self) -> LocalMesh:
        """Start everything."""
        try:
            for service in self._wanted:
                await self.start(service)
                if service == "registry" and self.keys is not None:
                    await self._begin_trust(self.keys)
                if self._behind_a_relay(service) or (self._cable and service not in EDGE):
                    relay = LinkRelay(self._addresses[service], self._link)
                    self.relays[service] = await self._stack.enter_async_context(relay)
            table = {service: [address] for service, address in self._addresses.items() if service not in self._tails}
            table["tail"] = [self._addresses[tail] for tail in self._tails]
            self.channels = Channels(StaticDiscovery(table))
            self._stack.push_async_callback(self.channels.close)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop everything."""
        await self._close()

    async def _close(self) -> None:
        await self._stack.aclose()
        for service in reversed(list(self._services)):
            await self._services.pop(service).stop()

    def address(self, service: str) -> str:
        """``host:port`` of a service."""
        return self._addresses[service]

    async def start(self, service: str, more: Mapping[str, str] | None = None) -> None:
        """Start a service; one that ran before comes back at its old port with its old state.

        ``more`` settings are for this life of it only.
        """
        known = {name: address for name, address in self._addresses.items() if not self._behind_a_relay(name)}
        if self._cable and service in EDGE:
            known = {name: self._from_the_edge(name) for name in known}
        if service == "partitioner":
            # It measures on every node, not across the links; one tail speaks for all.
            known = {name: address for name, address in self._addresses.items() if name not in self._tails[1:]}
        following = self._behind(service)
        relays = [self.relays[name].address for name in self._alike(following) if name in self.relays]
        if relays:
            known[following] = ";".join(relays)
        settings = {
            "node": service if service in self._tails[1:] else f"{service}-1",
            "static_addresses": ",".join(f"{name}={address}" for name, address in known.items()),
            "otlp_endpoint": self._otlp_endpoint,
            "data_dir": str(self._work_dir / service),
            "reflection": "true",
            **({"site": SITE} if service in EDGE and "agent" in self._wanted else {}),
            **({"head_data_dir": str(self._work_dir / "head")} if service == "agent" else {}),
            **self._place(service, following),
            **(self.keys.settings(service) if self.keys is not None else {}),
            **(self._extra.get("tail", {}) if service in self._tails else {}),
            **self._extra.get(service, {}),
            **(more or {}),
        }
        if service in self._addresses:
            settings["port"] = self._addresses[service].rpartition(":")[2]
        program = "tail" if self._behind_a_relay(service) else service
        running = await self._launcher.launch(program, settings)
        self._services[service] = running
        self._addresses[service] = running.address

    async def _begin_trust(self, keys: MeshKeys) -> None:
        channels = Channels(StaticDiscovery({"registry": [self._addresses["registry"]]}))
        try:
            await keys.hand_over(RegistryClient(channels))
        finally:
            await channels.close()

    def _behind_a_relay(self, service: str) -> bool:
        return service in self._chain or service in self._tails

    def _from_the_edge(self, service: str) -> str:
        return self.relays[service].address if service in self.relays else self._addresses[service]

    def _alike(self, service: str) -> list[str]:
        """Everyone who does a service's work."""
        return self._tails if service == "tail" else [service]

    def _behind(self, service: str) -> str:
        """Who takes a service's features; empty when nobody does."""
        if service == "head":
            return self._chain[0]
        return dict(pairwise(self._chain)).get(service, "")

    def _place(self, service: str, following: str) -> dict[str, str]:
        """Settings by which a chain's nodes find each other; none for a head and a tail alone."""
        if service == "partitioner" and len(self._chain) > 1:
            return {"profiled_services": ",".join(["head", *self._chain])}
        if service == "head" and following != "tail":
            return {"tail_service": following}
        if following and service != "head":
            return {"service": service, "next_service": following}
        return {}

    @property
    def relay(self) -> LinkRelay:
        """The one before the first tail."""
        return self.relays["tail"]

    def cut(self) -> None:
        """Nothing crosses the cable any more, in either direction; what head and agent send is swallowed."""
        for relay in self._across():
            relay.down()

    def heal(self) -> None:
        """The cable is back; connections from before :meth:`cut` are reset."""
        for relay in self._across():
            relay.up()

    def _across(self) -> list[LinkRelay]:
        if not self._cable:
            raise RuntimeError("this mesh was made without a cable: LocalMesh(…, cable=True)")
        return list(self.relays.values())

    async def stop(self, service: str) -> None:
        """Stop one service gracefully."""
        await self._services.pop(service).stop()

    async def kill(self, service: str) -> None:
        """Kill one service, as a power cut would."""
        await self._services.pop(service).kill()

    def environment(self) -> dict[str, str]:
        """Settings by which a command finds this mesh, verifies what it takes and signs what it makes as the operator."""
        addresses = ",".join(f"{service}={address}" for service, address in self._addresses.items())
        return {"static_addresses": addresses, **(self.keys.settings(OPERATOR) if self.keys is not None else {})}

    def registry(self) -> RegistryClient:
        """The registry for the operator: what it makes is signed, what it reads verified."""
        settings = _Operator(**self.environment(), data_dir=self._work_dir / OPERATOR)  # type: ignore[arg-type]
        return registry_client(settings, self.channels)

    def gateway(self, **options: object) -> Mesh:
        """A camera gateway's connection to the head."""
        return Mesh(self._addresses["head"], otlp_endpoint=self._otlp_endpoint, **options)  # type: ignore[arg-type]
