"""The compressor over gRPC with a real registry: recipes, states, reports, and the files it registers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import uuid4

import grpc
import numpy as np
import pytest
import pytest_asyncio

from services.compressor import apply as apply_module
from services.compressor.app import build
from services.compressor.compress import Recipe
from services.compressor.config import CompressorSettings
from splitmesh.api.compression.v1 import compression_pb2, compression_pb2_grpc
from splitmesh.client.compression import CompressionClient, CompressionInfo, CompressionState
from splitmesh.client.registry import VersionInfo
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import mesh_errors
from splitmesh.kernel.jobs import Progress
from splitmesh.kernel.lifecycle import Host
from splitmesh.model.artifacts import split_bytes
from splitmesh.model.calibration import pack_calibration
from splitmesh.model.manifest import CALIBRATION, HEAD, MANIFEST, OUTCOMES, REPORT, TAIL, WHOLE, Manifest
from splitmesh.model.outcomes import CalibrationOutcomes
from splitmesh.model.threshold import choose_threshold
from splitmesh.model.verify import run_chain
from splitmesh.runtime import open_session
from tests.integration.small_model import (
    CUT,
    LABELS,
    ControlPlane,
    control_plane,
    push_small,
    small_manifest,
    small_model,
    small_pictures,
)

SAMPLES = 600
WAIT_S = 50.0

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    """One registry for all tests; each uses a model of its own name."""
    async with control_plane(tmp_path_factory.mktemp("plane")) as made:
        yield made


@pytest.fixture
def model() -> str:
    """A name no other test uses."""
    return f"small-{uuid4().hex[:12]}"


async def push_split(
    plane: ControlPlane,
    model: str,
    *,
    samples: int = SAMPLES,
    cut: str = CUT,
    further: Sequence[Sequence[str]] = (),
    labels: bool = True,
) -> VersionInfo:
    """A split version, as the partitioner registers it."""
    manifest, artifacts = split_bytes(
        small_model(),
        [cut],
        further=further,
        preprocess=small_manifest().preprocess,
        labels=LABELS if labels else (),
    )
    parts = {**artifacts, MANIFEST: manifest.to_json().encode()}
    if samples:
        parts[CALIBRATION] = pack_calibration(small_pictures(samples))
    return await plane.registry.create_version(model, parts, created_by="partitioner")


@asynccontextmanager
async def compressor_at(plane: ControlPlane, **changes: object) -> AsyncIterator[str]:
    values = {"static_addresses": plane.addresses, "drain_s": 2.0}
    settings = CompressorSettings.model_validate(values | changes)
    async with Host("compressor", settings, build) as host:
        yield host.address


@asynccontextmanager
async def compressor(plane: ControlPlane, **changes: object) -> AsyncIterator[CompressionClient]:
    async with compressor_at(plane, **changes) as address:
        yield CompressionClient(plane.channels(compressor=address))


async def test_both_recipes_work_on_a_chain_at_every_hop(plane: ControlPlane, model: str) -> None:
    source = await push_split(plane, model, further=[["pooled"], ["mean"]])
    async with compressor(plane) as client:
        version, report = await client.compress(model, source.version, quantise_cut=True, attach_exit=True)
    made = await plane.registry.get_version(model, version)
    segments = [HEAD, "segment_1.onnx", "segment_2.onnx", TAIL]
    assert set(made.artifacts) == {WHOLE, *segments, MANIFEST, CALIBRATION, OUTCOMES, REPORT}
    manifest = Manifest.from_json(await plane.registry.fetch(made, MANIFEST))
    assert manifest.split is not None
    assert manifest.exit is not None
    assert [[info.dtype for info in hop.wire] for hop in manifest.split.hops()] == [["uint8"]] * 3
    assert report.wire_bytes_after < report.wire_bytes_before / 2
    assert report.tail_agreement is not None
    assert report.tail_agreement > 0.97
    assert report.tail_size_bytes == sum(made.artifacts[name].size_bytes for name in segments[1:])
    preprocess = manifest.preprocess
    assert preprocess is not None
    feed = {"x": preprocess.normalise(small_pictures(64, seed=8))}
    sessions = [open_session(await plane.registry.fetch(made, name)) for name in segments]
    answers = run_chain(sessions, feed)["logits"].argmax(axis=1)
    expected = open_session(small_model()).run(feed)["logits"].argmax(axis=1)
    assert (answers == expected).mean() > 0.95


async def test_both_recipes_make_a_small_split_with_an_exit(plane: ControlPlane, model: str) -> None:
    source = await push_split(plane, model)
    states: list[CompressionInfo] = []
    async with compressor(plane) as client:
        version, report = await client.compress(
            model, source.version, quantise_cut=True, attach_exit=True, on_state=states.append
        )
    made = await plane.registry.get_version(model, version)
    assert (made.parent, made.created_by) == (source.version, "compressor")
    assert set(made.artifacts) == {WHOLE, HEAD, TAIL, MANIFEST, CALIBRATION, OUTCOMES, REPORT}
    for name in (WHOLE, CALIBRATION):
        assert made.artifacts[name] == source.artifacts[name]

    manifest = Manifest.from_json(await plane.registry.fetch(made, MANIFEST))
    assert manifest.split is not None
    assert [(info.dtype, info.shape) for info in manifest.split.wire] == [("uint8", (-1, 8, 16, 16))]
    assert manifest.split.quantisation[0].tensor == CUT
    assert manifest.exit is not None
    assert manifest.exit.holdout_samples == 180

    assert report.version == version
    assert report.wire_bytes_after < report.wire_bytes_before / 2
    assert report.tail_agreement is not None
    assert report.tail_agreement > 0.97
    assert report.exit_agreement is not None
    assert report.exit_agreement > 0.8
    assert (report.holdout_samples, report.fit_samples) == (180, manifest.exit.fit_samples)
    assert report.head_size_bytes == made.artifacts[HEAD].size_bytes
    assert json.loads(await plane.registry.fetch(made, REPORT))["wire_bytes_after"] == report.wire_bytes_after

    assert states[-1].state is CompressionState.SUCCEEDED
    assert states[-1].result_version == version
    assert [state.progress for state in states] == sorted(state.progress for state in states)


async def test_the_outcomes_are_what_the_registered_head_does_on_samples_it_was_not_made_from(
    plane: ControlPlane,
    model: str,
) -> None:
    source = await push_split(plane, model)
    async with compressor(plane) as client:
        version, report = await client.compress(model, source.version, quantise_cut=True, attach_exit=True)
    made = await plane.registry.get_version(model, version)
    outcomes = CalibrationOutcomes.from_json(await plane.registry.fetch(made, OUTCOMES))
    assert outcomes.n == 180
    assert np.mean(outcomes.agrees) == pytest.approx(report.exit_agreement)
    choice = choose_threshold(outcomes.scores(), outcomes.agrees, max_disagreement=0.05, delta=0.05)
    assert choice.threshold <= 1
    # what the threshold promises holds on fresh pictures, with the very files of the version
    preprocess = small_manifest().preprocess
    assert preprocess is not None
    feed = {"x": preprocess.normalise(small_pictures(900, seed=99))}
    answers = open_session(await plane.registry.fetch(made, HEAD)).run(feed)["exit_probabilities"]
    expected = open_session(small_model()).run(feed)["logits"].argmax(axis=1)
    accepted = answers.max(axis=1) >= choice.threshold
    assert accepted.mean() > 0.3
    assert (accepted & (answers.argmax(axis=1) != expected)).mean() < 0.05


async def test_a_quantised_cut_alone_needs_no_labels_and_few_samples(plane: ControlPlane, model: str) -> None:
    source = await push_split(plane, model, samples=10, labels=False)
    async with compressor(plane) as client:
        version, report = await client.compress(model, source.version, quantise_cut=True, attach_exit=False)
    assert (report.tail_agreement, report.exit_agreement) == (None, None)
    assert (report.holdout_samples, report.fit_samples) == (3, 7)
    made = await plane.registry.get_version(model, version)
    assert OUTCOMES not in made.artifacts
    assert Manifest.from_json(await plane.registry.fetch(made, MANIFEST)).exit is None


async def test_an_exit_alone_leaves_the_cut_exact(plane: ControlPlane, model: str) -> None:
    source = await push_split(plane, model)
    async with compressor(plane) as client:
        version, report = await client.compress(model, source.version, quantise_cut=False, attach_exit=True)
    assert report.tail_agreement == 1.0
    assert report.wire_bytes_after == report.wire_bytes_before
    made = await plane.registry.get_version(model, version)
    manifest = Manifest.from_json(await plane.registry.fetch(made, MANIFEST))
    assert manifest.split is not None
    assert manifest.split.quantisation == ()
    assert manifest.split.verification.max_abs_error < 1e-4
    assert made.artifacts[TAIL].sha256 != made.artifacts[WHOLE].sha256


async def test_repeating_a_compression_gives_the_same_version_even_after_a_restart(
    plane: ControlPlane, model: str
) -> None:
    source = await push_split(plane, model, samples=10)
    async with compressor(plane) as client:
        first = await client.compress(model, source.version, quantise_cut=True, attach_exit=False)
        assert await client.compress(model, source.version, quantise_cut=True, attach_exit=False) == first
    async with compressor(plane) as client:
        assert await client.compress(model, source.version, quantise_cut=True, attach_exit=False) == first
    assert len(await plane.registry.list_versions(model)) == 2


async def test_a_failure_is_a_state_with_the_reason_and_registers_nothing(plane: ControlPlane, model: str) -> None:
    source = await push_split(plane, model, samples=30)
    async with compressor_at(plane) as address:
        channels = plane.channels(compressor=address)
        with pytest.raises(MeshError) as caught:
            await CompressionClient(channels).compress(model, source.version, quantise_cut=True, attach_exit=True)
        assert caught.value.reason is Reason.CALIBRATION_INSUFFICIENT
        identifier = apply_module.compression_id(model, source.version, Recipe(True, True))
        stub = compression_pb2_grpc.CompressionServiceStub(await channels.to("compressor"))
        last = [
            response.compression
            async for response in stub.WatchCompression(
                compression_pb2.WatchCompressionRequest(compression_id=identifier)
            )
        ]
        assert [state.state for state in last] == [compression_pb2.COMPRESSION_STATE_FAILED]
        with pytest.raises(MeshError) as caught:
            async with mesh_errors():
                await stub.GetReport(compression_pb2.GetReportRequest(compression_id=identifier))
        assert caught.value.reason is Reason.CALIBRATION_INSUFFICIENT
    assert len(await plane.registry.list_versions(model)) == 1


@pytest.mark.parametrize(
    ("artifacts", "reason"),
    [
        ({CALIBRATION: b"no tensors"}, Reason.PAYLOAD_CORRUPT),
        ({CALIBRATION: pack_calibration(small_pictures(80)[:, :8])}, Reason.TENSOR_SHAPE_MISMATCH),
        ({CALIBRATION: pack_calibration(np.repeat(small_pictures(1), 100, axis=0))}, Reason.CALIBRATION_INSUFFICIENT),
    ],
)
async def test_calibration_that_teaches_nothing_fails_with_the_reason(
    plane: ControlPlane, model: str, artifacts: dict[str, bytes], reason: Reason
) -> None:
    manifest, parts = split_bytes(small_model(), [CUT], preprocess=small_manifest().preprocess, labels=LABELS)
    parts = {**parts, MANIFEST: manifest.to_json().encode(), **artifacts}
    await plane.registry.create_version(model, parts, created_by="partitioner")
    async with compressor(plane) as client:
        with pytest.raises(MeshError) as caught:
            await client.compress(model, 1, quantise_cut=False, attach_exit=True)
    assert caught.value.reason is reason


async def test_what_cannot_be_compressed_is_refused_at_once(plane: ControlPlane, model: str) -> None:
    await push_small(plane.registry, model, samples=20)
    await push_split(plane, model, samples=0)
    async with compressor(plane) as client:
        for name, version, quantise, exit_, reason in (
            ("unknown", 1, True, False, Reason.MODEL_NOT_FOUND),
            (model, 9, True, False, Reason.VERSION_NOT_FOUND),
            (model, 0, True, False, Reason.FIELD_INVALID),
            (model, 1, True, False, Reason.MODEL_INCOMPLETE),
            (model, 2, True, False, Reason.MODEL_INCOMPLETE),
            (model, 1, False, False, Reason.FIELD_INVALID),
        ):
            with pytest.raises(MeshError) as caught:
                await client.compress(name, version, quantise_cut=quantise, attach_exit=exit_)
            assert caught.value.reason is reason


async def test_a_compressed_version_is_not_compressed_again(plane: ControlPlane, model: str) -> None:
    source = await push_split(plane, model, samples=10)
    async with compressor(plane) as client:
        version, _ = await client.compress(model, source.version, quantise_cut=True, attach_exit=False)
        with pytest.raises(MeshError, match="compressed already") as caught:
            await client.compress(model, version, quantise_cut=True, attach_exit=False)
    assert caught.value.reason is Reason.MODEL_INCOMPLETE


async def test_an_exit_for_a_model_without_labels_is_refused_at_once(plane: ControlPlane, model: str) -> None:
    source = await push_split(plane, model, samples=10, labels=False)
    async with compressor(plane) as client:
        with pytest.raises(MeshError, match="no labels") as caught:
            await client.compress(model, source.version, quantise_cut=False, attach_exit=True)
    assert caught.value.reason is Reason.MODEL_INCOMPLETE


async def test_an_unknown_compression_has_neither_states_nor_a_report(plane: ControlPlane) -> None:
    async with compressor_at(plane) as address:
        stub = compression_pb2_grpc.CompressionServiceStub(await plane.channels(compressor=address).to("compressor"))
        with pytest.raises(MeshError) as caught:
            async with mesh_errors():
                await stub.GetReport(compression_pb2.GetReportRequest(compression_id="x"))
        assert caught.value.reason is Reason.COMPRESSION_NOT_FOUND
        with pytest.raises(MeshError) as caught:
            async with mesh_errors():
                await stub.WatchCompression(compression_pb2.WatchCompressionRequest(compression_id="x")).read()
        assert caught.value.reason is Reason.COMPRESSION_NOT_FOUND


def crash(*_: object, progress: Progress) -> dict[str, bytes]:
    progress("about to crash", 0.5)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def hang(*_: object, progress: Progress) -> dict[str, bytes]:
    progress("hanging", 0.5)
    signal.pause()
    raise AssertionError("unreachable")


async def test_a_crash_of_the_job_is_a_failure_and_the_compression_can_be_started_again(
    plane: ControlPlane, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = await push_split(plane, model, samples=10)
    async with compressor(plane) as client:
        with monkeypatch.context() as patch:
            patch.setattr(apply_module, "compress", crash)
            with pytest.raises(MeshError, match="SIGKILL") as caught:
                await client.compress(model, source.version, quantise_cut=True, attach_exit=False)
        assert caught.value.reason is Reason.INTERNAL
        assert len(await plane.registry.list_versions(model)) == 1
        version, _ = await client.compress(model, source.version, quantise_cut=True, attach_exit=False)
    assert version == 2


async def test_a_compression_over_its_deadline_fails(
    plane: ControlPlane, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply_module, "compress", hang)
    source = await push_split(plane, model, samples=10)
    async with compressor(plane, job_deadline_s=3.0) as client:
        with pytest.raises(MeshError) as caught:
            await client.compress(model, source.version, quantise_cut=True, attach_exit=False)
    assert caught.value.reason is Reason.DEADLINE_EXPIRED


async def test_a_full_queue_refuses_and_a_stop_ends_what_runs(
    plane: ControlPlane, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply_module, "compress", hang)
    versions = [await push_split(plane, model, samples=10, cut=cut) for cut in (CUT, "pooled", "mixed")]
    async with asyncio.timeout(WAIT_S), compressor_at(plane, max_queued=1, drain_s=3600.0) as address:
        stub = compression_pb2_grpc.CompressionServiceStub(await plane.channels(compressor=address).to("compressor"))

        def request(info: VersionInfo) -> compression_pb2.CompressModelRequest:
            recipe = compression_pb2.Recipe(quantise_cut=True)
            return compression_pb2.CompressModelRequest(model=model, version=info.version, recipe=recipe)

        running = (await stub.CompressModel(request(versions[0]))).compression
        waiting = (await stub.CompressModel(request(versions[1]))).compression
        with pytest.raises(MeshError) as caught:
            async with mesh_errors():
                await stub.CompressModel(request(versions[2]))
        assert caught.value.reason is Reason.QUEUE_FULL
        # the same work again joins the first and takes no place
        again = (await stub.CompressModel(request(versions[0]))).compression
        assert again.compression_id == running.compression_id

        watch = stub.WatchCompression(compression_pb2.WatchCompressionRequest(compression_id=running.compression_id))
        while (state := (await watch.read()).compression).step != "hanging":
            assert state.state in (compression_pb2.COMPRESSION_STATE_QUEUED, compression_pb2.COMPRESSION_STATE_RUNNING)
        second = stub.WatchCompression(compression_pb2.WatchCompressionRequest(compression_id=waiting.compression_id))
        assert (await second.read()).compression.state == compression_pb2.COMPRESSION_STATE_QUEUED
        with pytest.raises(MeshError) as caught:
            async with mesh_errors():
                await stub.GetReport(compression_pb2.GetReportRequest(compression_id=waiting.compression_id), timeout=5)
        assert caught.value.reason is Reason.NOT_READY
    for call in (watch, second):
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
    assert len(await plane.registry.list_versions(model)) == 3
