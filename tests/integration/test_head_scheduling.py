"""Two applications on one host: what one leaves the other decides which way that one goes, and nobody loses a frame for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from edge.head import load, ways
from splitmesh.api.serving.v1 import serving_pb2 as pb
from splitmesh.client import Answer, AnsweredBy, Mesh
from splitmesh.client.serving import ServingClient
from splitmesh.errors import Reason
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.model.alternatives import ALTERNATIVES, Alternative, AlternativeSet
from splitmesh.runtime import Session, open_session
from splitmesh.tensor.spec import Array
from splitmesh.testing.links import LinkProfile
from splitmesh.testing.relay import LinkRelay
from tests.support.models import EASY, picture, split_version, whole_version
from tests.support.worlds import WAIT_S, World, world

FIRST, SECOND = "first", "second"
SIDE, OTHER_SIDE = 64, 48
FIRST_S, SECOND_S = 0.06, 0.03
"""What their whole models take on this weak host."""
EVERY_S = 0.125
"""Between two frames of the first application: alone it needs half of the host's one worker."""
FAR = LinkProfile("far", 100.0, 100.0, 200.0)
LONGEST_S = 30.0


class _Slow:
    """A session on a weak host."""

    def __init__(self, session: Session, takes_s: float) -> None:
        self._session = session
        self._takes_s = takes_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        time.sleep(self._takes_s)
        return self._session.run(feeds)


@pytest.fixture
async def edge(tmp_path: Path, registered: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    takes_s = {whole_version(SIDE)["model.onnx"]: FIRST_S, whole_version(OTHER_SIDE)["model.onnx"]: SECOND_S}

    def on_this_host(model: bytes, **options: Any) -> Session:
        session = open_session(model, **options)
        return _Slow(session, takes_s[model]) if model in takes_s else session

    monkeypatch.setattr(load, "open_session", on_this_host)
    monkeypatch.setattr(ways, "DWELL_S", 0.5)
    async with world(tmp_path, registered) as made:
        await made.registry.create_version(FIRST, split_version(SIDE), created_by="partitioner")
        await made.registry.create_version(FIRST, adaptive_version(), created_by="partitioner")
        await made.registry.set_alias(FIRST, "production", 2)
        await made.registry.create_version(SECOND, whole_version(OTHER_SIDE), created_by="push")
        await made.registry.set_alias(SECOND, "production", 1)
        yield made


def adaptive_version() -> dict[str, bytes]:
    """Begins whole, on this host; version 1 is the cut, whose tail is far away."""
    listed = AlternativeSet(
        alternatives=(
            Alternative(version=0, name="edge only", edge_ms=FIRST_S * 1e3),
            Alternative(version=1, name="cut", edge_ms=1.0, uplink_bytes=8000, cloud_ms=1.0, share=1.0),
        ),
        uplink_mbps=100.0,
        rtt_ms=200.0,
    )
    return {**whole_version(SIDE), ALTERNATIVES: listed.to_json().encode()}


@pytest.fixture
async def gateways(edge: World) -> AsyncIterator[tuple[Mesh, Mesh]]:
    """Of both applications."""
    await edge.start("tail")
    async with LinkRelay(edge.addresses["tail"], FAR) as relay:
        edge.addresses["tail"] = relay.address
        await edge.start("head", models=f"{FIRST},{SECOND}", workers=1)
        serving = await serving_client(edge)
        for model in (FIRST, SECOND):
            await until(serving, lambda state: state.wanted.phase == pb.PHASE_SERVING, model)
        yield await edge.mesh(model=FIRST), await edge.mesh(model=SECOND)
        await edge.stop("head")


async def serving_client(edge: World) -> ServingClient:
    channels = Channels(StaticDiscovery({}))
    edge.stack.push_async_callback(channels.close)
    return ServingClient(channels, edge.addresses["head"])


class Camera:
    """Asks the first application steadily; keeps every answer, and what became of those that got none."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._asked: set[asyncio.Task[None]] = set()
        self._told = asyncio.Event()
        self.answers: list[Answer] = []
        self.errors: list[Exception] = []

    async def run(self) -> None:
        while True:
            task = asyncio.create_task(self._ask())
            self._asked.add(task)
            await asyncio.sleep(EVERY_S)

    async def rest(self) -> None:
        """Until all that was asked is answered."""
        await asyncio.gather(*self._asked)
        assert len(self.answers) + len(self.errors) == len(self._asked)

    async def until(self, by: AnsweredBy) -> float:
        """Seconds until five answers in a row came from there."""
        begun, first = time.monotonic(), len(self.answers)
        try:
            async with asyncio.timeout(LONGEST_S):
                while len(last := self.answers[first:][-5:]) < 5 or {one.answered_by for one in last} != {by}:
                    self._told.clear()
                    await self._told.wait()
        except TimeoutError:
            pytest.fail(f"not {by}: {[one.answered_by.value for one in self.answers[-10:]]}, {self.errors[-3:]}")
        return time.monotonic() - begun

    async def _ask(self) -> None:
        try:
            self.answers.append(await self._mesh.infer(picture(EASY, side=SIDE), retries=0))
        except Exception as error:
            self.errors.append(error)
        self._told.set()


@asynccontextmanager
async def watched(mesh: Mesh) -> AsyncIterator[Camera]:
    """The first application is asked inside the block; at its end every frame is answered."""
    camera = Camera(mesh)
    running = asyncio.create_task(camera.run())
    try:
        yield camera
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await camera.rest()


@asynccontextmanager
async def busy_second(mesh: Mesh) -> AsyncIterator[list[Answer]]:
    """The second application takes all that it can get inside the block."""
    answers: list[Answer] = []
    stopped = asyncio.Event()

    async def ask() -> None:
        while not stopped.is_set():
            answers.append(await mesh.infer(picture(EASY, side=OTHER_SIDE), retries=0))

    asking = [asyncio.create_task(ask()) for _ in range(3)]
    try:
        yield answers
    finally:
        stopped.set()
        await asyncio.gather(*asking)


async def test_an_application_goes_to_the_cloud_when_another_one_fills_the_host_and_comes_back_by_weight_or_when_that_ends(
    edge: World, gateways: tuple[Mesh, Mesh]
) -> None:
    serving, (first, second) = await serving_client(edge), gateways

    async def weigh(generation: int, weight: float) -> None:
        shares = [pb.HostShare(model=FIRST, cpu_weight=weight), pb.HostShare(model=SECOND, cpu_weight=1.0)]
        assert await serving.set_host_policy(pb.HostPolicy(generation=generation, shares=shares)) == generation

    async with watched(first) as camera:
        await camera.until(AnsweredBy.EDGE_WHOLE)
        async with busy_second(second) as others:
            took_s = await camera.until(AnsweredBy.CLOUD_TAIL)
            assert took_s < 10, "the goal is a few seconds"
            await weigh(1, 9.0)
            await camera.until(AnsweredBy.EDGE_WHOLE)
            await weigh(2, 1.0)
            await camera.until(AnsweredBy.CLOUD_TAIL)
        await camera.until(AnsweredBy.EDGE_WHOLE)
    assert camera.errors == [], "no frame is lost on any change"
    assert {answer.fallback_reason for answer in camera.answers} == {""}
    assert {answer.answered_by for answer in others} == {AnsweredBy.EDGE_WHOLE}


async def until(serving: ServingClient, wanted: Callable[[pb.ServingState], bool], model: str) -> pb.ServingState:
    """The first state of the model that is so."""
    async with asyncio.timeout(WAIT_S), aclosing(serving.watch()) as watch:
        async for message in watch:
            for state in message.states:
                if state.model == model and wanted(state):
                    return state
    raise AssertionError("the watch ended")


async def test_a_version_that_the_policy_has_no_room_for_is_refused_and_comes_when_the_policy_gives_it(
    edge: World,
) -> None:
    await edge.start("head", models=SECOND, switch_wait_s=0)
    serving, mesh = await serving_client(edge), await edge.ready_mesh()
    await until(serving, lambda state: state.active_version == 1, SECOND)
    tight = pb.HostPolicy(generation=1, shares=[pb.HostShare(model=FIRST, memory_bytes=1000)])
    await serving.set_host_policy(tight)
    await serving.assign(pb.Assignment(model=FIRST, version=1, generation=1))
    state = await until(serving, lambda state: state.wanted.phase == pb.PHASE_FAILED, FIRST)
    assert state.wanted.reason == Reason.HOST_TOO_SMALL.value
    assert FIRST in state.wanted.message
    assert (await mesh.infer(picture(EASY, side=OTHER_SIDE))).version == 1, "the other one goes on"
    await serving.set_host_policy(pb.HostPolicy(generation=2, memory_bytes=1000))
    state = await until(serving, lambda state: "all versions" in state.wanted.message, FIRST)
    assert state.wanted.reason == Reason.HOST_TOO_SMALL.value
    await serving.set_host_policy(pb.HostPolicy(generation=3, memory_bytes=1 << 40))
    state = await until(serving, lambda state: state.wanted.phase == pb.PHASE_SERVING, FIRST)
    assert (state.active_version, state.wanted.reason) == (1, "")
