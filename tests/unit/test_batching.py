"""Dynamic batching without a network or a model: who is computed with whom and when, who is dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import numpy as np
import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.batching import Computed
from splitmesh.tensor.spec import Array
from tests.support.held import (
    FIRST,
    POISON,
    WAIT_S,
    Doubler,
    batching,
    busy,
    feed,
    held,
    known_times,
    slots,
    submitted,
    value,
)


async def test_frames_that_wait_together_are_computed_together_each_with_its_own_row() -> None:
    run = Doubler()
    async with busy(run) as (batcher, _):
        tasks = await submitted(batcher, 1, 2, 3)
        assert len(batcher) == 3
        run.go_on.set()
        done = [await task for task in tasks]
    assert run.batches == [[FIRST], [1.0, 2.0, 3.0]]
    assert [value(one) for one in done] == [2.0, 4.0, 6.0]
    assert {one.batch_size for one in done} == {3}
    assert len({one.batch_id for one in done}) == 1
    assert all(one.enqueued_ns <= one.started_ns <= one.ended_ns for one in done)
    assert batcher.tally.computed == 4


async def test_a_batch_is_never_larger_than_allowed() -> None:
    run = Doubler()
    async with busy(run, max_batch=2) as (batcher, _):
        tasks = await submitted(batcher, 1, 2, 3)
        run.go_on.set()
        await asyncio.gather(*tasks)
    assert run.batches == [[FIRST], [1.0, 2.0], [3.0]]


async def test_a_frame_alone_reaches_the_model_as_the_array_that_came() -> None:
    given = feed(3)
    seen: list[Mapping[str, Array]] = []

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        seen.append(feeds)
        return {"y": feeds["x"]}

    async with batching(run) as batcher:
        await batcher.submit(given, WAIT_S)
    assert seen[0]["x"] is given["x"]


async def test_frames_of_different_shapes_are_not_mixed() -> None:
    run = Doubler()
    async with busy(run) as (batcher, _):
        tasks = [
            asyncio.create_task(batcher.submit(feed(one, width), WAIT_S)) for one, width in ((1, 1), (2, 5), (3, 1))
        ]
        await asyncio.sleep(0)
        run.go_on.set()
        done = await asyncio.gather(*tasks)
    assert run.batches == [[FIRST], [1.0, 3.0], [2.0]]
    assert [one.outputs["y"].shape for one in done] == [(1, 1), (1, 5), (1, 1)]


async def test_the_nearest_deadline_goes_first_and_priority_brings_it_nearer() -> None:
    run = Doubler()
    async with busy(run, max_batch=1) as (batcher, _):
        tasks = [
            *await submitted(batcher, 1, deadline_s=3.0),
            *await submitted(batcher, 2, deadline_s=2.0),
            *await submitted(batcher, 3, deadline_s=2.5),
            *await submitted(batcher, 4, deadline_s=2.8, priority=9),
        ]
        run.go_on.set()
        await asyncio.gather(*tasks)
    assert run.batches == [[FIRST], [4.0], [2.0], [3.0], [1.0]]


async def test_a_frame_without_priority_is_not_starved_by_those_that_come_later_with_it() -> None:
    run = Doubler()
    async with busy(run, max_batch=1) as (batcher, _):
        tasks = await submitted(batcher, 1, deadline_s=2.0)
        tasks += await submitted(batcher, 2, deadline_s=3.0, priority=9)
        run.go_on.set()
        await asyncio.gather(*tasks)
    assert run.batches == [[FIRST], [1.0], [2.0]]


async def test_the_batch_is_as_large_as_keeps_its_earliest_deadline() -> None:
    run = Doubler()
    async with busy(run, times=known_times(b1=0.01, b2=0.012, b8=100.0)) as (batcher, _):
        tasks = await submitted(batcher, 1, 2, 3, 4)
        run.go_on.set()
        await asyncio.gather(*tasks)
    assert max(len(batch) for batch in run.batches) == 2


async def test_where_company_costs_as_much_as_it_saves_frames_go_one_by_one() -> None:
    run = Doubler()
    async with busy(run, times=known_times(b1=0.010, b8=0.080)) as (batcher, _):
        tasks = await submitted(batcher, 1, 2, 3)
        run.go_on.set()
        await asyncio.gather(*tasks)
    assert run.batches == [[FIRST], [1.0], [2.0], [3.0]]


async def test_an_expired_frame_is_dropped_before_it_costs_anything() -> None:
    run = Doubler()
    async with busy(run) as (batcher, _):
        (late,) = await submitted(batcher, 1, deadline_s=0.01)
        (fine,) = await submitted(batcher, 2)
        await asyncio.sleep(0.02)
        run.go_on.set()
        assert value(await fine) == 4.0
        with pytest.raises(MeshError) as caught:
            await late
    assert caught.value.reason is Reason.DEADLINE_EXPIRED
    assert run.batches == [[FIRST], [2.0]]
    assert batcher.tally.expired == 1


@pytest.mark.parametrize("company", [True, False])
async def test_a_frame_that_can_surely_not_be_done_in_time_is_dropped_unless_nothing_else_waits(company: bool) -> None:
    run = Doubler()
    async with busy(run, times=known_times(b1=0.5), max_batch=1) as (batcher, first):
        (hopeless,) = await submitted(batcher, 1, deadline_s=0.6)
        others = await submitted(batcher, 2) if company else []
        await asyncio.sleep(0.35)
        run.go_on.set()
        await asyncio.gather(first, *others)
        if company:
            with pytest.raises(MeshError, match="the fastest run takes") as caught:
                await hopeless
            assert caught.value.reason is Reason.DEADLINE_EXPIRED
        else:
            assert value(await hopeless) == 2.0
    assert run.batches == [[FIRST], [2.0 if company else 1.0]]


async def test_a_cancelled_frame_is_never_computed_and_is_counted() -> None:
    run = Doubler()
    async with busy(run) as (batcher, _):
        gone, stays = await submitted(batcher, 1, 2)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert len(batcher) == 1
        run.go_on.set()
        await stays
    assert run.batches == [[FIRST], [2.0]]
    assert batcher.tally.cancelled == 1


async def test_a_frame_that_makes_its_batch_fail_fails_alone() -> None:
    run = Doubler()
    async with busy(run) as (batcher, _):
        tasks = await submitted(batcher, 1, POISON, 3)
        run.go_on.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [value(one) for one in results if isinstance(one, Computed)] == [2.0, 6.0]
    assert [str(one) for one in results if isinstance(one, BaseException)] == ["poison"]
    assert run.batches == [[FIRST], [1.0], [3.0]]


async def test_a_model_that_answers_with_other_rows_than_it_was_given_is_found_out() -> None:
    def loses_a_row(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": feeds["x"][1:]}

    async with batching(loses_a_row) as batcher:
        with pytest.raises(MeshError) as caught:
            async with asyncio.timeout(WAIT_S):
                await batcher.submit(feed(1), WAIT_S)
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


async def test_what_still_waits_at_a_stop_is_refused_as_not_ready_and_what_computes_is_answered() -> None:
    run = Doubler()
    async with slots() as shared, busy(run, slots=shared) as (batcher, first):
        (waiting,) = await submitted(batcher, 1)
        stopping = asyncio.create_task(batcher.stop())
        with pytest.raises(MeshError) as caught:
            await waiting
        await asyncio.sleep(0.01)
        assert not stopping.done()
        run.go_on.set()
        await stopping
        assert value(await first) == 2 * FIRST
        with pytest.raises(MeshError) as after:
            await batcher.submit(feed(1), WAIT_S)
    assert (caught.value.reason, after.value.reason) == (Reason.NOT_READY, Reason.NOT_READY)


# several segments


async def test_two_segments_share_the_threads_each_with_its_own_batches_the_most_urgent_first() -> None:
    one, two = Doubler(), Doubler()
    async with slots() as shared, batching(one, slots=shared) as first, batching(two, slots=shared) as second:
        blocking = await held(one, first)
        tasks = [
            *await submitted(first, 1, 2, deadline_s=4.0),
            *await submitted(second, 3, 4, deadline_s=3.0),
        ]
        order = asyncio.as_completed(tasks)
        one.go_on.set()
        done = [value(await each) for each in order]
        await blocking
    assert done == [6.0, 8.0, 2.0, 4.0]
    assert (one.batches, two.batches) == ([[FIRST], [1.0, 2.0]], [[3.0, 4.0]])


async def test_with_two_threads_two_segments_compute_at_once() -> None:
    one, two = Doubler(), Doubler()
    async with slots(2) as shared, batching(one, slots=shared) as first, batching(two, slots=shared) as second:
        tasks = [await held(one, first), await held(two, second)]
        assert shared.free == 0
        one.go_on.set()
        two.go_on.set()
        assert [value(await task) for task in tasks] == [2 * FIRST, 2 * FIRST]
