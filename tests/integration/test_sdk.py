"""The SDK against a scripted head: one outcome per frame whatever the head does, and no more under way than agreed."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.client import Answer, AnsweredBy, FrameFailure, Mesh, MeshError, Reason, StreamCounts
from tests.support.fake_head import Break, FakeHead, answer_to, served

WAIT_S = 20.0
GONE = MeshError(Reason.NOT_READY, "this node is shutting down", retry_after_s=0.01)


def frames(count: int) -> list[bytes]:
    return [f"frame {index}".encode() for index in range(count)]


@pytest.fixture
async def head() -> AsyncIterator[FakeHead]:
    async with served(FakeHead()) as started:
        yield started


async def collect(mesh: Mesh, source: list[bytes], **options: float) -> list[Answer | FrameFailure]:
    async with asyncio.timeout(WAIT_S):
        async with mesh.stream(**options) as stream:  # type: ignore[arg-type]
            return [outcome async for outcome in stream.run(source)]


def assert_each_answered_once(outcomes: list[Answer | FrameFailure], count: int) -> None:
    answers = [one for one in outcomes if isinstance(one, Answer)]
    assert sorted((one.frame_id, one.label.name) for one in answers) == [(i, f"frame {i}") for i in range(count)]
    assert len(outcomes) == count


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return f"127.0.0.1:{sock.getsockname()[1]}"


# one call


async def test_a_call_answers_bytes_and_files_alike(head: FakeHead, tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(b"from a file")
    async with Mesh(head.address, model="m") as mesh:
        assert (await mesh.infer(b"from memory", camera="c7", deadline_ms=123)).label.name == "from memory"
        answer = await mesh.infer(tmp_path / "picture")
    assert (answer.label.name, answer.model, answer.answered_by) == ("from a file", "m", AnsweredBy.EDGE_EXIT)
    first, second = head.seen
    assert first.camera_id == "c7"
    assert 0 < first.deadline_ms <= 123 < second.deadline_ms <= 1000  # what was left of it when it was sent
    assert first.traceparent.startswith("00-")
    assert first.traceparent != second.traceparent


async def test_a_call_is_tried_again_while_the_head_is_not_ready(head: FakeHead) -> None:
    async def at_third(request: pb.InferRequest) -> pb.InferResponse:
        if len(head.seen) < 3:
            raise GONE
        return answer_to(request)

    head.answer = at_third
    async with Mesh(head.address) as mesh:
        assert (await mesh.infer(b"x")).label.name == "x"
        assert len(head.seen) == 3
        head.seen.clear()
        with pytest.raises(MeshError) as caught:
            await mesh.infer(b"x", retries=1)
    assert caught.value.reason is Reason.NOT_READY
    assert len(head.seen) == 2


async def test_a_bad_frame_is_not_sent_a_second_time(head: FakeHead) -> None:
    async def refuse(request: pb.InferRequest) -> pb.InferResponse:
        raise MeshError(Reason.IMAGE_UNDECODABLE, "no picture", metadata={"found": "text"})

    head.answer = refuse
    async with Mesh(head.address) as mesh:
        with pytest.raises(MeshError, match="no picture") as caught:
            await mesh.infer(b"x")
    assert (caught.value.reason, dict(caught.value.metadata)) == (Reason.IMAGE_UNDECODABLE, {"found": "text"})
    assert len(head.seen) == 1


async def test_a_head_that_never_answers_costs_the_deadline_and_a_margin(head: FakeHead) -> None:
    async def never(request: pb.InferRequest) -> pb.InferResponse:
        await asyncio.Event().wait()
        raise AssertionError

    head.answer = never
    async with Mesh(head.address) as mesh:
        started = asyncio.get_running_loop().time()
        with pytest.raises(MeshError) as caught:
            await mesh.infer(b"x", deadline_ms=100, retries=0)
    assert caught.value.reason is Reason.DEADLINE_EXPIRED
    assert 0.1 <= asyncio.get_running_loop().time() - started < 5.0


async def test_without_a_head_a_call_says_so() -> None:
    async with Mesh(free_address()) as mesh:
        with pytest.raises(MeshError) as caught:
            await mesh.infer(b"x", retries=0)
    assert caught.value.reason is Reason.SERVICE_UNAVAILABLE


async def test_a_frame_above_the_gateways_own_limit_is_not_sent(head: FakeHead) -> None:
    async with Mesh(head.address, max_frame_bytes=10) as mesh:
        with pytest.raises(MeshError) as caught:
            await mesh.infer(b"x" * 11)
        assert caught.value.reason is Reason.FRAME_TOO_LARGE
        assert head.seen == []
        assert (await mesh.infer(b"x" * 10)).label.name == "x" * 10


# a stream


async def test_every_frame_of_a_stream_has_one_answer_numbered_in_the_sources_order(head: FakeHead) -> None:
    async with Mesh(head.address) as mesh:
        assert_each_answered_once(await collect(mesh, frames(50)), 50)
        assert await collect(mesh, []) == []


async def test_never_more_frames_are_unanswered_than_credit_and_window_allow(head: FakeHead) -> None:
    gate = asyncio.Event()

    async def gated(request: pb.InferRequest) -> pb.InferResponse:
        if head.most_unanswered >= min(head.credit, window):
            gate.set()
        await gate.wait()
        return answer_to(request)

    async with Mesh(head.address) as mesh:
        for credit, window in ((3, 16), (8, 2)):
            head.credit, head.most_unanswered, head.answer = credit, 0, gated
            gate.clear()
            assert_each_answered_once(await collect(mesh, frames(20), window=window), 20)
            assert head.most_unanswered == min(credit, window)


async def test_a_frame_refused_for_a_full_queue_is_sent_again(head: FakeHead) -> None:
    async def full_at_first(request: pb.InferRequest) -> pb.InferResponse:
        if sum(one.frame_id == request.frame_id for one in head.seen) == 1:
            raise MeshError(Reason.QUEUE_FULL, "full", retry_after_s=0.01)
        return answer_to(request)

    head.answer = full_at_first
    async with Mesh(head.address) as mesh:
        assert_each_answered_once(await collect(mesh, frames(20)), 20)
    assert set(Counter(one.frame_id for one in head.seen).values()) == {2}


async def test_a_bad_frame_of_a_stream_fails_alone(head: FakeHead) -> None:
    async def refuse_third(request: pb.InferRequest) -> pb.InferResponse:
        if request.frame_id == 3:
            raise MeshError(Reason.IMAGE_UNDECODABLE, "no picture")
        return answer_to(request)

    head.answer = refuse_third
    async with Mesh(head.address) as mesh:
        outcomes = await collect(mesh, frames(6))
    (failure,) = (one for one in outcomes if isinstance(one, FrameFailure))
    assert (failure.frame_id, failure.error.reason) == (3, Reason.IMAGE_UNDECODABLE)
    assert sorted(one.frame_id for one in outcomes) == list(range(6))
    assert [one.frame_id for one in head.seen].count(3) == 1


@pytest.mark.parametrize("gateway_limit", [100, 1 << 20])
async def test_a_frame_above_the_gateways_or_the_heads_limit_fails_alone(gateway_limit: int) -> None:
    async with served(FakeHead(max_frame_bytes=100)) as head, Mesh(head.address, max_frame_bytes=gateway_limit) as mesh:
        outcomes = await collect(mesh, [b"a", b"x" * 101, b"c"], give_up_s=5)
    (failure,) = (one for one in outcomes if isinstance(one, FrameFailure))
    assert (failure.frame_id, failure.error.reason) == (1, Reason.FRAME_TOO_LARGE)
    assert sorted(one.label.name for one in outcomes if isinstance(one, Answer)) == ["a", "c"]
    assert head.streams == 1


async def test_what_a_broken_stream_left_unanswered_is_sent_again_and_answered_once(head: FakeHead) -> None:
    async def breaks_twice(request: pb.InferRequest) -> pb.InferResponse:
        if head.streams < 3 and request.frame_id >= 5 * head.streams:
            raise Break(GONE)
        return answer_to(request)

    head.answer = breaks_twice
    async with Mesh(head.address) as mesh:
        assert_each_answered_once(await collect(mesh, frames(30)), 30)
    assert head.streams == 3


async def test_a_head_that_is_replaced_in_mid_stream_gets_the_rest() -> None:
    stuck = asyncio.Event()

    async def hang(request: pb.InferRequest) -> pb.InferResponse:
        if request.frame_id < 10:
            return answer_to(request)
        stuck.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with AsyncExitStack() as stack:
        async with served(FakeHead(answer=hang)) as first:
            mesh = await stack.enter_async_context(Mesh(first.address))
            collecting = asyncio.create_task(collect(mesh, frames(30)))
            async with asyncio.timeout(WAIT_S):
                await stuck.wait()
        async with served(FakeHead(), int(first.address.rpartition(":")[2])) as second:
            assert_each_answered_once(await collecting, 30)
            # An answer that was under way when the first head went may be asked for again, an unanswered frame must be.
            assert {one.frame_id for one in second.seen} >= set(range(10, 30))


async def test_a_frame_is_given_up_after_its_time_with_the_last_reason(head: FakeHead) -> None:
    async def never_ready(request: pb.InferRequest) -> pb.InferResponse:
        raise GONE

    head.answer = never_ready
    async with Mesh(head.address) as mesh, asyncio.timeout(WAIT_S), mesh.stream(give_up_s=0.5) as stream:
        await head.opened.wait()  # the time runs from the camera on: a stream that opens slowly would use it up
        await stream.send(b"never ready")
        stream.end()
        (failure,) = [outcome async for outcome in stream]
    assert isinstance(failure, FrameFailure)
    assert (failure.frame_id, failure.error.reason) == (0, Reason.NOT_READY)


async def test_without_a_head_every_frame_is_given_up_in_time() -> None:
    async with Mesh(free_address()) as mesh:
        outcomes = await collect(mesh, frames(3), give_up_s=0.3)
    assert [one.error.reason for one in outcomes if isinstance(one, FrameFailure)] == [Reason.SERVICE_UNAVAILABLE] * 3


async def test_an_answer_that_comes_after_its_frame_was_given_up_is_no_second_outcome(head: FakeHead) -> None:
    late = asyncio.Event()

    async def answer_late(request: pb.InferRequest) -> pb.InferResponse:
        await late.wait()
        return answer_to(request)

    head.answer = answer_late
    async with Mesh(head.address) as mesh, asyncio.timeout(WAIT_S), mesh.stream(give_up_s=0.2) as stream:
        await stream.send(b"slow")
        first = await anext(stream)
        late.set()
        stream.end()
        assert [outcome async for outcome in stream] == []
    assert isinstance(first, FrameFailure)
    assert stream.counts == StreamCounts(sent=1, failed=1)


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_an_exception_of_the_source_is_raised_to_the_reader(head: FakeHead, kind: str) -> None:
    def broken() -> Iterator[bytes]:
        yield b"one"
        raise RuntimeError("the camera is unplugged")

    async def broken_async() -> AsyncIterator[bytes]:
        for frame in broken():
            yield frame

    async with Mesh(head.address) as mesh:
        with pytest.raises(RuntimeError, match="unplugged"):
            await collect(mesh, broken() if kind == "sync" else broken_async())  # type: ignore[arg-type]


async def test_a_slow_reader_slows_the_source_down(head: FakeHead) -> None:
    taken = 0

    def source() -> Iterator[bytes]:
        nonlocal taken
        for frame in frames(200):
            taken += 1
            yield frame

    async with (
        Mesh(head.address) as mesh,
        asyncio.timeout(WAIT_S),
        mesh.stream(window=4) as stream,
    ):
        outcomes = stream.run(source())
        for read in range(1, 20):
            await anext(outcomes)
            while len(head.seen) < min(200, read + 4):
                head.arrived.clear()
                await head.arrived.wait()
            assert taken == len(head.seen) == read + 4


async def test_a_reader_that_leaves_early_ends_the_stream_at_the_head(head: FakeHead) -> None:
    ended = asyncio.Event()

    async def wait_for_the_end(request: pb.InferRequest) -> pb.InferResponse:
        if request.frame_id == 0:
            return answer_to(request)
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    head.answer = wait_for_the_end
    async with Mesh(head.address) as mesh, asyncio.timeout(WAIT_S):
        async with mesh.stream() as stream:
            assert isinstance(await anext(stream.run(frames(10))), Answer)
        await ended.wait()


async def test_two_streams_over_one_mesh_do_not_mix(head: FakeHead) -> None:
    async with Mesh(head.address) as mesh:
        left = [f"left {index}".encode() for index in range(20)]
        right = [f"right {index}".encode() for index in range(20)]
        for source, outcomes in zip(
            (left, right), await asyncio.gather(collect(mesh, left), collect(mesh, right)), strict=True
        ):
            found = {one.frame_id: one.label.name.encode() for one in outcomes if isinstance(one, Answer)}
            assert found == dict(enumerate(source))
