"""Dynamic batching: frames that wait together are computed together.

One :class:`Batcher` per loaded segment. Expired frames are dropped before compute; a batch that fails is computed frame
by frame, so that one poisonous frame fails alone. Knows arrays and deadlines, nothing of streams or models.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from splitmesh.errors import MeshError, Reason
from splitmesh.tensor.spec import Array

Feeds = Mapping[str, Array]
Run = Callable[[Feeds], dict[str, Array]]
OnRun = Callable[[int, float], None]
"""Told the samples of a run and its milliseconds, in the thread that computed."""

_BATCH_IDS = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Computed:
    """One frame's outputs and where its time went."""

    outputs: dict[str, Array]
    batch_id: int
    batch_size: int
    enqueued_ns: int
    started_ns: int
    ended_ns: int


@dataclass(slots=True)
class _Waiting:
    feeds: Feeds
    expires: float
    enqueued_ns: int
    result: asyncio.Future[Computed] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher:
    """Collects single frames (leading dimension 1) and computes them in batches, one batch at a time.

    With ``alone`` every frame is a batch and gets the outputs as they are: of a segment whose outputs have no row for each
    sample, as those of a detector that lists what it finds.
    """

    def __init__(
        self,
        run: Run,
        *,
        max_batch: int,
        max_delay_s: float,
        max_queue: int,
        on_run: OnRun | None = None,
        alone: bool = False,
    ) -> None:
        self._run = run
        self._on_run = on_run
        self._alone = alone
        self._max_batch = 1 if alone else max_batch
        self._max_delay_s = 0.0 if alone else max_delay_s
        self._max_queue = max_queue
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None
        self._recent_compute_s = 0.0

    def __len__(self) -> int:
        """Frames waiting."""
        return len(self._waiting)

    def start(self) -> None:
        """Begin computing."""
        self._loop_task = asyncio.create_task(self._loop())

    async def stop(self) -> None:
        """Stop; frames still waiting are refused with NOT_READY."""
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
        for waiting in self._waiting:
            if not waiting.result.done():
                waiting.result.set_exception(MeshError(Reason.NOT_READY, "the segment is being unloaded"))
        self._waiting.clear()

    async def submit(self, feeds: Feeds, deadline_s: float) -> Computed:
        """The frame's outputs; QUEUE_FULL (with a time to retry) at the limit, DEADLINE_EXPIRED after too long a wait."""
        if len(self._waiting) >= self._max_queue:
            # A frame whose caller gave up is no load: it must not hold a place in the queue.
            self._waiting = deque(waiting for waiting in self._waiting if not waiting.result.done())
        if len(self._waiting) >= self._max_queue:
            batches = len(self._waiting) / self._max_batch
            raise MeshError(
                Reason.QUEUE_FULL,
                f"{len(self._waiting)} frames are waiting, at most {self._max_queue}",
                retry_after_s=max(0.01, batches * self._recent_compute_s),
            )
        now = asyncio.get_running_loop().time()
        waiting = _Waiting(feeds, now + deadline_s, time.time_ns())
        self._waiting.append(waiting)
        self._arrived.set()
        return await waiting.result

    async def _loop(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._company()
            batch = self._take(loop.time())
            if not batch:
                continue
            started = loop.time()
            await asyncio.to_thread(self._compute, batch, loop)
            self._recent_compute_s = loop.time() - started

    async def _company(self) -> None:
        """Return when a full batch waits, or when the first frame has waited long enough."""
        loop = asyncio.get_running_loop()
        self._arrived.clear()
        while not self._waiting:
            await self._arrived.wait()
            self._arrived.clear()
        until = loop.time() + self._max_delay_s
        while len(self._waiting) < self._max_batch and (left := until - loop.time()) > 0:
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                return
            self._arrived.clear()

    def _take(self, now: float) -> list[_Waiting]:
        """The next frames of one shape; frames that expired or whose caller has gone are let go."""
        batch: list[_Waiting] = []
        later: list[_Waiting] = []
        while self._waiting and len(batch) < self._max_batch:
            waiting = self._waiting.popleft()
            if waiting.result.done():
                continue
            if waiting.expires <= now:
                waiting.result.set_exception(
                    MeshError(Reason.DEADLINE_EXPIRED, "the frame's deadline passed while it waited for compute")
                )
            elif batch and _shapes(waiting.feeds) != _shapes(batch[0].feeds):
                later.append(waiting)
            else:
                batch.append(waiting)
        self._waiting.extendleft(reversed(later))
        return batch

    def _compute(self, batch: Sequence[_Waiting], loop: asyncio.AbstractEventLoop) -> None:
        """In a worker thread: compute, and hand each result to its waiter on the loop."""
        try:
            results: Sequence[Computed | BaseException] = self._compute_together(batch)
        except Exception:
            results = [self._compute_alone(waiting) for waiting in batch]
        loop.call_soon_threadsafe(_deliver, batch, results)

    def _compute_alone(self, waiting: _Waiting) -> Computed | BaseException:
        try:
            return self._compute_together([waiting])[0]
        except Exception as error:
            return error

    def _compute_together(self, batch: Sequence[_Waiting]) -> list[Computed]:
        started_ns = time.time_ns()
        names = batch[0].feeds.keys()
        feeds = {name: np.concatenate([waiting.feeds[name] for waiting in batch]) for name in names}
        outputs = self._run(feeds)
        ended_ns = time.time_ns()
        if self._on_run is not None:
            self._on_run(len(batch), (ended_ns - started_ns) / 1e6)
        if self._alone:
            split = [outputs]
        elif all(array.shape[:1] == (len(batch),) for array in outputs.values()):
            split = [{name: array[row : row + 1] for name, array in outputs.items()} for row in range(len(batch))]
        else:
            raise MeshError(
                Reason.MODEL_CORRUPT, f"the model does not answer a batch of {len(batch)} with as many rows"
            )
        batch_id = next(_BATCH_IDS)
        return [
            Computed(
                own,
                batch_id,
                len(batch),
                waiting.enqueued_ns,
                started_ns,
                ended_ns,
            )
            for own, waiting in zip(split, batch, strict=True)
        ]


def _shapes(feeds: Feeds) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feeds.items()}


def _deliver(batch: Sequence[_Waiting], results: Sequence[Computed | BaseException]) -> None:
    for waiting, result in zip(batch, results, strict=True):
        if waiting.result.done():
            continue
        if isinstance(result, BaseException):
            waiting.result.set_exception(result)
        else:
            waiting.result.set_result(result)
