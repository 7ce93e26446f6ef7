"""The blocking SDK against a scripted head: the same answers and errors, from any thread, and a thread that ends."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

import pytest
from opentelemetry.sdk.trace import TracerProvider

from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.client import Answer, FrameFailure, Mesh, MeshError, Reason, Stream, SyncMesh, SyncStream
from tests.support.fake_head import FakeHead, answer_to, served

WAIT_S = 20.0
T = TypeVar("T")


@pytest.fixture
async def head() -> AsyncIterator[FakeHead]:
    async with served(FakeHead()) as started:
        yield started


async def in_thread(use: Callable[[], T]) -> T:
    async with asyncio.timeout(WAIT_S):
        return await asyncio.to_thread(use)


def frames(count: int) -> list[bytes]:
    return [f"frame {index}".encode() for index in range(count)]


async def never(request: pb.InferRequest) -> pb.InferResponse:
    await asyncio.Event().wait()
    return answer_to(request)


@pytest.mark.parametrize(("blocking", "other"), [(SyncMesh, Mesh), (SyncStream, Stream)])
def test_both_sdks_have_the_same_calls_with_the_same_options(blocking: type, other: type) -> None:
    def calls(of: type) -> dict[str, list[tuple[str, object]]]:
        names = [name for name in vars(of) if not name.startswith("_") and callable(getattr(of, name))]
        own = {name: inspect.signature(getattr(of, name)).parameters.values() for name in ["__init__", *names]}
        return {name: [(one.name, one.default) for one in parameters] for name, parameters in own.items()}

    found, expected = calls(blocking), calls(other)
    if blocking is SyncStream:
        expected.pop("__init__"), found.pop("__init__")
    assert found == expected


async def test_answers_are_the_same_and_the_thread_ends(head: FakeHead) -> None:
    def use() -> list[str]:
        with SyncMesh(head.address) as mesh:
            names = [mesh.infer(b"one").label.name]
            with mesh.stream() as stream:
                names += [one.label.name for one in stream.run(frames(3)) if isinstance(one, Answer)]
            with mesh.stream() as stream:
                for outcome in stream.run(iter(frames(100))):
                    assert isinstance(outcome, Answer)
                    break
        mesh.close()
        return names

    names = await in_thread(use)
    assert names[0] == "one"
    assert sorted(names[1:]) == ["frame 0", "frame 1", "frame 2"]
    assert "splitmesh" not in {thread.name for thread in threading.enumerate()}


async def test_errors_are_the_same(head: FakeHead) -> None:
    async def refuse(request: pb.InferRequest) -> pb.InferResponse:
        raise MeshError(Reason.MODEL_NOT_FOUND, "no such model")

    head.answer = refuse

    def use() -> Reason:
        with SyncMesh(head.address) as mesh, pytest.raises(MeshError) as caught:
            mesh.infer(b"x")
        return caught.value.reason

    assert await in_thread(use) is Reason.MODEL_NOT_FOUND


async def test_one_thread_may_send_while_others_read_and_cancel(head: FakeHead) -> None:
    async def all_but_the_last(request: pb.InferRequest) -> pb.InferResponse:
        return await (never(request) if request.image == b"stuck" else asyncio.sleep(0, answer_to(request)))

    head.answer = all_but_the_last

    def use() -> list[Answer | FrameFailure]:
        found: list[Answer | FrameFailure] = []
        with SyncMesh(head.address) as mesh, mesh.stream("c", window=4) as stream:
            readers = [threading.Thread(target=lambda: found.extend(stream)) for _ in range(2)]
            for reader in readers:
                reader.start()
            numbers = [stream.send(frame) for frame in [*frames(30), b"stuck"]]
            assert numbers == list(range(31))
            assert stream.cancel(30)
            stream.end()
            for reader in readers:
                reader.join()
            assert (stream.counts.answered, stream.counts.cancelled) == (30, 1)
        return found

    found = await in_thread(use)
    assert sorted(one.frame_id for one in found) == list(range(31))
    (failure,) = (one for one in found if isinstance(one, FrameFailure))
    assert (failure.frame_id, failure.error.reason) == (30, Reason.CANCELLED)


async def test_closing_ends_what_other_threads_wait_for(head: FakeHead) -> None:
    head.answer = never
    waiting = threading.Barrier(3)

    def use() -> list[Reason]:
        reasons: list[Reason] = []
        mesh = SyncMesh(head.address, deadline_ms=15_000)

        def infer() -> None:
            waiting.wait()
            with pytest.raises(MeshError) as caught:
                mesh.infer(b"one call")
            reasons.append(caught.value.reason)

        def read() -> None:
            with mesh.stream() as stream:
                stream.send(b"one frame")
                waiting.wait()
                with pytest.raises(MeshError) as caught:
                    next(iter(stream))
                reasons.append(caught.value.reason)

        threads = [threading.Thread(target=infer), threading.Thread(target=read)]
        for thread in threads:
            thread.start()
        waiting.wait()
        mesh.close()
        for thread in threads:
            thread.join()
        with pytest.raises(MeshError):
            mesh.infer(b"afterwards")
        return reasons

    assert await in_thread(use) == [Reason.CANCELLED] * 2


async def test_a_source_that_fails_is_raised_to_the_reader(head: FakeHead) -> None:
    def broken() -> Iterator[bytes]:
        yield b"one"
        raise RuntimeError("the camera is unplugged")

    def use() -> None:
        with SyncMesh(head.address) as mesh, mesh.stream() as stream, pytest.raises(RuntimeError, match="unplugged"):
            list(stream.run(broken()))

    await in_thread(use)


async def test_a_frame_belongs_to_the_trace_of_the_thread_that_sends_it(head: FakeHead) -> None:
    tracer = TracerProvider().get_tracer("the caller's own")

    def use() -> list[str]:
        with SyncMesh(head.address) as mesh, mesh.stream() as stream:
            traces = []
            for name in ("call", "frame"):
                with tracer.start_as_current_span(name) as span:
                    traces.append(format(span.get_span_context().trace_id, "032x"))
                    mesh.infer(b"x") if name == "call" else stream.send(b"x")
                    assert span.is_recording()
            stream.end()
            assert len(list(stream)) == 1
        return traces

    traces = await in_thread(use)
    assert [one.traceparent.split("-")[1] for one in head.seen] == traces
