"""The SDK against real heads: one leaves in mid-stream, streams in order, frames that give way, and frames that are cancelled."""

from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from splitmesh.client import Answer, FrameFailure, Mesh, Reason
from splitmesh.client.stream import Order
from splitmesh.kernel.lifecycle import Host
from tests.support.models import EASY, EASY_LABEL, HARD, HARD_LABEL, picture
from tests.support.worlds import World, serving, world

WAIT_S = 30.0
pytestmark = pytest.mark.timeout(4 * WAIT_S)


@pytest.fixture
async def site(tmp_path: Path, registered: Path) -> AsyncIterator[World]:
    """A tail, and room for heads."""
    async with world(tmp_path, registered) as made:
        await made.start("tail")
        yield made


async def head(site: World, name: str, **settings: object) -> Host:
    started = await site.start("head", name=name, **settings)
    await serving(started.address)
    return started


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@pytest.mark.parametrize("order", ["in-order", "as-ready"])
async def test_no_frame_is_lost_when_a_head_stops_in_mid_stream_and_another_takes_over(
    site: World, order: Order
) -> None:
    first, port = await head(site, "head-a"), free_port()
    sent, last = 0, 1_000_000

    async def frames() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < last:
            sent += 1
            yield picture(HARD if sent % 2 else EASY)

    async def replace_it() -> None:
        nonlocal last
        await head(site, "head-b", port=port)
        await site.stop("head-a")
        last = sent + 50

    outcomes: list[Answer | FrameFailure] = []
    async with (
        asyncio.timeout(WAIT_S),
        Mesh(f"{first.address},127.0.0.1:{port}", deadline_ms=5000) as mesh,
        mesh.stream("line", order=order) as stream,
        asyncio.TaskGroup() as tasks,
    ):
        async for outcome in stream.run(frames()):
            outcomes.append(outcome)
            if len(outcomes) == 50:
                tasks.create_task(replace_it())
    assert stream.counts.reconnected >= 1
    numbers = [one.frame_id for one in outcomes]
    assert (numbers if order == "in-order" else sorted(numbers)) == list(range(sent))
    assert not [one for one in outcomes if isinstance(one, FrameFailure)]
    right = {0: HARD_LABEL, 1: EASY_LABEL}
    assert all(one.label.name == right[one.frame_id % 2] for one in outcomes if isinstance(one, Answer))


def large_picture() -> bytes:
    """One that takes a head a while to decode."""
    pixels = np.random.default_rng(0).integers(0, 255, (2000, 2000), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


async def test_frames_that_come_too_fast_for_a_head_give_way_to_newer_ones(site: World) -> None:
    started = await head(site, "head-a")
    frame = large_picture()
    async with (
        asyncio.timeout(WAIT_S),
        Mesh(started.address, deadline_ms=20_000) as mesh,
        mesh.stream("line", drop="oldest", order="in-order", window=64) as stream,
    ):
        outcomes = [outcome async for outcome in stream.run([frame] * 30)]
        counts = stream.counts
    assert [one.frame_id for one in outcomes] == list(range(30))
    assert counts.superseded > 0
    assert counts.answered + counts.superseded == 30
    assert isinstance(outcomes[-1], Answer)  # the newest never gives way


async def test_a_frame_cancelled_at_a_real_head_ends_and_its_neighbours_are_answered(site: World) -> None:
    started = await head(site, "head-a")
    async with asyncio.timeout(WAIT_S), Mesh(started.address, deadline_ms=20_000) as mesh, mesh.stream() as stream:
        first = await stream.send(picture(EASY))
        assert (await anext(stream)).frame_id == first
        cancelled, kept = await stream.send(large_picture()), await stream.send(picture(EASY))
        assert stream.cancel(cancelled)
        stream.end()
        found = {outcome.frame_id: outcome async for outcome in stream}
    assert isinstance(found[kept], Answer)
    failure = found[cancelled]
    assert isinstance(failure, FrameFailure)
    assert failure.error.reason is Reason.CANCELLED
