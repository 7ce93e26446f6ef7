"""Keeps a head's stream to the router's sharing open: tells what its hard samples ask for, hears what it may use.

The newest counts in both directions, so nothing gathers while the router is away; what was heard last holds until then. Knows
nothing of what is made of a grant.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from splitmesh.client.routing import UplinkLoad
from splitmesh.client.shares import Demand, Grant, ShareClient, Update
from splitmesh.errors import MeshError

log = logging.getLogger(__name__)

LEAST_S, MOST_S = 0.1, 1.0
"""Between two updates."""
ROUNDING_S = 1e-6
MOVED = 0.1
"""A figure that moved by such a share is told at once."""
NOTHING_MS, NOTHING_MBPS, NOTHING_PER_S = 5.0, 0.01, 0.1
"""Smaller differences are none."""
AGAIN_S = 5.0
"""After an error that the client does not wait out by itself."""


class UplinkShare:
    """Of one head process.

    Args:
        client: keeps a stream open.
        node: this head's name.
        site: where it stands.
        granted: gets every grant; raises MeshError for one that cannot be kept to, and the one before holds.
        again_s: after an error that the client gives up at.
    """

    def __init__(
        self, client: ShareClient, node: str, site: str, granted: Callable[[Grant], None], *, again_s: float = AGAIN_S
    ) -> None:
        self._client, self._node, self._site, self._granted = client, node, site, granted
        self._again_s = again_s
        self._newest: Update | None = None
        self._told: Update | None = None
        self._offered_s = self._told_s = float("-inf")
        self._changed = asyncio.Event()
        self._refused = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to share; returns at once."""
        self._task = asyncio.create_task(self._for_ever())

    async def stop(self) -> None:
        """Leave the site's sharing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def due(self, now_s: float) -> bool:
        """Whether an update may be told now, if it says anything new."""
        return not 0 <= now_s - self._offered_s < LEAST_S - ROUNDING_S

    def offer(self, update: Update, now_s: float) -> None:
        """How things are now; told if it is new or the last word is old."""
        self._offered_s = now_s
        if self._told is not None and 0 <= now_s - self._told_s < MOST_S - ROUNDING_S and not moved(self._told, update):
            return
        self._newest = self._told = update
        self._told_s = now_s
        self._changed.set()

    async def _for_ever(self) -> None:
        while True:
            try:
                async with aclosing(self._client.share_uplink(self._node, self._site, self._updates())) as grants:
                    async for grant in grants:
                        self._take(grant)
            except Exception as error:
                unforeseen = not isinstance(error, MeshError)
                log.error(
                    "the uplink of site %s is not shared, what was granted last holds; again in %.0f s: %s",
                    self._site, self._again_s, error, exc_info=unforeseen,
                )  # fmt: skip
            await asyncio.sleep(self._again_s)

    def _take(self, grant: Grant) -> None:
        try:
            self._granted(grant)
        except MeshError as error:
            if not self._refused:
                log.error("a grant for site %s is not kept to, the one before holds: %s", self._site, error)
            self._refused = True
        else:
            self._refused = False

    async def _updates(self) -> AsyncGenerator[Update]:
        """The newest one now, if there is any, then each that is told; those in between are nobody's."""
        if self._newest is not None:
            self._changed.set()
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._newest is not None:
                yield self._newest


def moved(before: Update, after: Update) -> bool:
    """Whether anything differs by so much that the router should hear of it at once."""
    if _load_moved(before.load, after.load) or len(before.demands) != len(after.demands):
        return True
    return any(_demand_moved(*pair) for pair in zip(before.demands, after.demands, strict=True))


def _load_moved(before: UplinkLoad | None, after: UplinkLoad | None) -> bool:
    if before is None or after is None:
        return before is not after
    return (
        before.tails != after.tails
        or far(before.backlog_ms, after.backlog_ms, MOVED, NOTHING_MS)
        or far(before.goodput_mbps, after.goodput_mbps, MOVED, NOTHING_MBPS)
    )


def _demand_moved(before: Demand, after: Demand) -> bool:
    if (before.application, before.deadline_ok) != (after.application, after.deadline_ok):
        return True
    asked, asks = sum(before.rates), sum(after.rates)
    return (
        far(asked, asks, MOVED, NOTHING_PER_S)
        or far(asked * before.bytes, asks * after.bytes, MOVED, NOTHING_PER_S)
        or far(asked * before.cloud_ms, asks * after.cloud_ms, MOVED, NOTHING_PER_S)
        or far(_value(before), _value(after), MOVED, NOTHING_PER_S)
    )


def _value(demand: Demand) -> float:
    """What all of it is worth a second."""
    bins = len(demand.rates)
    return sum(rate * (place + 0.5) / bins for place, rate in enumerate(demand.rates))


def far(before: float, after: float, share: float, least: float) -> bool:
    """Whether two figures differ by more than a share of the larger one, and by more than next to nothing."""
    if math.isinf(before) or math.isinf(after):
        return before != after
    difference = abs(after - before)
    return difference > least and difference > share * max(abs(before), abs(after))
