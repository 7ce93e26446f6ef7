"""One trace per frame through gateway, head and tail: the picture of the architecture, drawn by what really happened."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import chain

import pytest

from splitmesh.client import Answer, AnsweredBy
from splitmesh.kernel.signals import ATTRIBUTES, PARENTS, Span
from splitmesh.testing.otlp import ReceivedSpan
from tests.e2e.conftest import Factory
from tests.support.models import EASY, HARD, picture
from tests.support.streaming import streamed

pytestmark = pytest.mark.asyncio(loop_scope="session")

FRAMES = 60
ESCALATED = {
    (Span.GATEWAY_FRAME, Span.HEAD_FRAME),
    (Span.HEAD_FRAME, Span.HEAD_DECODE),
    (Span.HEAD_FRAME, Span.HEAD_SEGMENT),
    (Span.HEAD_FRAME, Span.HEAD_ESCALATE),
    (Span.HEAD_ESCALATE, Span.TAIL_FRAME),
    (Span.TAIL_FRAME, Span.TAIL_QUEUE),
    (Span.TAIL_FRAME, Span.TAIL_COMPUTE),
}
EXITED = {edge for edge in ESCALATED if not {Span.HEAD_ESCALATE, Span.TAIL_FRAME} & set(edge)}


def edges(trace: list[ReceivedSpan]) -> set[tuple[str, str]]:
    """Parent and child by name; each span's parent must have come in."""
    names = {span.span_id: span.name for span in trace}
    return {(names[span.parent_id], span.name) for span in trace if span.parent_id}


def crossed(answer: Answer) -> bool:
    """For the answer, or for an audit of it."""
    return answer.answered_by is AnsweredBy.CLOUD_TAIL or (answer.routing is not None and answer.routing.audited)


async def test_every_frame_is_one_trace_whose_edges_are_the_declared_ones(factory: Factory) -> None:
    async with factory.mesh.gateway() as gateway, asyncio.timeout(30):
        sources = [[picture(HARD)] * FRAMES, [picture(EASY)] * FRAMES]
        cameras = [
            await streamed(gateway, source, f"camera-{number}", deadline_ms=5000)
            for number, source in enumerate(sources)
        ]
    answers = [one for outcomes in cameras for one in outcomes if isinstance(one, Answer)]
    assert len({one.trace_id for one in answers}) == len(answers) == 2 * FRAMES

    wanted = {one.trace_id: ESCALATED if crossed(one) else EXITED for one in answers}
    sizes = {trace_id: len(expected) + 1 for trace_id, expected in wanted.items()}

    def complete(spans: list[ReceivedSpan]) -> bool:
        counts = Counter(span.trace_id for span in spans)
        return all(counts[trace_id] >= size for trace_id, size in sizes.items())

    await factory.traces.wait_for(complete, 20)
    traces = factory.traces.traces()
    for answer in answers:
        trace = traces[answer.trace_id]
        assert len(trace) == sizes[answer.trace_id]
        assert edges(trace) == wanted[answer.trace_id]
    hard = [one for one in answers if one.answered_by is AnsweredBy.CLOUD_TAIL]
    assert len(hard) == FRAMES


async def test_every_span_and_attribute_that_came_is_declared(factory: Factory) -> None:
    async with factory.mesh.gateway() as gateway:
        failures = await streamed(gateway, [b"no picture", picture(HARD), picture(EASY)])
    assert len(failures) == 3
    spans = await factory.traces.wait_for(lambda found: any(span.status == "error" for span in found), 20)
    known = {span.span_id: span for span in spans}
    assert {span.name for span in spans} <= {name.value for name in Span}
    for span in spans:
        assert span.attributes.keys() <= {one.value for one in ATTRIBUTES[Span(span.name)]}, span.name
        if span.parent_id in known:
            assert known[span.parent_id].name in PARENTS[Span(span.name)], span.name
    assert {span.service for span in spans if span.name == Span.TAIL_COMPUTE} == {"splitmesh-tail"}


async def test_under_load_a_batch_holds_frames_of_several_cameras(factory: Factory) -> None:
    async with factory.mesh.gateway(deadline_ms=5000) as gateway, asyncio.timeout(30):

        async def camera(name: str) -> list[str]:
            # Three windows of 8 stay below the tail's credit of 32: above it the exit answers instead.
            outcomes = await streamed(gateway, [picture(HARD)] * 40, name, window=8)
            return [one.trace_id for one in outcomes if isinstance(one, Answer)]

        by_camera = await asyncio.gather(*(camera(f"line-{number}") for number in range(3)))
    trace_ids = set(chain.from_iterable(by_camera))

    def computed(spans: list[ReceivedSpan]) -> list[ReceivedSpan]:
        return [span for span in spans if span.trace_id in trace_ids and span.name == Span.TAIL_COMPUTE]

    def complete(found: list[ReceivedSpan]) -> bool:
        heads = {span.trace_id for span in found if span.name == Span.HEAD_FRAME}
        return len(computed(found)) == len(trace_ids) == 120 and trace_ids <= heads

    spans = await factory.traces.wait_for(complete, 20)
    cameras = {span.trace_id: span.attributes["splitmesh.camera.id"] for span in spans if span.name == Span.HEAD_FRAME}
    batches: dict[object, list[ReceivedSpan]] = {}
    for span in computed(spans):
        batches.setdefault(span.attributes["splitmesh.batch.id"], []).append(span)
    assert all(span.attributes["splitmesh.batch.size"] == len(batch) for batch in batches.values() for span in batch)
    assert max(len(batch) for batch in batches.values()) > 1
    assert max(len({cameras[span.trace_id] for span in batch}) for batch in batches.values()) > 1
