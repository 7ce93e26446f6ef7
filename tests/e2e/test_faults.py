"""Real processes, real faults in mid-stream: every frame has one outcome, in time, and the mesh heals by itself."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from splitmesh.client import Answer, AnsweredBy, FrameFailure, Mesh
from tests.e2e.conftest import Factory
from tests.support.models import HARD, HARD_EXIT_LABEL, HARD_LABEL, picture

pytestmark = pytest.mark.asyncio(loop_scope="session")

FRAMES_PER_S = 50.0
DEADLINE_MS = 800
WAIT_S = 30.0
RESUME_S = 5.0


@dataclass
class Line:
    """A camera that takes a hard picture every 20 ms until told to stop, and what became of its frames."""

    answers: list[Answer] = field(default_factory=list)
    failures: list[FrameFailure] = field(default_factory=list)
    answered_at: list[float] = field(default_factory=list)
    sent_at: dict[int, float] = field(default_factory=dict)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def frames(self) -> AsyncIterator[bytes]:
        frame = picture(HARD)
        while not self.stopped.is_set():
            self.sent_at[len(self.sent_at)] = time.monotonic()
            yield frame
            try:
                async with asyncio.timeout(1 / FRAMES_PER_S):
                    await self.stopped.wait()
            except TimeoutError:
                continue

    async def run(self, gateway: Mesh, **options: float) -> None:
        async with gateway.stream(deadline_ms=DEADLINE_MS, window=64, **options) as stream:  # type: ignore[arg-type]
            async for outcome in stream.run(self.frames()):
                async with self._changed:
                    if isinstance(outcome, Answer):
                        self.answers.append(outcome)
                        self.answered_at.append(time.monotonic())
                    else:
                        self.failures.append(outcome)
                    self._changed.notify_all()

    async def until(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S), self._changed:
            await self._changed.wait_for(reached)

    async def answers_by(self, who: AnsweredBy, count: int = 20) -> None:
        """Wait until so many more answers came from there."""
        first = len(self.answers)
        await self.until(lambda: sum(one.answered_by is who for one in self.answers[first:]) >= count)

    def first_after(self, moment: float, who: AnsweredBy) -> float:
        """Seconds from a moment to the next answer from there."""
        return next(
            at - moment
            for at, one in zip(self.answered_at, self.answers, strict=True)
            if at > moment and one.answered_by is who
        )

    def assert_complete(self) -> None:
        """Every frame was answered once, rightly for who answered it, and in time."""
        assert not self.failures
        assert sorted(one.frame_id for one in self.answers) == list(range(len(self.sent_at)))
        right = {AnsweredBy.CLOUD_TAIL: HARD_LABEL, AnsweredBy.EDGE_FALLBACK: HARD_EXIT_LABEL}
        assert {(one.answered_by, one.label.name) for one in self.answers} <= set(right.items())
        assert all(one.timings.total_ms <= DEADLINE_MS for one in self.answers)


async def test_frames_fall_back_in_time_while_the_tail_is_dead_and_escalate_again_after_its_restart(
    factory: Factory,
) -> None:
    line = Line()
    async with factory.mesh.gateway() as gateway, asyncio.TaskGroup() as tasks:
        tasks.create_task(line.run(gateway))
        await line.answers_by(AnsweredBy.CLOUD_TAIL)
        await factory.mesh.kill("tail")
        await line.answers_by(AnsweredBy.EDGE_FALLBACK)
        await factory.mesh.start("tail")
        restarted = time.monotonic()
        await line.answers_by(AnsweredBy.CLOUD_TAIL)
        line.stopped.set()
    line.assert_complete()
    resumed_s = line.first_after(restarted, AnsweredBy.CLOUD_TAIL)
    reasons = Counter(one.fallback_reason for one in line.answers if one.fallback_reason)
    print(
        f"\ntail restart: escalation resumed after {resumed_s:.2f} s; {len(line.answers)} frames, fallbacks {reasons}"
    )
    assert resumed_s < RESUME_S


async def test_frames_fall_back_in_time_while_the_link_is_down_and_escalate_again_once_it_is_up(
    factory: Factory,
) -> None:
    line = Line()
    async with factory.mesh.gateway() as gateway, asyncio.TaskGroup() as tasks:
        tasks.create_task(line.run(gateway))
        await line.answers_by(AnsweredBy.CLOUD_TAIL)
        factory.mesh.relay.down()
        await line.answers_by(AnsweredBy.EDGE_FALLBACK, 100)
        factory.mesh.relay.up()
        healed = time.monotonic()
        await line.answers_by(AnsweredBy.CLOUD_TAIL)
        line.stopped.set()
    line.assert_complete()
    resumed_s = line.first_after(healed, AnsweredBy.CLOUD_TAIL)
    reasons = Counter(one.fallback_reason for one in line.answers if one.fallback_reason)
    print(f"\nlink healed: escalation resumed after {resumed_s:.2f} s; {len(line.answers)} frames, fallbacks {reasons}")
    assert resumed_s < RESUME_S


async def test_a_stream_goes_on_with_one_outcome_per_frame_after_the_head_was_killed_and_restarted(
    factory: Factory,
) -> None:
    line = Line()
    async with factory.mesh.gateway() as gateway, asyncio.TaskGroup() as tasks:
        tasks.create_task(line.run(gateway, give_up_s=WAIT_S))
        await line.answers_by(AnsweredBy.CLOUD_TAIL)
        await factory.mesh.kill("head")
        await factory.mesh.start("head")
        await line.answers_by(AnsweredBy.CLOUD_TAIL)
        line.stopped.set()
    line.assert_complete()


async def test_a_head_that_is_stopped_gracefully_loses_no_frame(factory: Factory) -> None:
    line = Line()
    async with factory.mesh.gateway() as gateway, asyncio.TaskGroup() as tasks:
        tasks.create_task(line.run(gateway, give_up_s=WAIT_S))
        await line.answers_by(AnsweredBy.CLOUD_TAIL)
        await factory.mesh.stop("head")
        await factory.mesh.start("head")
        await line.answers_by(AnsweredBy.CLOUD_TAIL)
        line.stopped.set()
    line.assert_complete()
