"""The version a head answers with: its session, its gate, its link to the tails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from edge.head.fitted import Fitted
from edge.head.memory import Room
from splitmesh.client.registry import VersionInfo
from splitmesh.client.segment import SegmentLink
from splitmesh.kernel.batch_times import BatchTimes
from splitmesh.model.classes import ScoreForm
from splitmesh.model.manifest import Manifest
from splitmesh.model.rates import RateChooser
from splitmesh.routing.gate import ESCALATE_ALL, Gate
from splitmesh.runtime import Session
from splitmesh.runtime.choices import Choice
from splitmesh.runtime.timing import LiveTimings
from splitmesh.tensor import DTYPES
from splitmesh.tensor.codecs import Codec
from splitmesh.tensor.entropy import RangeCodec

TIMED_RUNS = 3
"""Of a session that was just loaded, beside the first."""


@dataclass(slots=True)
class ActiveModel:
    """One loaded version. Frames that began with it end with it, also when a newer one is active already."""

    info: VersionInfo
    manifest: Manifest
    session: Session
    link: SegmentLink | None
    """To the tails; None when the version is not split."""
    gate: Gate = field(default_factory=lambda: Gate(ESCALATE_ALL))
    """Replaced whole when the router pushes a policy."""
    policy_revision: int = 0
    """Of the policy that the gate was made from; 0: none was heard of."""
    fitted: Fitted = field(default_factory=Fitted)
    """What gates of this version are made with."""
    idle_ms: float | None = None
    """What the session took when it was loaded; None: not known."""
    live: LiveTimings = field(default_factory=LiveTimings)
    """What the session's runs take."""
    coder: RangeCodec | None = None
    """Codes what crosses, at one of several rates; None: a general codec packs it."""
    rates: RateChooser | None = None
    """Which rate; None with ``coder``."""
    scores: ScoreForm | None = None
    """What the model's class output holds; None until a whole answer was seen."""
    threads: int = 1
    """Inside an operator of the session."""
    company: int = 1
    """Most frames that the session computes together; 1: it computes each alone."""
    priority: int = 0
    """How urgent the model's frames are beside others', 0..9."""
    choice: Choice | None = None
    """What computes the session, and what else could; None: not known."""
    memory_bytes: int = 0
    """That it takes; an estimate."""
    room: Room | None = None
    """What it takes of the host's memory, given back when it is unloaded; None: nobody counts."""
    took: BatchTimes = field(default_factory=BatchTimes)
    """What a frame takes from a worker: decoding, the head, packing."""
    _users: int = 0
    _unused: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def steady(self) -> bool:
        """Every frame of tensors takes about as long: sizes are fixed, and there is no exit at which some stop."""
        return self.idle_ms is not None and not self.manifest.exits()

    @property
    def rate(self) -> int | None:
        """At which what crosses is coded now; None for a version without rates."""
        return None if self.rates is None else self.rates.rate

    def packing(self, rate: int | None, general: str) -> str | Codec:
        """What packs features: the version's own coder at a rate, or the general codec."""
        return general if self.coder is None else self.coder.at(rate or 0)

    @contextmanager
    def use(self) -> Iterator[ActiveModel]:
        """Keeps the version loaded inside the block."""
        self._users += 1
        self._unused.clear()
        try:
            yield self
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    @property
    def used(self) -> bool:
        """Whether a frame is on its way through this version."""
        return self._users > 0

    async def retire(self) -> None:
        """Close when the last frame is answered."""
        await self.wait_unused()
        if self.link is not None:
            await self.link.stop()
        self.session.close()
        if self.room is not None:
            self.room.give_back()

    async def wait_unused(self) -> None:
        """Return when no frame is on its way through this version."""
        if self._users:
            await self._unused.wait()


def warm_up(session: Session) -> float | None:
    """Run on zeros, so that no frame pays for the first run; milliseconds of a run, the median of the later ones.

    None for a model with open dimensions, which is not run.
    """
    if any(-1 in spec.shape[1:] for spec in session.inputs):
        return None
    feeds = {spec.name: np.zeros([abs(dim) for dim in spec.shape], DTYPES[spec.dtype]) for spec in session.inputs}
    times = []
    for _ in range(1 + TIMED_RUNS):
        begun = time.perf_counter()
        session.run(feeds)
        times.append((time.perf_counter() - begun) * 1e3)
    return median(times[1:])
