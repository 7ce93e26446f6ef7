"""One stream from a head to a tail, while the link takes nothing; and what a frame costs beside its payload."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio

from splitmesh.api.segment.v1 import segment_pb2
from splitmesh.client.link_estimate import LinkEstimator
from splitmesh.client.segment import one_sample
from splitmesh.client.tail_stream import Flight, Opening, TailStream, frame_messages
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.kernel.large_fields import RUN_REQUEST
from splitmesh.kernel.wire import Lifted
from splitmesh.tensor import Frame, TensorSpec, pack

pytestmark = pytest.mark.asyncio(loop_scope="module")

SMALL = pack([("t", np.zeros(1, np.float32))], "identity")
ESTIMATOR = LinkEstimator(1e4, 10.0)


@pytest_asyncio.fixture(loop_scope="module")
async def stream() -> AsyncIterator[TailStream]:
    """To an address where nobody is."""
    channels = Channels(StaticDiscovery({}))
    opening = Opening(segment_pb2.Open(model="m", version=1))
    made = TailStream(channels, "127.0.0.1:1", opening, lambda: None, lambda _: None, ESTIMATOR)
    yield made
    await made.close()
    await channels.close()


def _send(stream: TailStream, frame: Frame = SMALL) -> Flight:
    return stream.send(frame, b"", asyncio.get_running_loop().time() + 5)


async def test_frames_given_up_while_the_link_stands_still_keep_their_place_in_the_line(stream: TailStream) -> None:
    stream.credit = 1
    assert stream.free
    stream.drop(_send(stream), expired=True)
    assert (stream.credit, stream.in_flight, stream.free) == (1, 0, False)


async def test_a_tail_that_says_nonsense_of_its_times_fails_the_frame_and_spoils_no_estimate(
    stream: TailStream,
) -> None:
    results = (
        segment_pb2.Result(frame_id=1, queue_ms=math.nan),
        segment_pb2.Result(frame_id=2, compute_ms=-1.0),
        segment_pb2.Result(frame_id=3, onward=[segment_pb2.Hop(link_ms=math.inf)]),
        segment_pb2.Result(frame_id=4, backlog_ms=math.nan),
    )
    before = ESTIMATOR.state(1e12)
    for result in results:
        flight = _send(stream)
        stream._receive(Lifted(segment_pb2.RunResponse(result=result), ()))
        with pytest.raises(MeshError) as caught:
            await flight.answer
        assert caught.value.reason is Reason.PROTOCOL_VIOLATION
    assert ESTIMATOR.state(1e12) == before
    assert stream.standing.score(0.0) == 0.0
    assert (stream.in_flight, stream.standing.failed_frames) == (0, len(results))


async def test_a_tail_about_to_stop_gets_no_more_frames_and_unsent_ones_are_given_back(stream: TailStream) -> None:
    stream.credit = 8
    sent, waiting = _send(stream), _send(stream)
    sent.written = True
    stream._receive(Lifted(segment_pb2.RunResponse(draining=segment_pb2.Draining()), ()))
    assert not stream.accepts
    assert not sent.answer.done()
    with pytest.raises(MeshError) as caught:
        waiting.answer.result()
    assert caught.value.reason is Reason.NOT_READY
    stream._receive(Lifted(segment_pb2.RunResponse(result=segment_pb2.Result(frame_id=sent.frame_id)), ()))
    assert sent.answer.result().message.result.frame_id == sent.frame_id


async def test_a_stream_that_is_to_finish_waits_for_its_frames_and_no_longer_than_it_may(stream: TailStream) -> None:
    flight = _send(stream)
    finishing = asyncio.create_task(stream.finish(20.0))
    await asyncio.sleep(0.05)
    assert not finishing.done()
    stream._receive(Lifted(segment_pb2.RunResponse(result=segment_pb2.Result(frame_id=flight.frame_id)), ()))
    async with asyncio.timeout(5):
        await finishing
    assert flight.answer.result()
    late = _send(stream)
    await stream.finish(0.05)
    stream.drop(late)


# what crosses


def _bytes(frame: Frame, wire: tuple[TensorSpec, ...]) -> int:
    flight = Flight(None, 4711, frame, bytes(range(25)), 10.25, 0, answer=None)  # type: ignore[arg-type]
    return sum(len(RUN_REQUEST.serialize(message)) for message in frame_messages(flight, 10.0, wire))


@pytest.mark.parametrize("size", [16, 128])
async def test_a_frame_that_carries_what_the_version_states_costs_few_bytes_beside_its_payload(size: int) -> None:
    stated = (TensorSpec("/features/waist/Relu_output_0", "uint8", (-1, 8, size, size)),)
    frame = pack([(stated[0].name, np.zeros((1, 8, size, size), np.uint8))], "identity")
    lean, full = _bytes(frame, one_sample(stated)), _bytes(frame, ())
    assert lean - len(frame.payload) <= 60
    assert full - lean >= 40


@pytest.mark.parametrize(("side", "name"), [(16, "other"), (17, "t")])
async def test_a_frame_with_other_tensors_says_so(side: int, name: str) -> None:
    wire = one_sample([TensorSpec("t", "uint8", (-1, 8, 16, 16))])
    frame = pack([(name, np.zeros((1, 8, side, side), np.uint8))], "identity")
    assert _bytes(frame, wire) == _bytes(frame, ())


async def test_a_cut_with_open_dimensions_is_always_stated() -> None:
    assert one_sample([TensorSpec("t", "uint8", (-1, 8, -1, -1))]) == ()
    assert one_sample([TensorSpec("t", "uint8", (4, 8))]) == ()


async def test_large_payloads_whole_and_in_chunks_cross_as_they_are() -> None:
    for size in (512, 1200):
        frame = pack([("t", np.random.default_rng(0).integers(0, 255, (1, size, size), np.uint8))], "identity")
        flight = Flight(None, 1, frame, b"", 1.0, 0, answer=None)  # type: ignore[arg-type]
        messages = [
            segment_pb2.RunRequest.FromString(RUN_REQUEST.serialize(one)) for one in frame_messages(flight, 0.0, ())
        ]
        got = messages[0].frame.payload + b"".join(one.chunk.data for one in messages[1:])
        assert got == bytes(frame.payload)
        assert [one.chunk.index for one in messages[1:]] == list(range(frame.header.chunk_count))
