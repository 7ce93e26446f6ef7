"""One stream object against a scripted head: order, frames that give way, cancelling, credit, traces, and bad options."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.client import Answer, FrameFailure, Mesh, MeshError, Reason, StreamCounts
from tests.support.fake_head import Break, FakeHead, answer_to, served
from tests.support.streaming import streamed

WAIT_S = 20.0
pytestmark = pytest.mark.timeout(WAIT_S)
GONE = MeshError(Reason.NOT_READY, "this node is shutting down", retry_after_s=0.01)


@pytest.fixture
async def head() -> AsyncIterator[FakeHead]:
    async with served(FakeHead()) as started:
        yield started


@pytest.fixture
async def mesh(head: FakeHead) -> AsyncIterator[Mesh]:
    async with Mesh(head.address) as opened:
        yield opened


def frames(count: int) -> list[bytes]:
    return [f"frame {index}".encode() for index in range(count)]


def reasons(outcomes: list[Answer | FrameFailure]) -> list[str]:
    return ["" if isinstance(one, Answer) else one.error.reason.value for one in outcomes]


async def never(request: pb.InferRequest) -> pb.InferResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def test_the_options_of_a_stream_are_its_first_message(head: FakeHead, mesh: Mesh) -> None:
    await streamed(mesh, frames(1), order="in-order", drop="oldest", max_waiting=3, deadline_ms=77, max_labels=2)
    await streamed(mesh, frames(1))
    wanted = pb.StreamOptions(order=pb.ANSWER_ORDER_IN_ORDER, drop=pb.DROP_POLICY_OLDEST, max_waiting=3)
    assert head.options == [wanted]
    assert [(one.deadline_ms, one.max_labels) for one in head.seen] == [(77, 2), (1000, 0)]
    await mesh.infer(b"x", max_labels=5)
    assert head.seen[-1].max_labels == 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"order": "newest"},
        {"drop": "newest"},
        {"window": 0},
        {"window": 5000},
        {"max_waiting": 0},
        {"give_up_s": 0.0},
        {"deadline_ms": 0},
        {"max_labels": -1},
    ],
    ids=lambda wrong: "-".join(map(str, next(iter(wrong.items())))),
)
async def test_a_bad_option_is_named(mesh: Mesh, wrong: dict[str, Any]) -> None:
    with pytest.raises(MeshError) as caught:
        mesh.stream(**wrong)
    assert caught.value.reason is Reason.FIELD_INVALID
    assert caught.value.fields[0][0] == next(iter(wrong))


async def test_frames_are_sent_by_one_task_and_read_by_another(mesh: Mesh) -> None:
    async with mesh.stream("c", window=2) as stream:

        async def send() -> list[int]:
            numbers = [await stream.send(frame) for frame in frames(10)]
            stream.end()
            return numbers

        sending = asyncio.create_task(send())
        outcomes = [outcome async for outcome in stream]
        assert await sending == list(range(10))
    assert sorted(one.label.name for one in outcomes if isinstance(one, Answer)) == [f"frame {i}" for i in range(10)]
    assert stream.counts == StreamCounts(sent=10, answered=10)
    with pytest.raises(MeshError, match="closed"):
        await stream.send(b"late")


async def test_a_stream_says_how_it_is_misused(mesh: Mesh) -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await mesh.stream().send(b"x")
    with pytest.raises(RuntimeError, match="async with"):
        await anext(mesh.stream().run(frames(1)))
    async with mesh.stream() as stream:
        stream.end()
        with pytest.raises(RuntimeError, match="ended"):
            await stream.send(b"x")
    async with mesh.stream() as stream:
        await stream.send("a path?")  # type: ignore[arg-type]
        failure = await anext(stream)
    assert isinstance(failure, FrameFailure)
    assert failure.error.reason is Reason.FIELD_INVALID


async def test_in_order_holds_through_slow_frames_refusals_failures_and_a_break(head: FakeHead, mesh: Mesh) -> None:
    async def uneven(request: pb.InferRequest) -> pb.InferResponse:
        seen = sum(one.frame_id == request.frame_id for one in head.seen)
        if request.frame_id % 5 == 0 and seen == 1:
            raise MeshError(Reason.QUEUE_FULL, "full", retry_after_s=0.01)
        if request.frame_id == 7:
            raise MeshError(Reason.IMAGE_UNDECODABLE, "no picture")
        if request.frame_id == 13 and seen == 1:
            raise Break(GONE)
        await asyncio.sleep(0.02 if request.frame_id % 3 == 0 else 0)
        return answer_to(request)

    head.answer = uneven
    outcomes = await streamed(mesh, frames(30), order="in-order")
    assert [one.frame_id for one in outcomes] == list(range(30))
    assert [number for number, reason in enumerate(reasons(outcomes)) if reason] == [7]
    assert head.streams == 2


async def test_as_ready_a_slow_frame_holds_up_nobody(head: FakeHead, mesh: Mesh) -> None:
    async def slow_first(request: pb.InferRequest) -> pb.InferResponse:
        return await (never(request) if request.frame_id == 0 else asyncio.sleep(0, answer_to(request)))

    head.answer = slow_first
    async with mesh.stream() as stream:
        for frame in frames(5):
            await stream.send(frame)
        assert sorted([(await anext(stream)).frame_id for _ in range(4)]) == [1, 2, 3, 4]


async def test_a_camera_that_drops_never_waits_for_a_slow_head_and_counts_what_gave_way(
    head: FakeHead, mesh: Mesh
) -> None:
    head.credit, head.answer = 2, never
    async with mesh.stream("c", drop="oldest", window=8, max_waiting=2) as stream:
        for frame in frames(2):
            await stream.send(frame)
        while len(head.seen) < 2:
            head.arrived.clear()
            await head.arrived.wait()
        for frame in frames(6):
            await stream.send(frame)
        outcomes = [await anext(stream) for _ in range(4)]
        assert [one.frame_id for one in outcomes] == [2, 3, 4, 5]
        assert set(reasons(outcomes)) == {"FRAME_SUPERSEDED"}
        assert stream.counts == StreamCounts(sent=8, superseded=4)
        assert head.most_unanswered == 2


async def test_a_frame_superseded_at_the_head_is_counted_and_not_sent_again(head: FakeHead, mesh: Mesh) -> None:
    async def newest_only(request: pb.InferRequest) -> pb.InferResponse:
        if request.frame_id < 4:
            raise MeshError(Reason.FRAME_SUPERSEDED, "a newer frame waits")
        return answer_to(request)

    head.answer = newest_only
    async with mesh.stream(drop="oldest", max_waiting=100) as stream:
        outcomes = [outcome async for outcome in stream.run(frames(6))]
    assert reasons(sorted(outcomes, key=lambda one: one.frame_id)) == ["FRAME_SUPERSEDED"] * 4 + [""] * 2
    assert stream.counts == StreamCounts(sent=6, answered=2, superseded=4)
    assert len(head.seen) == 6


async def test_while_a_head_says_that_it_is_overloaded_nothing_more_is_sent_and_the_newest_frame_is_next(
    head: FakeHead, mesh: Mesh
) -> None:
    async def overloaded_once(request: pb.InferRequest) -> pb.InferResponse:
        if request.frame_id == 0:
            raise MeshError(Reason.DEADLINE_EXPIRED, "too late already", retry_after_s=1.0)
        return answer_to(request)

    head.answer = overloaded_once
    async with mesh.stream(drop="oldest") as stream:
        await stream.send(b"refused")
        refused = await anext(stream)
        for frame in frames(5):
            await stream.send(frame)
            await asyncio.sleep(0.02)
        stream.end()
        outcomes = [refused, *[outcome async for outcome in stream]]
    assert reasons(outcomes) == ["DEADLINE_EXPIRED", *["FRAME_SUPERSEDED"] * 4, ""]
    assert [one.frame_id for one in head.seen] == [0, 5]


async def test_a_reader_that_does_not_read_slows_also_a_camera_that_drops(head: FakeHead, mesh: Mesh) -> None:
    head.credit, head.answer = 1, never
    async with mesh.stream(drop="oldest", window=3) as stream:
        await stream.send(b"at the head")
        await head.arrived.wait()
        for frame in frames(1 + 3):
            await stream.send(frame)  # one waits, three gave way
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await stream.send(b"one more")
        await anext(stream)
        async with asyncio.timeout(WAIT_S):
            await stream.send(b"one more")


async def test_a_cancelled_frame_is_given_up_at_the_head_too(head: FakeHead, mesh: Mesh) -> None:
    head.credit, head.answer = 1, never
    async with mesh.stream() as stream:
        at_head, waiting = await stream.send(b"at the head"), await stream.send(b"waiting")
        await head.arrived.wait()
        assert stream.cancel(waiting)
        first = await anext(stream)
        assert stream.cancel(at_head)
        second = await anext(stream)
        assert not stream.cancel(at_head)
        assert not stream.cancel(99)
        assert [(one.frame_id, *reasons([one])) for one in (first, second)] == [(1, "CANCELLED"), (0, "CANCELLED")]
        assert stream.counts == StreamCounts(sent=2, cancelled=2)
    assert (head.cancelled, len(head.seen)) == ([0], 1)


async def test_an_answer_that_cannot_be_read_fails_its_frame_and_no_other(head: FakeHead, mesh: Mesh) -> None:
    async def from_the_future(request: pb.InferRequest) -> pb.InferResponse:
        answer = answer_to(request)
        if request.frame_id == 1:
            answer.answered_by = 99  # type: ignore[assignment]
        return answer

    head.answer = from_the_future
    async with asyncio.timeout(WAIT_S), mesh.stream() as stream:
        outcomes = [outcome async for outcome in stream.run(frames(3))]
    assert reasons(sorted(outcomes, key=lambda one: one.frame_id)) == ["", "PROTOCOL_VIOLATION", ""]
    assert (head.streams, len(head.seen)) == (1, 3)


async def test_a_cancelled_frame_that_nobody_answers_ends_as_cancelled(head: FakeHead) -> None:
    head.answer, head.takes_cancels = never, False
    async with asyncio.timeout(WAIT_S), Mesh(head.address) as mesh, mesh.stream(give_up_s=0.3) as stream:
        frame_id = await stream.send(b"x")
        await head.arrived.wait()
        assert stream.cancel(frame_id)
        assert reasons([await anext(stream)]) == ["CANCELLED"]
        assert stream.counts == StreamCounts(sent=1, cancelled=1)


async def test_a_cancelled_frame_is_not_sent_again_after_a_break(head: FakeHead, mesh: Mesh) -> None:
    leave = asyncio.Event()

    async def break_when_told(request: pb.InferRequest) -> pb.InferResponse:
        if head.streams > 1:
            return answer_to(request)
        await leave.wait()
        raise Break(GONE)

    head.answer = break_when_told
    head.takes_cancels = False
    async with mesh.stream() as stream:
        for frame in frames(3):
            await stream.send(frame)
        while len(head.seen) < 3:
            head.arrived.clear()
            await head.arrived.wait()
        stream.cancel(1)
        leave.set()
        stream.end()
        outcomes = [outcome async for outcome in stream]
    assert reasons(sorted(outcomes, key=lambda one: one.frame_id)) == ["", "CANCELLED", ""]
    assert [one.frame_id for one in head.seen].count(1) == 1


async def test_a_frame_that_was_given_up_uses_the_heads_credit_until_the_head_lets_go(head: FakeHead) -> None:
    head.credit, head.answer, head.takes_cancels = 2, never, False
    async with asyncio.timeout(WAIT_S), Mesh(head.address) as mesh, mesh.stream(give_up_s=0.3) as stream:
        for frame in frames(6):
            await stream.send(frame)
        outcomes = [await anext(stream) for _ in range(6)]
        while len(head.cancelled) < 2:
            head.arrived.clear()
            await head.arrived.wait()
    assert set(reasons(outcomes)) == {"SERVICE_UNAVAILABLE"}
    assert len(head.seen) == 2
    assert sorted(head.cancelled) == [0, 1]


async def test_a_frame_belongs_to_the_callers_trace_and_its_span_stays_open(head: FakeHead, mesh: Mesh) -> None:
    tracer = TracerProvider().get_tracer("the caller's own")
    with tracer.start_as_current_span("inspection") as span:
        await mesh.infer(b"a call")
        await streamed(mesh, frames(2))
        assert span.is_recording()
    await streamed(mesh, frames(2))
    trace_id = format(span.get_span_context().trace_id, "032x")
    found = [one.traceparent.split("-")[1] for one in head.seen]
    assert found[:3] == [trace_id] * 3
    assert len({*found[3:], trace_id}) == 3


async def test_closing_the_mesh_ends_its_calls(head: FakeHead, mesh: Mesh) -> None:
    head.answer = never
    await head.serving(False)
    nobody_is_well = Mesh(f"{head.address},127.0.0.1:1", deadline_ms=15_000)
    calls = [asyncio.create_task(one.infer(b"x", deadline_ms=15_000)) for one in (mesh, nobody_is_well)]
    while not (head.seen and head.asked):  # noqa: ASYNC110  the head tells nobody
        await asyncio.sleep(0.01)
    await asyncio.gather(mesh.close(), nobody_is_well.close())
    calls.append(asyncio.create_task(mesh.infer(b"afterwards")))
    for call in calls:
        with pytest.raises(MeshError) as caught:
            async with asyncio.timeout(WAIT_S / 4):
                await call
        assert caught.value.reason is Reason.CANCELLED


async def test_closing_the_mesh_ends_its_streams(head: FakeHead, mesh: Mesh) -> None:
    head.answer = never
    async with mesh.stream() as stream:
        await stream.send(b"x")
        reading = asyncio.create_task(anext(stream))  # type: ignore[arg-type]
        await head.arrived.wait()
        await mesh.close()
        with pytest.raises(MeshError) as caught:
            await reading
    assert caught.value.reason is Reason.CANCELLED
