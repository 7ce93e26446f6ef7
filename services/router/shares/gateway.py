"""Gateways that decide through the router and have no stream of their own: together they are one more member of their site.

Their hard samples are counted as a head counts its own, and buckets keep them to what they were granted. What a sample takes of
the tails' time only a head of the same application can tell; of one that no head of the site has it is not known, and not
counted. Given the time by the caller; knows neither streams nor other members.
"""

from __future__ import annotations

import math

from services.router.shares.division import Division
from services.router.shares.ledger import Amount, Lease
from services.router.shares.stated import Place
from splitmesh.errors import MeshError, Reason
from splitmesh.routing.bucket import Bucket
from splitmesh.routing.demand import Demand, Histogram

NODE = 0, "decide"
"""Number and name among the members of a site."""
MAX_APPLICATIONS = 64
IDLE_S = 120.0
"""So long after its last question an application is forgotten."""
FADING_S = 10.0
LARGEST_S = 60.0
"""So long the largest sample counts, twice as long at most: a bucket has room for it."""
BINS = 32

_GOLDEN = (math.sqrt(5) - 1) / 2


class _Application:
    def __init__(self, now_s: float) -> None:
        self.histogram = Histogram(now_s, fading_s=FADING_S, bins=BINS)
        self.asked_s = now_s


class Gateway:
    """For one thread at a time."""

    def __init__(self, interval_s: float, now_s: float) -> None:
        self.lease = Lease(0.0)
        """A grant is in force at once: it is kept to here."""
        self.applications: dict[str, _Application] = {}
        self._interval_s = interval_s
        self._largest, self._largest_before = (0.0, 0.0), (0.0, 0.0)
        """Bytes and milliseconds of one sample, since ``_largest_s`` and in the time before that."""
        self._largest_s = now_s
        self._granted = Amount()
        # empty: a bucket that begins full lets pass what nobody granted
        self._bytes, self._ms = Bucket(0.0, 0.0, now_s), Bucket(0.0, 0.0, now_s)
        self._draw = 0.0

    def saw(self, application: str, worth: float, size_bytes: int, cloud_ms: float, now_s: float) -> None:
        """A hard sample. MeshError QUEUE_FULL for too many applications, FIELD_INVALID for numbers out of range."""
        known = self.applications.get(application)
        if known is None:
            self.applications = {name: one for name, one in self.applications.items() if now_s < one.asked_s + IDLE_S}
            if len(self.applications) >= MAX_APPLICATIONS:
                detail = f"{MAX_APPLICATIONS} applications ask through the router already; no more are taken"
                raise MeshError(Reason.QUEUE_FULL, detail, retry_after_s=5.0)
            known = self.applications[application] = _Application(now_s)
        known.histogram.saw(worth, size_bytes, cloud_ms, now_s)
        known.asked_s = now_s
        self._fade(now_s)
        self._largest = max(self._largest[0], size_bytes), max(self._largest[1], cloud_ms)
        self._set_rates(now_s)

    def demands(self, now_s: float) -> tuple[Demand, ...]:
        """What is asked for now; weights and minima are the site's business."""
        return tuple(one.histogram.demand(name, now_s) for name, one in self.applications.items())

    def grant(self, amount: Amount, now_s: float) -> None:
        """In force from now on."""
        self.lease.tell(amount)
        self.lease.send()
        self.lease.taken(now_s)
        self._granted = amount
        self._set_rates(now_s)

    def refuses(
        self, place: Place, worth: float, size_bytes: int, cloud_ms: float, division: Division, now_s: float
    ) -> str:
        """Empty, or why a hard sample that was seen may not cross; where it may, its bytes and milliseconds are taken."""
        share = division.shares.get(NODE[0], {}).get(place.application)
        self._draw = (self._draw + _GOLDEN) % 1.0
        if share is not None:
            crosses, why = share.crosses(worth, self._draw), share.why
        else:
            known = worth if math.isfinite(worth) else 1.0
            crosses = place.weight * known >= division.prices[0] * size_bytes + division.prices[1] * cloud_ms
            why = (
                f"a byte costs {division.prices[0]:.3g} now and a millisecond {division.prices[1]:.3g}, "
                f"and it is worth {place.weight * known:.3g} with {size_bytes} bytes and {cloud_ms:.3g} ms"
            )
        if not crosses:
            return f"{place.application}: {why}"
        if self._ms.wait_s(cloud_ms, now_s) > 0:
            what, of = f"{cloud_ms:.3g} ms", f"{self._granted.cloud_ms_per_s:.6g} ms/s of the tails' time"
        elif not self._bytes.take(size_bytes, now_s):
            what, of = f"{size_bytes} bytes", f"{self._granted.bytes_per_s:.6g} bytes/s"
        else:
            self._ms.take(cloud_ms, now_s)
            return ""
        return f"{place.application}: {what} do not fit now into the {of} that gateways are granted of this site"

    def idle_s(self) -> float:
        """When everybody will have been silent for long."""
        return max((one.asked_s for one in self.applications.values()), default=-math.inf) + IDLE_S

    def _fade(self, now_s: float) -> None:
        """One large sample opens a bucket for a while, not for good."""
        if now_s >= self._largest_s + LARGEST_S:
            old = now_s >= self._largest_s + 2 * LARGEST_S
            self._largest_before = (0.0, 0.0) if old else self._largest
            self._largest, self._largest_s = (0.0, 0.0), now_s

    def _set_rates(self, now_s: float) -> None:
        self._fade(now_s)
        rates = self._granted.bytes_per_s, self._granted.cloud_ms_per_s
        largest = map(max, self._largest, self._largest_before)
        for bucket, rate, most in zip((self._bytes, self._ms), rates, largest, strict=True):
            saved = rate * self._interval_s if math.isfinite(rate) else 0.0
            bucket.set_rate(rate, now_s, burst_bytes=max(saved, most))
