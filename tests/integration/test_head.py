"""The head in this process with its control plane and a tail: who answers what, switching versions, outages."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edge.head import follow, load
from edge.head.serving import slot
from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.client import Answer, AnsweredBy, MeshError, Reason
from splitmesh.client.cache import ModelCache
from splitmesh.client.registry import RegistryClient, VersionInfo
from splitmesh.client.routing import Goals
from splitmesh.kernel.errors import from_status
from splitmesh.runtime import Session, open_session
from tests.support.held_tail import held_compute
from tests.support.models import (
    EASY,
    EASY_LABEL,
    HARD,
    HARD_EXIT_LABEL,
    HARD_LABEL,
    LABELS,
    OTHER_LABELS,
    expected_scores,
    picture,
)
from tests.support.wire import image_frame, infer_stream
from tests.support.worlds import (
    BIG,
    BIG_SIDE,
    MODEL,
    NO_EXIT,
    WAIT_S,
    WHOLE_ONLY,
    World,
    answered_by,
    answered_by_version,
    world,
)


@pytest.fixture
async def edge(tmp_path: Path, registered: Path) -> AsyncIterator[World]:
    async with world(tmp_path, registered) as made:
        yield made


@pytest.fixture
async def whole_edge(edge: World) -> World:
    """With a tail and a head, the exit's threshold in force."""
    await edge.start("tail")
    await edge.start("head")
    await answered_by(await edge.ready_mesh(), EASY, AnsweredBy.EDGE_EXIT)
    return edge


def all_scores(answer: Answer) -> list[float]:
    return [label.score for label in sorted(answer.labels, key=lambda one: one.index)]


async def outcomes(edge: World, wanted: str, count: int) -> None:
    """Wait until the router has so many of an outcome for version 1."""
    async with asyncio.timeout(WAIT_S):
        while True:
            for node in await edge.routing.get_outcomes(MODEL, 1):
                found = getattr(node.outcomes, wanted)
                if (sum(found.values()) if isinstance(found, dict) else found) >= count:
                    return


async def test_an_easy_picture_is_answered_by_the_exit_and_puts_nothing_on_the_link(whole_edge: World) -> None:
    answer = await (await whole_edge.mesh()).infer(picture(EASY))
    assert (answer.answered_by, answer.label.name) == (AnsweredBy.EDGE_EXIT, EASY_LABEL)
    assert (answer.uplink_bytes, answer.fallback_reason) == (0, "")
    assert answer.exit_confidence > 0.99


async def test_a_hard_picture_is_answered_by_the_tail_as_the_whole_model_would(whole_edge: World) -> None:
    answer = await (await whole_edge.mesh()).infer(picture(HARD))
    assert (answer.answered_by, answer.label.name) == (AnsweredBy.CLOUD_TAIL, HARD_LABEL)
    assert all_scores(answer) == pytest.approx(expected_scores(picture(HARD)), abs=1e-5)
    assert answer.uplink_bytes > 0
    assert answer.exit_confidence == pytest.approx(0.73, abs=0.01)


async def test_features_above_one_mebibyte_cross_in_chunks(edge: World) -> None:
    await edge.start("tail")
    await edge.start("head", models=BIG, codec="identity")
    mesh = await edge.ready_mesh()
    answer = await mesh.infer(picture(HARD, side=BIG_SIDE))
    assert (answer.answered_by, answer.label.name) == (AnsweredBy.CLOUD_TAIL, HARD_LABEL)
    assert answer.uplink_bytes == 2 * 4 * BIG_SIDE**2 > 1 << 20


async def test_a_version_that_is_not_split_is_answered_whole_at_the_edge(edge: World) -> None:
    await edge.start("head", models=WHOLE_ONLY)
    answer = await (await edge.ready_mesh()).infer(picture(HARD))
    assert (answer.answered_by, answer.label.name) == (AnsweredBy.EDGE_WHOLE, HARD_LABEL)
    assert all_scores(answer) == pytest.approx(expected_scores(picture(HARD)), abs=1e-5)


async def test_without_a_tail_the_exit_answers_and_says_why(edge: World) -> None:
    await edge.start("head", switch_wait_s=0)
    answer = await (await edge.ready_mesh()).infer(picture(HARD))
    assert (answer.answered_by, answer.label.name) == (AnsweredBy.EDGE_FALLBACK, HARD_EXIT_LABEL)
    assert answer.fallback_reason == Reason.SERVICE_UNAVAILABLE


async def test_without_an_exit_and_without_a_tail_the_frame_gets_an_error(edge: World) -> None:
    await edge.start("head", models=NO_EXIT, switch_wait_s=0)
    mesh = await edge.ready_mesh()
    with pytest.raises(MeshError) as caught:
        await mesh.infer(picture(HARD), retries=0)
    assert caught.value.reason is Reason.SERVICE_UNAVAILABLE


async def test_without_an_exit_the_tail_answers_everything(edge: World) -> None:
    await edge.start("tail")
    await edge.start("head", models=NO_EXIT)
    answer = await answered_by(await edge.ready_mesh(), EASY, AnsweredBy.CLOUD_TAIL)
    assert (answer.label.name, answer.exit_confidence) == (EASY_LABEL, 0.0)


async def test_a_deadline_too_near_for_the_tail_is_met_by_the_exit(edge: World) -> None:
    await edge.start("tail")
    await edge.start("head")
    mesh = await edge.ready_mesh()
    with held_compute():
        answer = await mesh.infer(picture(HARD), deadline_ms=300)
    assert (answer.answered_by, answer.label.name) == (AnsweredBy.EDGE_FALLBACK, HARD_EXIT_LABEL)
    assert answer.fallback_reason == Reason.DEADLINE_EXPIRED
    assert answer.timings.total_ms <= 300


async def test_a_deadline_that_the_head_itself_misses_is_an_error_and_is_counted(whole_edge: World) -> None:
    mesh = await whole_edge.mesh()
    frames = [picture(HARD, side=4096)] * 6
    results = await asyncio.gather(
        *(mesh.infer(frame, deadline_ms=1, retries=0) for frame in frames), return_exceptions=True
    )
    assert {one.reason for one in results if isinstance(one, MeshError)} == {Reason.DEADLINE_EXPIRED}
    await outcomes(whole_edge, "refused", sum(isinstance(one, MeshError) for one in results))


async def test_frames_whose_client_left_are_counted(edge: World) -> None:
    await edge.start("tail")
    await edge.start("head", credit=3, live_frames=1)
    await edge.ready_mesh()
    with held_compute():
        async with infer_stream(edge.addresses["head"]) as raw:
            await raw.write(pb.StreamInferRequest(options=pb.StreamOptions(drop=pb.DROP_POLICY_OLDEST)))
            for frame_id in range(2):
                await raw.write(image_frame(picture(HARD), frame_id, deadline_ms=5000))
            await asyncio.sleep(0.5)  # one is with the tail, one waits for its turn
        caller = asyncio.create_task((await edge.mesh()).infer(picture(HARD), deadline_ms=5000))
        await asyncio.sleep(0.5)
        caller.cancel()
        await outcomes(edge, "refused", 3)
    (node,) = await edge.routing.get_outcomes(MODEL, 1)
    assert node.outcomes.refused == {Reason.CANCELLED.value: 3}


async def test_every_decided_frame_is_counted_at_the_router(whole_edge: World) -> None:
    mesh = await whole_edge.mesh()
    for _ in range(3):
        await mesh.infer(picture(HARD))
    with pytest.raises(MeshError):
        await mesh.infer(b"no picture")
    await outcomes(whole_edge, "cloud_tail", 3)
    await outcomes(whole_edge, "tail_disagreed", 3)
    await outcomes(whole_edge, "refused", 1)
    await outcomes(whole_edge, "edge_exit", 1)


async def test_a_frame_above_the_credit_is_refused_and_the_others_are_answered(edge: World) -> None:
    await edge.start("tail")
    await edge.start("head", credit=2)
    await edge.ready_mesh()
    async with infer_stream(edge.addresses["head"]) as raw:
        with held_compute():
            for frame_id in range(3):
                await raw.write(image_frame(picture(HARD), frame_id, deadline_ms=5000))
            messages = [await raw.read()]
        messages += [await raw.read() for _ in range(2)]
        results = {one.result.frame_id for one in messages if one.WhichOneof("message") == "result"}
        (refused,) = (one.error for one in messages if one.WhichOneof("message") == "error")
        assert results | {refused.frame_id} == {0, 1, 2}
        error = from_status(refused.status)
        assert error.reason is Reason.QUEUE_FULL
        assert error.retry_after_s is not None
        await raw.write(image_frame(picture(EASY), 3))
        assert (await raw.read()).result.frame_id == 3


async def test_frames_above_the_heads_own_limit_are_refused_with_a_time_to_retry(edge: World) -> None:
    await edge.start("tail")
    await edge.start("head", max_frames=1)
    mesh = await edge.ready_mesh()
    with held_compute() as gate:
        asked = [asyncio.create_task(mesh.infer(picture(HARD), retries=0)) for _ in range(3)]
        assert await asyncio.to_thread(gate.reached.wait, WAIT_S)
        while sum(task.done() for task in asked) < 2:
            await asyncio.wait([task for task in asked if not task.done()], return_when=asyncio.FIRST_COMPLETED)
    results = await asyncio.gather(*asked, return_exceptions=True)
    refused = [one for one in results if isinstance(one, MeshError)]
    assert [one.reason for one in refused] == [Reason.QUEUE_FULL] * 2
    assert all(one.retry_after_s for one in refused)


async def test_a_moved_alias_switches_the_version_under_load_without_losing_a_frame(whole_edge: World) -> None:
    mesh = await whole_edge.mesh()
    switched = asyncio.Event()

    async def frames() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield picture(HARD)
        await whole_edge.registry.set_alias(MODEL, "production", 2)
        while not switched.is_set():
            yield picture(HARD)
        for _ in range(20):
            yield picture(HARD)

    answers = []
    async with asyncio.timeout(WAIT_S), mesh.stream() as stream:
        async for answer in stream.run(frames()):
            assert isinstance(answer, Answer)
            answers.append(answer)
            if answer.version == 2:
                switched.set()
    assert sorted(one.frame_id for one in answers) == list(range(len(answers)))
    names = {1: LABELS[1], 2: OTHER_LABELS[1]}
    assert {one.answered_by for one in answers} == {AnsweredBy.CLOUD_TAIL}
    assert all(one.label.name == names[one.version] for one in answers)
    assert min(Counter(one.version for one in answers).values()) >= 20


async def test_a_new_tolerance_changes_the_threshold_of_a_running_head(whole_edge: World) -> None:
    mesh = await whole_edge.mesh()
    assert (await mesh.infer(picture(HARD))).answered_by is AnsweredBy.CLOUD_TAIL
    await whole_edge.routing.set_goals(MODEL, Goals(0.4))
    answer = await answered_by(mesh, HARD, AnsweredBy.EDGE_EXIT)
    assert answer.label.name == HARD_EXIT_LABEL
    await whole_edge.routing.set_goals(MODEL, Goals(0.001))
    assert (await answered_by(mesh, EASY, AnsweredBy.CLOUD_TAIL)).label.name == EASY_LABEL


async def test_a_head_restarted_with_registry_and_router_gone_answers_with_the_last_version_and_policy(
    whole_edge: World,
) -> None:
    mesh = await whole_edge.mesh()
    await whole_edge.routing.set_goals(MODEL, Goals(0.4))
    await answered_by(mesh, HARD, AnsweredBy.EDGE_EXIT)
    for service in ("registry", "router", "head"):
        await whole_edge.stop(service)
    del whole_edge.addresses["head"]
    await whole_edge.start("head")
    answer = await (await whole_edge.mesh()).infer(picture(HARD))
    assert (answer.answered_by, answer.version) == (AnsweredBy.EDGE_EXIT, 1)


async def test_a_damaged_policy_on_disk_makes_everything_escalate(whole_edge: World) -> None:
    for service in ("registry", "router", "head"):
        await whole_edge.stop(service)
    (policy,) = (whole_edge.folder / "head" / "policies").iterdir()
    policy.write_text('{"threshold": NaN}')
    del whole_edge.addresses["head"]
    await whole_edge.start("head")
    answer = await answered_by(await whole_edge.mesh(), EASY, AnsweredBy.CLOUD_TAIL)
    assert answer.label.name == EASY_LABEL


async def test_a_damaged_artefact_in_the_cache_is_fetched_again(whole_edge: World) -> None:
    await whole_edge.stop("head")
    for part in (whole_edge.folder / "head" / "parts").iterdir():
        part.write_bytes(b"damaged")
    del whole_edge.addresses["head"]
    await whole_edge.start("head")
    assert (await answered_by_version(await whole_edge.ready_mesh(), 1)).label.name == EASY_LABEL


async def test_before_a_version_is_known_the_head_says_not_ready(edge: World) -> None:
    await edge.start("head", models="unknown-model")
    with pytest.raises(MeshError) as caught:
        await (await edge.mesh()).infer(picture(EASY), retries=0)
    assert caught.value.reason is Reason.NOT_READY
    assert caught.value.retry_after_s is not None


async def test_a_head_serves_several_models_by_name(edge: World) -> None:
    await edge.start("head", models=f"{MODEL}, {WHOLE_ONLY}", switch_wait_s=0)
    await edge.ready_mesh()
    mesh = await edge.mesh(model=WHOLE_ONLY)
    answer = await answered_by(mesh, HARD, AnsweredBy.EDGE_WHOLE)
    assert answer.model == WHOLE_ONLY


async def test_a_watch_that_is_refused_is_an_error_in_the_log_and_tried_again(
    edge: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    errors: list[Exception] = [MeshError(Reason.UNIMPLEMENTED, "an old registry"), ValueError("unforeseen")]
    watch_alias = RegistryClient.watch_alias

    async def refused_twice(self: RegistryClient, model: str, alias: str) -> AsyncIterator[VersionInfo | None]:
        if errors:
            raise errors.pop(0)
        async for version in watch_alias(self, model, alias):
            yield version

    monkeypatch.setattr(RegistryClient, "watch_alias", refused_twice)
    monkeypatch.setattr(follow, "PAUSE_S", 0.01)
    await edge.start("head", models=WHOLE_ONLY)
    assert (await answered_by_version(await edge.ready_mesh(), 1)).answered_by is AnsweredBy.EDGE_WHOLE
    logged = [record for record in caplog.records if "cannot be followed" in record.message]
    assert [record.levelno for record in logged] == [logging.ERROR] * 2


async def test_a_version_that_cannot_be_kept_is_active_and_kept_later(
    edge: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger=slot.__name__)
    full, kept = [True, True], asyncio.Event()
    remember = ModelCache.remember

    async def twice_full(self: ModelCache, version: VersionInfo, name: str) -> None:
        if full:
            full.pop()
            raise MeshError(Reason.STORAGE_FULL, "no space left")
        await remember(self, version, name)
        kept.set()

    monkeypatch.setattr(ModelCache, "remember", twice_full)
    monkeypatch.setattr(follow, "PAUSE_S", 0.01)
    await edge.start("head", models=WHOLE_ONLY)
    async with asyncio.timeout(WAIT_S):
        await kept.wait()
    assert (await answered_by_version(await edge.ready_mesh(), 1)).answered_by is AnsweredBy.EDGE_WHOLE
    assert caplog.text.count("a restart would not know it") == 2
    assert "cannot be used yet" not in caplog.text
    assert caplog.text.count("is active\n") == 1


async def test_the_longest_run_is_a_setting(edge: World, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    def spied(model: bytes, **options: Any) -> Session:
        limits.append(options["max_run_s"])
        return open_session(model, **options)

    monkeypatch.setattr(load, "open_session", spied)
    await edge.start("head", models=WHOLE_ONLY, max_run_s=2.5)
    await edge.ready_mesh()
    assert set(limits) == {2.5}
