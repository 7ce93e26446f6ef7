"""By when a frame must be answered, and how much of that may be spent on waiting for a tail."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from edge.head.frame import FrameRequest
from edge.head.lateness import Lateness
from edge.head.ways import Ways
from splitmesh.errors import MeshError, Reason

MAX_DEADLINE_MS = 600_000
MOST_LATENESS = 0.25
"""Of a frame's deadline that is kept back at most because the host is late with things."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """One frame's."""

    expires: float
    """On the loop's clock."""
    total_s: float
    """From its arrival."""

    @classmethod
    def of(cls, request: FrameRequest, default_ms: int) -> Deadline:
        """From now on; DEADLINE_EXPIRED for a frame that waited too long already."""
        total_ms = min(request.deadline_ms or default_ms, MAX_DEADLINE_MS)
        if request.waited_ms >= total_ms:
            raise MeshError(Reason.DEADLINE_EXPIRED, f"it waited {request.waited_ms:.0f} ms for its turn")
        return cls(asyncio.get_running_loop().time() + (total_ms - request.waited_ms) / 1000, total_ms / 1000)


class Margins:
    """What is kept back of deadlines on this host. ``margin_ms``: for the exit's answer, at least."""

    def __init__(self, margin_ms: float) -> None:
        self._margin_s = margin_ms / 1000
        self._lateness = Lateness()

    def start(self) -> None:
        """Begin to watch how punctual this process is."""
        self._lateness.start()

    async def stop(self) -> None:
        """Stop watching."""
        await self._lateness.stop()

    def margin_s(self, deadline: Deadline) -> float:
        """Kept back for the exit's answer: as set, and as much more as this host was late with things lately."""
        return self._margin_s + min(self._lateness.peak_s, deadline.total_s * MOST_LATENESS)

    def left_s(self, deadline: Deadline, ways: Ways) -> float:
        """How long a frame may wait for the tail: time for the whole model is kept back where it would be enough."""
        left_s = deadline.expires - asyncio.get_running_loop().time() - self.margin_s(deadline)
        whole_s = ways.whole_ms() / 1000
        return left_s - whole_s if whole_s < left_s else left_s
