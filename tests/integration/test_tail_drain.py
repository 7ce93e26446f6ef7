"""A tail that stops while frames are on their way: it says so, answers what it has, refuses the rest, and ends the stream."""

from __future__ import annotations

import asyncio
from pathlib import Path

from splitmesh.errors import Reason
from tests.support.held_tail import BLOCKING, blocked, held_compute, queued
from tests.support.models import HARD
from tests.support.wire import ended, frame_error, frame_messages, packed, run_stream, send
from tests.support.worlds import MODEL, world


async def test_a_tail_that_stops_says_so_answers_what_it_has_and_refuses_the_rest(
    tmp_path: Path, registered: Path
) -> None:
    async with world(tmp_path, registered) as cloud:
        tail = await cloud.start("tail", drain_s=10)
        with held_compute() as gate:
            async with run_stream(tail.address, MODEL) as raw:
                await blocked(raw, gate)
                await send(raw, frame_messages(packed(HARD), 1))
                await queued(tail.address, 1)
                stopping = asyncio.create_task(cloud.stop("tail"))
                assert (await raw.read()).WhichOneof("message") == "draining"
                await send(raw, frame_messages(packed(HARD), 2))
                frame_id, error = frame_error(await raw.read())
                assert (frame_id, error.reason) == (2, Reason.NOT_READY)
                assert error.retry_after_s
                gate.open()
                assert {(await raw.read()).result.frame_id for _ in range(2)} == {BLOCKING, 1}
                await raw.end()
                assert (await ended(raw)).reason is Reason.NOT_READY
                await stopping
