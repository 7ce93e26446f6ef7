"""A head that computes waiting frames together: the answers of one by one, whatever the cameras are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from edge.head import load, tune
from edge.head.tune import Batching
from splitmesh.api.segment.v1 import segment_pb2, segment_pb2_grpc
from splitmesh.client import AnsweredBy
from splitmesh.kernel.channels import open_channel
from splitmesh.kernel.lifecycle import Host
from splitmesh.runtime import Session, open_session
from splitmesh.tensor.spec import Array
from tests.support.models import picture, whole_version
from tests.support.worlds import WAIT_S, WHOLE_ONLY, World, world

PAUSE_S = 0.05
LEVELS = [level / 20 for level in range(1, 13)]


class _Slow:
    """A session that takes its time, so that frames wait; remembers how many it computed at once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.sizes.append(len(next(iter(feeds.values()))))
        time.sleep(PAUSE_S)
        return self._session.run(feeds)


@pytest.fixture
async def edge(tmp_path: Path, registered: Path) -> AsyncIterator[World]:
    async with world(tmp_path, registered) as made:
        yield made


async def test_frames_of_many_cameras_are_answered_as_one_by_one(edge: World, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[_Slow] = []

    def slow(model: bytes, **options: Any) -> Session:
        opened.append(_Slow(open_session(model, **options)))
        return opened[-1]

    monkeypatch.setattr(load, "open_session", slow)
    monkeypatch.setattr(load, "measure_batches", lambda *_: Batching(8, {1: 2.0, 8: 1.0}))
    head = await edge.start("head", models=WHOLE_ONLY, workers=1, segment_threads=1)
    mesh = await edge.ready_mesh(deadline_ms=60_000)
    alone = [await mesh.infer(picture(level)) for level in LEVELS]
    opened[0].sizes.clear()
    together = await asyncio.gather(*(mesh.infer(picture(level)) for level in LEVELS))
    assert {answer.answered_by for answer in together} == {AnsweredBy.EDGE_WHOLE}
    assert sum(opened[0].sizes) == len(LEVELS)
    assert 1 < max(opened[0].sizes) <= 8
    for one, other in zip(alone, together, strict=True):
        assert [label.name for label in one.labels] == [label.name for label in other.labels]
        assert [label.score for label in one.labels] == pytest.approx([label.score for label in other.labels], abs=1e-5)
    waited = [answer.timings.queue_ms for answer in together]
    assert max(waited) > PAUSE_S * 1000 / 2
    (segment,) = (await describe(head)).segments
    assert {timing.batch for timing in segment.live} == {1, *opened[0].sizes}


async def test_threads_are_measured_once_and_told_and_a_setting_wins(
    edge: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def spied(model: bytes, *, threads: int, **options: Any) -> Session:
        asked.append(threads)
        return open_session(model, threads=threads, **options)

    monkeypatch.setattr(load, "open_session", spied)
    monkeypatch.setattr(tune, "choose_threads", lambda run_ms, **_: max(run_ms))
    measured = await edge.start("head", models=WHOLE_ONLY, segment_threads=0, cores=4)
    await edge.ready_mesh()
    assert asked[0] == 1
    told = await describe(measured)
    assert told.threads == told.segments[0].threads == max(asked) > 1
    # The next version is not measured: frames are served beside it.
    asked.clear()
    await edge.registry.create_version(WHOLE_ONLY, whole_version(), created_by="push")
    await edge.registry.set_alias(WHOLE_ONLY, "production", 2)
    async with asyncio.timeout(WAIT_S):
        while (await describe(measured)).segments[0].version != 2:  # noqa: ASYNC110 - a poll over the wire
            await asyncio.sleep(0.05)
    assert asked == [told.threads]
    asked.clear()
    fixed = await edge.start("head", name="other-head", models=WHOLE_ONLY, segment_threads=3)
    async with asyncio.timeout(WAIT_S):
        while not (await describe(fixed)).segments:  # noqa: ASYNC110 - a poll over the wire
            await asyncio.sleep(0.05)
    assert asked == [3]
    assert (await describe(fixed)).segments[0].threads == 3


async def describe(head: Host) -> segment_pb2.DescribeResponse:
    async with open_channel(head.address) as channel:
        stub = segment_pb2_grpc.SegmentServiceStub(channel)
        told: segment_pb2.DescribeResponse = await stub.Describe(segment_pb2.DescribeRequest(), timeout=WAIT_S)
        return told
