"""Heads in this process whose work on single frames is held, so that others overtake them or wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from edge.head import perceive, turns
from edge.head.frame import FrameRequest
from tests.support.wire import WAIT_S


class Held:
    """Frames stop in a worker thread until they are let go."""

    def __init__(self, frame_ids: set[int]) -> None:
        self._reached = {frame_id: threading.Event() for frame_id in frame_ids}
        self._free = {frame_id: threading.Event() for frame_id in frame_ids}
        self.seen: list[int] = []
        """Every frame that was begun, in the order of beginning."""

    async def reached(self, frame_id: int) -> None:
        """Wait until a frame is being worked on."""
        assert await asyncio.to_thread(self._reached[frame_id].wait, WAIT_S)

    def let_go(self, *frame_ids: int) -> None:
        """Let these go on; without any, all."""
        for frame_id in frame_ids or self._free:
            self._free[frame_id].set()

    def stop_here(self, frame_id: int) -> None:
        """In the worker thread."""
        self.seen.append(frame_id)
        if frame_id in self._free:
            self._reached[frame_id].set()
            assert self._free[frame_id].wait(WAIT_S)


@contextmanager
def held_frames(*frame_ids: int) -> Iterator[Held]:
    """Frames with these numbers are held in every head of this process."""
    held, real = Held(set(frame_ids)), perceive.perceive

    def held_perceive(active: Any, request: FrameRequest, **options: Any) -> Any:
        held.stop_here(request.frame_id)
        return real(active, request, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "perceive", held_perceive)
        try:
            yield held
        finally:
            held.let_go()
