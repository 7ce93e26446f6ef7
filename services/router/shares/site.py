"""One site as it is now: its heads, what each asked for last and was told last, and how much its tails can take.

Given the time by its caller, who also says when it is its turn (``shares.py``); knows no streams and no store. A head that is
silent counts with its last word for a while, then not at all.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, replace
from itertools import count

from services.router.shares.division import Asking, Division, LiveShare, divide
from services.router.shares.gateway import NODE, Gateway
from services.router.shares.ledger import Amount, Lease, next_amounts
from services.router.shares.stated import Place, Site
from services.router.store import Load
from splitmesh.errors import MeshError, Reason
from splitmesh.routing.capacity import Capacity
from splitmesh.routing.demand import Demand
from splitmesh.routing.sharing import MAX_APPLICATIONS, Limits

FRESH_S = 3.0
"""So long after a head's word its load counts."""
COUNTED_S = 10.0
"""So long after it its demand does."""
SETTLE_S = 1.0
"""After a head took a lower grant, until others get what it gave back: no second shall hold both."""
LEFT_S = 1.0
"""So long a head that took its leave may still use what it was granted."""
LOST_S = 8.0
"""So long a head does whose stream broke: it keeps to its last grant, and may be back with it. Longer than the slowest way back:
a second until its channel connects, one until its stream is tried again, five after an error that its client gives up at."""
SAME = 0.01
"""A grant that differs by less, as a share, is not told."""

_MBPS = 1e6 / 8


@dataclass(frozen=True, slots=True)
class Grant:
    """What a head is told."""

    amount: Amount
    applications: tuple[Place, ...]
    why: str


@dataclass(frozen=True, slots=True)
class SiteNow:
    """A site for a person; see ``splitmesh.api.routing.v1.SiteShares``."""

    stated: Site
    usable: Limits
    price_per_byte: float
    price_per_ms: float
    shares: tuple[LiveShare, ...]
    why: str


class Member:
    """One head process with an open stream."""

    def __init__(self, number: int, node: str, site: str, settle_s: float, now_s: float) -> None:
        self.number, self.node, self.site = number, node, site
        self.demands: tuple[Demand, ...] = ()
        self.load: Load | None = None
        self.heard_s = now_s
        self.lease = Lease(settle_s)
        self.woken = asyncio.Event()
        """Set when there is something to send."""
        self.leaving = False
        """Its head said that it goes; a stream that ends otherwise is lost."""
        self.last: Grant | None = None
        self._waiting: Grant | None = None

    def tell(self, grant: Grant) -> None:
        """The newest grant; one that waits is replaced."""
        self.lease.tell(grant.amount)
        self.last = self._waiting = grant
        self.woken.set()

    def send(self) -> Grant | None:
        """Picks up what waits to be sent."""
        grant, self._waiting = self._waiting, None
        if grant is not None:
            self.lease.send()
        return grant


class LiveSite:
    """For one thread at a time; times are seconds on the caller's clock.

    Args:
        stated: the site's budget.
        interval_s: least time between two turns.
        max_backlog_ms: at the least crowded tail.
        opens_s: no grants before: heads may hold some of which is not known.
    """

    def __init__(
        self, stated: Site, *, interval_s: float, max_backlog_ms: float, now_s: float, opens_s: float = -math.inf
    ) -> None:
        self.members: dict[int, Member] = {}
        self.gateway: Gateway | None = None
        self.stated_by_someone = False
        self._stated = stated
        self._interval_s, self._max_backlog_ms, self._opens_s = interval_s, max_backlog_ms, opens_s
        self._capacity = Capacity(max_backlog_ms, now_s)
        self._backlog_ms, self._load_heard = 0.0, False
        self._gone: list[Member] = []
        self._division: Division | None = None
        self._cloud_ms: dict[str, float] = {}
        """Of a sample, by application, as some head sees it; gateways do not know theirs."""
        self._dirty = True
        self._last_s = -math.inf
        self._numbers = count(1)

    def state(self, stated: Site) -> None:
        """Another budget, in force with the next turn."""
        self._stated, self.stated_by_someone, self._dirty = stated, True, True

    def join(self, node: str, now_s: float) -> Member:
        """A stream opened. A head that is back goes on with what it holds: it counts once."""
        member = Member(next(self._numbers), node, self._stated.name, SETTLE_S, now_s)
        back = next((one for one in self._gone if one.node == node and now_s < one.lease.ended_s), None)
        if back is not None:
            self._gone.remove(back)
            member.lease = back.lease
            member.lease.go_on()
        self.members[member.number] = member
        self._dirty = True
        return member

    def hear(self, member: Member, demands: tuple[Demand, ...], load: Load | None, now_s: float) -> None:
        """A head's word. MeshError QUEUE_FULL when the site's demands are too many to be shared out."""
        self._require_places(len(demands), self._places() + len(member.demands))
        member.demands, member.load, member.heard_s = demands, load, now_s
        self._dirty = self._load_heard = True

    def leave(self, member: Member, now_s: float) -> None:
        """Its stream ended."""
        if self.members.pop(member.number, None) is not None:
            member.lease.end(now_s + (LEFT_S if member.leaving else LOST_S))
            self._gone.append(member)
            self._dirty = True

    def refuses(self, application: str, worth: float, size_bytes: int, now_s: float) -> str:
        """Whether a gateway's hard sample may cross: empty, or why not. MeshError QUEUE_FULL for too many applications."""
        new = self.gateway is None
        if self.gateway is None or application not in self.gateway.applications:
            self._require_places(1, self._places())
        if self.gateway is None:
            self.gateway = Gateway(SETTLE_S, now_s)
        cloud_ms = self._cloud_ms.get(application, 0.0)
        self.gateway.saw(application, worth, size_bytes, cloud_ms, now_s)
        self._dirty = True
        if new and now_s >= self._opens_s:
            self.turn(now_s)
        if self._division is None:
            return f"the router has just started, and site {self._stated.name} has not been shared out yet"
        return self.gateway.refuses(self._stated.place(application), worth, size_bytes, cloud_ms, self._division, now_s)

    def idle(self) -> bool:
        """Nothing would be lost with it."""
        return not (self.stated_by_someone or self.members or self._gone or self.gateway)

    def due_s(self) -> float:
        """When its next turn is; infinite: not before there is news."""
        regular = self._last_s + self._interval_s if self._dirty or self._capped() else math.inf
        changes = [member.lease.settles_s() for member in (*self.members.values(), *self._gone)]
        silent = [
            member.heard_s + COUNTED_S for member in self.members.values() if member.heard_s + COUNTED_S > self._last_s
        ]
        idle = [self.gateway.idle_s()] if self.gateway else []
        return max(self._opens_s, min([regular, *changes, *silent, *idle]))

    def turn(self, now_s: float) -> None:
        """Share out anew, and tell what changed."""
        self._gone = [member for member in self._gone if member.lease.ended_s > now_s]
        if self.gateway and self.gateway.idle_s() <= now_s:
            self.gateway = None
        self._watch_tails(now_s)
        self._dirty, self._last_s = False, now_s
        asking = self._asking(now_s)
        heads = (one for number, head in asking.items() if number != NODE[0] for one in head.demands)
        self._cloud_ms = {one.application: one.cloud_ms for one in heads}
        self._division = divide(asking, self._limits(now_s))
        leases = {number: member.lease for number, member in self.members.items()}
        if self.gateway:
            leases[NODE[0]] = self.gateway.lease
        wanted = {number: self._division.wanted.get(number, Amount()) for number in leases}
        gone = [member.lease for member in self._gone]
        told = next_amounts(wanted, leases, gone, self._division.limits, now_s)
        for number, amount in told.items():
            self._tell(number, amount, len(told), now_s)

    def now(self, now_s: float) -> SiteNow:
        """For a person."""
        division = self._division
        usable, why = self._usable(now_s)
        prices = division.prices if division else (0.0, 0.0)
        return SiteNow(self._stated, usable, *prices, shares=division.live if division else (), why=why)

    def _places(self) -> int:
        """For more demands, of heads and gateways alike."""
        taken = sum(len(one.demands) for one in self.members.values())
        return MAX_APPLICATIONS - taken - (len(self.gateway.applications) if self.gateway else 0)

    def _require_places(self, wanted: int, places: int) -> None:
        if wanted > places:
            detail = f"site {self._stated.name} shares {MAX_APPLICATIONS} demands at most, and has room for {places}"
            raise MeshError(Reason.QUEUE_FULL, detail, retry_after_s=5.0)

    def _tell(self, number: int, amount: Amount, sharing: int, now_s: float) -> None:
        if self.gateway and number == NODE[0]:
            self.gateway.grant(amount, now_s)
            return
        member = self.members[number]
        grant = Grant(amount, self._stated.applications, self._why(amount, sharing))
        last = member.last
        if last is None or last.applications != grant.applications or not last.amount.near(amount, SAME):
            member.tell(grant)

    def _asking(self, now_s: float) -> dict[int, Asking]:
        place = self._stated.place
        found = {
            number: Asking(member.node, tuple(_placed(one, place(one.application)) for one in member.demands))
            for number, member in self.members.items()
            if now_s < member.heard_s + COUNTED_S
        }
        if self.gateway:
            demands = self.gateway.demands(now_s)
            found[NODE[0]] = Asking(NODE[1], tuple(_placed(one, place(one.application)) for one in demands))
        return found

    def _watch_tails(self, now_s: float) -> None:
        """The least back-log that a head sees, once for each time it was told, and what the heads may use of the tails' time."""
        if not self._load_heard:
            return
        self._load_heard = False
        loads = [member.load for member in self.members.values() if now_s < member.heard_s + FRESH_S and member.load]
        seen = [load.backlog_ms for load in loads if load.tails]
        if seen:
            shares = self._division.shares.values() if self._division else ()
            used = sum(one.cloud_ms_per_s for mine in shares for one in mine.values())
            self._backlog_ms = min(seen)
            self._capacity.saw(self._backlog_ms, used, now_s)

    def _limits(self, now_s: float) -> Limits:
        stated = self._stated.limits
        return Limits(stated.bytes_per_s, min(stated.cloud_ms_per_s, self._capacity.limit_ms_per_s(now_s)))

    def _capped(self) -> bool:
        """The tails' time is limited by what they take now, which changes by itself."""
        return self._division is not None and self._division.limits.cloud_ms_per_s < self._stated.limits.cloud_ms_per_s

    def _usable(self, now_s: float) -> tuple[Limits, str]:
        limits, reasons = self._limits(now_s), []
        if limits.cloud_ms_per_s < self._stated.limits.cloud_ms_per_s:
            reasons.append(
                f"the tails take {limits.cloud_ms_per_s:.4g} ms/s of this site now (their back-log is {self._backlog_ms:.0f} ms, "
                f"and {self._max_backlog_ms:.0f} ms are allowed)"
            )
        rates = [member.load.goodput_mbps if member.load else 0.0 for member in self.members.values()]
        carried = sum(rates) * _MBPS if rates and all(rates) else math.inf
        if carried < limits.bytes_per_s:
            reasons.append(f"the heads' links together carry {carried:.4g} bytes/s")
            limits = replace(limits, bytes_per_s=carried)
        return limits, "; ".join(reasons)

    def _why(self, amount: Amount, sharing: int) -> str:
        limits = self._division.limits if self._division else Limits()
        parts = [
            f"{mine:.6g} of {limit:.6g} {unit}"
            for mine, limit, unit in (
                (amount.bytes_per_s, limits.bytes_per_s, "bytes/s"),
                (amount.cloud_ms_per_s, limits.cloud_ms_per_s, "ms/s of the tails' time"),
            )
            if math.isfinite(limit)
        ]
        if not parts:
            return f"site {self._stated.name} has no limit now"
        return f"{' and '.join(parts)} of site {self._stated.name}, which {sharing} of its processes share"


def _placed(demand: Demand, place: Place) -> Demand:
    return replace(demand, weight=place.weight, min_share=place.min_share)
