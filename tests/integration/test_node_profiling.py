"""Pieces of models timed on a real head and a real tail, whole profiles made there, and everything that can go wrong."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import onnx
import pytest
import pytest_asyncio
from onnx import TensorProto

from services.partitioner import measurement as measurement_module
from services.partitioner.config import PartitionerSettings
from services.partitioner.measure import Measurer
from services.partitioner.measurement import Means
from services.partitioner.timing_work import time_cut
from splitmesh.api.segment.v1 import segment_pb2, segment_pb2_grpc
from splitmesh.client.node_profiler import NodeProfiler
from splitmesh.client.partition import PartitionClient
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel import profiling
from splitmesh.kernel.channels import Channels, mesh_errors
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.kernel.jobs import JobSlots
from splitmesh.model.live import MIN_LIVE_RUNS
from splitmesh.model.profile_data import QUANTISED_CODEC, Profile
from tests.integration.small_model import CUT, push_small, small_model
from tests.support.models import EASY, HARD, picture
from tests.support.worlds import MODEL, World, serving
from tests.support.worlds import world as mesh_world

pytestmark = pytest.mark.asyncio(loop_scope="module")

HEAD_NODE, TAIL_NODE = "head-1", "tail-1"
PIECE = small_model()
LARGE = small_model(64)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory, registered: Path) -> AsyncIterator[World]:
    """Registry, tail, head and partitioner."""
    async with mesh_world(tmp_path_factory.mktemp("world"), registered) as made:
        await made.start("tail", max_profile_bytes=1 << 20)
        await made.start("head", max_profile_bytes=1 << 20)
        await made.start("partitioner")
        await serving(made.addresses["head"])
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def channels(world: World) -> AsyncIterator[Channels]:
    made = Channels(StaticDiscovery({name: [address] for name, address in world.addresses.items()}))
    yield made
    await made.close()


@pytest.fixture
def nodes(channels: Channels) -> NodeProfiler:
    return NodeProfiler(channels, ["head", "tail"])


@pytest.fixture
def partitioner(channels: Channels) -> PartitionClient:
    return PartitionClient(channels)


def _start(piece: bytes = PIECE, **changes: object) -> segment_pb2.ProfileRequest:
    values: dict[str, Any] = {
        "sha256": hashlib.sha256(piece).hexdigest(),
        "size_bytes": len(piece),
        "repeats": 3,
        "budget_s": 1.0,
    }
    return segment_pb2.ProfileRequest(start=segment_pb2.ProfileStart(**{**values, **changes}))


def _data(content: bytes) -> segment_pb2.ProfileRequest:
    return segment_pb2.ProfileRequest(data=content)


async def _send(address: str, messages: Iterable[segment_pb2.ProfileRequest]) -> segment_pb2.ProfileResponse:
    channels = Channels(StaticDiscovery({}))
    try:
        async with mesh_errors():
            stub = segment_pb2_grpc.SegmentServiceStub(channels.at(address))
            answer: segment_pb2.ProfileResponse = await stub.Profile(iter(messages), timeout=60)
        return answer
    finally:
        await channels.close()


@pytest.mark.parametrize("service", ["head", "tail"])
async def test_a_node_times_a_piece_and_says_how(world: World, nodes: NodeProfiler, service: str) -> None:
    found = await nodes.find(f"{service}-1")
    assert (found.service, found.address) == (service, world.addresses[service])
    timing, host = await nodes.time_piece(found.address, PIECE, batch=2, threads=2, repeats=4, budget_s=1.0)
    assert 0 < timing.median_ms <= timing.p90_ms
    assert (timing.threads, timing.backend) == (2, "CPUExecutionProvider")
    assert 3 <= timing.runs <= 4
    assert "onnxruntime" in host


async def test_a_node_that_is_not_asked_for_threads_takes_its_own(nodes: NodeProfiler) -> None:
    for info in await nodes.nodes():
        timing, _ = await nodes.time_piece(info.address, PIECE, batch=1, repeats=1, budget_s=0.1)
        assert (timing.threads, timing.backend) == (info.threads, info.backend)


def _external() -> bytes:
    model = onnx.load_model_from_string(PIECE)
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="passwd")
    return model.SerializeToString()


_WRONG = {
    "no start": ([_data(b"x")], Reason.PROTOCOL_VIOLATION),
    "nothing": ([], Reason.PROTOCOL_VIOLATION),
    "another digest": ([_start(sha256="0" * 64), _data(PIECE)], Reason.DIGEST_MISMATCH),
    "no digest": ([_start(sha256="x"), _data(PIECE)], Reason.FIELD_INVALID),
    "too little": ([_start(), _data(PIECE[:-1])], Reason.UPLOAD_TRUNCATED),
    "too much": ([_start(), _data(PIECE), _data(b"x")], Reason.PROTOCOL_VIOLATION),
    "a second start": ([_start(), _start()], Reason.PROTOCOL_VIOLATION),
    "empty data": ([_start(), _data(b"")], Reason.PROTOCOL_VIOLATION),
    "empty piece": ([_start(b"")], Reason.FIELD_INVALID),
    "no ONNX": ([_start(b"no model"), _data(b"no model")], Reason.MODEL_CORRUPT),
    "a file named": ([_start(_external()), _data(_external())], Reason.MODEL_CORRUPT),
    "too large": ([_start(size_bytes=(1 << 20) + 1)], Reason.MODEL_TOO_LARGE),
    "batch": ([_start(batch=5000), _data(PIECE)], Reason.FIELD_INVALID),
    "threads": ([_start(threads=5000), _data(PIECE)], Reason.FIELD_INVALID),
    "budget": ([_start(budget_s=121.0), _data(PIECE)], Reason.FIELD_INVALID),
    "budget that is no number": ([_start(budget_s=float("nan")), _data(PIECE)], Reason.FIELD_INVALID),
    "backend": ([_start(backend="NoSuchProvider"), _data(PIECE)], Reason.FIELD_INVALID),
}


@pytest.mark.parametrize("service", ["head", "tail"])
async def test_what_is_wrong_is_refused_with_its_reason_and_the_node_goes_on(world: World, service: str) -> None:
    found: dict[str, Reason | None] = dict.fromkeys(_WRONG)
    for wrong, (messages, _) in _WRONG.items():
        try:
            await _send(world.addresses[service], messages)
        except MeshError as error:
            found[wrong] = error.reason
    assert found == {wrong: reason for wrong, (_, reason) in _WRONG.items()}
    assert (await _send(world.addresses[service], [_start(), _data(PIECE)])).runs == 3


async def test_a_second_call_is_refused_while_one_runs_and_taken_afterwards(world: World) -> None:
    address = world.addresses["tail"]
    results = await asyncio.gather(
        *(_send(address, [_start(), _data(PIECE)]) for _ in range(3)), return_exceptions=True
    )
    refused = [one for one in results if isinstance(one, MeshError)]
    assert [one.reason for one in refused] == [Reason.QUEUE_FULL] * 2
    assert all(one.retry_after_s is not None for one in refused)
    assert (await _send(address, [_start(), _data(PIECE)])).runs == 3


async def test_a_child_that_is_killed_is_an_error_and_the_next_call_works(world: World) -> None:
    address = world.addresses["head"]
    call = asyncio.create_task(_send(address, [_start(LARGE, repeats=1000, budget_s=60.0), _data(LARGE)]))
    async with asyncio.timeout(20):
        while not multiprocessing.active_children():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    for child in multiprocessing.active_children():
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(MeshError, match="SIGKILL") as caught:
        await call
    assert caught.value.reason is Reason.INTERNAL
    assert (await _send(address, [_start(), _data(PIECE)])).runs == 3


async def test_a_caller_that_leaves_ends_the_work(world: World) -> None:
    address = world.addresses["tail"]
    call = asyncio.create_task(_send(address, [_start(LARGE, repeats=1000, budget_s=60.0), _data(LARGE)]))
    async with asyncio.timeout(20):
        while not multiprocessing.active_children():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        call.cancel()
        while multiprocessing.active_children():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert (await _send(address, [_start(), _data(PIECE)])).runs == 3


async def test_an_upload_that_trickles_does_not_keep_others_out(
    world: World, channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiling, "UPLOAD_TIMEOUT_S", 0.5)

    async def trickle() -> AsyncIterator[segment_pb2.ProfileRequest]:
        yield _start()
        for byte in PIECE:
            await asyncio.sleep(0.05)
            yield _data(bytes([byte]))

    address = world.addresses["tail"]
    with pytest.raises(MeshError, match="was not there after") as caught:
        async with mesh_errors():
            await segment_pb2_grpc.SegmentServiceStub(channels.at(address)).Profile(trickle(), timeout=20)
    assert caught.value.reason is Reason.DEADLINE_EXPIRED
    assert (await _send(address, [_start(), _data(PIECE)])).runs == 3


async def test_a_node_may_not_allow_profiling(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        world = World(tmp_path, stack)
        await world.start("tail", allow_profiling=False)
        with pytest.raises(MeshError, match="does not allow profiling") as caught:
            await _send(world.addresses["tail"], [_start(), _data(PIECE)])
    assert caught.value.reason is Reason.UNIMPLEMENTED


async def test_a_head_runs_no_segments_and_says_so(world: World, channels: Channels) -> None:
    stub = segment_pb2_grpc.SegmentServiceStub(channels.at(world.addresses["head"]))
    opening = segment_pb2.RunRequest(open=segment_pb2.Open(model=MODEL, version=1))

    async def run() -> None:
        async with mesh_errors():
            async for _ in stub.Run(iter([opening])):
                pass

    with pytest.raises(MeshError, match="is a head") as caught:
        await run()
    assert caught.value.reason is Reason.UNIMPLEMENTED


async def test_both_nodes_tell_what_their_segments_take_in_production(world: World, nodes: NodeProfiler) -> None:
    mesh = await world.ready_mesh()
    for _ in range(5):
        await mesh.infer(picture(HARD))
    head, tail = await nodes.find(HEAD_NODE), await nodes.find(TAIL_NODE)
    (segment,) = [one for one in head.segments if one.model == MODEL]
    assert segment.segment == 0
    assert segment.live[0].batch == 1
    assert segment.live[0].runs >= 5
    assert 0 < segment.live[0].median_ms <= segment.live[0].p90_ms
    (segment,) = [one for one in tail.segments if one.model == MODEL]
    assert segment.threads == tail.threads
    assert sum(one.runs for one in segment.live) >= 1


async def test_a_version_is_profiled_on_a_node_and_the_profile_is_kept(
    world: World, partitioner: PartitionClient
) -> None:
    await push_small(world.registry, "on-tail", samples=24)
    steps: list[tuple[str, float]] = []
    profile = await partitioner.profile(
        "on-tail",
        1,
        node=TAIL_NODE,
        batch=2,
        threads=1,
        budget_s=60,
        on_progress=lambda *step: steps.append(step),
    )
    assert profile.complete
    assert (profile.key.node, profile.key.batch, profile.key.threads) == (TAIL_NODE, 2, 1)
    assert all(cut.measured for cut in profile.cuts)
    assert await world.registry.list_profiles("on-tail", 1, TAIL_NODE) == [profile]
    assert await world.registry.list_profiles("on-tail", 1, HEAD_NODE) == []
    shares = [share for _, share in steps]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert any(CUT in step for step, _ in steps)
    assert set(profile.pictures) == {"jpeg q75", "jpeg q90", "webp q80", "png"}
    assert profile.pictures["png"].agreement == 1
    agreements = [cut.agreement[QUANTISED_CODEC] for cut in profile.cuts]
    assert min(agreements) > 0.9
    # at once: nothing is left to measure
    assert await partitioner.profile("on-tail", 1, node=TAIL_NODE, batch=2, threads=1, budget_s=60) == profile
    again = await partitioner.profile("on-tail", 1, node=TAIL_NODE, batch=2, threads=1, budget_s=60, restart=True)
    assert again.whole_ms != profile.whole_ms


async def test_a_split_version_finds_the_profile_of_its_whole_and_another_node_its_sizes(
    world: World, partitioner: PartitionClient
) -> None:
    await push_small(world.registry, "shared", samples=24)
    first = await partitioner.profile("shared", 1, budget_s=60)
    made = await partitioner.split("shared", 1, [CUT])
    assert await world.registry.list_profiles("shared", made.version) == [first]
    second = await partitioner.profile("shared", made.version, node=HEAD_NODE, budget_s=60)
    assert [cut.wire_bytes for cut in second.cuts] == [cut.wire_bytes for cut in first.cuts]
    assert [cut.escalation for cut in second.cuts] == [cut.escalation for cut in first.cuts]
    assert second.key.node == HEAD_NODE


async def test_a_small_budget_leaves_the_rest_to_the_next_call(world: World, partitioner: PartitionClient) -> None:
    await push_small(world.registry, "bit-by-bit")
    timed: list[set[tuple[str, ...]]] = []
    for _ in range(20):
        profile = await partitioner.profile("bit-by-bit", 1, budget_s=0.1)
        timed.append({cut.tensors for cut in profile.cuts if cut.measured})
        if profile.complete:
            break
    assert profile.complete
    assert all(before < after for before, after in itertools.pairwise(timed))
    assert len(timed[-1]) == len(profile.cuts)


async def test_a_call_that_is_cut_short_loses_one_point_at_most(world: World, partitioner: PartitionClient) -> None:
    await push_small(world.registry, "cut-short")

    async def stored() -> Profile | None:
        return next(iter(await world.registry.list_profiles("cut-short", 1)), None)

    call = asyncio.create_task(partitioner.profile("cut-short", 1, node=TAIL_NODE, budget_s=60))
    async with asyncio.timeout(60):
        while (kept := await stored()) is None or sum(cut.measured for cut in kept.cuts) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    kept = await stored()
    assert kept is not None
    assert not kept.complete
    done = await partitioner.profile("cut-short", 1, node=TAIL_NODE, budget_s=60)
    assert done.complete
    times = {cut.tensors: cut.head_ms for cut in done.cuts}
    assert all(times[cut.tensors] == cut.head_ms for cut in kept.cuts if cut.measured)
    assert done.whole_ms == kept.whole_ms


async def test_a_cut_that_cannot_be_made_is_left_out_also_by_the_next_call(
    world: World, partitioner: PartitionClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await push_small(world.registry, "one-less")
    monkeypatch.setattr(measurement_module, "time_cut", _refuse_pooled)
    profile = await partitioner.profile("one-less", 1, budget_s=60)
    assert profile.complete
    assert ("pooled",) not in {cut.tensors for cut in profile.cuts}
    assert len(profile.cuts) == 6


def _refuse_pooled(version: object, tensors: tuple[str, ...], how: object) -> object:
    if tensors == ("pooled",):
        raise MeshError(Reason.CUT_INVALID, "not this one")
    return time_cut(version, tensors, how)  # type: ignore[arg-type]


async def test_an_unknown_node_is_refused_and_the_known_ones_are_named(
    world: World, partitioner: PartitionClient
) -> None:
    await push_small(world.registry, "nowhere")
    with pytest.raises(MeshError, match=f"{HEAD_NODE}, {TAIL_NODE}") as caught:
        await partitioner.profile("nowhere", 1, node="moon")
    assert caught.value.reason is Reason.NODE_NOT_FOUND


@pytest.mark.parametrize(
    ("change", "field"), [({"batch": 2000}, "batch"), ({"backend": "NoSuchProvider"}, "providers")]
)
async def test_what_a_node_cannot_do_is_refused(
    world: World, partitioner: PartitionClient, change: dict[str, object], field: str
) -> None:
    await push_small(world.registry, "cannot")
    for node in ("", TAIL_NODE):
        with pytest.raises(MeshError) as caught:
            await partitioner.profile("cannot", 1, node=node, budget_s=1, **change)  # type: ignore[arg-type]
        assert caught.value.reason is Reason.FIELD_INVALID
        assert caught.value.fields[0][0] == field


async def test_production_corrects_a_profile(world: World, partitioner: PartitionClient) -> None:
    mesh = await world.ready_mesh()
    for _ in range(MIN_LIVE_RUNS + 5):
        await mesh.infer(picture(EASY))
    stored = await partitioner.profile(MODEL, 1, node=HEAD_NODE, budget_s=60)
    # as if it had been measured on a far slower day
    slow = stored.model_copy(
        update={
            "cuts": tuple(cut.model_copy(update={"head_ms": 1000.0, "tail_ms": 500.0}) for cut in stored.cuts),
            "whole_ms": 1500.0,
        }
    )
    await world.registry.put_profile(MODEL, 1, slow)
    known = await _known(world, HEAD_NODE)
    assert known is not None
    assert known.cuts[0].live_runs >= MIN_LIVE_RUNS
    assert known.whole_ms == pytest.approx(300.0)  # by a fifth, the largest correction
    assert known == (await world.registry.list_profiles(MODEL, 1, HEAD_NODE))[0]
    assert await _known(world, "moon") is None


async def _known(world: World, node: str) -> Profile | None:
    channels = Channels(StaticDiscovery({name: [address] for name, address in world.addresses.items()}))
    try:
        means = Means(world.registry, NodeProfiler(channels, ["head", "tail"]), PartitionerSettings())
        return await Measurer(means, JobSlots(1, 1)).known(await world.registry.get_version(MODEL, 1), node)
    finally:
        await channels.close()
