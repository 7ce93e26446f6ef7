"""What a busy head owes a hard frame: it does not wait a second time behind frames that came after it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edge.head import answer
from splitmesh.client import Answer, AnsweredBy
from tests.support.models import HARD, picture
from tests.support.wire import WAIT_S
from tests.support.worlds import World, world

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
    release, calls, real = threading.Event(), [], answer.perceive

    def slow(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            release.wait(WAIT_S)
        return real(*arguments, **options)

    monkeypatch.setattr(answer, "perceive", slow)
    asked = [asyncio.create_task(mesh.infer(picture(HARD))) for _ in range(FRAMES)]
    try:
        done, waiting = await asyncio.wait(asked, timeout=WAIT_S / 2, return_when=asyncio.FIRST_COMPLETED)
    finally:
        release.set()
    assert len(done) == 1
    answers: list[Answer] = [*(task.result() for task in done), *await asyncio.gather(*waiting)]
    assert {one.answered_by for one in answers} == {AnsweredBy.EDGE_FALLBACK}
