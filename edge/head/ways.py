"""The ways a head can run one model now, which of them it goes, and at which rate a cut crosses.

Usually one way. A version with a list of alternatives has several, all loaded; the cheapest by what is measured (link, tail,
own times, frames per second, what the host's other models leave) is chosen anew ten times a second, with hysteresis. A
change is one assignment between two frames: frames that began one way end that way.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from edge.head.active import ActiveModel
from splitmesh.client.link_estimate import LinkEstimator
from splitmesh.errors import MeshError
from splitmesh.kernel.tcp_info import tcp_facts
from splitmesh.model.alternatives import Alternative, AlternativeSet, LinkState, expected_ms

log = logging.getLogger(__name__)

TICK_S = 0.1
GAIN = 0.15
"""Share of the present cost that another way must save; what a change and a wrong estimate may cost."""
LEAST_GAIN_MS = 1.0
HOLD_TICKS = 2
"""Another way must be better for so long, so that one late frame changes nothing."""
DWELL_S = 3.0
"""After a change a way is kept for so long, unless another one saves half."""
LISTEN_S = 1.0
"""Between two looks at what the kernel knows of the connections to the tails."""
QUIET_MS = 3000.0
"""Where there is a choice to make and nothing has told the round trip for so long, a call without content asks."""
STALE_S = 3.0
"""Between two shadow frames at least."""
SHADOW_SHARE = 0.1
"""Of the link's time that shadow frames may take, but for one per ``LONGEST_STALE_S``."""
LONGEST_STALE_S = 30.0
RESERVE = 1.5
"""Times the expected time of the whole model that a frame's deadline must leave for it."""
WEIGHT = 0.1
"""Of a new figure against the old one."""
UNPLANNED_MBPS, UNPLANNED_RTT_MS = 100.0, 10.0
"""Believed of a link that nobody planned, until something crossed."""
FIXED_MS = 1.0
"""Of every run, whatever it computes: what a tiny head took must not be believed of the whole model, times a thousand."""


@dataclass(slots=True)
class Way:
    """One loaded version with what was expected and what was seen of it."""

    active: ActiveModel
    planned: Alternative
    edge_ms: float | None = None
    """Seen: the head, or the whole model."""
    uplink_bytes: float | None = None
    share: float | None = None

    def now(self, edge_factor: float, cloud_factor: float) -> Alternative:
        """What it costs by now: seen where it was seen, else planned and corrected as the other ways were."""
        planned = self.planned
        crosses = planned.share > 0
        return planned.model_copy(
            update={
                "edge_ms": self.edge_ms if self.edge_ms is not None else planned.edge_ms * edge_factor,
                "cloud_ms": planned.cloud_ms * cloud_factor,
                "uplink_bytes": (self.uplink_bytes or planned.uplink_bytes) if crosses else 0.0,
                "share": max(1e-3, self.share if self.share is not None else planned.share) if crosses else 0.0,
            }
        )


class Hysteresis:
    """Whether to change; pure."""

    def __init__(self) -> None:
        self._wish: int | None = None
        self._ticks = 0
        self._changed_s = float("-inf")

    def choose(self, current: int, costs: Sequence[float], now_s: float) -> int:
        """The way to go from now on, by index: ``current`` unless another one has been better for long enough."""
        best = min(range(len(costs)), key=costs.__getitem__)
        saved = costs[current] - costs[best]
        wanted = saved >= LEAST_GAIN_MS and costs[best] < (1 - GAIN) * costs[current]
        if now_s - self._changed_s < DWELL_S and costs[best] > costs[current] / 2:
            wanted = False
        if not wanted:
            self._wish = None
            return current
        self._ticks = self._ticks + 1 if self._wish == best else 1
        self._wish = best
        if self._ticks < HOLD_TICKS:
            return current
        self._wish, self._changed_s = None, now_s
        return best


@dataclass(slots=True)
class _Seen:
    """Figures that hold for every way."""

    edge_factor: float = 1.0
    cloud_factor: float = 1.0
    frames_per_s: float = 0.0
    frames: int = 0
    shadow_s: float = field(default_factory=lambda: float("-inf"))


class Ways:
    """All ways of one version, the first one's number being the version's own.

    ``workers`` says how many of this host's workers the model can have by now, beside the others.
    """

    def __init__(
        self, ways: Sequence[Way], estimator: LinkEstimator | None, *, workers: Callable[[], float] = lambda: 1.0
    ) -> None:
        self._ways = list(ways)
        self._estimator = estimator
        self._workers = workers
        self._index = 0
        self._seen = _Seen()
        self._hysteresis = Hysteresis()
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    def only(cls, active: ActiveModel, estimator: LinkEstimator | None = None) -> Ways:
        """A version without alternatives; with ``estimator`` the rates of its cut follow the link."""
        planned = Alternative(version=0, name="", edge_ms=active.idle_ms or 0.0)
        split = active.manifest.split
        if split is not None and split.coding is not None:
            # Everything crosses until it was seen what does.
            crossing = {"uplink_bytes": max(1.0, split.coding.rates[0].wire_bytes), "share": 1.0}
            planned = planned.model_copy(update=crossing)
        return cls([Way(active, planned)], estimator)

    @property
    def current(self) -> ActiveModel:
        """What the next frame is answered with."""
        return self._ways[self._index].active

    @property
    def all(self) -> list[ActiveModel]:
        """Everything loaded."""
        return [way.active for way in self._ways]

    def start(self) -> None:
        """Begin to listen to the link, and to choose where there is a choice of ways or of rates."""
        if any(active.link is not None for active in self.all):
            self._tasks.append(asyncio.create_task(self._for_ever(self._listen, LISTEN_S)))
        if self._has_choice:
            self._tasks.append(asyncio.create_task(self._for_ever(self._choose, TICK_S)))

    async def retire(self) -> None:
        """Unload all when the last frame is answered: one that began another way may still need the whole model."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while any(active.used for active in self.all):
            await asyncio.gather(*(active.wait_unused() for active in self.all))
        await asyncio.gather(*(active.retire() for active in self.all))

    def asked(self) -> None:
        """A frame came, whatever becomes of it: one that finds no time here is load all the same."""
        self._seen.frames += 1

    def saw_head(self, active: ActiveModel, head_ms: float) -> None:
        """A frame's head took so long."""
        way = self._way(active)
        if way is None or self._estimator is None:
            return
        way.edge_ms = _blend(way.edge_ms, head_ms)
        self._seen.edge_factor = _factor(way.edge_ms, way.planned.edge_ms)

    def saw_end(self, active: ActiveModel, *, uplink_bytes: int, tail_ms: float) -> None:
        """A frame was answered: how many bytes crossed for it, and how long a tail computed; 0 where none did."""
        way = self._way(active)
        if way is None or self._estimator is None or way.planned.share == 0:
            return
        way.share = _blend(way.share if way.share is not None else way.planned.share, float(uplink_bytes > 0))
        if uplink_bytes:
            way.uplink_bytes = _blend(way.uplink_bytes, uplink_bytes)
        if tail_ms:
            self._seen.cloud_factor = _blend(self._seen.cloud_factor, _factor(tail_ms, way.planned.cloud_ms))

    def shadow_due(self) -> ActiveModel | None:
        """Whom to send a copy of a frame as well, to learn what only frames of its size can tell; None: nobody now.

        It is the way that would be cheapest if the link were as planned: a head that left it would never see the link heal.
        """
        if self._estimator is None or len(self._ways) < 2:
            return None
        hopeful = self._costs(self._estimator.planned)
        crossing = [index for index, way in enumerate(self._ways) if _open(way.active)]
        if not crossing or hopeful[best := min(crossing, key=hopeful.__getitem__)] >= hopeful[self._index]:
            return None
        now_s = time.monotonic()
        rate = self._estimator.state(now_s * 1e3).bytes_per_ms
        crossing_s = self._ways[best].now(1.0, 1.0).uplink_bytes / max(rate, 1e-6) / 1e3
        if now_s - self._seen.shadow_s < min(max(STALE_S, crossing_s / SHADOW_SHARE), LONGEST_STALE_S):
            return None
        self._seen.shadow_s = now_s
        return self._ways[best].active

    def whole(self) -> ActiveModel | None:
        """The way that needs no tail, where there is one besides others."""
        way = self._whole()
        return None if way is None else way.active

    def whole_ms(self) -> float:
        """Time to keep back for answering that way; 0 where there is none."""
        way = self._whole()
        if way is None:
            return 0.0
        # Not seen yet: the other ways' factor may flatter it, and an answer that is late is none.
        expected = way.edge_ms or way.planned.edge_ms * max(1.0, self._seen.edge_factor)
        return RESERVE * expected

    def _whole(self) -> Way | None:
        return next((way for way in self._ways if way.active.link is None), None) if len(self._ways) > 1 else None

    def _way(self, active: ActiveModel) -> Way | None:
        return next((way for way in self._ways if way.active is active), None)

    def _costs(self, link: LinkState) -> list[float]:
        workers = self._workers()
        return [
            expected_ms(
                way.now(self._seen.edge_factor, self._seen.cloud_factor),
                link if way.active.link is None or _open(way.active) else LinkState(0.0, 0.0),
                self._seen.frames_per_s,
                edge_workers=workers,
            )
            for way in self._ways
        ]

    async def _for_ever(self, step: Callable[[], Awaitable[None]], pause_s: float) -> None:
        while True:
            try:
                await step()
            except Exception:
                # The frames go on the way they go; only changes would stop.
                log.exception("choosing among alternatives failed unexpectedly; trying again")
            await asyncio.sleep(pause_s)

    async def _choose(self) -> None:
        seen = self._seen
        seen.frames_per_s += 0.2 * (seen.frames / TICK_S - seen.frames_per_s)
        seen.frames = 0
        now_s = time.monotonic()
        if self._estimator is None:
            return
        link = self._estimator.state(now_s * 1e3)
        self._choose_rates(link, now_s)
        costs = self._costs(link)
        index = self._hysteresis.choose(self._index, costs, now_s)
        if index == self._index:
            return
        before, self._index = self._index, index
        log.info(
            "%s goes on %s (version %d): %.1f ms expected instead of %.1f; uplink %.2f Mbit/s, round trip %.1f ms",
            self.current.info.model, self._ways[index].planned.name, self.current.info.version, costs[index],
            costs[before], link.bytes_per_ms * 8e-3, link.rtt_ms,
        )  # fmt: skip

    def _choose_rates(self, link: LinkState, now_s: float) -> None:
        for way in self._ways:
            rates = way.active.rates
            if rates is None:
                continue
            before, after = rates.rate, rates.choose(link, now_s)
            if after != before:
                log.info(
                    "%s version %d crosses at rate %d instead of %d: uplink %.3f Mbit/s, frames wait %.0f ms for it",
                    way.active.info.model, way.active.info.version, after, before, link.bytes_per_ms * 8e-3,
                    link.wait_ms,
                )  # fmt: skip

    @property
    def _has_choice(self) -> bool:
        return len(self._ways) > 1 or any(active.rates for active in self.all)

    async def _listen(self) -> None:
        links = [way.active.link for way in self._ways if way.active.link is not None]
        if self._estimator is None:
            return
        peers = {peer for link in links for peer in link.peers}
        # In a thread: it looks at every open descriptor, and may look up names.
        facts = await asyncio.to_thread(tcp_facts, peers)
        now_ms = time.monotonic() * 1e3
        self._estimator.kernel_told(facts, now_ms)
        if self._has_choice and self._estimator.quiet_ms(now_ms) >= QUIET_MS:
            with suppress(MeshError):
                took_ms = await links[0].ping(LISTEN_S)
                self._estimator.pinged(took_ms, time.monotonic() * 1e3)


def estimator_for(planned: AlternativeSet | None) -> LinkEstimator:
    """One that believes in the planned link at first; where none was planned, in one that carries anything."""
    if planned is None:
        return LinkEstimator(UNPLANNED_MBPS * 1e3 / 8, UNPLANNED_RTT_MS)
    return LinkEstimator(planned.uplink_mbps * 1e3 / 8, planned.rtt_ms)


def _open(active: ActiveModel) -> bool:
    return active.link is not None and active.link.available


def _factor(seen_ms: float, planned_ms: float) -> float:
    return (seen_ms + FIXED_MS) / (planned_ms + FIXED_MS)


def _blend(old: float | None, new: float) -> float:
    return new if old is None else old + WEIGHT * (new - old)
