"""A real head that tries a version beside the one that answers, is told to go on with it, and compares two by labels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from edge.head.serving import bring, slot
from splitmesh.api.serving.v1 import serving_pb2 as pb
from splitmesh.api.serving.v1 import serving_pb2_grpc
from splitmesh.client import AnsweredBy
from splitmesh.client.samples import SampleClient
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels, mesh_errors
from splitmesh.kernel.discovery_static import StaticDiscovery
from tests.integration.test_head_serving import active, client_of, order, until
from tests.support.models import EASY, HARD, LABELS, OTHER_LABELS, picture
from tests.support.worlds import MODEL, WAIT_S, World, answered_by, world


@pytest.fixture
async def edge(tmp_path: Path, registered: Path) -> AsyncIterator[World]:
    async with world(tmp_path, registered) as made:
        await made.start("tail")
        yield made


def trial(**fields: object) -> pb.Trial:
    return pb.Trial(**{"trial_id": "canary-1", "candidate": 2, **fields})  # type: ignore[arg-type]


def tried(state: pb.ServingState) -> bool:
    return state.candidate.phase == pb.PHASE_SERVING


def counted(**least: int) -> Callable[[pb.ServingState], bool]:
    return lambda state: all(getattr(state.counts, name) >= n for name, n in least.items())


async def test_a_shadow_counts_pairs_and_a_canary_answers_until_all_is_answered_by_it(
    edge: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    open_head = bring.open_head

    async def counting(*args: object, **options: object) -> object:
        opened.append(args[1].version)  # type: ignore[attr-defined]
        return await open_head(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(bring, "open_head", counting)
    await edge.start("head")
    mesh, serving = await edge.ready_mesh(), await client_of(edge)
    await serving.assign(order(1, 1, trial=trial(pair_share=1.0)))
    await until(serving, tried)
    assert (await answered_by(mesh, HARD, AnsweredBy.CLOUD_TAIL)).version == 1
    # The versions' labels differ, so the candidate is never right.
    state = await until(serving, counted(only_serving_right=1, answered_by_serving=1))
    assert (state.counts.trial_id, state.counts.answered_by_candidate) == ("canary-1", 0)
    assert state.counts.source
    await serving.assign(order(1, 2, trial=trial(answer_share=1.0, pair_share=1.0)))
    await until(serving, lambda state: state.generation == 2 and tried(state))
    answer = await mesh.infer(picture(HARD))
    assert (answer.version, answer.label.name) == (2, OTHER_LABELS[LABELS.index("grey")])
    await until(serving, counted(only_serving_right=2, answered_by_candidate=1))
    await serving.assign(order(2, 3, require_tail=True))
    state = await until(serving, active(2))
    assert (state.previous_version, state.HasField("candidate"), state.HasField("counts")) == (1, False, False)
    assert (await mesh.infer(picture(HARD))).version == 2
    assert opened == [1, 2], "what was tried is taken over, not loaded again"


async def test_a_candidate_that_cannot_be_used_says_so_and_disturbs_nobody(
    edge: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot, "RETRY_S", 0.05)
    await edge.start("head")
    mesh, serving = await edge.ready_mesh(), await client_of(edge)
    await serving.assign(order(1, 1, trial=trial(candidate=99, answer_share=1.0)))
    state = await until(serving, lambda state: state.candidate.phase == pb.PHASE_FAILED)
    assert (state.candidate.version, state.candidate.reason) == (99, Reason.VERSION_NOT_FOUND)
    assert (await mesh.infer(picture(EASY))).version == 1
    await serving.assign(order(1, 2))
    assert not (await until(serving, lambda state: state.generation == 2)).HasField("candidate")


async def test_a_trial_goes_on_after_a_restart_with_the_cable_cut_and_counts_anew_by_another_name(edge: World) -> None:
    await edge.start("head")
    mesh, serving = await edge.ready_mesh(), await client_of(edge)
    await serving.assign(order(1, 1, trial=trial(answer_share=1.0, pair_share=1.0)))
    await until(serving, tried)
    assert (await mesh.infer(picture(EASY))).version == 2
    source = (await until(serving, counted(answered_by_candidate=1))).counts.source
    for name in ("head", "registry", "router"):
        await edge.stop(name)
    del edge.addresses["head"]
    await edge.start("head")
    serving = await client_of(edge)
    state = await until(serving, tried)
    assert state.counts.source != source
    assert state.counts.answered_by_candidate == 0
    assert (await (await edge.mesh()).infer(picture(EASY))).version == 2


async def compared(edge: World, **fields: object) -> list[pb.CompareResponse]:
    channels = Channels(StaticDiscovery({}))
    edge.stack.push_async_callback(channels.close)
    stub = serving_pb2_grpc.ServingServiceStub(channels.at(edge.addresses["head"]))
    request = pb.CompareRequest(**{"model": MODEL, "serving": 1, "candidate": 2, **fields})  # type: ignore[arg-type]
    async with mesh_errors():
        return [step async for step in stub.Compare(request, timeout=WAIT_S)]


async def test_two_versions_are_compared_by_what_a_person_said_of_kept_samples(edge: World) -> None:
    await edge.start("head")
    mesh = await edge.ready_mesh()
    with pytest.raises(MeshError) as caught:
        await compared(edge)
    assert caught.value.reason is Reason.CALIBRATION_INSUFFICIENT
    samples, found = await kept(edge, 2)
    first, second, *_ = found
    await samples.label({first: found[first], second: OTHER_LABELS[LABELS.index(found[second])]}, "ana")
    last = (await compared(edge))[-1]
    assert (last.done, last.total) == (2, 2)
    assert (last.counts.only_serving_right, last.counts.only_candidate_right, last.counts.not_made) == (1, 1, 0)
    assert last.counts.trial_id == ""
    assert (await compared(edge, max_samples=1))[-1].total == 2, "labels of one moment are taken together"
    with pytest.raises(MeshError) as caught:
        await compared(edge, candidate=99)
    assert caught.value.reason is Reason.VERSION_NOT_FOUND
    with pytest.raises(MeshError) as caught:
        await compared(edge, model="unknown")
    assert caught.value.reason is Reason.MODEL_NOT_FOUND
    assert (await mesh.infer(picture(EASY))).version == 1


async def kept(edge: World, count: int) -> tuple[SampleClient, dict[str, str]]:
    """Samples of the head, once it keeps so many, with what its tail said of each."""
    mesh = await edge.ready_mesh()
    for brightness in (HARD, 0.75, 0.65):
        await answered_by(mesh, brightness, AnsweredBy.CLOUD_TAIL)
    channels = Channels(StaticDiscovery({"head": [edge.addresses["head"]]}))
    edge.stack.push_async_callback(channels.close)
    samples = SampleClient(channels)
    async with asyncio.timeout(WAIT_S):
        while len(found := await samples.list()) < count:
            pass
    return samples, {one.record.id: one.record.tail_label or "" for one in found}


async def test_a_trial_by_labels_counts_each_sample_that_is_labelled_since_it_began_once(edge: World) -> None:
    await edge.start("head", trial_labels_s=0.05)
    samples, (first, second, *_) = await kept(edge, 2)
    serving = await client_of(edge)
    await samples.label({second: "before the trial"}, "ana")
    await serving.assign(order(1, 1, trial=trial(pair_share=1.0, reference=pb.TRIAL_REFERENCE_LABELS)))
    await until(serving, tried)

    async def label_again_and_again() -> None:
        while True:
            await samples.label({first: None}, "ana")
            await samples.label({first: "neither"}, "ana")

    labelling = asyncio.create_task(label_again_and_again())
    await until(serving, counted(both_wrong=1))
    labelling.cancel()
    await asyncio.gather(labelling, return_exceptions=True)
    await samples.label({first: "else", second: "else"}, "bo")
    counts = (await until(serving, counted(both_wrong=2))).counts
    pairs = counts.both_right + counts.only_serving_right + counts.only_candidate_right + counts.both_wrong
    assert (pairs, counts.not_made) == (2, 0)
