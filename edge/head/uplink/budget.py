"""Whose hard samples may cross, within what this head may use of the uplink and of the tails' time.

A limit is the least of what the router grants and what is seen here: what the link carries (``link_limit.py``) and what the
tails take (``splitmesh.routing.capacity``). Within it the applications share by worth (``splitmesh.routing.sharing``), a few
times a second; buckets keep to it in between, whatever comes. Where nothing limits, nothing is refused and asking costs
next to nothing. What a sample is worth, and what becomes of one that is refused, is not known here.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable

from edge.head.active import ActiveModel
from edge.head.config import HeadSettings
from edge.head.uplink.asked import Application, told
from edge.head.uplink.crowding import FREE, Sojourn, crowding
from edge.head.uplink.limits import Bounds
from edge.head.uplink.link_limit import LinkLimit
from edge.head.uplink.share_file import GrantKeeper, ShareFile, checked
from edge.head.uplink.stream import UplinkShare, far
from splitmesh.client.shares import ApplicationShare, Grant, ShareClient, Update
from splitmesh.routing.capacity import Capacity
from splitmesh.routing.meter import Meter
from splitmesh.routing.sharing import Limits, allocate

log = logging.getLogger(__name__)

TICK_S = 0.05
"""Between two looks at the link and the tails."""
SHARE_EVERY_S = 0.25
"""Between two sharings, where nothing moved."""
MOVED, NOTHING = 0.2, 1.0
"""Share by which a limit, the goodput or the back-log moves to be shared anew at once; and what is no move at all."""
BOOKED = (0.5, 0.8, 1.1, 1.6)
"""Times the limits, from no room left to all of it: samples do not come evenly, so while much is saved up more of them may cross
than fit in the long run, and while little is only the best. The buckets keep to the limits whatever is booked."""
KEPT = 1.5
"""Samples of an application's minimum for which the others leave room."""
SPARE = 0.5
"""Share of a burst that what nobody waits for leaves."""
AUDIT_DUE = 0.02
"""Audits that may cross for each hard sample that asks, also where there is not room for all of these: without any, a drift would
be seen last where most depends on it."""
LIVELY_S = 2.0
"""An application that asked within this time tells what the link is like; the others' figures are old."""
DELIVERED_S = 1.0
"""Over which what crossed is averaged."""
MAX_TOLD = 64
"""Applications in an update."""
AGAIN_S = 1.0
"""After an unforeseen failure."""


class Budget:
    """Of this head's applications together.

    Args:
        settings: of the head.
        client: reaches the router's sharing.
        loaded: gives the versions in memory, whose links say how crowded the way is.
        clock: monotonic, in seconds.
    """

    def __init__(
        self,
        settings: HeadSettings,
        client: ShareClient,
        loaded: Callable[[], Iterable[ActiveModel]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        now_s = clock()
        self._loaded, self._clock = loaded, clock
        self._in_time_s = max(0.0, settings.default_deadline_ms - settings.answer_margin_ms) / 1e3
        self._uplink = UplinkShare(client, settings.node, settings.site, self.granted)
        self._keeper = GrantKeeper(ShareFile(settings.data_dir / "share.json", settings.site))
        self._grant: Grant | None = None
        self._places: dict[str, ApplicationShare] = {}
        self._applications: dict[str, Application] = {}
        self._bounds = Bounds(now_s)
        self._link, self._capacity = LinkLimit(now_s), Capacity(settings.max_backlog_ms, now_s)
        self._crowding, self._sojourn = FREE, Sojourn(now_s)
        self._scarce, self._audits_due = False, 1.0
        self._asked_bytes = self._taken_ms = self._answered_ms = 0.0  # since the last look, as all three are
        self._delivered_bytes, self._answers = 0.0, 0
        self._asked, self._delivered = Meter(now_s), Meter(now_s, fading_s=DELIVERED_S)
        self._taken, self._answered = Meter(now_s), Meter(now_s)
        self._shared_s, self._shared_for = -math.inf, (0.0, 0.0, 0.0, 0.0)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Keep to what was granted before the last stop, and begin to share with the site's other heads."""
        kept = await self._keeper.start()
        if kept is not None:
            self._put_in_force(kept)
            log.info("until the router tells otherwise: %s", self._bounds.text)
        self._task = asyncio.create_task(self._for_ever())
        await self._uplink.start()

    async def stop(self) -> None:
        """Leave the sharing; what was granted is kept on disk."""
        await self._uplink.stop()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._keeper.stop()

    def refuses(self, model: str, worth: float, size_bytes: int, *, left_s: float | None = None) -> str:
        """Why a hard sample may not cross, in one sentence; empty: it may, and its bytes are taken.

        Args:
            model: the application, by name.
            worth: 0..1, what asking the tail is expected to gain; NaN: nobody knows, and it counts as 1.
            size_bytes: that would cross.
            left_s: for which its answer is of use; None: as the head's default deadline has it.
        """
        now_s = self._clock()
        asking = self._applications.get(model) or self._application(model, now_s)
        asking.asks(worth, size_bytes, now_s, self._in_time_s if left_s is None else left_s)
        self._asked_bytes += size_bytes
        self._audits_due = min(1.0, self._audits_due + AUDIT_DUE)
        if not self._bounds.open:
            if not asking.crosses(worth, self._bounds.room(now_s), now_s):
                return f"{asking.stays(worth)} ({self._bounds.text})"
            leaves = None if asking.only_minimum else 0.0
            if why := self._bounds.take(size_bytes, asking.cloud_ms, now_s, leaves=leaves):
                return f"{model}: {why}"
        self._taken_ms += asking.cloud_ms
        return ""

    def crossed(self, model: str, *, cloud_ms: float) -> None:
        """The answer to one that crossed came; so long did a tail compute for it."""
        asking = self._applications.get(model) or self._application(model, self._clock())
        asking.answered(cloud_ms)
        self._answers += 1
        self._delivered_bytes += asking.mean_bytes
        self._answered_ms += cloud_ms if 0 <= cloud_ms < math.inf else 0.0

    def spare(self, model: str, size_bytes: int) -> bool:
        """Whether a shadow frame may cross: only what nobody else needs; its bytes are taken then."""
        cloud_ms = self._applications[model].cloud_ms if model in self._applications else 0.0
        if not self._bounds.open:
            if self._scarce:
                return False
            if self._bounds.take(size_bytes, cloud_ms, self._clock(), leaves=SPARE):
                return False
        self._asked_bytes += size_bytes
        self._taken_ms += cloud_ms
        return True

    def allows_audit(self, model: str, size_bytes: int) -> bool:
        """Whether an audit may cross: as :meth:`spare`, and one for every 50 hard samples that ask in any case, as far as the
        limit has room; its bytes are taken then."""
        if self.spare(model, size_bytes):
            return True
        cloud_ms = self._applications[model].cloud_ms if model in self._applications else 0.0
        if self._audits_due < 1 or self._bounds.take(size_bytes, cloud_ms, self._clock(), leaves=None):
            return False
        self._audits_due -= 1
        self._asked_bytes += size_bytes
        self._taken_ms += cloud_ms
        return True

    def granted(self, grant: Grant) -> None:
        """The router's word, in force for the next sample; MeshError PROTOCOL_VIOLATION for one that cannot be kept to."""
        grant = checked(grant)
        self._put_in_force(grant)
        self._keeper.keep(grant)

    def look(self) -> None:
        """At the link, the tails and what was asked; changes the limits, and the shares where that is due."""
        now_s = self._clock()
        for asking in self._applications.values():
            asking.look()
        self._asked.add(self._asked_bytes, now_s)
        self._taken.add(self._taken_ms, now_s)
        self._answered.add(self._answered_ms, now_s)
        self._delivered.add(self._delivered_bytes, now_s)
        answers, self._answers = self._answers, 0
        self._asked_bytes = self._taken_ms = self._answered_ms = self._delivered_bytes = 0.0
        lively = {
            name: asking.mean_bytes for name, asking in self._applications.items() if now_s - asking.asked_s <= LIVELY_S
        }
        seen = self._crowding = crowding(self._loaded(), lively)
        cloud_ms = max((self._applications[name].cloud_ms for name in lively), default=0.0)
        beyond_ms = self._sojourn.beyond_ms(seen.in_flight, answers, seen.tail_ms + cloud_ms, now_s)
        used = max(self._taken.per_s(now_s), self._answered.per_s(now_s))
        self._capacity.saw(seen.load.backlog_ms, used, now_s)
        self._link.saw(
            goodput=seen.goodput,
            waits_ms=min(seen.waits_ms, beyond_ms),
            frame_bytes=max(lively.values(), default=0.0),
            asked=self._asked.per_s(now_s),
            delivered=self._delivered.per_s(now_s),
            largest_bytes=self._largest_bytes,
            now_s=now_s,
        )
        self._set_bounds(now_s)
        if now_s - self._shared_s >= SHARE_EVERY_S or any(
            far(before, after, MOVED, NOTHING) for before, after in zip(self._shared_for, self._figures(), strict=True)
        ):
            self._share(now_s)
        if self._uplink.due(now_s):
            self._uplink.offer(self._update(now_s), now_s)

    async def _for_ever(self) -> None:
        while True:
            pause_s = TICK_S
            try:
                self.look()
            except Exception:
                # The limits that are in force hold on; only changes would stop.
                log.exception("looking at the uplink failed unexpectedly; trying again")
                pause_s = AGAIN_S
            await asyncio.sleep(pause_s)

    def _application(self, model: str, now_s: float) -> Application:
        return self._applications.setdefault(model, Application(model, now_s))

    def _put_in_force(self, grant: Grant) -> None:
        now_s = self._clock()
        self._grant, self._places = grant, {one.application: one for one in grant.applications}
        for asking in self._applications.values():
            asking.look()
        self._set_bounds(now_s)
        self._share(now_s)

    def _set_bounds(self, now_s: float) -> None:
        was_open = self._bounds.open
        self._bounds.set(
            grant=self._grant,
            link_bytes_per_s=self._link.bytes_per_s,
            tails_ms_per_s=self._capacity.limit_ms_per_s(now_s),
            largest_bytes=self._largest_bytes,
            largest_ms=max((asking.cloud_ms for asking in self._applications.values()), default=0.0),
            now_s=now_s,
        )
        if was_open is not self._bounds.open:
            log.info("hard samples cross within limits: %s", self._bounds.text or "none any more")

    @property
    def _largest_bytes(self) -> float:
        return max((asking.largest_bytes for asking in self._applications.values()), default=0.0)

    def _figures(self) -> tuple[float, float, float, float]:
        limits = self._bounds.limits
        return limits.bytes_per_s, limits.cloud_ms_per_s, self._crowding.goodput, self._crowding.load.backlog_ms

    def _share(self, now_s: float) -> None:
        self._shared_s, self._shared_for = now_s, self._figures()
        goodput, load = self._crowding.goodput, self._crowding.load
        demands = []
        for name, asking in self._applications.items():
            transfer_ms = asking.mean_bytes / goodput * 1e3 if goodput else 0.0
            expected_ms = load.backlog_ms + load.rtt_ms + transfer_ms + asking.cloud_ms
            asking.deadline_ok = expected_ms <= asking.left_s * 1e3
            place = self._places.get(name)
            weights = {} if place is None else {"weight": place.weight, "min_share": place.min_share}
            demands.append(asking.demand(now_s, **weights))
        limits = self._bounds.limits
        booked = () if self._bounds.open else BOOKED
        found = [allocate(demands, Limits(part * limits.bytes_per_s, part * limits.cloud_ms_per_s)) for part in booked]
        self._scarce = bool(found) and max(found[-1].price_per_byte, found[-1].price_per_ms) > 0
        for asking, demand in zip(self._applications.values(), demands, strict=True):
            asking.got(demand, tuple(one.of(demand.application) for one in found))
        least = [asking for asking in self._applications.values() if asking.only_minimum]
        self._bounds.kept_bytes = KEPT * max((asking.mean_bytes for asking in least), default=0.0)
        self._bounds.kept_ms = KEPT * max((asking.cloud_ms for asking in least), default=0.0)

    def _update(self, now_s: float) -> Update:
        demands = [asking.demand(now_s) for asking in self._applications.values()]
        if len(demands) > MAX_TOLD:
            demands = sorted(demands, key=lambda one: -float(one.rates.sum()))[:MAX_TOLD]
        return Update(tuple(told(one) for one in demands), self._crowding.load)
