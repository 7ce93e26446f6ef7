"""The tail in this process, spoken to by hand: batches, queues, deadlines, callers that go away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloud.tail import run, warm
from cloud.tail.segments import Loaded
from splitmesh.api.segment.v1 import segment_pb2, segment_pb2_grpc
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import open_channel
from splitmesh.model.manifest import MANIFEST, TAIL
from splitmesh.runtime import Session, open_session
from tests.support.models import CUT, EASY, HARD, features
from tests.support.wire import (
    WAIT_S,
    Raw,
    assert_alive,
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
    async with asyncio.timeout(WAIT_S):
        await loading.wait()
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


# streams, cache, settings


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

    monkeypatch.setattr(warm, "open_session", spied)
    tail = await cloud.start("tail", max_run_s=2.5)
    async with run_stream(tail.address, MODEL) as raw:
        await assert_alive(raw)
    assert limits == [2.5]
