"""How the frames of one stream wait, give way, are given up and keep their order; without a network."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel import streams
from splitmesh.kernel.streams import Cancel, Drain, FrameStream

WAIT_S = 5.0


class Bench:
    """A stream whose frames are sent, and whose answers are given, one by one; frames are numbered tuples."""

    def __init__(self, *, credit: int = 8, **options: Any) -> None:
        self.drain = Drain()
        self.began: list[int] = []
        self.cancelled: list[int] = []
        self._sent: asyncio.Queue[tuple[int, str] | Cancel | None] = asyncio.Queue()
        self._gates: dict[int, asyncio.Future[None]] = {}
        self.stream: FrameStream[tuple[int, str], str] = FrameStream(
            self._answer,
            lambda item, error: f"{item[0]} {error.reason}",
            frame_id=lambda item: item[0],
            credit=credit,
            drain=self.drain,
            **options,
        )
        self.responses: AsyncGenerator[str] = self.stream.serve(self._items())

    async def _items(self) -> AsyncIterator[tuple[int, str] | Cancel]:
        while (item := await self._sent.get()) is not None:
            yield item

    async def _answer(self, item: tuple[int, str]) -> str:
        self.began.append(item[0])
        gate = self._gates.setdefault(item[0], asyncio.get_running_loop().create_future())
        try:
            await gate
        except asyncio.CancelledError:
            self.cancelled.append(item[0])
            raise
        return f"{item[0]} {item[1] or 'answered'}"

    def send(self, *frame_ids: int, text: str = "") -> None:
        for frame_id in frame_ids:
            self._sent.put_nowait((frame_id, text))

    def cancel(self, frame_id: int) -> None:
        self._sent.put_nowait(Cancel(frame_id))

    def end(self) -> None:
        self._sent.put_nowait(None)

    def answer(self, *frame_ids: int) -> None:
        for frame_id in frame_ids:
            self._gates.setdefault(frame_id, asyncio.get_running_loop().create_future()).set_result(None)

    def fail(self, frame_id: int, reason: Reason) -> None:
        gate = self._gates.setdefault(frame_id, asyncio.get_running_loop().create_future())
        gate.set_exception(MeshError(reason, "as told"))

    async def read(self, count: int = 1) -> list[str]:
        async with asyncio.timeout(WAIT_S):
            return [await anext(self.responses) for _ in range(count)]

    async def rest(self) -> list[str]:
        async with asyncio.timeout(WAIT_S):
            return [response async for response in self.responses]

    async def settled(self) -> None:
        """Until nothing moves any more."""
        for _ in range(50):
            await asyncio.sleep(0)

    async def serve(self) -> asyncio.Task[list[str]]:
        """Read everything in the background."""
        task = asyncio.create_task(self.rest())
        await self.settled()
        return task


# order


async def test_in_order_a_slow_frame_holds_up_the_answers_behind_it() -> None:
    bench = Bench(in_order=True)
    bench.send(1, 2, 3)
    bench.end()
    reading = await bench.serve()
    bench.answer(3, 2)
    await bench.settled()
    assert not reading.done()
    bench.answer(1)
    assert await reading == ["1 answered", "2 answered", "3 answered"]


async def test_in_order_refusals_failures_and_cancellations_keep_their_place() -> None:
    bench = Bench(credit=3, in_order=True)
    bench.send(1, 2, 3, 4)
    bench.cancel(3)
    bench.end()
    reading = await bench.serve()
    bench.fail(2, Reason.TENSOR_NOT_FINITE)
    await bench.settled()
    bench.answer(1)
    assert await reading == ["1 answered", "2 TENSOR_NOT_FINITE", "3 CANCELLED", "4 QUEUE_FULL"]


async def test_in_order_a_frame_that_gave_way_keeps_its_place() -> None:
    bench = Bench(in_order=True, max_waiting=1, concurrency=1)
    bench.send(1, 2, 3)
    bench.end()
    reading = await bench.serve()
    assert bench.began == [1]
    bench.answer(1, 3)
    assert await reading == ["1 answered", "2 FRAME_SUPERSEDED", "3 answered"]


# giving way


async def test_the_newest_of_the_waiting_is_taken_next_and_the_oldest_gives_way() -> None:
    bench = Bench(max_waiting=2, concurrency=1)
    bench.send(1, 2, 3, 4)
    bench.end()
    reading = await bench.serve()
    assert bench.began == [1]
    bench.answer(1, 4, 3)
    assert await reading == ["2 FRAME_SUPERSEDED", "1 answered", "4 answered", "3 answered"]
    assert bench.began == [1, 4, 3]


async def test_without_dropping_frames_wait_in_the_order_they_came() -> None:
    bench = Bench(concurrency=1)
    bench.send(1, 2, 3)
    bench.end()
    reading = await bench.serve()
    bench.answer(1, 2, 3)
    assert await reading == ["1 answered", "2 answered", "3 answered"]
    assert bench.began == [1, 2, 3]


async def test_no_more_frames_are_worked_on_at_once_than_told() -> None:
    bench = Bench(concurrency=2)
    bench.send(1, 2, 3)
    bench.end()
    reading = await bench.serve()
    assert bench.began == [1, 2]
    bench.answer(2)
    await bench.settled()
    assert bench.began == [1, 2, 3]
    bench.answer(1, 3)
    assert sorted(await reading) == ["1 answered", "2 answered", "3 answered"]


# giving up


async def test_a_frame_given_up_is_cancelled_and_answered_by_cancelled() -> None:
    bench = Bench()
    bench.send(1, 2)
    bench.cancel(1)
    assert await bench.read() == ["1 CANCELLED"]
    bench.answer(2)
    bench.end()
    assert await bench.rest() == ["2 answered"]


async def test_what_a_frame_in_work_waits_for_is_cancelled_with_it() -> None:
    bench = Bench()
    bench.send(1)
    reading = asyncio.create_task(bench.read())
    await bench.settled()
    assert bench.began == [1]
    bench.cancel(1)
    assert await reading == ["1 CANCELLED"]
    assert bench.cancelled == [1]


async def test_a_waiting_frame_given_up_never_begins() -> None:
    bench = Bench(concurrency=1)
    bench.send(1, 2)
    bench.cancel(2)
    assert await bench.read() == ["2 CANCELLED"]
    bench.answer(1)
    bench.end()
    assert await bench.rest() == ["1 answered"]
    assert bench.began == [1]


async def test_an_answer_that_was_ready_is_not_taken_back_and_an_unknown_frame_is_nobodys() -> None:
    bench = Bench()
    bench.answer(1)
    bench.send(1)
    reading = asyncio.create_task(bench.read())
    await bench.settled()
    bench.cancel(1)
    bench.cancel(99)
    assert await reading == ["1 answered"]
    bench.end()
    assert await bench.rest() == []


async def test_a_frame_given_up_twice_is_answered_once() -> None:
    bench = Bench()
    bench.send(1)
    bench.cancel(1)
    bench.cancel(1)
    bench.end()
    assert await bench.rest() == ["1 CANCELLED"]


async def test_giving_up_twice_does_not_disturb_what_the_first_cleans_up() -> None:
    cleaned = []

    async def answer(item: int) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(item)
        return ""

    async def given_up_twice() -> AsyncIterator[int | Cancel]:
        yield 1
        await asyncio.sleep(0)
        yield Cancel(1)
        await asyncio.sleep(0)
        yield Cancel(1)

    stream: FrameStream[int, str] = FrameStream(
        answer, lambda item, error: error.reason.value, frame_id=lambda item: item, credit=1, drain=Drain()
    )
    async with asyncio.timeout(WAIT_S):
        assert [response async for response in stream.serve(given_up_twice())] == ["CANCELLED"]
    assert cleaned == [1]


async def test_a_frame_given_up_makes_room_for_one_that_waits() -> None:
    bench = Bench(concurrency=1)
    bench.send(1, 2)
    bench.cancel(1)
    bench.answer(2)
    bench.end()
    assert await bench.rest() == ["1 CANCELLED", "2 answered"]


async def test_a_frame_that_is_cancelled_from_within_is_answered_all_the_same() -> None:
    async def answer(item: int) -> str:
        raise asyncio.CancelledError

    async def one() -> AsyncIterator[int]:
        yield 1

    stream: FrameStream[int, str] = FrameStream(
        answer, lambda item, error: error.reason.value, frame_id=lambda item: item, credit=1, drain=Drain()
    )
    async with asyncio.timeout(WAIT_S):
        assert [response async for response in stream.serve(one())] == ["CANCELLED"]


# numbers


async def test_the_number_of_an_unanswered_frame_is_refused_and_free_once_its_answer_was_taken() -> None:
    bench = Bench()
    bench.send(1)
    bench.send(1, text="the second")
    assert await bench.read() == ["1 FIELD_INVALID"]
    bench.answer(1)
    assert await bench.read() == ["1 answered"]
    bench.send(1, text="the third")
    bench.end()
    assert await bench.rest() == ["1 the third"]


# who does not read


@pytest.mark.parametrize("in_order", [False, True])
async def test_a_client_that_does_not_read_is_not_read_from(in_order: bool) -> None:
    read: list[int] = []

    async def many() -> AsyncIterator[int]:
        for item in range(1000):
            read.append(item)
            yield item

    async def answer(item: int) -> str:
        return str(item)

    stream: FrameStream[int, str] = FrameStream(
        answer,
        lambda item, error: f"{item} {error.reason}",
        frame_id=lambda item: item,
        credit=4,
        drain=Drain(),
        in_order=in_order,
        max_waiting=1,
        concurrency=1,
    )
    responses = stream.serve(many())
    await anext(responses)
    for _ in range(200):
        await asyncio.sleep(0)
    assert len(read) <= 2 * 4 + 1
    async with asyncio.timeout(WAIT_S):
        outcomes = 1 + len([response async for response in responses])
    assert outcomes == len(read) == 1000


# draining


async def test_a_drain_is_announced_once_and_what_comes_after_it_is_refused() -> None:
    bench = Bench(draining="draining")
    bench.send(1)
    reading = asyncio.create_task(bench.read(2))
    await bench.settled()
    draining = asyncio.create_task(bench.drain.drain(60))
    await bench.settled()
    bench.send(2)
    assert await reading == ["draining", "2 NOT_READY"]
    bench.answer(1)
    assert await bench.read() == ["1 answered"]
    bench.end()
    await ended_by_the_drain(bench)
    async with asyncio.timeout(WAIT_S):
        await draining


async def test_a_drain_ends_a_stream_whose_client_never_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LAST_READ_S", 0.02)
    bench = Bench(draining="draining", concurrency=1)
    bench.send(1, 2)
    reading = asyncio.create_task(bench.read())
    await bench.settled()
    draining = asyncio.create_task(bench.drain.drain(60))
    assert await reading == ["draining"]
    bench.answer(1, 2)
    assert await bench.read(2) == ["1 answered", "2 answered"]
    await ended_by_the_drain(bench)
    async with asyncio.timeout(WAIT_S):
        await draining


async def ended_by_the_drain(bench: Bench) -> None:
    with pytest.raises(MeshError) as caught:
        await bench.read()
    assert caught.value.reason is Reason.NOT_READY


@pytest.mark.parametrize("in_order", [False, True])
async def test_a_frame_that_has_its_response_is_let_go_while_the_stream_is_quiet(in_order: bool) -> None:
    sent: asyncio.Queue[memoryview] = asyncio.Queue()
    first_ends = asyncio.Event()

    async def items() -> AsyncIterator[memoryview | Cancel]:
        while True:
            yield await sent.get()

    async def answer(item: memoryview) -> str:
        if item[0] == 0:
            await first_ends.wait()
        return f"{item[0]}"

    stream: FrameStream[memoryview, str] = FrameStream(
        answer, lambda _, error: error.reason, frame_id=lambda item: item[0], credit=4, drain=Drain(), in_order=in_order
    )
    responses = stream.serve(items())
    reading = asyncio.ensure_future(anext(responses))
    large = []
    for number in range(3):
        frame = memoryview(bytes([number]))
        large.append(weakref.ref(frame))
        sent.put_nowait(frame)
    del frame
    for _ in range(50):
        await asyncio.sleep(0)
    assert [one() is None for one in large] == [False, True, True]
    first_ends.set()
    async with asyncio.timeout(WAIT_S):
        await reading
    for _ in range(50):
        await asyncio.sleep(0)
    assert large[0]() is None
    await responses.aclose()
