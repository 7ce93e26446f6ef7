"""A frame's turn in a worker thread: decoded, computed and packed in one go.

Knows the line and its jobs, not where a frame goes.
"""

from __future__ import annotations

from functools import partial

from edge.head.active import ActiveModel
from edge.head.config import HeadSettings
from edge.head.frame import FrameRequest, Tensors
from edge.head.line import BEHIND_ALL, Line
from edge.head.perceive import Perceived, perceive
from edge.head.shares import CpuShares
from splitmesh.tensor import TensorLimits


class Turns:
    """Of all frames of this head; ``shares`` says what each model has of the workers' time where there is not enough."""

    def __init__(self, settings: HeadSettings, shares: CpuShares | None = None) -> None:
        self._settings = settings
        self._limits = TensorLimits(max_size_bytes=settings.max_frame_bytes)
        self._line = Line(settings.workers, shares=shares)

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
        aside: bool = False,
    ) -> Perceived:
        """When it is this frame's turn, as a rule in a worker thread; DEADLINE_EXPIRED when that would be too late.

        ``priority`` stands for the model's own; ``expires`` is on the loop's clock; ``aside`` is for one that is only tried,
        which may keep no other frame waiting, as what goes behind all.
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
            app="" if priority == BEHIND_ALL else active.info.model,
            aside=aside or priority == BEHIND_ALL,
        )
