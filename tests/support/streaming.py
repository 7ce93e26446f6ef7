"""A source streamed to its end, as most tests want it."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable
from typing import Any

from splitmesh.client import Answer, FrameFailure, Mesh


async def streamed(
    mesh: Mesh, frames: AsyncIterable[bytes] | Iterable[bytes], camera: str = "", **options: Any
) -> list[Answer | FrameFailure]:
    """What became of every frame, in the order of coming."""
    async with mesh.stream(camera, **options) as stream:
        return [outcome async for outcome in stream.run(frames)]
