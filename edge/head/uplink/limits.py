"""The limits in force on what a head's hard samples use, whose they are, and the buckets that keep to them."""

from __future__ import annotations

import math

from splitmesh.client.shares import Grant
from splitmesh.routing.bucket import Bucket
from splitmesh.routing.sharing import Limits
from splitmesh.routing.window import LENGTH_S, Window

BURST_S = 0.25
"""What is not used may be saved up for so long."""
UNHEARD = Grant(math.inf, math.inf, (), "")


class Bounds:
    """Bytes and milliseconds of tail time per second. No more than the limit times the time, and one burst, passes in any
    stretch of time; a burst is ``BURST_S`` of the limit, or the largest sample. Of bytes no second holds more than the router
    granted, or one sample where that alone is more. For one thread at a time."""

    def __init__(self, now_s: float) -> None:
        self.limits = Limits()
        self.open = True
        """Nothing limits."""
        self._bytes, self._ms = Bucket(math.inf, 0.0, now_s), Bucket(math.inf, 0.0, now_s)
        self._second, self._granted_bytes = Window(now_s), math.inf
        self._bytes_burst = self._ms_burst = 0.0
        self.kept_bytes = self.kept_ms = 0.0
        """Of each bucket, that is kept for those who have to cross."""
        self._bytes_whose = self._ms_whose = ""

    @property
    def text(self) -> str:
        """The limits and whose they are, for a person; empty where there is none."""
        parts = []
        if math.isfinite(self.limits.bytes_per_s):
            parts.append(f"{self.limits.bytes_per_s:.6g} bytes/s {self._bytes_whose}")
        if math.isfinite(self.limits.cloud_ms_per_s):
            parts.append(f"{self.limits.cloud_ms_per_s:.6g} ms/s of the tails' time {self._ms_whose}")
        return ", ".join(parts)

    def set(
        self,
        *,
        grant: Grant | None,
        link_bytes_per_s: float,
        tails_ms_per_s: float,
        largest_bytes: float,
        largest_ms: float,
        now_s: float,
    ) -> None:
        """The least of what is granted and what is seen, from now on."""
        grant = grant or UNHEARD
        by_router = f"granted by the router: {grant.why}" if grant.why else "granted by the router"
        self._bytes_whose = by_router if grant.bytes_per_s <= link_bytes_per_s else "carried by the link"
        self._ms_whose = by_router if grant.cloud_ms_per_s <= tails_ms_per_s else "before frames wait too long there"
        self._granted_bytes = grant.bytes_per_s * LENGTH_S
        limits = Limits(min(grant.bytes_per_s, link_bytes_per_s), min(grant.cloud_ms_per_s, tails_ms_per_s))
        self.limits = limits
        self.open = math.isinf(limits.bytes_per_s) and math.isinf(limits.cloud_ms_per_s)
        self._bytes_burst, self._ms_burst = (
            burst(limits.bytes_per_s, largest_bytes),
            burst(limits.cloud_ms_per_s, largest_ms),
        )
        self._bytes.set_rate(limits.bytes_per_s, now_s, burst_bytes=self._bytes_burst)
        self._ms.set_rate(limits.cloud_ms_per_s, now_s, burst_bytes=self._ms_burst)

    def room(self, now_s: float) -> float:
        """How much of a burst may cross now, of what is scarcer, 0..1."""
        rooms = [1.0]
        if math.isfinite(self.limits.bytes_per_s) and self._bytes_burst:
            rooms.append(self._bytes.left(now_s) / self._bytes_burst)
            if 0 < self._granted_bytes < math.inf:
                left_bytes = self._granted_bytes - self._second.passed(now_s)
                rooms.append(left_bytes / min(self._bytes_burst, self._granted_bytes))
        if math.isfinite(self.limits.cloud_ms_per_s) and self._ms_burst:
            rooms.append(self._ms.left(now_s) / self._ms_burst)
        return max(0.0, min(rooms))

    def take(self, size_bytes: int, cloud_ms: float, now_s: float, *, leaves: float | None) -> str:
        """Take a sample out of both buckets; why that is not possible now, where it is not.

        ``leaves``: share of a burst that has to be left then, beside what is kept, as far as a burst holds more than the sample;
        None: it is what that is kept for.
        """
        if size_bytes > self._bytes_burst:
            self._bytes_burst = float(size_bytes)
            self._bytes.set_rate(self.limits.bytes_per_s, now_s, burst_bytes=self._bytes_burst)
        if cloud_ms > self._ms_burst:
            self._ms_burst = cloud_ms
            self._ms.set_rate(self.limits.cloud_ms_per_s, now_s, burst_bytes=self._ms_burst)
        left_bytes = left_ms = 0.0
        if leaves is not None:
            left_bytes, left_ms = leaves * self._bytes_burst + self.kept_bytes, leaves * self._ms_burst + self.kept_ms
        bytes_s = max(
            self._bytes.wait_s(min(self._bytes_burst, size_bytes + left_bytes), now_s),
            self._second.wait_s(size_bytes + left_bytes, self._granted_bytes, now_s),
        )
        ms_s = self._ms.wait_s(min(self._ms_burst, cloud_ms + left_ms), now_s)
        if bytes_s <= 0 and ms_s <= 0:
            self._bytes.take(size_bytes, now_s)
            self._second.add(size_bytes, now_s)
            self._ms.take(cloud_ms, now_s)
            return ""
        if bytes_s >= ms_s:
            asked, limit, whose = f"{size_bytes} bytes", f"{self.limits.bytes_per_s:.6g} bytes/s", self._bytes_whose
        else:
            asked, limit = f"{cloud_ms:.4g} ms of the tails' time", f"{self.limits.cloud_ms_per_s:.6g} ms/s"
            whose = self._ms_whose
        wait_s = max(bytes_s, ms_s)
        room = f"has room for them in {wait_s:.2f} s" if math.isfinite(wait_s) else "has no room for them"
        return f"{asked} are asked for, and the limit of {limit} ({whose}) {room}"


def burst(limit: float, largest: float) -> float:
    """What may be saved up."""
    return max(largest, BURST_S * limit) if math.isfinite(limit) else largest
