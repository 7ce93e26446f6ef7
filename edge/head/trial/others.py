"""What a version says of a frame that somebody else answers, or of one that nobody sent: computed behind all frames that somebody
waits for, and crossing only by budget that nobody else needs.

It decides as ``answer.py`` does: the exit where it is sure, else the tail, else whoever stands in for it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from edge.head.active import ActiveModel
from edge.head.fill import exit_gives_outputs
from edge.head.frame import FrameRequest
from edge.head.line import BEHIND_ALL
from edge.head.perceive import Perceived
from edge.head.trial.said import by_exit, by_whole
from edge.head.turns import Turns
from edge.head.uplink.budget import Budget
from edge.head.ways import Ways
from splitmesh.client.segment import SegmentLink
from splitmesh.client.segment_result import SegmentResult
from splitmesh.errors import MeshError, Reason
from splitmesh.model.manifest import Finding
from splitmesh.tensor import Frame

TURN_S = 10.0
"""Longest wait for a turn and its computation: frames that somebody waits for go first, and may leave no time."""

SLOW_AGAIN_S = 10.0
"""A version that takes longer than it may is late without being computed; once in so long it is looked at again."""


class NotMadeError(Exception):
    """Nothing is known of what it would have said: there was no time or no budget for it."""


@dataclass(frozen=True, slots=True)
class Said:
    """By one version, of one frame."""

    name: str | None
    """Class, or what a detector found; None: it failed, was late, or named nothing."""
    full: bool
    """The whole model said so, not an exit."""


class Others:
    """Asks versions. The caller keeps them loaded."""

    def __init__(self, turns: Turns, budget: Budget) -> None:
        self._turns = turns
        self._budget = budget
        self._one = asyncio.Lock()
        """One frame at a time, to the end of its computation: the other workers are the frames' that somebody waits for."""
        self._asked: dict[tuple[str, int], float] = {}
        """When a version was last computed that is too slow."""

    def _is_too_slow(self, active: ActiveModel, within_s: float) -> bool:
        """Its answer would be late by what it took lately, and that was looked at a moment ago."""
        if active.took.typical_s(1) <= within_s:
            return False
        now = asyncio.get_running_loop().time()
        self._asked = {one: at for one, at in self._asked.items() if now < at + SLOW_AGAIN_S}
        name = (active.info.model, active.info.version)
        if name in self._asked:
            return True
        self._asked[name] = now
        return False

    async def answer(self, ways: Ways, request: FrameRequest, within_s: float, finding: Finding | None) -> Said:
        """As the version would have answered within so many seconds, its wait for a turn left out. Raises NotMadeError."""
        active = ways.current
        if self._is_too_slow(active, within_s):
            return Said(None, full=False)
        escalate = request.outputs_needed and not exit_gives_outputs(active)
        try:
            seen = await self._perceive(active, request, escalate=escalate)
        except MeshError:
            return Said(None, full=False)
        left_s = within_s - _took_s(seen)
        if left_s <= 0:
            return Said(None, full=False)
        if active.link is None or active.manifest.split is None:
            return Said(by_whole(active, seen.outputs, finding), full=True)
        if seen.packed is None:
            return Said(by_exit(active, seen), full=False)
        try:
            result = await self._cross(active, active.link, seen.packed, left_s)
        except MeshError:
            return await self._without_tail(ways, request, seen, finding)
        return Said(by_whole(active, result.outputs, finding), full=True)

    async def full(self, ways: Ways, request: FrameRequest, within_s: float, finding: Finding | None) -> str:
        """What the whole model says. Raises NotMadeError, also where that names nothing."""
        active = ways.current
        try:
            seen = await self._perceive(active, request, escalate=True)
            if active.link is None or active.manifest.split is None:
                name = by_whole(active, seen.outputs, finding)
            elif seen.packed is None:
                raise NotMadeError
            else:
                result = await self._cross(active, active.link, seen.packed, within_s)
                name = by_whole(active, result.outputs, finding)
        except MeshError as error:
            raise NotMadeError from error
        if name is None:
            raise NotMadeError
        return name

    async def _without_tail(self, ways: Ways, request: FrameRequest, seen: Perceived, finding: Finding | None) -> Said:
        whole = ways.whole()
        if whole is None:
            return Said(by_exit(ways.current, seen), full=False)
        try:
            again = await self._perceive(whole, request)
        except MeshError:
            return Said(by_exit(ways.current, seen), full=False)
        return Said(by_whole(whole, again.outputs, finding), full=True)

    async def _perceive(self, active: ActiveModel, request: FrameRequest, *, escalate: bool = False) -> Perceived:
        """Raises what the version raises; NotMadeError where its turn did not come."""
        loop = asyncio.get_running_loop()
        expires = loop.time() + TURN_S
        try:
            async with asyncio.timeout_at(expires):
                await self._one.acquire()
            computing = asyncio.create_task(self._computed(active, request, expires, escalate=escalate))
            computing.add_done_callback(_seen)
            async with asyncio.timeout_at(expires):
                return await asyncio.shield(computing)
        except TimeoutError as error:
            raise NotMadeError from error
        except MeshError as error:
            # A computation that was stopped is the version's doing; a turn that did not come is not.
            no_turn = error.retry_after_s is not None or loop.time() + active.took.least_s() >= expires
            if error.reason is Reason.NOT_READY or (error.reason is Reason.DEADLINE_EXPIRED and no_turn):
                raise NotMadeError from error
            raise

    async def _computed(
        self, active: ActiveModel, request: FrameRequest, expires: float, *, escalate: bool
    ) -> Perceived:
        """To its end, whoever waits: what computes cannot be stopped, and the next one's turn comes after it."""
        try:
            with active.use():
                return await self._turns.perceive(active, request, expires, escalate=escalate, priority=BEHIND_ALL)
        finally:
            self._one.release()

    async def _cross(self, active: ActiveModel, link: SegmentLink, packed: Frame, within_s: float) -> SegmentResult:
        link.require()  # what cannot be sent takes nothing
        if not self._budget.spare(active.info.model, len(packed.payload)):
            raise NotMadeError
        result = await link.run(packed, trace_context=b"", deadline_s=within_s)
        self._budget.crossed(active.info.model, cloud_ms=result.taken_ms)
        return result


def _seen(computing: asyncio.Task[Perceived]) -> None:
    """Its caller is told of what it raised, unless it went away."""
    if not computing.cancelled():
        computing.exception()


def _took_s(seen: Perceived) -> float:
    return (seen.packed_ns - seen.started_ns) / 1e9 - seen.waited_ms / 1e3
