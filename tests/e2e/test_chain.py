"""A chain on real processes: head beside the camera, a node on the MEC host, a tail in the cloud, a link before each."""

from __future__ import annotations

import asyncio
import io
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from splitmesh.api.segment.v1 import segment_pb2, segment_pb2_grpc
from splitmesh.client import Answer, AnsweredBy, FrameFailure
from splitmesh.errors import Reason
from splitmesh.kernel.channels import open_channel
from splitmesh.kernel.signals import ATTRIBUTES, PARENTS, Span
from splitmesh.testing.links import LinkProfile
from splitmesh.testing.mesh import LocalMesh, ProcessLauncher
from splitmesh.testing.otlp import ReceivedSpan, TraceReceiver
from tests.e2e.conftest import Factory
from tests.e2e.test_faults import RESUME_S, WAIT_S, Line
from tests.e2e.test_traces import ESCALATED, edges
from tests.support.models import EASY, HARD, SIDE, expected_scores, picture
from tests.support.streaming import streamed
from tests.support.worlds import CHAIN, CHAIN_NO_EXIT, ROOT, answered_by

pytestmark = pytest.mark.asyncio(loop_scope="session")

LINK = LinkProfile("near", 100.0, 100.0, 4.0)
FORWARDED = ESCALATED | {(Span.TAIL_FRAME, Span.TAIL_FORWARD), (Span.TAIL_FORWARD, Span.TAIL_FRAME)}
SERVICES = ("registry", "router", "tail", "head")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def running_chain(tmp_path_factory: pytest.TempPathFactory, registered: Path) -> AsyncIterator[Factory]:
    folder = tmp_path_factory.mktemp("chain")
    shutil.copytree(registered, folder / "registry")
    settings = {"head": {"models": f"{CHAIN},{CHAIN_NO_EXIT}", "switch_wait_s": "10"}}
    async with (
        TraceReceiver() as traces,
        LocalMesh(
            ProcessLauncher(ROOT, folder / "run"),
            folder,
            link=LINK,
            otlp_endpoint=traces.endpoint,
            settings=settings,
            services=SERVICES,
            middle=("mec",),
        ) as mesh,
    ):
        yield Factory(mesh, traces)


@pytest_asyncio.fixture(loop_scope="session")
async def chain(running_chain: Factory) -> Factory:
    """The three nodes, with everything up and settled."""
    await running_chain.settle()
    async with running_chain.mesh.gateway(model=CHAIN_NO_EXIT, deadline_ms=3000) as gateway, asyncio.timeout(WAIT_S):
        while not isinstance((await streamed(gateway, [picture(HARD)]))[0], Answer):
            pass
    return running_chain


async def segments(address: str) -> set[tuple[str, int]]:
    """Models and segment numbers that a node has loaded."""
    async with open_channel(address) as channel:
        stub = segment_pb2_grpc.SegmentServiceStub(channel)
        described = await stub.Describe(segment_pb2.DescribeRequest(), timeout=10)
    return {(one.model, one.segment) for one in described.segments}


def grainy(brightness: float, seed: int) -> bytes:
    """A picture that does not pack to next to nothing."""
    grain = np.random.default_rng(seed).normal(0, 8, (SIDE, SIDE))
    file = io.BytesIO()
    Image.fromarray(np.clip(brightness * 255 + grain, 0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


async def test_answers_of_the_chain_are_the_whole_models(chain: Factory) -> None:
    pictures = [grainy(brightness, seed) for seed, brightness in enumerate(np.linspace(0.0, 1.0, 41))]
    before = {name: relay.uplink_bytes for name, relay in chain.mesh.relays.items()}
    async with chain.mesh.gateway(model=CHAIN_NO_EXIT, deadline_ms=5000) as gateway, asyncio.timeout(WAIT_S):
        answers = await streamed(gateway, pictures)
    assert len(answers) == len(pictures)
    for answer in answers:
        assert isinstance(answer, Answer)
        assert answer.answered_by is AnsweredBy.CLOUD_TAIL
        expected = expected_scores(pictures[answer.frame_id])
        scores = {label.index: label.score for label in answer.labels}
        assert [scores[index] for index in range(3)] == pytest.approx(list(expected), abs=1e-5)
    grown = {name: relay.uplink_bytes - before[name] for name, relay in chain.mesh.relays.items()}
    assert set(grown) == {"mec", "tail"}
    # 8 bytes of means cross the second hop, planes with a grain the first; headers are the rest.
    assert 0 < grown["tail"] < grown["mec"]
    assert await segments(chain.mesh.address("mec")) == {(CHAIN, 1), (CHAIN_NO_EXIT, 1)}
    assert await segments(chain.mesh.address("tail")) == {(CHAIN, 2), (CHAIN_NO_EXIT, 2)}


async def test_timings_hold_both_links_and_both_nodes(chain: Factory) -> None:
    async with chain.mesh.gateway(deadline_ms=5000) as gateway:
        answer = await answered_by(gateway, HARD, AnsweredBy.CLOUD_TAIL)
    timings = answer.timings
    assert timings.link_ms >= 2 * LINK.rtt_ms
    assert timings.tail_ms > 0
    assert timings.link_ms + timings.tail_queue_ms + timings.tail_ms + timings.head_ms <= timings.total_ms


async def test_a_frame_is_one_trace_over_three_nodes(chain: Factory) -> None:
    async with chain.mesh.gateway(deadline_ms=5000) as gateway:
        answers = [await answered_by(gateway, HARD, AnsweredBy.CLOUD_TAIL) for _ in range(5)]
    wanted = {answer.trace_id for answer in answers}
    size = 12  # gateway, head with three below it, and twice a frame with queue and compute; the way on between them

    def complete(spans: list[ReceivedSpan]) -> bool:
        counts = Counter(span.trace_id for span in spans)
        return all(counts[trace_id] >= size for trace_id in wanted)

    await chain.traces.wait_for(complete, 20)
    for trace_id in wanted:
        trace = chain.traces.traces()[trace_id]
        assert len(trace) == size
        assert edges(trace) == FORWARDED
        (forward,) = (span for span in trace if span.name == Span.TAIL_FORWARD)
        (escalate,) = (span for span in trace if span.name == Span.HEAD_ESCALATE)
        frames = {span.attributes["splitmesh.node"]: span for span in trace if span.name == Span.TAIL_FRAME}
        assert set(frames) == {"mec-1", "tail-1"}
        assert frames["mec-1"].parent_id == escalate.span_id
        assert frames["tail-1"].parent_id == forward.span_id
        assert forward.parent_id == frames["mec-1"].span_id
        assert [frames[node].attributes["splitmesh.model.segment"] for node in ("mec-1", "tail-1")] == [1, 2]
        assert {span.attributes["splitmesh.node"] for span in trace if "splitmesh.node" in span.attributes} == {
            "head-1", "mec-1", "tail-1",
        }  # fmt: skip
        names = {span.span_id: span.name for span in trace}
        for span in trace:
            assert span.attributes.keys() <= {one.value for one in ATTRIBUTES[Span(span.name)]}
            if span.parent_id:
                assert names[span.parent_id] in PARENTS[Span(span.name)]


@pytest.mark.parametrize("node", ["tail", "mec"])
async def test_frames_fall_back_in_time_while_a_node_is_dead_and_escalate_again_after_its_restart(
    chain: Factory, node: str
) -> None:
    line = Line()
    async with chain.mesh.gateway() as gateway, asyncio.TaskGroup() as tasks:
        tasks.create_task(line.run(gateway))
        await line.answers_by(AnsweredBy.CLOUD_TAIL)
        await chain.mesh.kill(node)
        await line.answers_by(AnsweredBy.EDGE_FALLBACK, 50)
        await chain.mesh.start(node)
        restarted = time.monotonic()
        await line.answers_by(AnsweredBy.CLOUD_TAIL)
        line.stopped.set()
    line.assert_complete()
    reasons = Counter(one.fallback_reason for one in line.answers if one.fallback_reason)
    assert reasons[Reason.SERVICE_UNAVAILABLE] > 0
    resumed_s = line.first_after(restarted, AnsweredBy.CLOUD_TAIL)
    print(f"\n{node} restart: escalation resumed after {resumed_s:.2f} s; fallbacks {dict(reasons)}")
    assert resumed_s < RESUME_S


async def test_frames_fall_back_while_the_link_behind_the_middle_is_down_and_escalate_again_once_it_is_up(
    chain: Factory,
) -> None:
    line = Line()
    async with chain.mesh.gateway() as gateway, asyncio.TaskGroup() as tasks:
        tasks.create_task(line.run(gateway))
        await line.answers_by(AnsweredBy.CLOUD_TAIL)
        chain.mesh.relays["tail"].down()
        await line.answers_by(AnsweredBy.EDGE_FALLBACK, 100)
        chain.mesh.relays["tail"].up()
        healed = time.monotonic()
        await line.answers_by(AnsweredBy.CLOUD_TAIL)
        line.stopped.set()
    line.assert_complete()
    assert line.first_after(healed, AnsweredBy.CLOUD_TAIL) < RESUME_S


async def test_without_an_exit_frames_end_with_the_reason_while_the_last_node_is_dead(chain: Factory) -> None:
    async with chain.mesh.gateway(model=CHAIN_NO_EXIT, deadline_ms=1000) as gateway:
        await chain.mesh.kill("tail")
        try:
            async with asyncio.timeout(WAIT_S):
                outcomes = await streamed(gateway, [picture(EASY)] * 10, give_up_s=0.5)
        finally:
            await chain.mesh.start("tail")
    assert len(outcomes) == 10
    for outcome in outcomes:
        assert isinstance(outcome, FrameFailure)
        assert outcome.error.reason in (Reason.SERVICE_UNAVAILABLE, Reason.DEADLINE_EXPIRED)
