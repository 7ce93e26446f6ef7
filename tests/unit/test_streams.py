"""One stream being answered: concurrency, credit, drain and cancellation, without a network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.latest import Latest
from splitmesh.kernel.streams import Drain, FrameStream

WAIT_S = 5.0
Answer = Callable[[int], Coroutine[Any, Any, str]]


async def items(*values: int) -> AsyncIterator[int]:
    for value in values:
        yield value


async def endless() -> AsyncIterator[int]:
    await asyncio.Event().wait()
    yield 0


async def quick(item: int) -> str:
    return f"answer {item}"


def stream(answer: Answer, *, credit: int = 4, drain: Drain | None = None) -> FrameStream[int, str]:
    return FrameStream(
        answer,
        lambda item, error: f"refused {item}: {error.reason}",
        frame_id=lambda item: item,
        credit=credit,
        drain=drain or Drain(),
    )


async def collected(responses: AsyncGenerator[str]) -> list[str]:
    async with asyncio.timeout(WAIT_S):
        return [response async for response in responses]


async def drained(drain: Drain) -> None:
    """Drain completely, in much less than its time-out."""
    async with asyncio.timeout(WAIT_S):
        await drain.drain(60)


async def test_everything_taken_is_answered_as_soon_as_it_is_ready() -> None:
    second = asyncio.Event()

    async def second_first(item: int) -> str:
        if item == 1:
            await second.wait()
        second.set()
        return str(item)

    assert await collected(stream(second_first).serve(items(1, 2))) == ["2", "1"]


async def test_a_failure_of_one_item_is_its_own_answer_and_its_text_is_kept_back() -> None:
    async def mixed(item: int) -> str:
        if item == 1:
            raise MeshError(Reason.TENSOR_NOT_FINITE, "NaN")
        if item == 2:
            raise ValueError("secret")
        return "fine"

    assert sorted(await collected(stream(mixed).serve(items(1, 2, 3)))) == [
        "fine",
        "refused 1: TENSOR_NOT_FINITE",
        "refused 2: INTERNAL",
    ]


async def test_exactly_the_item_above_the_credit_is_refused() -> None:
    go_on = asyncio.Event()

    async def wait(item: int) -> str:
        await go_on.wait()
        return str(item)

    responses = stream(wait, credit=2).serve(items(1, 2, 3))
    async with asyncio.timeout(WAIT_S):
        assert await anext(responses) == "refused 3: QUEUE_FULL"
    go_on.set()
    assert sorted(await collected(responses)) == ["1", "2"]


async def test_a_drain_answers_what_was_taken_and_then_says_not_ready() -> None:
    drain, taken, go_on = Drain(), asyncio.Event(), asyncio.Event()

    async def wait(item: int) -> str:
        taken.set()
        await go_on.wait()
        return str(item)

    async def one_and_then_nothing() -> AsyncIterator[int]:
        yield 1
        async for item in endless():
            yield item

    responses = stream(wait, drain=drain).serve(one_and_then_nothing())
    first = asyncio.create_task(anext(responses))
    async with asyncio.timeout(WAIT_S):
        await taken.wait()
    draining = asyncio.create_task(drain.drain(60))
    async with asyncio.timeout(WAIT_S):
        await drain.begun.wait()
    go_on.set()
    async with asyncio.timeout(WAIT_S):
        assert await first == "1"
    with pytest.raises(MeshError) as caught:
        await anext(responses)
    assert caught.value.reason is Reason.NOT_READY
    async with asyncio.timeout(WAIT_S):
        await draining


async def test_no_stream_opens_while_draining() -> None:
    drain = Drain()
    await drained(drain)
    with pytest.raises(MeshError) as caught:
        await collected(stream(quick, drain=drain).serve(items()))
    assert caught.value.reason is Reason.NOT_READY


async def test_an_error_of_the_source_is_raised_after_what_was_taken_is_answered() -> None:
    go_on = asyncio.Event()

    async def wait(item: int) -> str:
        await go_on.wait()
        return str(item)

    async def broken() -> AsyncIterator[int]:
        yield 1
        go_on.set()
        raise MeshError(Reason.PROTOCOL_VIOLATION, "a chunk without a frame")

    responses = stream(wait).serve(broken())
    async with asyncio.timeout(WAIT_S):
        assert await anext(responses) == "1"
    with pytest.raises(MeshError) as caught:
        await anext(responses)
    assert caught.value.reason is Reason.PROTOCOL_VIOLATION


async def test_a_reader_that_leaves_with_a_full_queue_leaves_nothing_behind() -> None:
    drain, answered = Drain(), asyncio.Event()

    async def many() -> AsyncIterator[int]:
        for item in range(100):
            yield item
            await asyncio.sleep(0)  # let the answers be put

    async def count(item: int) -> str:
        if item == 10:
            answered.set()
        return str(item)

    before = asyncio.all_tasks()
    responses = stream(count, credit=2, drain=drain).serve(many())
    await anext(responses)
    for _ in range(200):
        await asyncio.sleep(0)  # until nothing moves any more: the queue is full and nobody reads
    assert not answered.is_set()
    async with asyncio.timeout(WAIT_S):
        await responses.aclose()
    await drained(drain)
    assert asyncio.all_tasks() == before


async def test_a_second_cancellation_during_the_first_does_not_keep_the_drain_waiting() -> None:
    drain, taken, stubborn = Drain(), asyncio.Event(), asyncio.Event()

    async def resists(item: int) -> str:
        taken.set()
        try:
            await asyncio.Event().wait()
        finally:
            await stubborn.wait()
        return ""

    async def read() -> None:
        async for _ in stream(resists, drain=drain).serve(items(1)):
            pass

    reading = asyncio.create_task(read())
    async with asyncio.timeout(WAIT_S):
        await taken.wait()
    for _ in range(2):
        reading.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(WAIT_S):
            await reading
    await drained(drain)
    stubborn.set()


async def test_a_cancelled_stream_cancels_its_answers() -> None:
    drain, taken, cancelled = Drain(), asyncio.Event(), asyncio.Event()

    async def wait(item: int) -> str:
        taken.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return ""

    responses = stream(wait, drain=drain).serve(items(1))
    first = asyncio.create_task(anext(responses))
    async with asyncio.timeout(WAIT_S):
        await taken.wait()
    first.cancel()
    async with asyncio.timeout(WAIT_S):
        await cancelled.wait()
    await drained(drain)


async def test_frames_whose_reader_has_left_are_refused_once_each_begun_or_not() -> None:
    refused: list[tuple[int, Reason]] = []

    async def wait(item: int) -> str:
        if item == 1:
            return "answer"
        await asyncio.Event().wait()
        return ""

    def refuse(item: int, error: MeshError) -> str:
        refused.append((item, error.reason))
        return ""

    left = FrameStream(wait, refuse, frame_id=lambda item: item, credit=4, drain=Drain(), concurrency=2)
    responses = left.serve(items(1, 2, 3, 4))
    async with asyncio.timeout(WAIT_S):
        assert await anext(responses) == "answer"
    await responses.aclose()
    assert sorted(refused) == [(item, Reason.CANCELLED) for item in (2, 3, 4)]


async def test_a_drain_waits_no_longer_than_told() -> None:
    drain = Drain()
    drain.enter()
    async with asyncio.timeout(WAIT_S):
        await drain.drain(0.01)


# a value that is followed


async def test_a_follower_sees_the_value_then_each_change_and_who_is_slow_the_latest() -> None:
    latest, drain = Latest("a"), Drain()
    follower = latest.follow(drain, longest_s=60)
    assert await anext(follower) == "a"
    latest.set("b")
    latest.set("c")
    assert await anext(follower) == "c"
    waiting = asyncio.create_task(anext(follower))
    await asyncio.sleep(0)
    latest.set("d")
    async with asyncio.timeout(WAIT_S):
        assert await waiting == "d"
    await follower.aclose()
    await drained(drain)


async def test_a_follower_of_nothing_yet_waits_for_the_first_value_and_ends_after_its_time() -> None:
    latest: Latest[str] = Latest()
    follower = latest.follow(Drain(), longest_s=0.01)
    assert [value async for value in follower] == []
    follower = latest.follow(Drain(), longest_s=60)
    waiting = asyncio.create_task(anext(follower))
    await asyncio.sleep(0)
    latest.set("first")
    async with asyncio.timeout(WAIT_S):
        assert await waiting == "first"
    await follower.aclose()


async def test_a_follower_is_told_when_draining_begins() -> None:
    drain = Drain()
    follower = Latest("a").follow(drain, longest_s=60)
    assert await anext(follower) == "a"
    waiting = asyncio.create_task(anext(follower))
    await asyncio.sleep(0)
    await drained(drain)
    with pytest.raises(MeshError) as caught:
        await waiting
    assert caught.value.reason is Reason.NOT_READY
