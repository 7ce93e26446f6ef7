"""A frame's turn in a worker thread: decoded, computed and packed in one go.

Knows the line and its jobs, not where a frame goes.
"""

from __future__ import annotations

from functools import partial

from edge.head.active import ActiveModel
from edge.head.config import HeadSettings
from edge.head.frame import FrameRequest, Tensors
from edge.head.line import Line
from edge.head.perceive import Perceived, perceive
from splitmesh.tensor import TensorLimits


class Turns:
    """Of all frames of this head."""

    def __init__(self, settings: HeadSettings) -> None:
        self._settings = settings
        self._limits = TensorLimits(max_size_bytes=settings.max_frame_bytes)
        self._line = Line(settings.workers)

    def close(self) -> None:
        """Let the worker threads go."""
        self._line.close()

    async def perceive(
        self,
        active: ActiveModel,
        request: FrameRequest,
        expires: float,
        *,
        escalate: bool = False,
        priority: int | None = None,
    ) -> Perceived:
        """When it is this frame's turn, as a rule in a worker thread; DEADLINE_EXPIRED when that would be too late.

        ``priority`` stands for the model's own; ``expires`` is on the loop's clock.
        """
        job = partial(
            perceive,
            active,
            request,
            max_pixels=self._settings.max_pixels,
            limits=self._limits,
            codec=self._settings.codec,
            escalate=escalate,
        )
        return await self._line.do(
            job,
            expires=expires,
            took=active.took,
            priority=active.priority if priority is None else priority,
            company=active.company,
            steady=active.steady and isinstance(request.content, Tensors),  # a picture's time to decode varies
        )
