"""One stream from a head to a tail, while the link takes nothing."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from splitmesh.api.segment.v1 import segment_pb2
from splitmesh.client.segment import _TailStream
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.tensor import pack


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
