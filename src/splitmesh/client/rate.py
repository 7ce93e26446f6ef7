"""How fast this process may move contents, up and down together: a factory's uplink is shared with its frames.

One token bucket (``splitmesh.routing.bucket``) for all transfers that are given it; who asks first goes first. Knows bytes and
time, not what is moved.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from splitmesh.errors import field_error
from splitmesh.routing.bucket import Bucket

BURST_S = 0.25
"""So much of the rate may be saved up: a link that was idle is full for no longer than this."""
SHORTEST_WAIT_S = 0.001
"""What is left to wait for after rounding is less than a clock can show."""


class Rate:
    """Bytes per second for everyone who awaits :meth:`take`.

    Contents come from a registry in pieces of 1 MiB: below some 35 kB/s it takes its reader for dead now and then (its setting
    ``send_idle_s``), and the download is resumed, at the price of what was on its way.

    Args:
        bytes_per_s: above 0, finite.
        clock: seconds, monotonic.
        sleep: waits so many seconds.

    Raises:
        MeshError: FIELD_INVALID, a rate out of range.
    """

    def __init__(
        self,
        bytes_per_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if not 0 < bytes_per_s < float("inf"):
            raise field_error("bytes_per_s", f"is {bytes_per_s}, expected a finite number above 0")
        self.bytes_per_s = float(bytes_per_s)
        self._clock = clock
        self._sleep = sleep
        self._burst_bytes = max(1, int(self.bytes_per_s * BURST_S))
        # Half of it: what is saved up by waking late is not lost.
        self._part_bytes = max(1, self._burst_bytes // 2)
        self._bucket = Bucket(self.bytes_per_s, self._burst_bytes, clock())
        self._turn = asyncio.Lock()

    async def take(self, size_bytes: int) -> None:
        """Returns when so many bytes may pass; more than what is saved up at most is taken in parts, one after the other.

        Over any span, no more than rate x time + burst are taken.
        """
        while size_bytes > 0:
            # One waits for the bucket, the others for the lock, which is fair: first come, first served. Between parts
            # the lock is let go, so that a large piece holds nobody up for longer than a burst lasts.
            part = min(size_bytes, self._part_bytes)
            async with self._turn:
                while not self._bucket.take(part, self._clock()):
                    await self._sleep(max(SHORTEST_WAIT_S, self._bucket.wait_s(part, self._clock())))
            size_bytes -= part
