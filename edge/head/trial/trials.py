"""Frames of a model of which another version is tried: some are answered by that one, and of some both versions' answers are
compared, after the frame was answered.

No frame is lost to a trial: what the candidate does not answer in its part of the time, the serving version does. A pair that
cannot be made for want of time or budget is counted as not made, and says nothing of either version.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass

from edge.head.deadline import Deadline
from edge.head.frame import FrameAnswer, FrameRequest
from edge.head.trial.others import NotMadeError, Others, Said
from edge.head.trial.said import by_answer, finding_of
from edge.head.trial.trial import Trial
from edge.head.ways import Ways
from splitmesh.client.answers import AnsweredBy
from splitmesh.client.registry import VersionInfo
from splitmesh.errors import MeshError, Reason
from splitmesh.model.manifest import Finding

log = logging.getLogger(__name__)

CANDIDATES_SHARE = 0.5
"""Of the time that a frame has left, for the candidate: the serving version answers in the rest when it fails."""
PAIRS_AT_ONCE = 4
_VERSIONS_OWN = frozenset(
    {
        Reason.DEADLINE_EXPIRED,
        Reason.SERVICE_UNAVAILABLE,
        Reason.INTERNAL,
        Reason.MODEL_CORRUPT,
        Reason.PROTOCOL_VIOLATION,
        Reason.TENSOR_NOT_FINITE,
    }
)
"""Why a version may fail for a frame with which nothing is wrong."""

_CROWDED = frozenset({Reason.QUEUE_FULL, Reason.NOT_READY, Reason.BUDGET_SPENT})

AGAIN_S = 10.0
"""A candidate that was late for a frame is not begun for others for so long."""

By = Callable[..., Awaitable[FrameAnswer]]
"""Answers the frame with a version: ``by(ways, deadline)``, and ``aside=True`` where it may keep no other frame waiting."""
Refused = Callable[[VersionInfo, Reason], None]
"""Hears what a version did not answer, and why."""
Outcome = FrameAnswer | MeshError | None
"""What a version made of the frame; None: it was not asked."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """A frame that was answered, and is to be answered again by the other version."""

    trial: Trial
    request: FrameRequest
    serving_ways: Ways
    within_s: float
    using: ExitStack
    """Keeps both versions loaded."""


class Trials:
    """Of all models of this head; ``refused`` counts what a candidate was to answer and did not."""

    def __init__(self, others: Others, refused: Refused = lambda version, reason: None) -> None:
        self._others = others
        self._refused = refused
        self._late: dict[str, float] = {}
        """Until when a model's candidate is not begun, by the trial."""
        self._numbers = itertools.count(1)
        self._running: set[asyncio.Task[None]] = set()

    async def stop(self) -> None:
        """Give up what is compared."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def answer(self, trial: Trial, by: By, request: FrameRequest, ways: Ways, deadline: Deadline) -> FrameAnswer:
        """By the candidate or by the serving version, as drawn. Raises what the serving version raises."""
        drawn, counts = trial.draw(request, next(self._numbers)), trial.counts
        with ExitStack() as using:
            # From now on: a switch may unload the one that does not answer before its turn has come.
            using.enter_context(ways.current.use())
            using.enter_context(trial.candidate.current.use())
            served: Outcome = None
            tried = await self._tried(by, trial, ways, deadline) if drawn.answered_by_candidate else None
            try:
                if isinstance(tried, FrameAnswer):
                    counts.answered_by_candidate += 1
                    return tried
                served = answer = await by(ways, deadline)
                counts.answered_by_serving += 1
                return answer
            except MeshError as error:
                served = error
                raise
            finally:
                if drawn.pair:
                    self._compare(_Pair(trial, request, ways, deadline.total_s, using), served, tried)
                trial.changed()

    async def _tried(self, by: By, trial: Trial, ways: Ways, deadline: Deadline) -> FrameAnswer | MeshError:
        version, now = trial.candidate.current.info, asyncio.get_running_loop().time()
        part = Deadline(now + CANDIDATES_SHARE * (deadline.expires - now), CANDIDATES_SHARE * deadline.total_s)
        tried: FrameAnswer | MeshError
        try:
            self._require_time(trial, ways, deadline, part, now)
            async with asyncio.timeout_at(part.expires):
                return await by(trial.candidate, part, aside=True)
        except TimeoutError:
            self._late[trial.order.trial_id] = now + AGAIN_S
            tried = MeshError(Reason.DEADLINE_EXPIRED, "the candidate did not answer in its part of the time")
        except MeshError as error:
            tried = error
        except Exception as error:
            log.exception("the candidate of %s failed unexpectedly", trial.order.trial_id)
            tried = MeshError(Reason.INTERNAL, repr(error))
        if tried.reason in _VERSIONS_OWN:  # else the frame's own fault, which the serving version says as well
            self._refused(version, tried.reason)
        return tried

    def _require_time(self, trial: Trial, ways: Ways, deadline: Deadline, part: Deadline, now: float) -> None:
        """Raise MeshError DEADLINE_EXPIRED for a candidate that would leave the serving version no time, by what both took,
        or that was late a moment ago: its computation cannot be stopped when the time is up."""
        self._late = {name: until for name, until in self._late.items() if until > now}
        candidate_s = trial.candidate.current.took.typical_s(1)
        both_s = candidate_s + ways.current.took.typical_s(1)
        if trial.order.trial_id in self._late or now + candidate_s > part.expires or now + both_s > deadline.expires:
            raise MeshError(Reason.DEADLINE_EXPIRED, "the candidate takes too long to be begun for this frame")

    def _compare(self, pair: _Pair, served: Outcome, tried: Outcome) -> None:
        """Begin to, in the background; takes over what keeps the versions loaded."""
        if _is_nobodys(served) or (served is None and not isinstance(tried, FrameAnswer)):
            return  # the frame's own fault, or nobody waits for it any more
        # Who had only a part of the time says nothing of what it would have answered in all of it: it is asked again.
        if tried is not None and _is_late(served):
            served = None
        if _is_late(tried):
            tried = None
        if len(self._running) >= PAIRS_AT_ONCE or _is_crowded(tried):
            pair.trial.counts.not_made += 1
            return
        using = pair.using.pop_all()

        def ended(task: asyncio.Task[None]) -> None:
            self._running.discard(task)
            using.close()

        task = asyncio.create_task(self._both(pair, served, tried))
        self._running.add(task)
        task.add_done_callback(ended)

    async def _both(self, pair: _Pair, served: Outcome, tried: Outcome) -> None:
        trial, ways = pair.trial, pair.serving_ways
        try:
            finding = finding_of(ways, trial.candidate)
            serving = await self._said(served, ways, pair, finding)
            right = serving.name if serving.full else None
            if right is None:
                right = await self._others.full(ways, pair.request, pair.within_s, finding)
            candidate = await self._said(tried, trial.candidate, pair, finding)
            trial.counts.pair(right, serving.name, candidate.name)
        except NotMadeError:
            trial.counts.not_made += 1
        except Exception:
            log.exception("a pair of answers could not be compared")
            trial.counts.not_made += 1
        trial.changed()

    async def _said(self, outcome: Outcome, ways: Ways, pair: _Pair, finding: Finding | None) -> Said:
        if isinstance(outcome, FrameAnswer):
            full = outcome.answered_by in (AnsweredBy.CLOUD_TAIL, AnsweredBy.EDGE_WHOLE)
            return Said(by_answer(outcome, finding), full=full)
        if outcome is not None:
            return Said(None, full=False)
        return await self._others.answer(ways, pair.request, pair.within_s, finding)


def _is_nobodys(served: Outcome) -> bool:
    """The serving version gave no answer, and it was not its doing."""
    return isinstance(served, MeshError) and served.reason not in _VERSIONS_OWN


def _is_late(outcome: Outcome) -> bool:
    """It gave no answer, or not its own, for want of time."""
    reason = outcome.reason if isinstance(outcome, MeshError) else outcome and outcome.fallback_reason
    return reason is Reason.DEADLINE_EXPIRED


def _is_crowded(tried: Outcome) -> bool:
    """The candidate gave no answer because there was no room for it."""
    return isinstance(tried, MeshError) and tried.reason in _CROWDED
