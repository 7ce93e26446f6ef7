"""What a head owes when things pile up or are refused: no second wait for a hard frame, no end of following."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edge.head import policies, turns
from splitmesh.client import Answer, AnsweredBy, MeshError, Reason
from splitmesh.client.routing import RoutingClient
from tests.support.models import EASY, HARD, picture
from tests.support.wire import WAIT_S
from tests.support.worlds import World, answered_by, world

FRAMES = 4


@pytest.fixture
async def edge(tmp_path: Path, registered: Path) -> AsyncIterator[World]:
    async with world(tmp_path, registered) as made:
        yield made


async def test_a_hard_frame_is_answered_while_later_frames_hold_every_worker(
    edge: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await edge.start("head", workers=1, switch_wait_s=0, default_deadline_ms=60_000)
    mesh = await edge.ready_mesh(deadline_ms=60_000)
    release, calls, real = threading.Event(), [], turns.perceive

    def slow(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            release.wait(WAIT_S)
        return real(*arguments, **options)

    monkeypatch.setattr(turns, "perceive", slow)
    asked = [asyncio.create_task(mesh.infer(picture(HARD))) for _ in range(FRAMES)]
    try:
        done, waiting = await asyncio.wait(asked, timeout=WAIT_S / 2, return_when=asyncio.FIRST_COMPLETED)
    finally:
        release.set()
    assert len(done) == 1
    answers: list[Answer] = [*(task.result() for task in done), *await asyncio.gather(*waiting)]
    assert {one.answered_by for one in answers} == {AnsweredBy.EDGE_FALLBACK}


async def test_a_policy_watch_that_was_refused_is_taken_up_again(edge: World, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals, real = (
        iter([MeshError(Reason.FIELD_INVALID, "no"), RuntimeError("unforeseen")]),
        RoutingClient.watch_policy,
    )

    def watch_policy(client: RoutingClient, model: str, version: int, node: str) -> Any:
        if (refusal := next(refusals, None)) is not None:
            raise refusal
        return real(client, model, version, node)

    monkeypatch.setattr(policies, "PAUSE_S", 0.05)
    monkeypatch.setattr(RoutingClient, "watch_policy", watch_policy)
    await edge.start("tail")
    await edge.start("head")
    await answered_by(await edge.ready_mesh(), EASY, AnsweredBy.EDGE_EXIT)
    assert next(refusals, None) is None
