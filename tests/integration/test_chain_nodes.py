"""A chain's nodes in this process, spoken to by hand: what a middle node passes on, what it relays, what it refuses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from cloud.tail.app import build
from cloud.tail.config import TailSettings
from splitmesh.api.segment.v1 import segment_pb2, segment_pb2_grpc
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.batching import Batcher, Place
from splitmesh.kernel.channels import Channels, open_channel
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.kernel.lifecycle import Kernel
from splitmesh.kernel.server import HealthControl
from splitmesh.kernel.telemetry import Telemetry
from tests.support import held_tail
from tests.support.held_tail import BLOCKING, blocked, held_compute, queued
from tests.support.models import CUT, EASY, HARD, SECOND_CUT, split_version
from tests.support.wire import (
    WAIT_S,
    Raw,
    assert_alive,
    frame_error,
    frame_messages,
    opening_error,
    packed,
    refusal,
    run_stream,
    scores,
    send,
)
from tests.support.worlds import CHAIN, MODEL, World, world

EASY_SCORES = np.array([0, 60 * (13 / 255 - 0.3), 120 * 13 / 255 - 60])
MEAN = np.array([[[[0.35]], [[0.175]]]], dtype=np.float32)
"""What crosses at the second cut for a hard picture."""


@pytest.fixture
async def cloud(tmp_path: Path, registered: Path) -> AsyncIterator[World]:
    async with world(tmp_path, registered) as made:
        yield made


async def middle(cloud: World, **settings: Any) -> str:
    """A node of service `mec` before the tail, which runs already."""
    values: dict[str, Any] = {"name": "mec", "service": "mec", "next_service": "tail", "next_wait_s": 1.0, **settings}
    return (await cloud.start("tail", **values)).address


async def described(address: str) -> list[tuple[str, int]]:
    async with open_channel(address) as channel:
        stub = segment_pb2_grpc.SegmentServiceStub(channel)
        answer = await stub.Describe(segment_pb2.DescribeRequest(), timeout=WAIT_S)
    return [(one.model, one.segment) for one in answer.segments]


# right frames


@pytest.mark.parametrize("segment", [0, 1], ids=["unset", "named"])
async def test_a_frame_goes_through_the_middle_and_comes_back_from_the_last_segment(cloud: World, segment: int) -> None:
    tail = (await cloud.start("tail")).address
    mec = await middle(cloud)
    async with run_stream(mec, CHAIN, segment=segment) as raw:
        await send(raw, frame_messages(packed(EASY), 7))
        result = (await raw.read()).result
        assert await described(mec) == [(CHAIN, 1)]
        assert await described(tail) == [(CHAIN, 2)]
    assert result.frame_id == 7
    assert scores(segment_pb2.RunResponse(result=result)) == pytest.approx(EASY_SCORES, abs=1e-3)
    (hop,) = result.onward
    assert hop.node == "tail-1"
    assert 0 < hop.uplink_bytes < 100
    assert hop.compute_ms > 0
    assert hop.link_ms > 0
    assert result.compute_ms > 0


async def test_a_chain_of_four_lists_every_later_hop_the_next_one_first(cloud: World) -> None:
    await cloud.registry.create_version("four", split_version(further=[[SECOND_CUT], ["flat"]]), created_by="push")
    await cloud.start("tail")
    await middle(cloud, name="site", service="site")
    outer = await middle(cloud, next_service="site")
    async with run_stream(outer, "four") as raw:
        await send(raw, frame_messages(packed(EASY)))
        response = await raw.read()
    assert scores(response) == pytest.approx(EASY_SCORES, abs=1e-3)
    assert [hop.node for hop in response.result.onward] == ["site-1", "tail-1"]
    assert all(hop.link_ms >= 0 and hop.compute_ms > 0 for hop in response.result.onward)


async def test_the_priority_of_a_stream_holds_at_every_node(cloud: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = Batcher.place

    def place(self: Batcher, size_bytes: int, deadline_s: float, priority: int = 0) -> Place:
        seen.append(priority)
        return real(self, size_bytes, deadline_s, priority)

    monkeypatch.setattr(Batcher, "place", place)
    await cloud.start("tail")
    async with run_stream(await middle(cloud), CHAIN, priority=7) as raw:
        await assert_alive(raw)
    assert seen == [7, 7]


async def test_frames_are_batched_at_every_node(cloud: World) -> None:
    tail = await cloud.start("tail")
    mec = await middle(cloud)
    with held_compute(CUT) as gate, held_compute(SECOND_CUT) as second_gate:
        async with run_stream(mec, CHAIN) as raw, run_stream(tail.address, CHAIN, segment=2) as other:
            await blocked(raw, gate)
            await send(other, frame_messages(packed(**{SECOND_CUT: MEAN}), 0))
            assert await asyncio.to_thread(second_gate.reached.wait, WAIT_S)
            for frame_id in range(8):
                await send(raw, frame_messages(packed(EASY if frame_id % 2 else HARD), frame_id))
            await queued(mec, 8)
            gate.open()
            await queued(tail.address, 9)
            second_gate.open()
            assert (await other.read()).result.batch_size == 1
            answers = [answer for _ in range(9) if (answer := await raw.read()).result.frame_id != BLOCKING]
    assert max(answer.result.batch_size for answer in answers) >= 4
    for answer in answers:
        assert np.argmax(scores(answer)) == (0 if answer.result.frame_id % 2 else 1)


async def test_two_heads_do_not_take_each_others_credit(cloud: World) -> None:
    tail = await cloud.start("tail", credit=3)
    mec = await middle(cloud, credit=3)
    with held_compute(SECOND_CUT) as gate:
        async with run_stream(mec, CHAIN) as one, run_stream(mec, CHAIN) as two:
            for frame_id in range(3):
                await send(one, frame_messages(packed(EASY), frame_id))
                await send(two, frame_messages(packed(HARD), frame_id))
            await queued(tail.address, 5)
            gate.open()
            for raw in (one, two):
                assert sorted([(await raw.read()).result.frame_id for _ in range(3)]) == [0, 1, 2]


async def test_a_stream_that_ends_leaves_nothing_open_behind_it(cloud: World) -> None:
    tail = await cloud.start("tail", max_loaded_segments=1)
    mec = await middle(cloud)
    async with run_stream(mec, CHAIN) as raw:
        await assert_alive(raw)
        assert (await opening_error(tail.address, MODEL, 1)).reason is Reason.QUEUE_FULL
        await raw.end()
        with pytest.raises(MeshError):
            await raw.read()
    async with asyncio.timeout(WAIT_S):
        while (CHAIN, 2) in await described(tail.address):
            try:
                async with run_stream(tail.address, MODEL) as raw:
                    await assert_alive(raw)
            except MeshError as error:
                assert error.reason is Reason.QUEUE_FULL  # noqa: PT017  until the tail has seen the end


async def test_a_node_is_found_under_the_name_it_was_given(tmp_path: Path) -> None:
    channels = Channels(StaticDiscovery({}))
    telemetry = Telemetry("tail")
    kernel = Kernel(telemetry, channels, HealthControl())
    assert build(TailSettings(data_dir=tmp_path, service="mec", next_service="tail"), kernel).name == "mec"
    assert build(TailSettings(data_dir=tmp_path), kernel).name == "tail"
    await channels.close()
    telemetry.shutdown()


@pytest.mark.parametrize("settings", [{"service": "MEC"}, {"service": ""}, {"next_service": "a b"}, {"next_wait_s": 0}])
def test_names_that_no_catalogue_takes_are_refused_at_the_start(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TailSettings(**settings)


# errors keep their frame and their reason


async def test_what_the_last_segment_refuses_comes_back_with_its_reason_and_the_stream_goes_on(cloud: World) -> None:
    await cloud.start("tail")
    mec = await middle(cloud)
    huge = np.full((1, 2, 16, 16), 3e38, dtype=np.float32)  # finite; its mean is not
    async with run_stream(mec, CHAIN) as raw:
        error = await refusal(raw, frame_messages(packed(**{CUT: huge}), 5))
    assert error.reason is Reason.TENSOR_NOT_FINITE
    assert SECOND_CUT in error.message


async def test_what_is_left_of_the_deadline_travels_on(cloud: World) -> None:
    await cloud.start("tail")
    mec = await middle(cloud)
    with held_compute(SECOND_CUT):
        async with run_stream(mec, CHAIN) as raw:
            begun = time.monotonic()
            await send(raw, frame_messages(packed(HARD), 3, deadline_ms=200))
            frame_id, error = frame_error(await raw.read())
            assert time.monotonic() - begun < WAIT_S / 2
            assert (frame_id, error.reason) == (3, Reason.DEADLINE_EXPIRED)


async def test_frames_above_the_next_nodes_credit_are_refused_alone(cloud: World) -> None:
    await cloud.start("tail", credit=1)
    mec = await middle(cloud)
    with held_compute(SECOND_CUT) as gate:
        async with run_stream(mec, CHAIN) as raw:
            for frame_id in range(2):
                await send(raw, frame_messages(packed(HARD), frame_id))
            _, error = frame_error(await raw.read())
            assert error.reason is Reason.QUEUE_FULL
            assert error.retry_after_s
            gate.open()
            assert (await raw.read()).WhichOneof("message") == "result"


async def test_while_the_next_node_is_away_frames_fail_at_once_and_then_go_through_again(cloud: World) -> None:
    tail = await cloud.start("tail")
    port = int(tail.address.rpartition(":")[2])
    mec = await middle(cloud)
    async with run_stream(mec, CHAIN) as raw:
        await assert_alive(raw)
        await cloud.stop("tail")
        begun = time.monotonic()
        await send(raw, frame_messages(packed(HARD), 1, deadline_ms=10_000))
        frame_id, error = frame_error(await raw.read())
        assert (frame_id, error.reason) == (1, Reason.SERVICE_UNAVAILABLE)
        assert time.monotonic() - begun < 2
        await cloud.start("tail", port=port)
        await answered(raw)


async def answered(raw: Raw) -> None:
    """Sends until a frame gets through."""
    async with asyncio.timeout(WAIT_S):
        while True:
            await send(raw, frame_messages(packed(HARD), 2))
            response = await raw.read()
            if response.WhichOneof("message") == "result":
                return
            await asyncio.sleep(0.05)


async def test_a_frame_goes_to_another_next_node_when_its_own_dies(cloud: World) -> None:
    first = await cloud.start("tail")
    second = await cloud.start("tail", name="tail-b")
    mec = await middle(
        cloud, static_addresses=f"registry={cloud.addresses['registry']},tail={first.address};{second.address}"
    )
    async with run_stream(mec, CHAIN) as raw:
        await assert_alive(raw)
        async with asyncio.timeout(WAIT_S):  # until the second one has answered, and so accepted, too
            while not any(one.computed for one in (await held_tail.described(second.address)).segments):
                await assert_alive(raw)
        await cloud.stop("tail")
        for _ in range(5):
            await assert_alive(raw)


# refused at open


async def test_the_middle_accepts_only_when_the_next_node_has(cloud: World) -> None:
    tail = await cloud.start("tail")
    port = int(tail.address.rpartition(":")[2])
    mec = await middle(cloud, next_wait_s=0.5)
    await cloud.stop("tail")
    error = await opening_error(mec, CHAIN, 1)
    assert error.reason is Reason.NOT_READY
    assert "no 'tail' accepts segment 2" in error.message
    await cloud.start("tail", port=port)
    async with run_stream(mec, CHAIN) as raw:
        await assert_alive(raw)


async def test_a_node_that_knows_no_next_one_refuses_a_middle_segment_and_says_what_to_set(cloud: World) -> None:
    tail = (await cloud.start("tail")).address
    error = await opening_error(tail, CHAIN, 1, segment=1)
    assert error.reason is Reason.NOT_READY
    assert "SPLITMESH_NEXT_SERVICE" in error.message
    async with run_stream(tail, CHAIN, segment=2) as raw:
        await send(raw, frame_messages(packed(**{SECOND_CUT: MEAN})))
        assert np.argmax(scores(await raw.read())) == 1


@pytest.mark.parametrize(("model", "segment"), [(CHAIN, 3), (MODEL, 2), (MODEL, 2**32 - 1)])
async def test_a_segment_that_the_version_does_not_have_is_refused(cloud: World, model: str, segment: int) -> None:
    tail = (await cloud.start("tail", next_service="tail")).address
    error = await opening_error(tail, model, 1, segment=segment)
    assert error.reason is Reason.FIELD_INVALID
    assert f"is {segment}" in error.message


async def test_features_of_another_cut_are_refused(cloud: World) -> None:
    await cloud.start("tail")
    mec = await middle(cloud)
    async with run_stream(mec, CHAIN) as raw:
        error = await refusal(raw, frame_messages(packed(**{SECOND_CUT: MEAN}), 4))
    assert error.reason is Reason.TENSOR_SHAPE_MISMATCH


async def test_one_node_may_run_two_segments_of_a_chain(cloud: World) -> None:
    address = (await cloud.start("tail")).address
    await cloud.stop("tail")
    # From now on the node knows itself as the next one.
    await cloud.start("tail", port=int(address.rpartition(":")[2]), next_service="tail")
    async with run_stream(address, CHAIN, segment=1) as raw:
        await assert_alive(raw)
        assert sorted(await described(address)) == [(CHAIN, 1), (CHAIN, 2)]
