"""One stream from a head to a tail, while the link takes nothing."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest

from splitmesh.api.segment.v1 import segment_pb2
from splitmesh.client.link_estimate import LinkEstimator
from splitmesh.client.segment import _TailStream
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.tensor import pack

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_frames_given_up_while_the_link_stands_still_keep_their_place_in_the_line() -> None:
    channels = Channels(StaticDiscovery({}))
    stream = _TailStream(channels, "127.0.0.1:1", segment_pb2.Open(model="m", version=1), asyncio.Event(), None)
    stream.credit = 1
    assert stream.free
    with pytest.raises(MeshError) as caught:
        await stream.run(pack([("t", np.zeros(1, np.float32))], "identity"), "", 0.05)
    assert caught.value.reason is Reason.DEADLINE_EXPIRED
    assert (stream.credit, stream.in_flight, stream.free) == (1, 0, False)
    await stream.close()
    await channels.close()


async def test_a_tail_that_says_nonsense_of_its_times_fails_the_frame_and_spoils_no_estimate() -> None:
    channels, estimator = Channels(StaticDiscovery({})), LinkEstimator(1e4, 10.0)
    stream = _TailStream(channels, "127.0.0.1:1", segment_pb2.Open(model="m", version=1), asyncio.Event(), estimator)
    frame = pack([("t", np.zeros(1, np.float32))], "identity")
    results = (
        segment_pb2.Result(frame_id=1, queue_ms=math.nan),
        segment_pb2.Result(frame_id=2, compute_ms=-1.0),
        segment_pb2.Result(frame_id=3, onward=[segment_pb2.Hop(link_ms=math.inf)]),
    )
    for result in results:
        asked = asyncio.create_task(stream.run(frame, "", 5.0))
        await asyncio.sleep(0)
        stream._receive(segment_pb2.RunResponse(result=result))
        with pytest.raises(MeshError) as caught:
            await asked
        assert caught.value.reason is Reason.PROTOCOL_VIOLATION
    state = estimator.state(1e12)
    assert (state.bytes_per_ms, state.rtt_ms, state.queue_ms) == (1e4, 10.0, 0.0)
    await stream.close()
    await channels.close()
