"""The tail in this process, spoken to by hand: batches, queues, deadlines, callers that go away."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloud.tail import run, segments
from cloud.tail.segments import Loaded
from splitmesh.api.segment.v1 import segment_pb2, segment_pb2_grpc
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import open_channel
from splitmesh.model.manifest import MANIFEST, TAIL
from splitmesh.runtime import Session, open_session
from splitmesh.tensor.spec import Array
from tests.support.models import CUT, EASY, HARD, features
from tests.support.wire import (
    WAIT_S,
    Raw,
    assert_alive,
    frame_error,
    frame_messages,
    opening_error,
    packed,
    run_stream,
    scores,
    send,
)
from tests.support.worlds import BIG, BIG_SIDE, MODEL, World, world

DARK, GREY = 0, 1


@pytest.fixture
async def cloud(tmp_path: Path, registered: Path) -> AsyncIterator[World]:
    async with world(tmp_path, registered) as made:
        yield made


@pytest.fixture
async def tail(cloud: World) -> str:
    return (await cloud.start("tail")).address


# right frames


@pytest.mark.parametrize("codec", ["identity", "zstd"])
async def test_a_frame_is_answered_with_the_whole_models_scores(tail: str, codec: str) -> None:
    async with run_stream(tail, MODEL) as raw:
        await send(raw, frame_messages(packed(EASY, codec=codec), 7))
        response = await raw.read()
    assert response.result.frame_id == 7
    assert scores(response) == pytest.approx(np.array([0, 60 * (13 / 255 - 0.3), 120 * 13 / 255 - 60]), abs=1e-3)


async def test_frames_that_come_together_are_computed_together(cloud: World) -> None:
    tail = await cloud.start("tail", max_batch_delay_ms=200)
    async with run_stream(tail.address, MODEL) as raw:
        for frame_id in range(16):
            await send(raw, frame_messages(packed(EASY if frame_id % 2 else HARD), frame_id))
        responses = [await raw.read() for _ in range(16)]
    assert {one.result.batch_size for one in responses} == {16}
    assert all(np.argmax(scores(one)) == (DARK if one.result.frame_id % 2 else GREY) for one in responses)


async def test_frames_of_several_heads_share_a_batch_and_go_back_to_their_own(cloud: World) -> None:
    tail = await cloud.start("tail", max_batch_delay_ms=300)
    async with run_stream(tail.address, MODEL) as one, run_stream(tail.address, MODEL) as two:
        await send(one, frame_messages(packed(EASY), 5))
        await send(two, frame_messages(packed(HARD), 5))
        first, second = await one.read(), await two.read()
    assert (np.argmax(scores(first)), np.argmax(scores(second))) == (DARK, GREY)
    assert (first.result.batch_size, second.result.batch_size) == (2, 2)


async def test_a_frame_above_one_mebibyte_comes_in_chunks(tail: str) -> None:
    async with run_stream(tail, BIG) as raw:
        frame = packed(codec="identity", **{CUT: features(HARD, side=BIG_SIDE)})
        assert frame.header.chunk_count == 3
        await send(raw, frame_messages(frame))
        assert np.argmax(scores(await raw.read())) == GREY


async def test_two_versions_are_served_side_by_side(tail: str) -> None:
    async with run_stream(tail, MODEL, 1) as one, run_stream(tail, MODEL, 2) as two:
        for raw in (one, two):
            await assert_alive(raw)
        async with open_channel(tail) as channel:
            stub = segment_pb2_grpc.SegmentServiceStub(channel)
            described = await stub.Describe(segment_pb2.DescribeRequest(), timeout=WAIT_S)
    assert [(one.model, one.version) for one in described.segments] == [(MODEL, 1), (MODEL, 2)]
    (wire,) = described.segments[0].inputs
    assert (wire.name, list(wire.shape)) == (CUT, [-1, 2, 16, 16])


async def test_a_restarted_tail_serves_from_its_own_cache_with_the_registry_gone(cloud: World) -> None:
    tail = await cloud.start("tail")
    async with run_stream(tail.address, MODEL) as raw:
        await assert_alive(raw)
    await cloud.stop("tail")
    await cloud.stop("registry")
    again = await cloud.start("tail")
    async with run_stream(again.address, MODEL) as raw:
        await assert_alive(raw)


async def test_the_least_used_segment_goes_and_one_in_use_never(cloud: World) -> None:
    tail = await cloud.start("tail", max_loaded_segments=1)
    async with run_stream(tail.address, MODEL, 1) as raw:
        assert (await opening_error(tail.address, MODEL, 2)).reason is Reason.QUEUE_FULL
        await assert_alive(raw)
        await raw.end()
        with pytest.raises(MeshError):
            await raw.read()
    async with run_stream(tail.address, MODEL, 2) as raw:
        await assert_alive(raw)


async def test_a_load_in_progress_does_not_hold_up_streams_to_loaded_segments(
    cloud: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tail = await cloud.start("tail")
    loading, go_on = asyncio.Event(), asyncio.Event()
    load = tail_load()

    async def slow(self: Any, model: str, version: int, segment: int) -> Loaded:
        loading.set()
        await go_on.wait()
        return await load(self, model, version, segment)

    async with run_stream(tail.address, MODEL, 1) as raw:
        await assert_alive(raw)
    monkeypatch.setattr("cloud.tail.segments.Segments._load", slow)
    opening = asyncio.create_task(first_answer(tail.address, 2))
    await asyncio.wait_for(loading.wait(), WAIT_S)
    async with run_stream(tail.address, MODEL, 1) as raw:
        await assert_alive(raw)
    assert not opening.done()
    go_on.set()
    await opening


def tail_load() -> Any:
    from cloud.tail.segments import Segments

    return Segments._load


async def first_answer(address: str, version: int) -> None:
    async with run_stream(address, MODEL, version) as raw:
        await assert_alive(raw)


# deadlines, queues, cancellation


async def test_an_expired_frame_is_dropped_before_compute_and_the_others_are_computed(cloud: World) -> None:
    tail = await cloud.start("tail", max_batch_delay_ms=300)
    async with run_stream(tail.address, MODEL) as raw:
        await send(raw, frame_messages(packed(HARD), 1, deadline_ms=50))
        await send(raw, frame_messages(packed(HARD), 2))
        answers = [await raw.read(), await raw.read()]
    (result,) = (one.result for one in answers if one.WhichOneof("message") == "result")
    (late,) = (frame_error(one) for one in answers if one.WhichOneof("message") == "frame_error")
    assert (result.frame_id, result.batch_size) == (2, 1)
    assert (late[0], late[1].reason) == (1, Reason.DEADLINE_EXPIRED)


async def test_the_queue_refuses_exactly_the_frame_above_its_limit_with_a_time_to_retry(cloud: World) -> None:
    tail = await cloud.start("tail", max_batch_delay_ms=500, max_queue=3, max_batch=16)
    async with run_stream(tail.address, MODEL) as raw:
        for frame_id in range(4):
            await send(raw, frame_messages(packed(HARD), frame_id))
        frame_id, error = frame_error(await raw.read())
        assert (frame_id, error.reason) == (3, Reason.QUEUE_FULL)
        assert error.retry_after_s is not None
        assert error.retry_after_s > 0
        assert sorted([(await raw.read()).result.frame_id for _ in range(3)]) == [0, 1, 2]


async def test_a_frame_above_the_streams_credit_is_refused_alone(cloud: World) -> None:
    tail = await cloud.start("tail", max_batch_delay_ms=500, credit=2)
    async with run_stream(tail.address, MODEL) as raw:
        for frame_id in range(3):
            await send(raw, frame_messages(packed(HARD), frame_id))
        frame_id, error = frame_error(await raw.read())
        assert (frame_id, error.reason) == (2, Reason.QUEUE_FULL)
        assert sorted([(await raw.read()).result.frame_id for _ in range(2)]) == [0, 1]


async def test_frames_of_callers_that_went_away_give_their_places_back(cloud: World) -> None:
    tail = await cloud.start("tail", max_batch_delay_ms=1000, max_queue=3)
    async with run_stream(tail.address, MODEL) as staying:
        await send(staying, frame_messages(packed(HARD), 0))
        async with run_stream(tail.address, MODEL) as leaving:
            for frame_id in range(2):
                await send(leaving, frame_messages(packed(HARD), frame_id))
            await queued(tail.address, 3)
        for frame_id in (1, 2):
            await retried(staying, frame_id)
        assert sorted([(await staying.read()).result.frame_id for _ in range(3)]) == [0, 1, 2]


async def queued(address: str, count: int) -> None:
    """Wait until so many frames wait for compute."""
    async with open_channel(address) as channel, asyncio.timeout(WAIT_S):
        stub = segment_pb2_grpc.SegmentServiceStub(channel)
        while (await stub.Describe(segment_pb2.DescribeRequest())).queue_length != count:
            pass


async def retried(raw: Raw, frame_id: int) -> None:
    """Sent again while the refusal comes at once, which says that the cancelled frames are not let go yet."""
    for _ in range(50):
        await send(raw, frame_messages(packed(HARD), frame_id))
        reading = asyncio.create_task(raw.call.read())
        done, _ = await asyncio.wait({reading}, timeout=0.1)
        if not done:
            raw.call = Ahead(raw.call, reading)
            return
        assert frame_error(reading.result())[1].reason is Reason.QUEUE_FULL
    raise AssertionError("the queue stays full")


class Ahead:
    """A call whose next message is being read already."""

    def __init__(self, call: Any, reading: asyncio.Task[Any]) -> None:
        self._call, self._reading = call, reading

    async def read(self) -> Any:
        return await self._reading if not self._reading.done() else await self._call.read()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


async def test_a_frame_that_poisons_its_batch_fails_alone(cloud: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from splitmesh.runtime.ort import OrtSession

    run = OrtSession.run

    def poisoned(self: OrtSession, feeds: dict[str, Array]) -> dict[str, Array]:
        if (feeds[CUT] > 100).any():
            raise MeshError(Reason.MODEL_CORRUPT, "the model fails on this input")
        return run(self, feeds)

    monkeypatch.setattr(OrtSession, "run", poisoned)
    tail = await cloud.start("tail", max_batch_delay_ms=200)
    async with run_stream(tail.address, MODEL) as raw:
        for frame_id in range(4):
            poison = np.full((1, 2, 16, 16), 1000, dtype=np.float32)
            await send(raw, frame_messages(packed(**{CUT: poison if frame_id == 2 else features(HARD)}), frame_id))
        answers = [await raw.read() for _ in range(4)]
    (failed,) = (frame_error(one) for one in answers if one.WhichOneof("message") == "frame_error")
    assert (failed[0], failed[1].reason) == (2, Reason.MODEL_CORRUPT)
    assert Counter(one.WhichOneof("message") for one in answers)["result"] == 3


async def test_a_stream_that_never_says_what_it_wants_is_ended(tail: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "OPEN_TIMEOUT_S", 0.1)
    channel = open_channel(tail)
    with pytest.raises(MeshError) as caught:
        await Raw(segment_pb2_grpc.SegmentServiceStub(channel).Run()).read()
    assert caught.value.reason is Reason.DEADLINE_EXPIRED
    await channel.close()


async def test_above_its_cap_the_cache_keeps_the_version_in_use(cloud: World) -> None:
    tail = await cloud.start("tail", max_cache_bytes=1)
    for version in (1, 2):
        async with run_stream(tail.address, MODEL, version) as raw:
            await assert_alive(raw)
    artifacts = (await cloud.registry.get_version(MODEL, 2)).artifacts
    assert {path.name for path in (cloud.folder / "tail" / "parts").iterdir()} == {
        artifacts[name].sha256 for name in (MANIFEST, TAIL)
    }


async def test_the_longest_run_is_a_setting(cloud: World, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    def spied(model: bytes, **options: Any) -> Session:
        limits.append(options["max_run_s"])
        return open_session(model, **options)

    monkeypatch.setattr(segments, "open_session", spied)
    tail = await cloud.start("tail", max_run_s=2.5)
    async with run_stream(tail.address, MODEL) as raw:
        await assert_alive(raw)
    assert limits == [2.5]
