"""Dynamic batching without a network or a model: who is computed with whom, who is dropped, who is refused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import numpy as np
import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.batching import Batcher, Computed
from splitmesh.tensor.spec import Array

WAIT_S = 5.0
POISON = -1.0


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


def feed(value: float, width: int = 1) -> dict[str, Array]:
    return {"x": np.full((1, width), value, dtype=np.float32)}


def value(done: Computed) -> float:
    return float(done.outputs["y"][0, 0])


@asynccontextmanager
async def batching(
    run: Callable[[Mapping[str, Array]], dict[str, Array]],
    *,
    max_batch: int = 8,
    max_delay_s: float = 0.0,
    max_queue: int = 100,
    alone: bool = False,
) -> AsyncIterator[Batcher]:
    batcher = Batcher(run, max_batch=max_batch, max_delay_s=max_delay_s, max_queue=max_queue, alone=alone)
    batcher.start()
    try:
        yield batcher
    finally:
        if isinstance(run, Doubler):
            run.go_on.set()
        await asyncio.wait_for(batcher.stop(), WAIT_S)


@asynccontextmanager
async def busy(run: Doubler, **options: float) -> AsyncIterator[tuple[Batcher, asyncio.Task[Computed]]]:
    """A batcher whose first frame is being computed, so that what comes now has to wait."""
    run.go_on.clear()
    async with batching(run, **options) as batcher:  # type: ignore[arg-type]
        first = asyncio.create_task(batcher.submit(feed(100.0), WAIT_S))
        assert await asyncio.to_thread(run.entered.wait, WAIT_S)
        yield batcher, first
        await first


async def submitted(batcher: Batcher, *values: float, deadline_s: float = WAIT_S) -> list[asyncio.Task[Computed]]:
    tasks = [asyncio.create_task(batcher.submit(feed(one), deadline_s)) for one in values]
    await asyncio.sleep(0)
    return tasks


async def test_frames_that_wait_together_are_computed_together_each_with_its_own_row() -> None:
    run = Doubler()
    async with busy(run) as (batcher, _):
        tasks = await submitted(batcher, 1, 2, 3)
        assert len(batcher) == 3
        run.go_on.set()
        done = [await task for task in tasks]
    assert run.batches == [[100.0], [1.0, 2.0, 3.0]]
    assert [value(one) for one in done] == [2.0, 4.0, 6.0]
    assert {one.batch_size for one in done} == {3}
    assert len({one.batch_id for one in done}) == 1
    assert all(one.enqueued_ns <= one.started_ns <= one.ended_ns for one in done)


async def test_a_batch_is_never_larger_than_allowed() -> None:
    run = Doubler()
    async with busy(run, max_batch=2) as (batcher, _):
        tasks = await submitted(batcher, 1, 2, 3)
        run.go_on.set()
        await asyncio.gather(*tasks)
    assert run.batches == [[100.0], [1.0, 2.0], [3.0]]


async def test_a_full_batch_does_not_wait_for_more_company() -> None:
    async with batching(Doubler(), max_batch=2, max_delay_s=60) as batcher:
        tasks = await submitted(batcher, 1, 2)
        done = await asyncio.wait_for(asyncio.gather(*tasks), WAIT_S)
    assert [one.batch_size for one in done] == [2, 2]


async def test_a_lone_frame_waits_no_longer_than_the_delay() -> None:
    async with batching(Doubler(), max_delay_s=0.01) as batcher:
        done = await asyncio.wait_for(batcher.submit(feed(1), WAIT_S), WAIT_S)
    assert done.batch_size == 1


async def test_frames_of_different_shapes_are_not_mixed() -> None:
    run = Doubler()
    async with busy(run) as (batcher, _):
        tasks = [
            asyncio.create_task(batcher.submit(feed(one, width), WAIT_S)) for one, width in ((1, 1), (2, 5), (3, 1))
        ]
        await asyncio.sleep(0)
        run.go_on.set()
        done = await asyncio.gather(*tasks)
    assert run.batches == [[100.0], [1.0, 3.0], [2.0]]
    assert [one.outputs["y"].shape for one in done] == [(1, 1), (1, 5), (1, 1)]


async def test_an_expired_frame_is_dropped_before_it_costs_anything() -> None:
    run = Doubler()
    async with busy(run) as (batcher, _):
        (late,) = await submitted(batcher, 1, deadline_s=0.0)
        (fine,) = await submitted(batcher, 2)
        run.go_on.set()
        assert value(await fine) == 4.0
        with pytest.raises(MeshError) as caught:
            await late
    assert caught.value.reason is Reason.DEADLINE_EXPIRED
    assert run.batches == [[100.0], [2.0]]


async def test_exactly_the_frame_above_the_limit_is_refused_with_a_time_to_retry() -> None:
    run = Doubler()
    async with busy(run, max_queue=2) as (batcher, _):
        tasks = await submitted(batcher, 1, 2)
        with pytest.raises(MeshError) as caught:
            await batcher.submit(feed(3), WAIT_S)
        assert caught.value.reason is Reason.QUEUE_FULL
        assert caught.value.retry_after_s is not None
        assert caught.value.retry_after_s > 0
        run.go_on.set()
        assert [value(await task) for task in tasks] == [2.0, 4.0]


@pytest.mark.parametrize("gone", [0, 1, 2])
async def test_a_caller_that_went_away_gives_its_place_back_wherever_it_stood(gone: int) -> None:
    run = Doubler()
    async with busy(run, max_queue=3) as (batcher, _):
        tasks = await submitted(batcher, 0, 1, 2)
        tasks[gone].cancel()
        await asyncio.gather(tasks[gone], return_exceptions=True)
        (instead,) = await submitted(batcher, 7)
        run.go_on.set()
        assert value(await instead) == 14.0
        left = [task for index, task in enumerate(tasks) if index != gone]
        await asyncio.gather(*left)
    assert sorted(run.batches[1]) == sorted([7.0, *({0.0, 1.0, 2.0} - {float(gone)})])


async def test_a_frame_that_makes_its_batch_fail_fails_alone() -> None:
    run = Doubler()
    async with busy(run) as (batcher, _):
        tasks = await submitted(batcher, 1, POISON, 3)
        run.go_on.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [value(one) for one in results if isinstance(one, Computed)] == [2.0, 6.0]
    assert [str(one) for one in results if isinstance(one, BaseException)] == ["poison"]
    assert run.batches == [[100.0], [1.0], [3.0]]


async def test_a_model_that_answers_with_other_rows_than_it_was_given_is_found_out() -> None:
    def loses_a_row(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": feeds["x"][1:]}

    async with batching(loses_a_row) as batcher:
        with pytest.raises(MeshError) as caught:
            await asyncio.wait_for(batcher.submit(feed(1), WAIT_S), WAIT_S)
    assert caught.value.reason is Reason.MODEL_CORRUPT


async def test_what_has_no_row_for_each_sample_is_computed_alone_and_given_whole() -> None:
    sizes: list[int] = []

    def finds(feeds: Mapping[str, Array]) -> dict[str, Array]:
        sizes.append(len(feeds["x"]))
        return {"found": np.zeros((int(feeds["x"].sum()), 4), np.float32)}

    async with batching(finds, alone=True) as batcher:
        given = await asyncio.gather(*(batcher.submit(feed(boxes), WAIT_S) for boxes in (0, 1, 3)))
    assert [one.outputs["found"].shape for one in given] == [(0, 4), (1, 4), (3, 4)]
    assert sizes == [1, 1, 1]


async def test_what_still_waits_at_a_stop_is_refused_as_not_ready() -> None:
    run = Doubler()
    run.go_on.clear()
    async with batching(run, max_delay_s=60) as batcher:
        (waiting,) = await submitted(batcher, 1)
        await batcher.stop()
        with pytest.raises(MeshError) as caught:
            await waiting
    assert caught.value.reason is Reason.NOT_READY
