"""Compute that can be held, so that what comes meanwhile has to wait: batching without a network or a model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from splitmesh.kernel.batch_job import Computed
from splitmesh.kernel.batch_times import WINDOW, BatchTimes
from splitmesh.kernel.batching import Batcher
from splitmesh.kernel.slots import ComputeSlots
from splitmesh.tensor.spec import Array

WAIT_S = 5.0
POISON = -1.0
FIRST = 100.0
"""The frame that is computed while others wait."""


class Doubler:
    """Doubles; can be held; fails on poison; remembers the batches it saw."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.entered = threading.Event()

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        x = feeds["x"]
        self.entered.set()
        assert self.go_on.wait(WAIT_S)
        if (x == POISON).any():
            raise RuntimeError("poison")
        self.batches.append(x[:, 0].tolist())
        return {"y": np.asarray(x) * 2}


def known_times(**seconds: float) -> BatchTimes:
    """Times measured so often that a test's own batches do not change them: ``known_times(b1=.01, b8=.02)``."""
    times = BatchTimes()
    for size, taken in (seconds or {"b1": 0.001, "b64": 0.001}).items():
        for _ in range(WINDOW):
            times.record(int(size[1:]), taken)
    return times


def feed(value: float, width: int = 1) -> dict[str, Array]:
    return {"x": np.full((1, width), value, dtype=np.float32)}


def value(done: Computed) -> float:
    return float(done.outputs["y"][0, 0])


@asynccontextmanager
async def batching(run: Any, *, times: BatchTimes | None = None, **options: Any) -> AsyncIterator[Batcher]:
    """A batcher; without other ``options`` of 8 frames a batch that does not wait for company."""
    values = {"max_batch": 8, "max_delay_s": 0.0, "max_queue": 100, **options}
    batcher = Batcher(run, times=times or known_times(), **values)
    try:
        yield batcher
    finally:
        if isinstance(run, Doubler):
            run.go_on.set()
        async with asyncio.timeout(WAIT_S):
            await batcher.stop()


@asynccontextmanager
async def busy(run: Doubler, **options: Any) -> AsyncIterator[tuple[Batcher, asyncio.Task[Computed]]]:
    """A batcher whose first frame is being computed, so that what comes now has to wait."""
    async with batching(run, **options) as batcher:
        first = await held(run, batcher)
        yield batcher, first
        await first


async def held(run: Doubler, batcher: Batcher) -> asyncio.Task[Computed]:
    """A frame that is being computed until ``run.go_on`` is set."""
    run.go_on.clear()
    run.entered.clear()
    first = asyncio.create_task(batcher.submit(feed(FIRST), WAIT_S))
    assert await asyncio.to_thread(run.entered.wait, WAIT_S)
    return first


async def submitted(batcher: Batcher, *values: float, **options: Any) -> list[asyncio.Task[Computed]]:
    tasks = [asyncio.create_task(batcher.submit(feed(one), **{"deadline_s": WAIT_S, **options})) for one in values]
    await asyncio.sleep(0)
    return tasks


@asynccontextmanager
async def slots(count: int = 1, **limits: int) -> AsyncIterator[ComputeSlots]:
    """Threads that several batchers share."""
    made = ComputeSlots(count, **limits)
    try:
        yield made
    finally:
        async with asyncio.timeout(WAIT_S):
            await made.stop()
