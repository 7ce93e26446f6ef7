"""A head with alternatives: changes its way as the link changes, answers here when the tail cannot, restarts alone."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge.head import load, ways
from splitmesh.client import Answer, AnsweredBy, Mesh
from splitmesh.model.alternatives import ALTERNATIVES, Alternative, AlternativeSet
from splitmesh.runtime import Session, open_session
from splitmesh.tensor.spec import Array
from splitmesh.testing.links import LinkProfile
from splitmesh.testing.relay import LinkRelay
from tests.support.models import expected_scores, split_version, whole_version
from tests.support.worlds import World, world

NAME = "adaptive"
SIDE = 64
WHOLE_S = 0.06
"""What the whole model takes on this weak host."""
FAST = LinkProfile("fast", 100.0, 100.0, 10.0)
SLOW = replace(FAST, uplink_mbps=0.3)
LONGEST_S = 15.0


class _Slow:
    """A session on a weak host."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        time.sleep(WHOLE_S)
        return self._session.run(feeds)


@pytest.fixture
async def edge(tmp_path: Path, registered: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    whole = whole_version(SIDE)["model.onnx"]

    def on_this_host(model: bytes, **options: Any) -> Session:
        session = open_session(model, **options)
        return _Slow(session) if model == whole else session

    monkeypatch.setattr(load, "open_session", on_this_host)
    monkeypatch.setattr(ways, "STALE_S", 0.5)
    monkeypatch.setattr(ways, "DWELL_S", 0.5)
    async with world(tmp_path, registered) as made:
        await made.registry.create_version(NAME, whole_version(SIDE), created_by="push")
        await made.registry.create_version(NAME, split_version(SIDE), created_by="partitioner")
        await made.registry.create_version(NAME, adaptive_version(), created_by="partitioner")
        await made.registry.set_alias(NAME, "production", 3)
        yield made


def adaptive_version() -> dict[str, bytes]:
    """Begins with the cut; version 1 is the whole model."""
    listed = AlternativeSet(
        alternatives=(
            Alternative(version=0, name="cut", edge_ms=1.0, uplink_bytes=8000, cloud_ms=1.0, share=1.0),
            Alternative(version=1, name="edge only", edge_ms=WHOLE_S * 1e3),
        ),
        uplink_mbps=100.0,
        rtt_ms=10.0,
    )
    return {**split_version(SIDE), ALTERNATIVES: listed.to_json().encode()}


@pytest.fixture
async def relay(edge: World) -> AsyncIterator[LinkRelay]:
    await edge.start("tail")
    async with LinkRelay(edge.addresses["tail"], FAST) as made:
        edge.addresses["tail"] = made.address
        yield made


@pytest.fixture
async def gateway(edge: World, relay: LinkRelay) -> Mesh:
    await edge.start("head", models=NAME)
    return await edge.ready_mesh(deadline_ms=2000)


def noisy_picture(seed: int) -> bytes:
    """One whose features hardly compress."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


async def until_version(gateway: Mesh, version: int) -> tuple[float, list[Answer]]:
    """Send frames until this version answered three in a row; the seconds to the first of them, and every answer."""
    picture, begun, answers, since = noisy_picture(0), time.monotonic(), list[Answer](), 0.0
    expected = expected_scores(picture, side=SIDE)
    async with asyncio.timeout(LONGEST_S):
        in_a_row = 0
        while in_a_row < 3:
            answer = await gateway.infer(picture, retries=0)
            answers.append(answer)
            scores = [label.score for label in sorted(answer.labels, key=lambda one: one.index)]
            assert scores == pytest.approx(expected, abs=1e-5), "whichever way, the answer is the whole model's"
            in_a_row = in_a_row + 1 if answer.version == version else 0
            since = time.monotonic() - begun if in_a_row == 1 else since
            await asyncio.sleep(0.02)
    return since, answers


async def test_a_link_that_narrows_sends_the_head_the_other_way_and_back(gateway: Mesh, relay: LinkRelay) -> None:
    _, answers = await until_version(gateway, 3)
    assert answers[-1].answered_by is AnsweredBy.CLOUD_TAIL
    relay.set_profile(SLOW)
    took_s, answers = await until_version(gateway, 1)
    assert answers[-1].answered_by is AnsweredBy.EDGE_WHOLE
    assert answers[-1].cut == ()
    assert took_s < 3.0, "the goal is one second on a quiet host"
    relay.set_profile(FAST)
    _, answers = await until_version(gateway, 3)
    assert answers[-1].answered_by is AnsweredBy.CLOUD_TAIL
    assert answers[-1].cut == ("features",)


async def test_when_the_tail_cannot_answer_the_whole_model_does_and_says_why(
    gateway: Mesh, relay: LinkRelay, edge: World
) -> None:
    await until_version(gateway, 3)
    relay.down(cut_after_s=0.0)
    answer = await gateway.infer(noisy_picture(1), retries=0)
    assert answer.answered_by is AnsweredBy.EDGE_WHOLE
    assert answer.version == 1
    _, answers = await until_version(gateway, 1)
    assert {one.answered_by for one in answers} == {AnsweredBy.EDGE_WHOLE}
    relay.up()
    _, answers = await until_version(gateway, 3)
    assert answers[-1].fallback_reason == ""


async def test_the_answer_is_in_time_when_frames_vanish(gateway: Mesh, relay: LinkRelay) -> None:
    """Nothing says that the link is gone: frames are swallowed. Time for the whole model is kept back."""
    await until_version(gateway, 3)
    relay.down(refuse_new=False)
    answer = await gateway.infer(noisy_picture(1), deadline_ms=600, retries=0)
    assert answer.answered_by is AnsweredBy.EDGE_WHOLE
    assert answer.fallback_reason in ("DEADLINE_EXPIRED", "SERVICE_UNAVAILABLE", "")
    assert answer.timings.total_ms < 600


async def test_a_restart_without_registry_and_tail_still_has_every_way(edge: World, relay: LinkRelay) -> None:
    await edge.start("head", models=NAME)
    await until_version(await edge.ready_mesh(), 3)
    await edge.stop("head")
    await edge.stop("registry")
    relay.down()
    del edge.addresses["head"]
    await edge.start("head", models=NAME)
    answer = await (await edge.ready_mesh()).infer(noisy_picture(2))
    assert (answer.answered_by, answer.version) == (AnsweredBy.EDGE_WHOLE, 1)


async def no_alternatives(*_: object) -> tuple[()]:
    return ()


async def test_a_list_that_cannot_be_read_leaves_the_head_with_what_it_has(
    gateway: Mesh, edge: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await until_version(gateway, 3)
    # The registry would refuse it.
    monkeypatch.setattr("services.registry.sound.Soundness._alternatives", no_alternatives)
    await edge.registry.create_version(NAME, {**split_version(SIDE), ALTERNATIVES: b"{}"}, created_by="push")
    await edge.registry.set_alias(NAME, "production", 4)
    async with asyncio.timeout(LONGEST_S):
        while "cannot be used yet" not in caplog.text:
            await gateway.infer(noisy_picture(1))
    assert (await gateway.infer(noisy_picture(1))).version in (1, 3)
    await edge.registry.set_alias(NAME, "production", 2)
    _, answers = await until_version(gateway, 2)
    assert answers[-1].answered_by is AnsweredBy.CLOUD_TAIL


async def test_a_deadline_too_short_for_the_whole_model_is_left_to_the_tail(
    gateway: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keeping back time that would not be enough gains nothing, and the tail would never be asked."""
    await until_version(gateway, 3)
    monkeypatch.setattr(ways, "RESERVE", 50.0)
    answer = await gateway.infer(noisy_picture(1), deadline_ms=1500, retries=0)
    assert answer.answered_by is AnsweredBy.CLOUD_TAIL
