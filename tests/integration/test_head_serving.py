"""A head that is told what to serve: switches under load, with the cable cut, and while nobody at the other end is ready."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from edge.head.follow import ModelFollower
from edge.head.serving import assignments, bring, slot
from splitmesh.api.serving.v1 import serving_pb2 as pb
from splitmesh.client import Answer, AnsweredBy, Mesh
from splitmesh.client.serving import ServingClient
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.kernel.lifecycle import Host
from splitmesh.model.alternatives import ALTERNATIVES, Alternative, AlternativeSet
from tests.support.fake_tail import serving as tail_serving
from tests.support.models import EASY, HARD, LABELS, OTHER_LABELS, picture, split_version, whole_version
from tests.support.versioned_tail import VersionedTail, class_of
from tests.support.worlds import MODEL, WAIT_S, WHOLE_ONLY, World, answered_by_version, world

SWITCHES = 20
LABELS_OF = {1: LABELS, 2: OTHER_LABELS}


@pytest.fixture
async def edge(tmp_path: Path, registered: Path) -> AsyncIterator[World]:
    async with world(tmp_path, registered) as made:
        yield made


async def client_of(edge: World) -> ServingClient:
    channels = Channels(StaticDiscovery({}))
    edge.stack.push_async_callback(channels.close)
    return ServingClient(channels, edge.addresses["head"])


async def restarted(edge: World, **settings: Any) -> Host:
    await edge.stop("head")
    del edge.addresses["head"]
    return await edge.start("head", **settings)


async def until(
    serving: ServingClient, wanted: Callable[[pb.ServingState], bool], model: str = MODEL
) -> pb.ServingState:
    """The first state of the model that is so."""
    seen: list[pb.ServingState] = []
    try:
        async with asyncio.timeout(WAIT_S), aclosing(serving.watch()) as watch:
            async for message in watch:
                for state in message.states:
                    seen.append(state)
                    if state.model == model and wanted(state):
                        return state
    except TimeoutError:
        pytest.fail(f"it never was so; last seen: {seen[-1] if seen else 'nothing'}")
    raise AssertionError("the watch ended")


def active(version: int) -> Callable[[pb.ServingState], bool]:
    return lambda state: state.active_version == version and state.wanted.phase == pb.PHASE_SERVING


def failed(state: pb.ServingState) -> bool:
    return state.wanted.phase == pb.PHASE_FAILED


def order(version: int, generation: int, *, model: str = MODEL, **more: object) -> pb.Assignment:
    return pb.Assignment(model=model, version=version, generation=generation, **more)  # type: ignore[arg-type]


async def test_an_assigned_version_answers_whatever_the_alias_says_and_a_withdrawn_one_follows_it_again(
    edge: World,
) -> None:
    await edge.start("head", switch_wait_s=0)
    mesh, serving = await edge.ready_mesh(), await client_of(edge)
    await until(serving, active(1))
    state = await serving.assign(order(2, 1))
    assert (state.model, state.generation, state.node) == (MODEL, 1, "head-1")
    state = await until(serving, active(2))
    assert (state.generation, state.previous_version) == (1, 1)
    assert state.memory_bytes > 0
    assert state.wanted.backend.chosen.backend == "onnxruntime-cpu"
    await edge.registry.set_alias(MODEL, "production", 2)
    await edge.registry.set_alias(MODEL, "production", 1)
    assert (await mesh.infer(picture(EASY))).version == 2
    await serving.withdraw(MODEL, 2)
    assert (await until(serving, active(1))).generation == 0
    await edge.registry.set_alias(MODEL, "production", 2)
    await answered_by_version(mesh, 2)


async def test_a_head_without_models_of_its_own_serves_what_it_is_assigned_until_that_is_withdrawn(edge: World) -> None:
    await edge.start("head", models="", switch_wait_s=0, max_models=1)
    mesh, serving = await edge.mesh(), await client_of(edge)
    with pytest.raises(MeshError) as caught:
        await mesh.infer(picture(EASY), retries=0)
    assert caught.value.reason is Reason.NOT_READY
    await serving.assign(order(1, 1, model=WHOLE_ONLY))
    with pytest.raises(MeshError) as caught:
        await serving.assign(order(1, 1))
    assert caught.value.reason is Reason.QUEUE_FULL
    assert (await (await edge.ready_mesh()).infer(picture(EASY))).model == WHOLE_ONLY
    gone = asyncio.create_task(_gone(serving))
    await until(serving, active(1), WHOLE_ONLY)
    await serving.withdraw(WHOLE_ONLY, 2)
    assert await gone == [WHOLE_ONLY]
    with pytest.raises(MeshError) as caught:
        await mesh.infer(picture(EASY), retries=0)
    assert caught.value.reason is Reason.NOT_READY
    await serving.assign(order(1, 2, model=WHOLE_ONLY))  # late: the withdrawal is newer
    async with aclosing(serving.watch()) as watch:
        assert not (await anext(watch)).states
    await serving.assign(order(1, 3, model=WHOLE_ONLY))
    await until(serving, active(1), WHOLE_ONLY)


async def _gone(serving: ServingClient) -> list[str]:
    async with asyncio.timeout(WAIT_S), aclosing(serving.watch()) as watch:
        async for message in watch:
            if message.gone:
                return list(message.gone)
    return []


async def test_a_head_restarted_with_the_cable_cut_answers_with_what_it_was_assigned_and_goes_back_without_a_link(
    edge: World,
) -> None:
    await edge.start("head", switch_wait_s=0)
    serving = await client_of(edge)
    await edge.ready_mesh()
    await serving.assign(order(2, 5))
    await until(serving, lambda state: active(2)(state) and state.previous_version == 1)
    await asyncio.gather(*(edge.stop(name) for name in ("registry", "router")))
    await restarted(edge, switch_wait_s=0)
    assert (await (await edge.mesh()).infer(picture(EASY), retries=0)).version == 2
    serving = await client_of(edge)
    assert (await until(serving, active(2))).generation == 5
    await serving.assign(order(1, 6))
    await answered_by_version(await edge.mesh(), 1)
    assert (await until(serving, active(1))).previous_version == 2


async def test_however_small_the_cache_going_back_and_on_needs_no_link(edge: World) -> None:
    await edge.start("head", models="", switch_wait_s=0, max_cache_bytes=1)
    serving = await client_of(edge)
    for generation, version in enumerate((1, 2), 1):
        await serving.assign(order(version, generation))
        await until(serving, active(version))
    await until(serving, lambda state: state.previous_version == 1)
    await serving.assign(order(1, 1, model=WHOLE_ONLY))  # its parts make others go
    await until(serving, active(1), WHOLE_ONLY)
    await edge.stop("registry")
    await serving.assign(order(1, 3))
    await until(serving, lambda state: active(1)(state) and state.previous_version == 2)
    await serving.assign(order(2, 4))
    await until(serving, active(2))
    await restarted(edge, models="", switch_wait_s=0, max_cache_bytes=1)
    assert (await (await edge.mesh(model=MODEL)).infer(picture(EASY), retries=0)).model == MODEL
    assert (await (await edge.mesh(model=WHOLE_ONLY)).infer(picture(EASY), retries=0)).model == WHOLE_ONLY


async def test_a_version_with_alternatives_is_assigned_with_all_it_needs(edge: World) -> None:
    listed = AlternativeSet(
        alternatives=(
            Alternative(version=0, name="cut", edge_ms=1.0, uplink_bytes=8000, cloud_ms=1.0, share=1.0),
            Alternative(version=1, name="edge only", edge_ms=5.0),
        ),
        uplink_mbps=100.0,
        rtt_ms=10.0,
    )
    adaptive = {**split_version(), ALTERNATIVES: listed.to_json().encode()}
    for artifacts in (whole_version(), adaptive):
        await edge.registry.create_version("adaptive", artifacts, created_by="push")
    await edge.start("head", models="", switch_wait_s=0, max_cache_bytes=1)
    serving = await client_of(edge)
    await serving.assign(order(2, 1, model="adaptive"))
    await until(serving, active(2), "adaptive")
    await serving.assign(order(1, 1, model=WHOLE_ONLY))
    await until(serving, active(1), WHOLE_ONLY)
    await edge.stop("registry")
    await restarted(edge, models="", switch_wait_s=0, max_cache_bytes=1)
    # No tail is there: the whole model, which is one of its ways, answers.
    answer = await (await edge.mesh(model="adaptive")).infer(picture(EASY), retries=0)
    assert (answer.version, answer.answered_by) == (1, AnsweredBy.EDGE_WHOLE)


async def test_an_order_that_cannot_be_kept_is_refused_and_nothing_changes(
    edge: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await edge.start("head", switch_wait_s=0)
    mesh, serving = await edge.ready_mesh(), await client_of(edge)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(assignments, "write_file", full)
        for calling in (serving.assign(order(2, 1)), serving.assign(order(1, 1, model=WHOLE_ONLY))):
            with pytest.raises(MeshError) as caught:
                await calling
            assert caught.value.reason is Reason.STORAGE_FULL
        assert (await mesh.infer(picture(EASY))).version == 1
        async with aclosing(serving.watch()) as watch:
            assert [state.model for state in (await anext(watch)).states] == [MODEL]
    await serving.assign(order(2, 1))
    await answered_by_version(mesh, 2)


async def test_one_that_was_never_loaded_leaves_the_version_before_it_answering_also_after_a_restart(
    edge: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot, "RETRY_S", 0.05)
    await edge.start("head", switch_wait_s=0)
    await edge.ready_mesh()
    serving = await client_of(edge)
    await until(serving, active(1))
    await serving.assign(order(99, 1))
    state = await until(serving, failed)
    assert (state.wanted.version, state.wanted.reason, state.active_version) == (99, Reason.VERSION_NOT_FOUND, 1)
    await restarted(edge, switch_wait_s=0)
    assert (await (await edge.ready_mesh()).infer(picture(EASY))).version == 1
    serving = await client_of(edge)
    assert (await until(serving, failed)).wanted.version == 99
    await serving.assign(order(2, 2))
    await answered_by_version(await edge.mesh(), 2)


async def test_only_the_highest_generation_counts(edge: World) -> None:
    await edge.start("head", switch_wait_s=0)
    serving = await client_of(edge)
    await edge.ready_mesh()
    await serving.assign(order(2, 7))
    assert (await serving.assign(order(1, 6))).generation == 7
    assert (await serving.assign(order(2, 7))).generation == 7
    with pytest.raises(MeshError) as caught:
        await serving.assign(order(1, 7))
    assert caught.value.reason is Reason.FIELD_INVALID
    await serving.withdraw(MODEL, 6)
    assert (await until(serving, active(2))).generation == 7


@pytest.mark.parametrize(
    ("assignment", "field"),
    [
        (pb.Assignment(model="../x", version=1, generation=1), "assignment.model"),
        (pb.Assignment(model=MODEL, generation=1), "assignment.version"),
        (pb.Assignment(model=MODEL, version=1), "assignment.generation"),
        (pb.Assignment(model=MODEL, version=1, generation=1, trial=pb.Trial(candidate=2)), "assignment.trial.trial_id"),
        (pb.Assignment(model=MODEL, version=1, generation=1, trial=pb.Trial(trial_id="t", candidate=1)), "assignment"),
        (
            pb.Assignment(
                model=MODEL, version=1, generation=1, trial=pb.Trial(trial_id="t", candidate=2, pair_share=2)
            ),
            "assignment.trial.pair_share",
        ),
        (
            pb.Assignment(
                model=MODEL,
                version=1,
                generation=1,
                trial=pb.Trial(trial_id="t", candidate=2, answer_share=float("nan")),
            ),
            "assignment.trial.answer_share",
        ),
    ],
    ids=["name", "version", "generation", "trial", "candidate", "share", "nan"],
)
async def test_orders_that_cannot_be_are_refused_and_change_nothing(
    edge: World, assignment: pb.Assignment, field: str
) -> None:
    await edge.start("head", switch_wait_s=0)
    serving = await client_of(edge)
    with pytest.raises(MeshError) as caught:
        await serving.assign(assignment)
    assert (caught.value.reason, caught.value.fields[0][0]) == (Reason.FIELD_INVALID, field)
    assert not (edge.folder / "head" / "assignments").exists()


async def test_a_version_that_needs_a_tail_is_not_switched_to_before_one_accepts(edge: World) -> None:
    tail = VersionedTail(accepts={1})
    async with tail_serving(tail):
        edge.addresses["tail"] = tail.address
        await edge.start("head")
        mesh, serving = await edge.ready_mesh(), await client_of(edge)
        await serving.assign(order(2, 1, require_tail=True))
        state = await until(serving, lambda state: state.wanted.phase == pb.PHASE_WAITING_FOR_TAIL)
        assert (state.active_version, state.wanted.version) == (1, 2)
        assert (await mesh.infer(picture(HARD))).version == 1
        tail.accept(2)
        await until(serving, active(2))
        answer = await mesh.infer(picture(HARD))
        assert (answer.version, answer.answered_by) == (2, AnsweredBy.CLOUD_TAIL)
        await edge.stop("head")


async def test_another_order_is_followed_while_one_waits_for_a_tail_that_never_comes(edge: World) -> None:
    tail = VersionedTail(accepts={1})
    async with tail_serving(tail):
        edge.addresses["tail"] = tail.address
        await edge.start("head")
        await edge.ready_mesh()
        serving = await client_of(edge)
        await serving.assign(order(2, 1, require_tail=True))
        await until(serving, lambda state: state.wanted.phase == pb.PHASE_WAITING_FOR_TAIL)
        await serving.assign(order(1, 2, require_tail=True))
        assert (await until(serving, active(1))).generation == 2
        await edge.stop("head")


async def test_the_phases_of_a_version_that_has_to_be_fetched_are_told_with_its_bytes(
    edge: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = asyncio.Event()
    open_head = bring.open_head

    async def waits(*args: object, **options: object) -> object:
        await held.wait()
        return await open_head(*args, **options)  # type: ignore[arg-type]

    await edge.start("head", switch_wait_s=0)
    serving = await client_of(edge)
    await edge.ready_mesh()
    monkeypatch.setattr(bring, "open_head", waits)
    await serving.assign(order(2, 1))
    state = await until(serving, lambda state: state.wanted.phase == pb.PHASE_LOADING)
    assert state.wanted.done_bytes == state.wanted.total_bytes > 0
    assert state.active_version == 1
    held.set()
    await until(serving, active(2))


class Camera:
    """Asks for hard frames one after the other and keeps what came."""

    def __init__(self, mesh: Mesh, name: str) -> None:
        self._mesh, self._name = mesh, name
        self.answers: list[Answer] = []
        self.stopped = False

    async def run(self) -> None:
        async with self._mesh.stream(self._name) as stream:
            async for outcome in stream.run(self._pictures()):
                assert isinstance(outcome, Answer), outcome
                self.answers.append(outcome)

    async def _pictures(self) -> AsyncGenerator[bytes]:
        while not self.stopped:
            yield picture(HARD)
            await asyncio.sleep(0.005)


async def test_no_frame_is_lost_or_answered_by_a_mixed_pair_through_twenty_switches(
    edge: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot, "RETRY_S", 0.05)
    tail = VersionedTail(takes_s=0.02)
    async with tail_serving(tail):
        edge.addresses["tail"] = tail.address
        await edge.start("head")
        mesh, serving = await edge.ready_mesh(), await client_of(edge)
        cameras = [Camera(mesh, f"camera-{number}") for number in range(4)]
        running = [asyncio.create_task(camera.run()) for camera in cameras]
        for number in range(SWITCHES):
            version = (2, 1, 99)[number % 3]
            await serving.assign(order(version, number + 1, require_tail=True))
            if version == 99:
                await until(serving, lambda state: failed(state) and state.wanted.version == 99)
            else:
                await until(serving, active(version))
        for camera in cameras:
            camera.stopped = True
        await asyncio.gather(*running)
        answers = [answer for camera in cameras for answer in camera.answers]
        by_version = Counter(answer.version for answer in answers)
        assert by_version.keys() == {1, 2}
        assert {(answer.answered_by, answer.fallback_reason) for answer in answers} == {(AnsweredBy.CLOUD_TAIL, "")}
        for answer in answers:
            assert answer.label.name == LABELS_OF[answer.version][class_of(answer.version)]
        await edge.stop("head")


async def test_a_policy_of_the_host_is_kept_and_an_older_one_changes_nothing(edge: World) -> None:
    await edge.start("head", switch_wait_s=0)
    await edge.ready_mesh()
    serving = await client_of(edge)
    share = pb.HostShare(model=MODEL, priority=7, cpu_weight=2.5, memory_bytes=1 << 30)
    assert await serving.set_host_policy(pb.HostPolicy(generation=3, shares=[share], memory_bytes=1 << 31)) == 3
    assert await serving.set_host_policy(pb.HostPolicy(generation=2)) == 3
    await restarted(edge, switch_wait_s=0)
    serving = await client_of(edge)
    async with aclosing(serving.watch()) as watch:
        assert (await anext(watch)).policy_generation == 3
    with pytest.raises(MeshError) as caught:
        await serving.set_host_policy(pb.HostPolicy(generation=4, shares=[pb.HostShare(model=MODEL, priority=10)]))
    assert caught.value.reason is Reason.FIELD_INVALID


async def test_an_order_whose_caller_goes_away_is_followed_all_the_same(
    edge: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await edge.start("head", switch_wait_s=0)
    await edge.ready_mesh()
    serving = await client_of(edge)
    await until(serving, active(1))
    reached, go_on, no_more = asyncio.Event(), asyncio.Event(), ModelFollower._watch_no_more

    async def held(follower: ModelFollower) -> None:
        reached.set()
        await go_on.wait()
        await no_more(follower)

    monkeypatch.setattr(ModelFollower, "_watch_no_more", held)
    call = asyncio.create_task(serving.assign(order(2, 1)))
    await reached.wait()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    go_on.set()
    await until(serving, active(2))


async def test_a_version_that_failed_begins_anew_when_it_is_ordered_again_and_not_before(edge: World) -> None:
    await edge.start("head", switch_wait_s=0)
    await edge.ready_mesh()
    serving = await client_of(edge)
    await serving.assign(order(99, 1))
    await until(serving, failed)
    assert (await serving.assign(order(99, 1))).wanted.phase == pb.PHASE_FAILED
    assert (await serving.assign(order(99, 2))).wanted.phase == pb.PHASE_QUEUED
    await until(serving, failed)


async def test_requests_that_name_no_model_are_answered_only_where_there_is_no_other(edge: World) -> None:
    await edge.start("head", models="", switch_wait_s=0, max_models=4)
    serving = await client_of(edge)
    await serving.assign(order(1, 1, model=WHOLE_ONLY))
    await until(serving, active(1), WHOLE_ONLY)
    mesh = await edge.mesh()
    assert (await mesh.infer(picture(EASY))).model == WHOLE_ONLY
    await serving.assign(order(1, 1))
    with pytest.raises(MeshError) as caught:
        await mesh.infer(picture(EASY), retries=0)
    assert caught.value.reason is Reason.MODEL_NOT_FOUND
    assert MODEL in caught.value.message


def test_tries_get_rarer_and_what_no_try_cures_is_tried_seldom() -> None:
    passing = MeshError(Reason.SERVICE_UNAVAILABLE, "away")
    assert [slot._pause_s(passing, n) for n in (1, 2, 3, 30)] == [1.0, 2.0, 4.0, slot.PAUSE_S]
    assert slot._pause_s(ValueError("unforeseen"), 2) == 2.0
    assert slot._pause_s(MeshError(Reason.MODEL_OPERATOR_UNSUPPORTED, "no back end"), 1) == slot.PAUSE_S
