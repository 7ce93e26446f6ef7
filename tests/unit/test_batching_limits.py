"""What a queue takes: exactly its limit of frames and bytes, and nothing that would wait in vain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress

import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.batching import Computed
from splitmesh.oip.together import all_or_none
from splitmesh.tensor.spec import Array
from tests.support.held import POISON, WAIT_S, Doubler, batching, busy, feed, held, known_times, slots, submitted, value


def refused(results: list[object]) -> list[MeshError]:
    return [one for one in results if isinstance(one, MeshError)]


@pytest.mark.parametrize(("limit", "above"), [(1, 1), (3, 5), (8, 0), (20, 30)])
async def test_of_many_frames_at_once_exactly_those_above_the_limit_are_refused(limit: int, above: int) -> None:
    run = Doubler()
    async with busy(run, max_queue=limit) as (batcher, _):
        tasks = await submitted(batcher, *range(limit + above))
        await asyncio.sleep(0)
        early = [task for task in tasks if task.done()]
        assert len(early) == above
        run.go_on.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    errors = refused(results)
    assert len(errors) == above
    assert {error.reason for error in errors} <= {Reason.QUEUE_FULL}
    assert batcher.tally.refused == above
    assert batcher.tally.computed == limit + 1


async def test_after_a_batch_that_failed_frames_that_expired_or_were_given_up_meanwhile_are_not_computed_again() -> (
    None
):
    run = Doubler()
    async with busy(run, max_delay_s=0.0) as (batcher, _):
        kept, gone, late, poison = await submitted(batcher, 1, 2, 3, POISON)
        computed: list[float] = []

        def slowly(feeds: Mapping[str, Array]) -> dict[str, Array]:
            values = feeds["x"][:, 0].tolist()
            if len(values) > 1:
                loop.call_soon_threadsafe(gone.cancel)
                time.sleep(0.3)
                raise RuntimeError("together they fail")
            computed.extend(values)
            return {"y": feeds["x"] * 2}

        loop = asyncio.get_running_loop()
        batcher._run = slowly
        for waiting in batcher._waiting:
            if waiting.feeds["x"][0, 0] == 3:
                waiting.expires = loop.time() + 0.2
        run.go_on.set()
        results = await asyncio.gather(kept, gone, late, poison, return_exceptions=True)
    assert computed == [1.0, POISON]
    assert isinstance(results[1], asyncio.CancelledError)
    assert isinstance(results[2], MeshError)
    assert results[2].reason is Reason.DEADLINE_EXPIRED


async def test_the_time_to_retry_is_the_estimated_backlog() -> None:
    run = Doubler()
    async with busy(run, max_queue=4, times=known_times(b1=0.5, b4=1.0)) as (batcher, _):
        tasks = await submitted(batcher, 1, 2, 3, 4)
        with pytest.raises(MeshError) as caught:
            await batcher.submit(feed(5), 60.0)
        backlog_s = batcher.backlog_s()
        run.go_on.set()
        await asyncio.gather(*tasks)
    assert caught.value.retry_after_s == pytest.approx(backlog_s, abs=0.05)
    # Four frames in a batch of a second, and what is left of the half second that the first one takes.
    assert 1.0 < backlog_s <= 1.5


async def test_an_idle_node_has_no_backlog_and_a_busy_one_the_rest_of_its_batch() -> None:
    run = Doubler()
    async with batching(run, times=known_times(b1=3.0)) as batcher:
        assert batcher.backlog_s() == 0.0
        first = await held(run, batcher)
        assert 2.0 < batcher.backlog_s() <= 3.0
        run.go_on.set()
        await first


async def test_the_limit_of_the_node_holds_over_all_segments() -> None:
    one, two = Doubler(), Doubler()
    async with (
        slots(max_frames=3) as shared,
        batching(one, slots=shared) as first,
        batching(two, slots=shared) as second,
    ):
        blocking = await held(one, first)
        tasks = [*await submitted(first, 1, 2), *await submitted(second, 3)]
        for batcher in (first, second):
            with pytest.raises(MeshError, match="on this node, at most 3") as caught:
                await batcher.submit(feed(9), 5.0)
            assert caught.value.reason is Reason.QUEUE_FULL
        one.go_on.set()
        assert [value(done) for done in await asyncio.gather(*tasks)] == [2.0, 4.0, 6.0]
        await blocking
        assert (shared.frames, shared.bytes) == (0, 0)


async def test_waiting_bytes_are_bounded_and_a_lone_frame_is_taken_whatever_its_size() -> None:
    run = Doubler()
    async with slots(max_bytes=100) as shared, batching(run, slots=shared) as batcher:
        blocking = await held(run, batcher)
        big = asyncio.create_task(batcher.submit(feed(1, width=100), 5.0))
        await asyncio.sleep(0)
        assert shared.bytes == 400
        with pytest.raises(MeshError, match="bytes are waiting") as caught:
            await batcher.submit(feed(2), 5.0)
        assert caught.value.reason is Reason.QUEUE_FULL
        run.go_on.set()
        await asyncio.gather(blocking, big)
        assert value(await batcher.submit(feed(2), 5.0)) == 4.0


async def test_a_frame_that_is_being_unpacked_holds_its_place_and_gives_it_back_when_it_is_broken() -> None:
    run = Doubler()
    async with busy(run, max_queue=1) as (batcher, _):
        with suppress(ValueError), batcher.place(4, 5.0):
            assert len(batcher) == 1
            with pytest.raises(MeshError, match="at most 1"):
                await batcher.submit(feed(1), 5.0)
            raise ValueError("broken")
        (fine,) = await submitted(batcher, 2)
        run.go_on.set()
        assert value(await fine) == 4.0
    assert batcher.tally.cancelled == 0


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


async def test_an_expired_frame_gives_its_place_to_one_that_comes() -> None:
    run = Doubler()
    async with busy(run, max_queue=1) as (batcher, _):
        (late,) = await submitted(batcher, 1, deadline_s=0.01)
        await asyncio.sleep(0.02)
        (fine,) = await submitted(batcher, 2)
        with pytest.raises(MeshError) as caught:
            await late
        run.go_on.set()
        assert value(await fine) == 4.0
    assert caught.value.reason is Reason.DEADLINE_EXPIRED


async def test_a_frame_whose_deadline_is_nearer_than_the_backlog_is_refused_at_once() -> None:
    run = Doubler()
    async with busy(run, max_batch=1, times=known_times(b1=0.5)) as (batcher, _):
        tasks = await submitted(batcher, 1, 2)
        with pytest.raises(MeshError, match="would wait about") as caught:
            await batcher.submit(feed(3), 0.3)
        assert caught.value.reason is Reason.QUEUE_FULL
        assert caught.value.retry_after_s == pytest.approx(1.4, abs=0.2)
        (urgent,) = await submitted(batcher, 4, deadline_s=0.9, priority=9)
        run.go_on.set()
        await asyncio.gather(*tasks, urgent)
    assert run.batches == [[100.0], [4.0], [1.0], [2.0]]


async def test_a_sample_given_up_because_another_of_its_request_failed_is_counted() -> None:
    run = Doubler()
    async with busy(run) as (batcher, _):
        with pytest.raises(ZeroDivisionError), batcher.place(4, WAIT_S) as place:
            await all_or_none([place.computed(feed(1)), failing()])
        assert (len(batcher), batcher.tally.cancelled) == (0, 1)
        run.go_on.set()


async def failing() -> Computed:
    await asyncio.sleep(0.01)
    raise ZeroDivisionError
