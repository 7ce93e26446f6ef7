"""The tail in this process when more comes than it computes: batches, limits, deadlines, urgency, callers that go away."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest

from splitmesh.api.segment.v1 import segment_pb2
from splitmesh.errors import MeshError, Reason
from splitmesh.runtime.ort import OrtSession
from splitmesh.tensor.spec import Array
from tests.support.held_tail import BLOCKING, blocked, described, held_compute, queued
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


async def answers_of(raw: Raw, count: int) -> list[segment_pb2.RunResponse]:
    return [await raw.read() for _ in range(count)]


def frames(frame_ids: Iterable[int]) -> list[segment_pb2.RunRequest]:
    return [message for frame_id in frame_ids for message in frame_messages(packed(HARD), frame_id)]


def errors_in(responses: list[segment_pb2.RunResponse]) -> dict[int, MeshError]:
    return dict(frame_error(one) for one in responses if one.WhichOneof("message") == "frame_error")


def results_in(responses: list[segment_pb2.RunResponse]) -> list[segment_pb2.Result]:
    return [one.result for one in responses if one.WhichOneof("message") == "result"]


# batches


async def test_frames_that_wait_together_are_computed_together_each_with_its_own_answer(cloud: World) -> None:
    tail = await cloud.start("tail")
    with held_compute() as gate:
        async with run_stream(tail.address, MODEL) as raw:
            await blocked(raw, gate)
            for frame_id in range(16):
                await send(raw, frame_messages(packed(EASY if frame_id % 2 else HARD), frame_id))
            await queued(tail.address, 16)
            gate.open()
            responses = await answers_of(raw, 17)
    assert max(one.result.batch_size for one in responses) >= 4
    by_id = {one.result.frame_id: np.argmax(scores(one)) for one in responses}
    assert by_id == {**{frame_id: DARK if frame_id % 2 else GREY for frame_id in range(16)}, BLOCKING: GREY}


async def test_frames_of_several_heads_share_a_batch_and_go_back_to_their_own(cloud: World) -> None:
    tail = await cloud.start("tail")
    with held_compute() as gate:
        async with run_stream(tail.address, MODEL) as one, run_stream(tail.address, MODEL) as two:
            await blocked(one, gate)
            await send(one, frame_messages(packed(EASY), 5))
            await send(two, frame_messages(packed(HARD), 5))
            await queued(tail.address, 2)
            gate.open()
            first = next(answer for answer in await answers_of(one, 2) if answer.result.frame_id == 5)
            second = await two.read()
    assert (np.argmax(scores(first)), np.argmax(scores(second))) == (DARK, GREY)
    assert (first.result.batch_size, second.result.batch_size) == (2, 2)


async def test_a_lone_frame_does_not_wait_for_company(cloud: World) -> None:
    tail = await cloud.start("tail", max_batch_delay_ms=1000)
    async with run_stream(tail.address, MODEL) as raw:
        async with asyncio.timeout(5):
            for _ in range(10):
                await assert_alive(raw)


async def test_two_versions_and_two_models_compute_side_by_side_each_in_batches_of_its_own(cloud: World) -> None:
    tail = await cloud.start("tail")
    frames = {
        (MODEL, 1): packed(HARD),
        (MODEL, 2): packed(HARD),
        (BIG, 1): packed(**{CUT: features(EASY, side=BIG_SIDE)}),
    }
    with held_compute() as gate:
        async with AsyncExitStack() as stack:
            raws = {key: await stack.enter_async_context(run_stream(tail.address, *key)) for key in frames}
            await blocked(raws[MODEL, 1], gate)
            for key, raw in raws.items():
                for frame_id in range(3):
                    await send(raw, frame_messages(frames[key], frame_id))
            waiting = await queued(tail.address, 9)
            assert [one.waiting for one in waiting.segments] == [3, 3, 3]
            gate.open()
            answers = {key: await answers_of(raw, 4 if key == (MODEL, 1) else 3) for key, raw in raws.items()}
        counts = {(one.model, one.version): one.computed for one in (await described(tail.address)).segments}
    assert counts == {(MODEL, 1): 4, (MODEL, 2): 3, (BIG, 1): 3}
    for key, found in answers.items():
        assert {np.argmax(scores(one)) for one in found} == {DARK if key == (BIG, 1) else GREY}
        assert max(one.result.batch_size for one in found) <= 3


async def test_a_frame_that_poisons_its_batch_fails_alone(cloud: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run = OrtSession.run

    def poisoned(self: OrtSession, feeds: dict[str, Array]) -> dict[str, Array]:
        if (feeds[CUT] > 100).any():
            raise MeshError(Reason.MODEL_CORRUPT, "the model fails on this input")
        return run(self, feeds)

    monkeypatch.setattr(OrtSession, "run", poisoned)
    tail = await cloud.start("tail")
    poison = np.full((1, 2, 16, 16), 1000, dtype=np.float32)
    with held_compute() as gate:
        async with run_stream(tail.address, MODEL) as raw:
            await blocked(raw, gate)
            for frame_id in range(4):
                await send(raw, frame_messages(packed(**{CUT: poison if frame_id == 2 else features(HARD)}), frame_id))
            await queued(tail.address, 4)
            gate.open()
            answers = await answers_of(raw, 5)
    assert {frame_id: error.reason for frame_id, error in errors_in(answers).items()} == {2: Reason.MODEL_CORRUPT}
    assert Counter(one.WhichOneof("message") for one in answers)["result"] == 4


# limits


@pytest.mark.parametrize(("limit", "above"), [(3, 1), (5, 7)])
async def test_of_frames_on_several_streams_exactly_those_above_the_limit_are_refused(
    cloud: World, limit: int, above: int
) -> None:
    tail = await cloud.start("tail", max_queue=limit)
    with held_compute() as gate:
        async with AsyncExitStack() as stack:
            raws = [await stack.enter_async_context(run_stream(tail.address, MODEL)) for _ in range(3)]
            await blocked(raws[0], gate)
            shares = [range(turn, limit + above, 3) for turn in range(3)]
            await asyncio.gather(*(send(raw, frames(share)) for raw, share in zip(raws, shares, strict=True)))
            async with asyncio.timeout(WAIT_S):
                while (found := (await described(tail.address)).segments[0]).refused + found.waiting < limit + above:
                    pass
            assert (found.refused, found.waiting) == (above, limit)
            gate.open()
            answers = [
                one for turn, raw in enumerate(raws) for one in await answers_of(raw, len(shares[turn]) + (turn == 0))
            ]
    errors = errors_in(answers)
    assert len(errors) == above
    assert {error.reason for error in errors.values()} == {Reason.QUEUE_FULL}
    assert all(error.retry_after_s for error in errors.values())
    assert len(results_in(answers)) == limit + 1


async def test_the_bytes_that_wait_are_bounded_over_all_segments(cloud: World) -> None:
    frame = packed(HARD)
    size = sum(spec.size_bytes for spec in frame.header.tensors)
    tail = await cloud.start("tail", max_queue_bytes=2 * size)
    with held_compute() as gate:
        async with run_stream(tail.address, MODEL, 1) as one, run_stream(tail.address, MODEL, 2) as two:
            await blocked(one, gate)
            await send(one, frame_messages(frame, 1))
            await send(two, frame_messages(frame, 1))
            await queued(tail.address, 2)
            await send(two, frame_messages(frame, 2))
            frame_id, error = frame_error(await two.read())
            gate.open()
            await answers_of(one, 2)
            await answers_of(two, 1)
    assert (frame_id, error.reason) == (2, Reason.QUEUE_FULL)
    assert "bytes are waiting" in error.message


async def test_a_frame_above_the_streams_credit_is_refused_alone(cloud: World) -> None:
    tail = await cloud.start("tail", credit=2)
    with held_compute() as gate:
        async with run_stream(tail.address, MODEL) as raw:
            for frame_id in range(3):
                await send(raw, frame_messages(packed(HARD), frame_id))
            frame_id, error = frame_error(await raw.read())
            assert (frame_id, error.reason) == (2, Reason.QUEUE_FULL)
            gate.open()
            assert sorted(one.frame_id for one in results_in(await answers_of(raw, 2))) == [0, 1]


async def test_frames_of_callers_that_went_away_give_their_places_back(cloud: World) -> None:
    tail = await cloud.start("tail", max_queue=3)
    with held_compute() as gate:
        async with run_stream(tail.address, MODEL) as staying:
            await blocked(staying, gate)
            await send(staying, frame_messages(packed(HARD), 0))
            async with run_stream(tail.address, MODEL) as leaving:
                for frame_id in range(2):
                    await send(leaving, frame_messages(packed(HARD), frame_id))
                await queued(tail.address, 3)
            found = await queued(tail.address, 1)
            assert found.segments[0].cancelled == 2
            for frame_id in (1, 2):
                await send(staying, frame_messages(packed(HARD), frame_id))
            await queued(tail.address, 3)
            gate.open()
            answers = await answers_of(staying, 4)
    assert sorted(one.frame_id for one in results_in(answers)) == [0, 1, 2, BLOCKING]


# deadlines and urgency


async def test_an_expired_frame_is_dropped_before_compute_and_the_others_are_computed(cloud: World) -> None:
    tail = await cloud.start("tail")
    with held_compute() as gate:
        async with run_stream(tail.address, MODEL) as raw:
            await blocked(raw, gate)
            await send(raw, frame_messages(packed(HARD), 1, deadline_ms=100))
            await send(raw, frame_messages(packed(HARD), 2))
            await queued(tail.address, 2)
            await asyncio.sleep(0.11)
            gate.open()
            answers = await answers_of(raw, 3)
        assert (await described(tail.address)).segments[0].expired == 1
    assert sorted(one.frame_id for one in results_in(answers)) == [2, BLOCKING]
    assert {frame_id: error.reason for frame_id, error in errors_in(answers).items()} == {1: Reason.DEADLINE_EXPIRED}


async def test_a_stream_with_priority_goes_before_one_without(cloud: World) -> None:
    tail = await cloud.start("tail", max_batch=1)
    with held_compute() as gate:
        async with (
            run_stream(tail.address, MODEL) as plain,
            run_stream(tail.address, MODEL, priority=9) as urgent,
        ):
            await blocked(plain, gate)
            await send(plain, frame_messages(packed(HARD), 1, deadline_ms=8000))
            await queued(tail.address, 1)
            await send(urgent, frame_messages(packed(HARD), 2, deadline_ms=8000))
            await queued(tail.address, 2)
            gate.open()
            first, second = results_in([*await answers_of(urgent, 1), (await answers_of(plain, 2))[1]])
    assert (first.frame_id, second.frame_id) == (2, 1)
    assert first.queue_ms < second.queue_ms


async def test_a_priority_above_nine_is_refused(cloud: World) -> None:
    tail = await cloud.start("tail")
    error = await opening_error(tail.address, MODEL, 1, priority=10)
    assert error.fields[0][0] == "priority"


async def test_a_cancelled_frame_is_not_computed_and_says_so(cloud: World) -> None:
    tail = await cloud.start("tail")
    with held_compute() as gate:
        async with run_stream(tail.address, MODEL) as raw:
            await blocked(raw, gate)
            await send(raw, frame_messages(packed(HARD), 1))
            await queued(tail.address, 1)
            await raw.write(segment_pb2.RunRequest(cancel=segment_pb2.CancelFrame(frame_id=1)))
            frame_id, error = frame_error(await raw.read())
            assert (frame_id, error.reason) == (1, Reason.CANCELLED)
            assert (await described(tail.address)).queue_length == 0
            gate.open()
            assert (await raw.read()).result.frame_id == BLOCKING
        assert (await described(tail.address)).segments[0].cancelled == 1


# what it says about its queue


async def test_the_backlog_is_in_answers_refusals_and_descriptions(
    cloud: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitmesh.kernel.slots.ComputeSlots.wait_s", lambda self, before=0.0: 0.25)
    tail = await cloud.start("tail")
    async with run_stream(tail.address, MODEL) as raw:
        await send(raw, frame_messages(packed(HARD), 1))
        assert (await raw.read()).result.backlog_ms == 250
        await send(raw, frame_messages(packed(HARD), 2, crc32c=1))
        assert (await raw.read()).frame_error.backlog_ms == 250
    assert (await described(tail.address)).segments[0].backlog_ms == 250
