"""One batch: put together, computed in a thread, and each result handed to its waiter. Knows arrays, no queues."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

import numpy as np

from splitmesh.errors import MeshError, Reason
from splitmesh.tensor.spec import Array

Feeds = Mapping[str, Array]
Run = Callable[[Feeds], dict[str, Array]]
OnRun = Callable[[int, float], None]
"""Told the samples of a run and its milliseconds, in the thread that computed."""
Shapes = tuple[tuple[str, tuple[int, ...]], ...]

_BATCH_IDS = count(1)


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
class Tally:
    """Frames since the segment was loaded."""

    computed: int = 0
    refused: int = 0
    """Because a queue was full, or the work ahead longer than the frame's deadline."""
    expired: int = 0
    """Dropped before compute: the deadline had passed, or could not be kept any more."""
    cancelled: int = 0
    """Dropped before compute: nobody waited for them any more."""


@dataclass(eq=False, slots=True)
class Waiting:
    """A frame on its way to compute."""

    expires: float
    """On the loop's clock, as the next two."""
    virtual: float
    """Its deadline as the order of frames sees it: nearer by what its priority counts."""
    arrived: float
    enqueued_ns: int
    size_bytes: int
    state: Literal["arriving", "waiting", "gone"] = "arriving"
    feeds: Feeds = field(default_factory=dict)
    shapes: Shapes = ()
    result: asyncio.Future[Computed] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class BatchJob:
    """A :class:`~splitmesh.kernel.slots.Job` of frames of one shape.

    Args:
        batch: the frames, at least one.
        run: computes them.
        on_run: told about each run.
        finished: told at the end, on the loop, before the waiters.
        alone: the batch is one frame and gets the outputs as they are.
        expected_s: what it will take.
    """

    def __init__(
        self,
        batch: Sequence[Waiting],
        run: Run,
        on_run: OnRun | None,
        finished: Callable[[BatchJob, float], None],
        *,
        alone: bool,
        expected_s: float,
    ) -> None:
        self.batch = batch
        self.expected_s = expected_s
        self.together = False
        """All frames were computed in one run."""
        self.expired = self.cancelled = 0
        """Frames that were not computed by themselves after a run with others failed: it was too late, or nobody waited."""
        self._run = run
        self._on_run = on_run
        self._finished = finished
        self._alone = alone
        self._results: Sequence[Computed | Exception] = ()

    def run(self) -> None:
        """In a thread: together, or one by one when that fails."""
        try:
            self._results = self._compute(self.batch)
            self.together = True
        except Exception as error:
            one_by_one = (self._compute_one(waiting) for waiting in self.batch)
            self._results = [error] if len(self.batch) == 1 else list(one_by_one)

    def finish(self, took_s: float) -> None:
        """On the loop: hand out the results."""
        self._finished(self, took_s)
        for waiting, result in zip(self.batch, self._results, strict=True):
            if waiting.result.done():
                continue
            if isinstance(result, Exception):
                waiting.result.set_exception(result)
            else:
                waiting.result.set_result(result)

    def _compute_one(self, waiting: Waiting) -> Computed | Exception:
        if waiting.result.done():
            self.cancelled += 1
            return MeshError(Reason.CANCELLED, "the frame was given up")
        if waiting.expires <= time.monotonic():
            self.expired += 1
            return MeshError(Reason.DEADLINE_EXPIRED, "its deadline passed while it was computed with others")
        try:
            return self._compute([waiting])[0]
        except Exception as error:
            return error

    def _compute(self, batch: Sequence[Waiting]) -> list[Computed]:
        started_ns = time.time_ns()
        outputs = self._run(joined([waiting.feeds for waiting in batch]))
        ended_ns = time.time_ns()
        if self._on_run is not None:
            self._on_run(len(batch), (ended_ns - started_ns) / 1e6)
        rows = [outputs] if self._alone else rows_of(outputs, len(batch))
        batch_id = next(_BATCH_IDS)
        return [
            Computed(own, batch_id, len(batch), waiting.enqueued_ns, started_ns, ended_ns)
            for own, waiting in zip(rows, batch, strict=True)
        ]


def shapes_of(feeds: Feeds) -> Shapes:
    """By which frames are told that can be computed together."""
    return tuple((name, array.shape) for name, array in feeds.items())


def joined(feeds: Sequence[Feeds]) -> Feeds:
    """Several samples as one batch; one sample as it is, without a copy."""
    if len(feeds) == 1:
        return feeds[0]
    return {name: np.concatenate([one[name] for one in feeds]) for name in feeds[0]}


def rows_of(outputs: dict[str, Array], count: int) -> list[dict[str, Array]]:
    """A batch's outputs sample by sample; MODEL_CORRUPT when they have not one row for each."""
    if any(array.shape[:1] != (count,) for array in outputs.values()):
        raise MeshError(Reason.MODEL_CORRUPT, f"the model does not answer a batch of {count} with as many rows")
    if count == 1:
        return [outputs]
    return [{name: array[row : row + 1] for name, array in outputs.items()} for row in range(count)]
