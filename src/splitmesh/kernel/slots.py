"""The threads of a node that compute, shared by all its segments: the most urgent batch first.

As many batches are computed at once as there are slots; more would only fight for the same cores. Also the node's
totals: how much waits altogether, and how long a frame would wait. Knows sources of batches, no frames and no models.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from splitmesh.kernel.threads import Teller, Threads


class Job(Protocol):
    """A batch that was chosen."""

    @property
    def expected_s(self) -> float:
        """What it will take, seconds; 0: not known."""
        ...

    def run(self) -> None:
        """In a thread of the pool. Does not raise: what fails is the job's to remember."""
        ...

    def finish(self, took_s: float) -> None:
        """On the loop, when ``run`` has ended; ``took_s`` is counted from the choice."""
        ...


class Source(Protocol):
    """Where batches come from: the queue of a segment."""

    def due(self, now: float) -> float:
        """When a batch should be begun, on the loop's clock; infinite while nothing waits."""
        ...

    def urgency(self) -> float:
        """The virtual deadline of its most urgent frame: the smallest goes first."""
        ...

    def take(self, now: float) -> Job | None:
        """The next batch; None when nothing was left that is worth computing."""
        ...

    def work_s(self, before: float) -> float:
        """What computing all its frames with a virtual deadline up to ``before`` takes."""
        ...


@dataclass(eq=False, slots=True)
class _Running:
    job: Job
    begun: float


class ComputeSlots:
    """The pool.

    Args:
        slots: batches computed at once, at least 1.
        max_frames: most frames that may wait, over all sources.
        max_bytes: most bytes that these may hold.
    """

    def __init__(self, slots: int = 1, *, max_frames: int = 1 << 30, max_bytes: int = 1 << 62) -> None:
        self.max_frames = max_frames
        self.max_bytes = max_bytes
        self.frames = 0
        """That wait or are being unpacked."""
        self.bytes = 0
        """Held by these."""
        self._slots = slots
        self._sources: list[Source] = []
        self._running: set[_Running] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._threads = Threads(slots, "compute")
        self._teller: Teller | None = None
        """To the loop of the first batch."""

    @property
    def free(self) -> int:
        """Slots without a batch."""
        return self._slots - len(self._running)

    def join(self, source: Source) -> None:
        """Take batches from a source."""
        self._sources.append(source)

    def leave(self, source: Source) -> None:
        """Take none from it any more."""
        self._sources.remove(source)

    def dispatch(self) -> None:
        """Begin what is due. To be called on the loop whenever a source has more than before."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self.free and (due := [source for source in self._sources if source.due(now) <= now]):
            job = min(due, key=lambda source: source.urgency()).take(now)
            if job is not None:
                self._begin(job, now, loop)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.free and math.isfinite(
            next_due := min((source.due(now) for source in self._sources), default=math.inf)
        ):
            self._timer = loop.call_at(next_due, self.dispatch)

    def wait_s(self, before: float = math.inf) -> float:
        """How long a frame with the virtual deadline ``before`` would wait if it came now: the rest of the batch that ends
        first, and the work that goes before it. Seconds; an estimate from what batches took."""
        if not self._sources:
            return 0.0
        rest = 0.0
        if not self.free:
            now = asyncio.get_running_loop().time()
            rest = min(max(0.0, running.begun + running.job.expected_s - now) for running in self._running)
        return rest + sum(source.work_s(before) for source in self._sources) / self._slots

    async def stop(self) -> None:
        """Let the threads end; what they compute now is computed first."""
        if self._timer is not None:
            self._timer.cancel()
        self._threads.close(cancel=True)
        await asyncio.to_thread(self._threads.join)

    def _begin(self, job: Job, now: float, loop: asyncio.AbstractEventLoop) -> None:
        running = _Running(job, now)
        self._running.add(running)
        teller = self._teller = self._teller or Teller(loop)
        self._threads.start(partial(_run, job, teller, partial(self._ended, running)))

    def _ended(self, running: _Running) -> None:
        self._running.discard(running)
        try:
            running.job.finish(asyncio.get_running_loop().time() - running.begun)
        finally:
            self.dispatch()


def _run(job: Job, teller: Teller, ended: Callable[[], None]) -> None:
    try:
        job.run()
    finally:
        teller.tell(ended)
