"""Shares the uplink and the tails' time of each site among its heads: who is there, when a site is shared out, what is stated.

A site is shared out anew when something changed, at once after a quiet time and then at most every interval; a head that is slow
hears of the newest grant only. The sum of what may be in force never exceeds what was stated (``ledger.py``), as long as a head
that lost its stream is back within ``LOST_S``, or has stopped: one that is cut off from the router alone for longer keeps to its
last grant, which others have got by then, and the site may be above its budget by that. After a start, the heads that the router
before knew come back before anybody is told anything. Knows no gRPC; what a site does in its turn is in ``site.py``.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from contextlib import suppress

from services.router.shares.site import LOST_S, LiveSite, Member, SiteNow
from services.router.shares.stated import Site, application_from, site_from
from services.router.store import Load, RouterStore
from splitmesh.errors import MeshError, Reason
from splitmesh.routing.demand import Demand

log = logging.getLogger(__name__)

MAX_SITES = 1000
"""Budgets kept."""
RETURN_S = LOST_S
"""After a start, so long the heads of stated sites have to come back: they hold grants that this router does not know, and are no
quicker than after a broken stream."""
REST = 4.0
"""Times what one round over the sites took: pause before the next one."""


class ShareBoard:
    """Sites that have a budget or heads now.

    Args:
        store: keeps the budgets.
        interval_s: least time between two changes of what a head may send.
        max_backlog_ms: how long a frame may have to wait at a site's least crowded tail.
        max_sharers: streams at once, over all sites.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        store: RouterStore,
        *,
        interval_s: float,
        max_backlog_ms: float,
        max_sharers: int,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._interval_s, self._max_backlog_ms, self._max_sharers = interval_s, max_backlog_ms, max_sharers
        self._clock = clock
        self._sites: dict[str, LiveSite] = {}
        self._stating = asyncio.Lock()
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Reads the budgets and begins to share. MeshError SERVICE_UNAVAILABLE when the store holds something else."""
        for text in (await self._store.sites()).values():
            stated = Site.from_json(text)
            self._sites[stated.name] = self._site(stated, opens_s=self._clock() + RETURN_S)
            self._sites[stated.name].state(stated)
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Safe after a failed start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def set_site(self, site: Site) -> None:
        """State a budget; on disk when this returns, and on its way to the heads. MeshError QUEUE_FULL for too many sites."""
        async with self._stating:
            live = self._sites.get(site.name)
            stated = sum(one.stated_by_someone for one in self._sites.values())
            if not (live and live.stated_by_someone) and stated >= MAX_SITES:
                raise MeshError(Reason.QUEUE_FULL, f"{MAX_SITES} sites have a budget already; no more are kept")
            await self._store.set_site(site.name, site.to_json())
            self._live(site.name).state(site)
            self._news.set()

    def shares(self, site: str = "") -> list[SiteNow]:
        """Sites by name; one, or none where it is not known, when it is named. MeshError FIELD_INVALID for no site's name."""
        names = sorted(self._sites) if not site else [site_from("site", site)]
        return [self._sites[name].now(self._clock()) for name in names if name in self._sites]

    def refuses(self, site: str, application: str, worth: float, size_bytes: int) -> str:
        """Whether a hard sample of a gateway without a stream may cross: empty, or one sentence why not.

        Its bytes are counted against the site's budget, and its time at the tails where a head of the site has the same
        application and so tells how long it takes; of others it is not known. A site without budget and heads refuses
        nothing. MeshError
        FIELD_INVALID for impossible names and sizes, QUEUE_FULL for too many applications of gateways or demands of the site.
        """
        site_from("site", site), application_from("application", application)
        live = self._sites.get(site)
        if live is None:
            return ""
        why = live.refuses(application, worth, size_bytes, self._clock())
        self._news.set()
        return why

    def join(self, node: str, site: str) -> Member:
        """A head's stream opened. MeshError QUEUE_FULL for too many, FIELD_INVALID for no site's name."""
        site_from("site", site)
        if sum(len(one.members) for one in self._sites.values()) >= self._max_sharers:
            detail = f"{self._max_sharers} heads share uplinks already; no more are taken"
            raise MeshError(Reason.QUEUE_FULL, detail, retry_after_s=5.0)
        self._news.set()
        return self._live(site).join(node, self._clock())

    def hear(self, member: Member, demands: tuple[Demand, ...], load: Load | None) -> None:
        """A head's word. MeshError QUEUE_FULL when its site has more demands than can be shared out."""
        self._sites[member.site].hear(member, demands, load, self._clock())
        self._news.set()

    def taken(self, member: Member) -> None:
        """The stream took the grant that was picked up."""
        member.lease.taken(self._clock())
        self._news.set()

    def leave(self, member: Member) -> None:
        """Its stream ended; unless its head took its leave, it may be back soon."""
        if (live := self._sites.get(member.site)) is not None:
            live.leave(member, self._clock())
            self._news.set()

    def turn(self) -> float:
        """Share out the sites whose turn it is; seconds until the next one is due, infinite: not before there is news."""
        for name in list(self._sites):
            self._turn(name)
        return self._due_in_s()

    def _turn(self, name: str) -> None:
        live = self._sites.get(name)
        if live is not None and self._clock() >= live.due_s():
            live.turn(self._clock())
        if live is not None and live.idle():
            del self._sites[name]

    def _due_in_s(self) -> float:
        return min((live.due_s() for live in self._sites.values()), default=math.inf) - self._clock()

    async def _run(self) -> None:
        while True:
            self._news.clear()
            begun_s = self._clock()
            for name in list(self._sites):
                try:
                    self._turn(name)
                except Exception:
                    log.exception("site %s could not be shared out; trying again", name)
                    await asyncio.sleep(self._interval_s)
                await asyncio.sleep(0)  # the loop has more to do than this
            # Nor does a crowd of heads, each with news of its own, keep it busy all the time.
            await asyncio.sleep(REST * (self._clock() - begun_s))
            due_s = self._due_in_s()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if math.isinf(due_s) else due_s):
                    await self._news.wait()

    def _live(self, name: str) -> LiveSite:
        if name not in self._sites:
            self._sites[name] = self._site(Site(name))
        return self._sites[name]

    def _site(self, stated: Site, *, opens_s: float = -math.inf) -> LiveSite:
        return LiveSite(
            stated,
            interval_s=self._interval_s,
            max_backlog_ms=self._max_backlog_ms,
            now_s=self._clock(),
            opens_s=opens_s,
        )
