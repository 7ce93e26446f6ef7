"""Tails in this process whose compute is held, so that frames have to wait, and a look at how many do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from splitmesh.api.segment.v1 import segment_pb2, segment_pb2_grpc
from splitmesh.kernel.batch_job import BatchJob
from splitmesh.kernel.channels import open_channel
from tests.support.models import HARD
from tests.support.wire import WAIT_S, Raw, frame_messages, packed, send

BLOCKING = 999
"""Number of the frame that :func:`blocked` sends."""


class Gate:
    """Batches stop here until it opens."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()

    def open(self) -> None:
        """Let everything through."""
        self._open.set()

    def wait(self) -> None:
        """In the computing thread."""
        self.reached.set()
        assert self._open.wait(WAIT_S)


@contextmanager
def held_compute(tensor: str = "") -> Iterator[Gate]:
    """Every batch of every tail in this process waits at a gate; with ``tensor`` only those that take this input."""
    gate, run = Gate(), BatchJob.run

    def held(self: BatchJob) -> None:
        if not tensor or tensor in self.batch[0].feeds:
            gate.wait()
        run(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchJob, "run", held)
        try:
            yield gate
        finally:
            gate.open()


async def blocked(raw: Raw, gate: Gate, **fields: object) -> None:
    """Send a frame that is being computed when this returns."""
    await send(raw, frame_messages(packed(HARD), BLOCKING, **fields))  # type: ignore[arg-type]
    assert await asyncio.to_thread(gate.reached.wait, WAIT_S)


async def described(address: str) -> segment_pb2.DescribeResponse:
    """What a tail says of itself."""
    async with open_channel(address) as channel:
        stub = segment_pb2_grpc.SegmentServiceStub(channel)
        return await stub.Describe(segment_pb2.DescribeRequest(), timeout=WAIT_S)


async def queued(address: str, count: int) -> segment_pb2.DescribeResponse:
    """Wait until so many frames wait for compute."""
    async with asyncio.timeout(WAIT_S):
        while (answer := await described(address)).queue_length != count:
            pass
    return answer
