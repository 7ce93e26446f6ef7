"""A value that changes, and those who follow it: current first, then each change; who is slow sees the latest only.

What every Watch stream needs and nothing more: no queue per follower, no polling, an end at the server's drain.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Generic, TypeVar

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.streams import Drain

T = TypeVar("T")


class Latest(Generic[T]):
    """Holds one value; None until the first is set."""

    def __init__(self, value: T | None = None) -> None:
        self._value = value
        self._number = 0 if value is None else 1
        self._changed = asyncio.Event()

    @property
    def value(self) -> T | None:
        """The value now."""
        return self._value

    def set(self, value: T) -> None:
        """Change it and wake the followers."""
        self._value = value
        self._number += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self, drain: Drain, *, longest_s: float) -> AsyncGenerator[T]:
        """The value now (once there is one), then each change.

        Ends without an error after ``longest_s`` seconds, so that a follower who vanished without a word does not hold
        a place for ever; one who is alive asks again. MeshError NOT_READY when draining begins.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + longest_s
        drain.enter()
        draining = asyncio.create_task(drain.begun.wait())
        try:
            seen = 0
            while not draining.done():
                changed, value = self._changed, self._value
                if value is not None and self._number > seen:
                    seen = self._number
                    yield value
                elif not await _first(changed, draining, end - loop.time()):
                    return
        finally:
            draining.cancel()
            drain.leave()
        raise MeshError(Reason.NOT_READY, "this node is shutting down", retry_after_s=0.5)


async def _first(changed: asyncio.Event, draining: asyncio.Task[bool], timeout_s: float) -> bool:
    """Wait for either; whether one came in time."""
    change = asyncio.create_task(changed.wait())
    try:
        done, _ = await asyncio.wait(
            {change, draining}, timeout=max(0.0, timeout_s), return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        change.cancel()
    return bool(done)
