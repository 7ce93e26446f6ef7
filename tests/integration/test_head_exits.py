"""A head with several exits in one process with everything it needs: each frame ends where the first sure exit is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import onnx
import pytest

from edge.head import load
from edge.head.active import warm_up
from edge.head.serving import slot
from splitmesh.client import Answer, AnsweredBy, Mesh, Why
from splitmesh.client.routing import Goals, Outcomes, PolicyInfo
from splitmesh.errors import MeshError, Reason
from splitmesh.model.alternatives import ALTERNATIVES, Alternative, AlternativeSet
from splitmesh.model.classes import as_probabilities
from splitmesh.model.manifest import HEAD, MANIFEST, TABLES, TAIL, WHOLE, Manifest, stage_name
from splitmesh.routing.gate import ESCALATE_ALL
from splitmesh.runtime import Session, open_session
from splitmesh.tensor.entropy import RangeCodec, Tables
from splitmesh.tensor.spec import Array
from tests.support.exit_frames import STAGES, Frames
from tests.support.exit_nets import LABELS, pictures_of, staged_classifier
from tests.support.worlds import WAIT_S, World, world

NAME = "staged"
WHOLE_S = 0.1
"""What the whole model takes on this weak host."""


class _Counting:
    """A session that says how often it ran; on a host where some take long."""

    def __init__(self, session: Session, pause_s: float) -> None:
        self._session = session
        self._pause_s = pause_s
        self.runs = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.runs += 1
        time.sleep(self._pause_s)
        return self._session.run(feeds)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[_Counting]:
    """Sessions of heads, as they are opened."""
    made: list[_Counting] = []

    def counting(model: bytes, **options: Any) -> Session:
        pause_s = WHOLE_S if model == staged_classifier().artifacts()[WHOLE] else 0.0
        made.append(_Counting(open_session(model, **options), pause_s))
        return made[-1]

    monkeypatch.setattr(load, "open_session", counting)
    return made


@pytest.fixture
async def edge(tmp_path: Path, registered: Path) -> AsyncIterator[World]:
    async with world(tmp_path, registered) as made:
        await made.registry.create_version(NAME, staged_classifier().artifacts(), created_by="compressor")
        await made.registry.set_alias(NAME, "production", 1)
        # Audits compute some frames once more, to the cut.
        await made.routing.set_goals(NAME, Goals(0.02, audit_share=0.0))
        yield made


@pytest.fixture
async def gateway(edge: World, opened: list[_Counting]) -> Mesh:
    await edge.start("tail")
    await edge.start("head", models=NAME, segment_threads=1)
    return await edge.ready_mesh()


async def policy_of(edge: World) -> PolicyInfo:
    async with asyncio.timeout(WAIT_S), aclosing(edge.routing.watch_policy(NAME, 1, "test")) as policies:
        return await anext(policies)


async def until_in_force(gateway: Mesh, picture: Array) -> Answer:
    """A frame that the first exit is sure of, sent until the head has the policy."""
    async with asyncio.timeout(WAIT_S):
        while True:
            answer = await gateway.infer(picture)
            if answer.answered_by is AnsweredBy.EDGE_EXIT:
                return answer


async def test_a_frame_stops_at_the_first_exit_that_is_sure_and_what_lies_behind_does_not_run(
    edge: World, gateway: Mesh, opened: list[_Counting]
) -> None:
    policy = await policy_of(edge)
    assert 0.5 < policy.threshold < 1
    assert policy.coverage > 0.2
    frames = Frames(policy)
    await until_in_force(gateway, frames.pictures[frames.of[0][:1]])
    assert len(opened) == STAGES
    for number in range(STAGES):
        for index in frames.of[number]:
            before = [session.runs for session in opened]
            answer = await gateway.infer(frames.pictures[[index]])
            ran = [session.runs - runs for session, runs in zip(opened, before, strict=True)]
            assert (answer.answered_by, answer.exit, answer.rate) == (AnsweredBy.EDGE_EXIT, number, None)
            assert answer.routing is not None
            assert (answer.routing.why, answer.routing.score) == (Why.SURE, policy.score)
            assert answer.routing.policy_revision == policy.revision
            assert ran == [1] * (number + 1) + [0] * (STAGES - 1 - number)
            row = frames.exits[number][index]
            assert answer.label.name == LABELS[row.argmax()]
            assert answer.exit_confidence == pytest.approx(float(row.max()), abs=1e-5)
            assert answer.uplink_bytes == 0


async def test_a_frame_that_no_exit_is_sure_of_crosses_coded_and_gets_the_whole_models_answer(
    edge: World, gateway: Mesh
) -> None:
    artifacts = staged_classifier().artifacts()
    manifest = Manifest.from_json(artifacts[MANIFEST])
    assert manifest.split is not None
    codec = RangeCodec(Tables.from_bytes(artifacts[TABLES]), [info.spec() for info in manifest.split.wire])
    tail = open_session(artifacts[manifest.split.tail.artifact])
    frames = Frames(await policy_of(edge))
    await until_in_force(gateway, frames.pictures[frames.of[0][:1]])
    wire = [info.name for info in manifest.split.wire]
    whole = open_session(artifacts[WHOLE])
    same = 0
    for index in frames.of[STAGES]:
        answer = await gateway.infer(frames.pictures[[index]])
        assert (answer.answered_by, answer.exit, answer.rate) == (AnsweredBy.CLOUD_TAIL, None, 0)
        codes = [frames.rows[name][[index]] for name in wire]
        assert answer.uplink_bytes == codec.size_bytes(codes, 0)
        coarse = dict(zip(wire, codec.coarse(codes, 0), strict=True))
        scores = as_probabilities(tail.run(coarse)["logits"])[0]
        assert [label.score for label in answer.labels] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
        same += answer.label.index == whole.run({"x": frames.pictures[[index]]})["logits"].argmax()
    assert same >= 3


async def test_a_stricter_tolerance_reaches_every_exit(edge: World, gateway: Mesh) -> None:
    frames = Frames(await policy_of(edge))
    easy = frames.pictures[frames.of[0][:1]]
    await until_in_force(gateway, easy)
    await edge.routing.set_goals(NAME, Goals(0.001))
    policy = await policy_of(edge)
    assert policy.threshold == ESCALATE_ALL
    assert "too few" in policy.why
    async with asyncio.timeout(WAIT_S):
        while (await gateway.infer(easy)).answered_by is AnsweredBy.EDGE_EXIT:
            pass
    for kind in frames.of:
        assert (await gateway.infer(frames.pictures[kind[:1]])).answered_by is AnsweredBy.CLOUD_TAIL


async def test_with_the_tail_away_the_deepest_exit_answers(edge: World, gateway: Mesh) -> None:
    frames = Frames(await policy_of(edge))
    await until_in_force(gateway, frames.pictures[frames.of[0][:1]])
    await edge.stop("tail")
    (index, *_) = frames.of[STAGES]
    answer = await gateway.infer(frames.pictures[[index]])
    assert (answer.answered_by, answer.exit, answer.rate) == (AnsweredBy.EDGE_FALLBACK, STAGES - 1, None)
    assert answer.fallback_reason == Reason.SERVICE_UNAVAILABLE
    assert answer.label.name == LABELS[frames.exits[STAGES - 1][index].argmax()]
    assert answer.uplink_bytes == 0


async def test_a_restart_with_registry_and_router_gone_has_stages_tables_and_policy(
    edge: World, gateway: Mesh, opened: list[_Counting]
) -> None:
    frames = Frames(await policy_of(edge))
    await until_in_force(gateway, frames.pictures[frames.of[0][:1]])
    for service in ("registry", "router", "head"):
        await edge.stop(service)
    del edge.addresses["head"]
    await edge.start("head", models=NAME, segment_threads=1)
    assert len(opened) == 2 * STAGES
    again = await edge.ready_mesh()
    answers = [await again.infer(frames.pictures[kind[:1]], retries=20) for kind in frames.of]
    assert [(answer.exit, answer.rate) for answer in answers] == [(0, None), (1, None), (None, 0)]


async def test_the_head_in_one_piece_is_not_loaded_beside_its_stages(edge: World, gateway: Mesh) -> None:
    parts = {path.name for path in (edge.folder / "head" / "parts").iterdir()}
    info = await edge.registry.get_version(NAME, 1)
    assert {info.artifacts[name].sha256 for name in (stage_name(1), stage_name(2), TABLES, MANIFEST)} <= parts
    assert info.artifacts[HEAD].sha256 not in parts


async def test_a_staged_version_can_be_one_of_several_ways(edge: World, opened: list[_Counting]) -> None:
    made = staged_classifier().artifacts()
    bare = Manifest.from_json(made[MANIFEST])
    whole = Manifest(task=bare.task, labels=bare.labels, whole=bare.whole)
    await edge.registry.create_version(
        NAME, {WHOLE: made[WHOLE], MANIFEST: whole.to_json().encode()}, created_by="push"
    )
    planned = AlternativeSet(
        alternatives=(
            Alternative(version=0, name="cut", edge_ms=0.1, uplink_bytes=60, cloud_ms=0.1, share=0.5),
            Alternative(version=2, name="edge only", edge_ms=WHOLE_S * 1e3),
        ),
        uplink_mbps=100,
        rtt_ms=0.0,
    )
    listed = {**made, ALTERNATIVES: planned.to_json().encode()}
    await edge.registry.create_version(NAME, listed, created_by="partitioner")
    await edge.registry.set_alias(NAME, "production", 3)
    await edge.start("tail")
    await edge.start("head", models=NAME, segment_threads=1)
    gateway = await edge.ready_mesh()
    assert len(opened) == STAGES + 1
    frames = Frames(await policy_of(edge))
    answer = await until_in_force(gateway, frames.pictures[frames.of[0][:1]])
    assert (answer.version, answer.exit) == (3, 0)
    hard = frames.pictures[frames.of[STAGES][:1]]
    answer = await gateway.infer(hard)
    assert (answer.version, answer.answered_by, answer.rate) == (3, AnsweredBy.CLOUD_TAIL, 0)
    await edge.stop("tail")
    # The whole model is one of the ways: its answer is better than that of an unsure exit.
    answer = await gateway.infer(hard)
    assert (answer.version, answer.answered_by, answer.exit) == (2, AnsweredBy.EDGE_WHOLE, None)
    assert answer.rate is None


async def test_what_exits_and_tail_answered_is_counted(edge: World, gateway: Mesh) -> None:
    frames = Frames(await policy_of(edge))
    sent = Outcomes()
    await until_in_force(gateway, frames.pictures[frames.of[0][:1]])
    disagreed = 0
    for index in frames.of[STAGES]:
        answer = await gateway.infer(frames.pictures[[index]])
        disagreed += answer.label.index != frames.exits[-1][index].argmax()
    async with asyncio.timeout(WAIT_S):
        while sent.cloud_tail < len(frames.of[STAGES]):
            sent = next((entry.outcomes for entry in await edge.routing.get_outcomes(NAME)), sent)
    # Before the policy came the easy frame crossed too, and exit and tail agreed on it.
    assert sent.tail_disagreed == disagreed
    assert sent.edge_exit >= 1


async def test_an_answer_of_the_tail_that_cannot_be_used_is_no_answer_at_a_rate(
    edge: World, opened: list[_Counting], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The registry would refuse a tail that is not what the manifest says.
    monkeypatch.setattr("services.registry.sound._require_equal", lambda segment, found: None)
    made = staged_classifier().artifacts()
    tail = onnx.load_model_from_string(made[TAIL])
    tail.graph.node[-1].output[0] = tail.graph.output[0].name = "something_else"
    spoilt = {**made, TAIL: tail.SerializeToString()}
    await edge.registry.create_version(NAME, spoilt, created_by="push")
    await edge.registry.set_alias(NAME, "production", 2)
    await edge.start("tail")
    await edge.start("head", models=NAME, segment_threads=1)
    gateway = await edge.ready_mesh()
    frames = Frames(await policy_of(edge))
    answer = await gateway.infer(frames.pictures[frames.of[STAGES][:1]])
    assert answer.fallback_reason == Reason.PROTOCOL_VIOLATION
    assert (answer.answered_by, answer.exit) == (AnsweredBy.EDGE_FALLBACK, STAGES - 1)
    assert (answer.rate, answer.uplink_bytes) == (None, 0)


async def test_what_cannot_be_warmed_up_is_closed_and_tried_again(
    edge: World, opened: list[_Counting], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    def fails_once(session: Session) -> float | None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise MeshError(Reason.DEADLINE_EXPIRED, "it took too long")
        return warm_up(session)

    monkeypatch.setattr(load, "warm_up", fails_once)
    monkeypatch.setattr(slot, "RETRY_S", 0.05)
    await edge.start("head", models=NAME, segment_threads=1, switch_wait_s=0)
    await edge.ready_mesh()
    assert len(opened) == 2 * STAGES
    feeds = {"x": pictures_of(1)[0]}
    for session in opened[:STAGES]:
        with pytest.raises(MeshError) as caught:
            session.run(feeds)
        assert caught.value.reason is Reason.NOT_READY
    opened[STAGES].run(feeds)
