"""A head's stream over gRPC: order, frames that give way, frames given up, what it takes as options, and its end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.api.inference.v1 import inference_pb2_grpc
from splitmesh.client import AnsweredBy, Reason
from splitmesh.kernel.channels import open_channel
from tests.support.held_head import held_frames
from tests.support.held_tail import described, held_compute, queued
from tests.support.models import EASY, EASY_LABEL, HARD, LABELS, picture
from tests.support.wire import WAIT_S, Raw, ended, frame_error, image_frame, infer_stream
from tests.support.worlds import NO_EXIT, WHOLE_ONLY, World, answered_by, world

NEWEST = pb.StreamOptions(drop=pb.DROP_POLICY_OLDEST)
IN_ORDER = pb.StreamOptions(order=pb.ANSWER_ORDER_IN_ORDER)


@pytest.fixture
async def edge(tmp_path: Path, registered: Path) -> AsyncIterator[World]:
    async with world(tmp_path, registered) as made:
        yield made


async def started(edge: World, **settings: Any) -> str:
    """A head that answers with the whole model, and needs nobody for it."""
    head = await edge.start("head", **{"models": WHOLE_ONLY, "workers": 4, "default_deadline_ms": 60_000, **settings})
    await edge.ready_mesh()
    return head.address


async def send(raw: Raw, *frame_ids: int, **fields: Any) -> None:
    for frame_id in frame_ids:
        await raw.write(image_frame(picture(EASY), frame_id, **fields))


async def options(raw: Raw, asked: pb.StreamOptions) -> None:
    await raw.write(pb.StreamInferRequest(options=asked))


async def cancel(raw: Raw, frame_id: int) -> None:
    await raw.write(pb.StreamInferRequest(cancel=pb.CancelFrame(frame_id=frame_id)))


async def outcomes(raw: Raw, count: int) -> list[tuple[int, str]]:
    """Frame and ANSWERED, or the reason of its error."""
    found = []
    for _ in range(count):
        message = await raw.read()
        if message.WhichOneof("message") == "result":
            assert message.result.labels[0].name == EASY_LABEL
            found.append((message.result.frame_id, "ANSWERED"))
        else:
            frame_id, error = frame_error(message)
            found.append((frame_id, error.reason.value))
    return found


async def refused(edge: World, model: str, reason: Reason, count: int) -> None:
    """Wait until the router has been told of so many refusals of version 1."""
    async with asyncio.timeout(WAIT_S):
        while True:
            for node in await edge.routing.get_outcomes(model, 1):
                if node.outcomes.refused.get(reason.value, 0) >= count:
                    assert node.outcomes.refused[reason.value] == count
                    return


# order


async def test_an_answer_comes_as_soon_as_it_is_ready_unless_order_is_asked_for(edge: World) -> None:
    address = await started(edge)
    for asked in (pb.StreamOptions(), pb.StreamOptions(order=pb.ANSWER_ORDER_AS_READY)):
        with held_frames(1) as held:
            async with infer_stream(address) as raw:
                await options(raw, asked)
                await send(raw, 1)
                await held.reached(1)
                await send(raw, 2)
                assert await outcomes(raw, 1) == [(2, "ANSWERED")]
                held.let_go()
                assert await outcomes(raw, 1) == [(1, "ANSWERED")]


async def test_in_order_a_slow_frame_holds_up_the_answers_behind_it(edge: World) -> None:
    address = await started(edge)
    with held_frames(1, 3) as held:
        async with infer_stream(address) as raw:
            await options(raw, IN_ORDER)
            await send(raw, 1, 2, 3)
            # The third is begun when the second may be done already.
            await held.reached(3)
            held.let_go(3)
            held.let_go(1)
            assert await outcomes(raw, 3) == [(1, "ANSWERED"), (2, "ANSWERED"), (3, "ANSWERED")]


async def test_in_order_the_error_of_a_bad_frame_keeps_its_place_and_the_stream_goes_on(edge: World) -> None:
    address = await started(edge)
    with held_frames(1) as held:
        async with infer_stream(address) as raw:
            await options(raw, IN_ORDER)
            await send(raw, 1)
            await held.reached(1)
            await raw.write(image_frame(b"no picture", 2))
            await send(raw, 3, model="nobody")
            await send(raw, 4)
            await cancel(raw, 4)
            held.let_go()
            found = await outcomes(raw, 4)
            await send(raw, 5)
            assert await outcomes(raw, 1) == [(5, "ANSWERED")]
    assert found[:3] == [(1, "ANSWERED"), (2, "IMAGE_UNDECODABLE"), (3, "MODEL_NOT_FOUND")]
    assert found[3] in ((4, "CANCELLED"), (4, "ANSWERED"))


# giving way


async def test_while_frames_are_worked_on_only_the_newest_waits_and_the_router_hears_of_the_others(
    edge: World,
) -> None:
    address = await started(edge, live_frames=1)
    with held_frames(1) as held:
        async with infer_stream(address) as raw:
            await options(raw, NEWEST)
            await send(raw, 1)
            await held.reached(1)
            await send(raw, 2, 3, 4)
            assert await outcomes(raw, 2) == [(2, "FRAME_SUPERSEDED"), (3, "FRAME_SUPERSEDED")]
            held.let_go()
            assert await outcomes(raw, 2) == [(1, "ANSWERED"), (4, "ANSWERED")]
    assert held.seen == [1, 4]
    await refused(edge, WHOLE_ONLY, Reason.FRAME_SUPERSEDED, 2)


async def test_the_wait_for_a_turn_counts_into_the_deadline(edge: World) -> None:
    address = await started(edge, live_frames=1)
    with held_frames(1) as held:
        async with infer_stream(address) as raw:
            await options(raw, pb.StreamOptions(drop=pb.DROP_POLICY_OLDEST, max_waiting=2))
            await send(raw, 1)
            await held.reached(1)
            await send(raw, 2, deadline_ms=20)
            await send(raw, 3)
            await asyncio.sleep(0.1)
            held.let_go()
            found = {}
            for _ in range(3):
                message = await raw.read()
                if message.WhichOneof("message") == "error":
                    frame_id, error = frame_error(message)
                    assert (frame_id, error.reason) == (2, Reason.DEADLINE_EXPIRED)
                else:
                    found[message.result.frame_id] = message.result.timings
    assert found[3].queue_ms >= 100
    assert found[3].total_ms >= found[3].queue_ms
    assert held.seen == [1, 3]


# giving up


async def test_a_frame_given_up_makes_room_is_counted_and_the_stream_goes_on(edge: World) -> None:
    address = await started(edge, max_frames=1)
    with held_frames(1) as held:
        async with infer_stream(address) as raw:
            await send(raw, 1)
            await held.reached(1)
            await send(raw, 2)
            assert await outcomes(raw, 1) == [(2, "QUEUE_FULL")]
            await cancel(raw, 1)
            assert await outcomes(raw, 1) == [(1, "CANCELLED")]
            await cancel(raw, 1)
            await send(raw, 3)
            assert await outcomes(raw, 1) == [(3, "ANSWERED")]
    await refused(edge, WHOLE_ONLY, Reason.CANCELLED, 1)


async def test_a_frame_given_up_while_the_tail_has_it_is_dropped_there_too(edge: World) -> None:
    tail = await edge.start("tail")
    await edge.start("head", models=NO_EXIT)
    mesh = await edge.ready_mesh()
    await answered_by(mesh, EASY, AnsweredBy.CLOUD_TAIL)
    with held_compute() as gate:
        async with infer_stream(edge.addresses["head"]) as raw:
            await send(raw, 1)
            assert await asyncio.to_thread(gate.reached.wait, WAIT_S)
            await send(raw, 2)
            await queued(tail.address, 1)
            await cancel(raw, 2)
            assert await outcomes(raw, 1) == [(2, "CANCELLED")]
            await queued(tail.address, 0)
            gate.open()
            assert await outcomes(raw, 1) == [(1, "ANSWERED")]
            await send(raw, 3)
            assert await outcomes(raw, 1) == [(3, "ANSWERED")]
    assert (await described(tail.address)).segments[0].cancelled == 1
    await refused(edge, NO_EXIT, Reason.CANCELLED, 1)


# numbers, options, labels


async def test_a_number_that_is_unanswered_is_refused_and_the_first_frame_is_answered(edge: World) -> None:
    address = await started(edge)
    with held_frames(1) as held:
        async with infer_stream(address) as raw:
            await send(raw, 1)
            await held.reached(1)
            await send(raw, 1)
            assert await outcomes(raw, 1) == [(1, "FIELD_INVALID")]
            held.let_go()
            assert await outcomes(raw, 1) == [(1, "ANSWERED")]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (pb.StreamOptions(order=99), Reason.FIELD_INVALID),  # type: ignore[arg-type]
        (pb.StreamOptions(drop=99), Reason.FIELD_INVALID),  # type: ignore[arg-type]
        (pb.StreamOptions(max_waiting=3), Reason.FIELD_INVALID),
    ],
)
async def test_options_that_mean_nothing_end_the_stream_with_a_reason(
    edge: World, asked: pb.StreamOptions, reason: Reason
) -> None:
    address = await started(edge)
    async with infer_stream(address) as raw:
        await options(raw, asked)
        assert (await ended(raw)).reason is reason


async def test_options_behind_a_frame_end_the_stream_after_its_answer(edge: World) -> None:
    address = await started(edge)
    async with infer_stream(address) as raw:
        await send(raw, 1)
        await options(raw, IN_ORDER)
        assert await outcomes(raw, 1) == [(1, "ANSWERED")]
        assert (await ended(raw)).reason is Reason.PROTOCOL_VIOLATION


async def test_as_many_labels_come_as_were_asked_for_the_probable_ones(edge: World) -> None:
    address = await started(edge)
    async with open_channel(address) as channel, infer_stream(address) as raw:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        everything = await stub.Infer(pb.InferRequest(image=picture(HARD)), timeout=WAIT_S)
        one = await stub.Infer(pb.InferRequest(image=picture(HARD), max_labels=1), timeout=WAIT_S)
        await raw.write(image_frame(picture(HARD), 1, max_labels=2))
        streamed = (await raw.read()).result
    assert Counter(label.name for label in everything.labels) == Counter(LABELS)
    assert list(one.labels) == list(everything.labels[:1])
    assert list(streamed.labels) == list(everything.labels[:2])


# the end


async def test_a_stop_answers_what_a_stream_has_sent_and_ends_it_with_not_ready(edge: World) -> None:
    address = await started(edge)
    with held_frames(1) as held:
        async with infer_stream(address) as raw:
            await send(raw, 1)
            await held.reached(1)
            stopping = asyncio.create_task(edge.stop("head"))
            await asyncio.sleep(0.05)
            held.let_go()
            assert await outcomes(raw, 1) == [(1, "ANSWERED")]
            assert (await ended(raw)).reason is Reason.NOT_READY
            await stopping


async def test_half_closing_ends_the_stream_after_the_last_answer(edge: World) -> None:
    address = await started(edge)
    with held_frames(1) as held:
        async with infer_stream(address) as raw:
            await send(raw, 1)
            await held.reached(1)
            await raw.end()
            held.let_go()
            assert await outcomes(raw, 1) == [(1, "ANSWERED")]
            assert (await ended(raw)).reason is Reason.SERVICE_UNAVAILABLE  # an end without an error
            assert (await raw.call.code()).name == "OK"
