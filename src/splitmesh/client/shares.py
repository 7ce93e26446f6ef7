"""A head's and an operator's side of the shared uplinks: states budgets, tells demands and hears grants, lists shares.

Knows messages and streams; what is done with a grant is the head's business (``edge/head/uplink/budget.py``), how it comes about
the router's (``services/router/shares/``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import asdict, dataclass

from splitmesh.api.routing.v1 import routing_pb2 as pb
from splitmesh.api.routing.v1 import routing_pb2_grpc
from splitmesh.client.routing import UplinkLoad
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels, mesh_errors

log = logging.getLogger(__name__)

SERVICE = "router"
BACKOFF_S = (0.1, 1.0)
"""First and largest wait before a broken stream is opened again: a router that restarts waits this long for its heads."""
GOODBYE_S = 0.5
"""Longest that a cancelled caller waits until the router has heard that it leaves."""
PERMANENT = frozenset({Reason.FIELD_INVALID, Reason.UNIMPLEMENTED})
"""Errors by which a stream ends: waiting does not heal them."""


@dataclass(frozen=True, slots=True)
class ApplicationShare:
    """An application's place in a site's budget."""

    application: str
    """A model's name."""
    weight: float = 1.0
    """What a sample's worth is multiplied by."""
    min_share: float = 0.0
    """Of its hard samples, 0..1: they cross if at all possible, the worthiest first."""


@dataclass(frozen=True, slots=True)
class SiteBudget:
    """What the applications of a site may use together."""

    site: str
    bytes_per_s: float = 0.0
    """0: no limit but what the link carries."""
    cloud_ms_per_s: float = 0.0
    """0: no limit but what the tails take."""
    applications: tuple[ApplicationShare, ...] = ()
    """Those that are not named weigh 1 and have no minimum."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What one application's hard samples ask for; see ``splitmesh.api.routing.v1.ApplicationDemand``."""

    application: str
    rates: tuple[float, ...]
    """Samples per second by worth, bins of equal width over 0..1."""
    bytes: float
    """Of a sample on the link."""
    cloud_ms: float
    """Of a sample, of the tail's time."""
    deadline_ok: bool = True
    """Answers of the tail are expected in time."""


@dataclass(frozen=True, slots=True)
class Update:
    """A head's word: all of its applications, and how crowded the way is."""

    demands: tuple[Demand, ...]
    load: UplinkLoad | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """What a head may use, as the router said it; nothing is checked."""

    bytes_per_s: float
    """Infinite: no limit."""
    cloud_ms_per_s: float
    """Infinite: no limit."""
    applications: tuple[ApplicationShare, ...]
    """Weights and minima that were stated for the site."""
    why: str


@dataclass(frozen=True, slots=True)
class LiveShare:
    """One application's share on one head; see ``splitmesh.api.routing.v1.LiveShare``."""

    node: str
    application: str
    weight: float
    min_share: float
    asked_per_s: float
    allowed_per_s: float
    bytes_per_s: float
    cloud_ms_per_s: float
    least_worth: float
    """Samples worth less stay; above 1 all do."""
    why: str


@dataclass(frozen=True, slots=True)
class SiteShares:
    """A site now; see ``splitmesh.api.routing.v1.SiteShares``."""

    site: str
    bytes_per_s: float
    cloud_ms_per_s: float
    usable_bytes_per_s: float
    usable_cloud_ms_per_s: float
    price_per_byte: float
    price_per_ms: float
    shares: tuple[LiveShare, ...]
    applications: tuple[ApplicationShare, ...]
    why: str


class ShareClient:
    """Calls RoutingService. Every method raises the service's MeshErrors, see its proto."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def set_site(self, budget: SiteBudget) -> None:
        """State a site's budget; heads hear of it at once, and it is on disk when this returns."""
        applications = [pb.ApplicationShare(**asdict(entry)) for entry in budget.applications]
        request = pb.SetSiteRequest(
            site=budget.site,
            bytes_per_s=budget.bytes_per_s,
            cloud_ms_per_s=budget.cloud_ms_per_s,
            applications=applications,
        )
        async with mesh_errors():
            await (await self._stub()).SetSite(request)

    async def get_shares(self, site: str = "") -> list[SiteShares]:
        """Sites by name, with what each application gets now; all of them unless one is named, none where it is not known."""
        async with mesh_errors():
            response = await (await self._stub()).GetShares(pb.GetSharesRequest(site=site))
        return [_site(entry) for entry in response.sites]

    async def share_uplink(self, node: str, site: str, updates: AsyncIterator[Update]) -> AsyncGenerator[Grant]:
        """Tell updates and hear grants, for as long as the caller iterates; the newest counts, in both directions.

        A broken stream is opened again by itself, with a capped back-off, and begins with the newest update; a grant that is
        what it was is not repeated. An update that comes while the one before is on its way takes the place of any that
        waits. Ends only by an error that waiting does not heal (``PERMANENT``), or by what ``updates`` raised. Who is cancelled
        takes its leave: others get its share sooner than after a broken stream.
        """
        newest = _Newest()
        feeding = asyncio.create_task(newest.feed(updates))
        last: Grant | None = None
        wait_s = BACKOFF_S[0]
        try:
            while True:
                try:
                    async with aclosing(self._grants(node, site, newest, feeding)) as grants:
                        async for grant in grants:
                            wait_s = BACKOFF_S[0]
                            if grant != last:
                                last = grant
                                yield grant
                except MeshError as error:
                    if error.reason in PERMANENT:
                        raise
                    log.info("sharing the uplink of site %s broke, trying again: %s", site, error)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, BACKOFF_S[1])
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)

    async def _grants(
        self, node: str, site: str, newest: _Newest, feeding: asyncio.Task[None]
    ) -> AsyncGenerator[Grant]:
        """One stream, until it breaks or what feeds it fails; of grants that wait only the newest is yielded."""
        async with mesh_errors():
            over = asyncio.Event()
            call = (await self._stub()).ShareUplink(newest.requests(node, site, over))
            got = _Got()
            reading = asyncio.create_task(got.read(call))
            try:
                while (grant := await got.take(reading, feeding)) is not None:
                    yield grant
                await (feeding if _failed(feeding) else reading)
            except asyncio.CancelledError:
                newest.leave()
                await asyncio.wait([reading], timeout=GOODBYE_S)
                raise
            finally:
                # Of a call that ended by itself gRPC goes on reading requests, for as long as there may be some.
                newest.end(over)
                call.cancel()
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def _stub(self) -> routing_pb2_grpc.RoutingServiceStub:
        return routing_pb2_grpc.RoutingServiceStub(await self._channels.to(SERVICE))


class _Newest:
    """The newest update, for whichever stream is open."""

    def __init__(self) -> None:
        self._update: Update | None = None
        self._number, self._leaving = 0, False
        self._changed = asyncio.Event()

    def leave(self) -> None:
        self._leaving = True
        self._changed.set()

    def end(self, over: asyncio.Event) -> None:
        """One stream's requests, which were given ``over``, end now."""
        over.set()
        self._changed.set()

    async def feed(self, updates: AsyncIterator[Update]) -> None:
        async for update in updates:
            self._update = update
            self._number += 1
            self._changed.set()

    async def requests(self, node: str, site: str, over: asyncio.Event) -> AsyncGenerator[pb.ShareUplinkRequest]:
        """For one stream; the first message says who speaks, also where there is no update yet, the last that it leaves."""
        told = self._number
        yield _request(self._update or Update(()), node=node, site=site)
        while not self._leaving and not over.is_set():
            if told == self._number:
                self._changed.clear()
                await self._changed.wait()
            elif self._update is not None:
                told = self._number
                yield _request(self._update)
        if not over.is_set():
            yield pb.ShareUplinkRequest(leaving=True)


class _Got:
    """The newest grant of one stream."""

    def __init__(self) -> None:
        self._grant: Grant | None = None
        self._woken = asyncio.Event()

    async def read(self, call: AsyncIterator[pb.ShareUplinkResponse]) -> None:
        async for response in call:
            applications = tuple(_application(entry) for entry in response.applications)
            self._grant = Grant(response.bytes_per_s, response.cloud_ms_per_s, applications, response.why)
            self._woken.set()

    async def take(self, reading: asyncio.Task[None], feeding: asyncio.Task[None]) -> Grant | None:
        """The next one; None when the stream has ended and nothing waits, or nobody feeds it any more for an error."""
        for task in (reading, feeding):
            task.add_done_callback(self._wake)
        try:
            while self._grant is None and not reading.done() and not _failed(feeding):
                self._woken.clear()
                await self._woken.wait()
        finally:
            for task in (reading, feeding):
                task.remove_done_callback(self._wake)
        grant, self._grant = self._grant, None
        return grant

    def _wake(self, task: asyncio.Task[None]) -> None:
        self._woken.set()


def _failed(task: asyncio.Task[None]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _request(update: Update, *, node: str = "", site: str = "") -> pb.ShareUplinkRequest:
    load = pb.UplinkLoad(**asdict(update.load)) if update.load is not None else None
    demands = [pb.ApplicationDemand(**asdict(demand)) for demand in update.demands]
    return pb.ShareUplinkRequest(node=node, site=site, demands=demands, load=load)


def _application(message: pb.ApplicationShare) -> ApplicationShare:
    return ApplicationShare(message.application, message.weight, message.min_share)


def _site(message: pb.SiteShares) -> SiteShares:
    return SiteShares(
        site=message.site,
        bytes_per_s=message.bytes_per_s,
        cloud_ms_per_s=message.cloud_ms_per_s,
        usable_bytes_per_s=message.usable_bytes_per_s,
        usable_cloud_ms_per_s=message.usable_cloud_ms_per_s,
        price_per_byte=message.price_per_byte,
        price_per_ms=message.price_per_ms,
        shares=tuple(_share(entry) for entry in message.shares),
        applications=tuple(_application(entry) for entry in message.applications),
        why=message.why,
    )


def _share(message: pb.LiveShare) -> LiveShare:
    return LiveShare(**{field: getattr(message, field) for field in LiveShare.__slots__})
