"""Audits in the head: who is asked about, what is counted of it, and that nothing waits for one. Real sessions, no network."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from edge.head import audits as module
from edge.head.active import ActiveModel
from edge.head.audits import AUDIT_S, MOST_AT_ONCE, MOST_VERSIONS, Audits, NotMade, key_of
from edge.head.config import HeadSettings
from edge.head.decided import Decided, TailSaid
from edge.head.perceive import packed_for_tail
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.signals import Span
from splitmesh.kernel.telemetry import Telemetry
from splitmesh.model.manifest import Finding
from splitmesh.routing.audit import Counts, Stratum
from splitmesh.tensor import unpack
from tests.support.models import EASY, LABELS, features
from tests.unit.decided_frames import TRACE_CONTEXT, Link, decided, loaded

WAIT_S = 10.0


class World:
    """Audits with a budget that is asked and a tail that answers when it is told."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.link = Link()
        self.active = loaded(self.link)
        self.told: asyncio.Queue[tuple[Decided, TailSaid]] = asyncio.Queue()
        self.room = True
        self.asked_for: list[tuple[str, int]] = []
        self.computed_ms: list[float] = []
        self.audits = Audits(HeadSettings(), telemetry, self, lambda frame, said: self.told.put_nowait((frame, said)))

    def allows_audit(self, model: str, size_bytes: int) -> bool:
        """The budget's."""
        self.asked_for.append((model, size_bytes))
        return self.room

    def crossed(self, model: str, *, cloud_ms: float) -> None:
        """The budget's."""
        self.computed_ms.append(cloud_ms)

    async def ended(self) -> None:
        """No audit is under way."""
        async with asyncio.timeout(WAIT_S):
            await self.active.wait_unused()

    def counts(self) -> Counter[str]:
        """Over all strata, since the last time."""
        total: Counter[str] = Counter()
        for one in self.audits.drain("parts", 1).values():
            total.update(accepted=one.accepted, audited=one.audited, disagreed=one.disagreed)
        return total


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """All answers are audited as often as they may be."""
    made = World(Telemetry("test"))
    await made.audits.start()
    made.audits.set_share("parts", 1, 0.5)
    yield made
    await made.audits.stop()
    await made.active.retire()


def begin(world: World, **differing: object) -> Decided:
    """Frames come until one of them is audited."""
    for number in range(1000):
        frame = decided(world.active, number, **differing)
        if world.audits.take(frame):
            return frame
    raise AssertionError("none of them is audited")


async def test_without_a_share_nothing_is_asked_but_everything_is_counted(world: World) -> None:
    world.audits.set_share("parts", 1, 0.0)
    assert not any(world.audits.take(decided(world.active, number)) for number in range(1000))
    assert (world.link.sent, world.counts()) == (0, Counter(accepted=1000, audited=0, disagreed=0))


async def test_of_ten_thousand_answers_the_share_is_audited_and_every_stratum_is(world: World) -> None:
    world.audits.set_share("parts", 1, 0.02)
    world.link.label = 0
    rng = np.random.default_rng(1)
    for number in range(10_000):
        camera, label = ("line-1", "line-2")[rng.random() < 0.05], int(rng.random() < 0.02)
        if world.audits.take(decided(world.active, number, camera=camera, label=label)):
            async with asyncio.timeout(WAIT_S):
                await world.told.get()
    counts = world.audits.drain("parts", 1)
    assert set(counts) == {Stratum(camera, label, 6) for camera in ("line-1", "line-2") for label in ("dark", "grey")}
    assert all(one.audited for one in counts.values())
    assert sum(one.accepted for one in counts.values()) == 10_000
    assert world.link.sent == sum(one.audited for one in counts.values()) <= 0.02 * 10_000 + len(counts) + 4
    assert world.link.sent >= 180
    # The tail always says *dark*, the exit does not.
    assert all(one.disagreed == (one.audited if stratum.label == "grey" else 0) for stratum, one in counts.items())


async def test_what_crosses_is_what_a_hard_frame_sends_and_the_answer_is_told(world: World) -> None:
    frame = begin(world, label=1)
    asked = await world.link.asked.get()
    (array,) = unpack(asked.frame)
    assert array == pytest.approx(features(EASY))
    assert world.asked_for == [("parts", len(asked.frame.payload))]
    assert 0 < asked.deadline_s <= AUDIT_S
    asked.says(2)
    told, said = await world.told.get()
    assert told is frame
    assert (said.label, said.disagreed) == (2, True)
    assert 0.9 < said.confidence <= 1
    assert world.counts()["disagreed"] == 1
    assert world.computed_ms == [1.0]


async def test_an_audit_is_packed_beside_the_event_loop(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []

    def packed(*given: Any) -> Any:
        threads.append(threading.current_thread().name)
        return packed_for_tail(*given)

    monkeypatch.setattr(module, "packed_for_tail", packed)
    begin(world)
    await world.link.asked.get()
    assert threads == ["audit_0"]


async def test_what_an_early_exit_answered_is_computed_to_the_cut_for_its_audit(world: World) -> None:
    begin(world, complete=False)
    asked = await world.link.asked.get()
    (array,) = unpack(asked.frame)
    assert array == pytest.approx(features(EASY))


NAMES_NO_CLASS = {"logits": np.full((1, 3), np.nan, np.float32)}


@pytest.mark.parametrize(
    "outcome", [MeshError(Reason.SERVICE_UNAVAILABLE, "gone"), ValueError("unforeseen"), NAMES_NO_CLASS]
)
async def test_an_audit_that_fails_is_no_disagreement(world: World, outcome: Any) -> None:
    begin(world, label=1)
    answer = (await world.link.asked.get()).answer
    (answer.set_exception if isinstance(outcome, Exception) else answer.set_result)(outcome)
    await world.ended()
    counts = world.counts()
    assert (counts["audited"], counts["disagreed"], world.told.qsize()) == (0, 0, 0)
    assert world.audits.not_made == {NotMade.FAILED: 1}


async def test_where_the_budget_has_nothing_to_spare_nothing_crosses(world: World) -> None:
    world.room = False
    begin(world)
    await world.ended()
    assert (world.link.sent, len(world.asked_for), world.counts()["audited"]) == (0, 1, 0)
    assert world.audits.not_made == {NotMade.NO_BUDGET: 1}


async def test_without_a_tail_nothing_is_packed(world: World) -> None:
    world.link.available = False
    assert not any(world.audits.take(decided(world.active, number)) for number in range(100))
    assert world.audits.not_made[NotMade.NO_TAIL] > 30
    assert world.asked_for == []


async def test_one_audit_more_than_may_be_under_way_is_not_begun(world: World) -> None:
    for _ in range(MOST_AT_ONCE):
        begin(world)
    assert not any(world.audits.take(decided(world.active, number)) for number in range(100))
    assert world.audits.not_made[NotMade.BUSY] > 30
    (await world.link.asked.get()).says(0)
    await world.told.get()
    await asyncio.sleep(0)  # its task ends
    begin(world)


async def test_a_version_is_kept_by_an_audit_until_it_ends_but_no_longer_than_its_deadline(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AUDIT_S", 0.1)
    with world.active.use():
        begin(world)
    assert world.active.used
    retiring = asyncio.create_task(world.active.retire())
    await world.link.asked.get()
    assert not retiring.done()
    async with asyncio.timeout(WAIT_S):
        await retiring
    assert world.audits.not_made == {NotMade.FAILED: 1}


async def test_a_stop_lets_audits_go_and_none_begins_after(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AUDIT_S", 10 * WAIT_S)
    begin(world)
    await world.link.asked.get()
    async with asyncio.timeout(WAIT_S):
        await world.audits.stop()
    assert not world.active.used
    assert not any(world.audits.take(decided(world.active, number)) for number in range(100))
    assert world.told.empty()


async def test_an_audit_is_part_of_its_frames_trace() -> None:
    exporter = InMemorySpanExporter()
    telemetry = Telemetry("test", processor=SimpleSpanProcessor(exporter))
    world = World(telemetry)
    world.link.label = 0
    await world.audits.start()
    world.audits.set_share("parts", 1, 0.5)
    begin(world)
    asked = await world.link.asked.get()
    await world.ended()
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.parent and span.parent.span_id.to_bytes(8, "big")) == (
        Span.HEAD_ESCALATE,
        TRACE_CONTEXT[16:24],
    )
    assert asked.trace_context[:16] == TRACE_CONTEXT[:16]
    assert asked.trace_context[16:24] == span.context.span_id.to_bytes(8, "big")
    await world.audits.stop()
    await world.active.retire()
    telemetry.shutdown()


@pytest.mark.parametrize(("score", "disagreed"), [(0.2, False), (0.7, True)])
async def test_of_a_detector_it_is_asked_whether_it_found_something(
    world: World, score: float, disagreed: bool
) -> None:
    detects(world.active)
    begin(world)
    (await world.link.asked.get()).answer.set_result({"logits": np.array([[0.1, score]], np.float32)})
    _, said = await world.told.get()
    assert (said.label, said.disagreed) == (int(disagreed), disagreed)
    assert {stratum.label for stratum in world.audits.drain("parts", 1)} == {"nothing"}


def detects(active: ActiveModel) -> None:
    """Make it a detector's version whose exit says that there is nothing."""
    assert active.manifest.exit is not None
    exit_ = active.manifest.exit.model_copy(update={"finding": Finding(output="logits", min_score=0.5)})
    active.manifest = active.manifest.model_copy(update={"exit": exit_, "labels": (), "task": "raw"})


async def test_counts_are_of_one_version_and_begin_anew_when_they_were_told(world: World) -> None:
    other = loaded(world.link, version=2)
    world.audits.take(decided(other, 1))
    world.audits.set_share("parts", 1, 0.0)
    world.audits.take(decided(world.active, 2))
    stratum = Stratum("line-1", LABELS[0], 6)
    assert world.audits.drain("parts", 2) == {stratum: Counts(accepted=1)}
    assert world.audits.drain("parts", 1) == {stratum: Counts(accepted=1)}
    assert world.audits.drain("parts", 1) == world.audits.drain("parts", 3) == {}
    other.session.close()


async def test_what_cannot_be_counted_is_not_audited_and_fails_no_frame(world: World) -> None:
    assert not any(world.audits.take(decided(world.active, number, ease=float("nan"))) for number in range(10))
    assert world.audits.drain("parts", 1) == {}


async def test_versions_that_were_longest_without_a_frame_are_forgotten(world: World) -> None:
    world.audits.take(decided(world.active, 1))
    for version in range(2, MOST_VERSIONS + 1):
        world.audits.set_share("parts", version, 0.1)
    world.audits.take(decided(world.active, 2))
    world.audits.set_share("parts", MOST_VERSIONS + 1, 0.1)
    assert world.audits.drain("parts", 1) != {}
    for version in range(2, MOST_VERSIONS + 2):
        world.audits.set_share("parts", version, 0.1)
    assert world.audits.drain("parts", 1) == {}


@pytest.mark.parametrize("share", [-0.1, 0.6, float("nan")])
async def test_a_share_that_is_none_is_refused(world: World, share: float) -> None:
    with pytest.raises(MeshError) as caught:
        world.audits.set_share("parts", 1, share)
    assert caught.value.reason is Reason.FIELD_INVALID


async def test_frames_that_a_caller_numbers_alike_are_told_apart(world: World) -> None:
    keys = {key_of(decided(world.active, 1)) for _ in range(5)}
    assert len(keys) == 5
