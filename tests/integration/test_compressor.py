"""The compressor over gRPC with a real registry: recipes, states, reports, restarts, and the files it registers."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from services.compressor import apply as apply_module
from services.compressor.app import build
from services.compressor.config import CompressorSettings
from splitmesh.api.compression.v1 import compression_pb2, compression_pb2_grpc
from splitmesh.client.compression import CompressionClient, CompressionInfo, CompressionState
from splitmesh.client.registry import VersionInfo
from splitmesh.compress.child import Result
from splitmesh.compress.recipe import Budget
from splitmesh.compress.report import Report
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import mesh_errors
from splitmesh.kernel.jobs import Progress
from splitmesh.kernel.lifecycle import Host
from splitmesh.model.artifacts import split_bytes
from splitmesh.model.calibration import pack_calibration
from splitmesh.model.manifest import (
    CALIBRATION,
    DEFERRAL,
    HEAD,
    MANIFEST,
    OUTCOMES,
    REPORT,
    TABLES,
    TAIL,
    UNUSUAL,
    WHOLE,
    Manifest,
)
from splitmesh.model.outcomes import CalibrationOutcomes
from splitmesh.model.verify import run_chain
from splitmesh.routing.threshold import choose_threshold
from splitmesh.runtime import open_session
from splitmesh.testing.mesh import ProcessLauncher
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

ROOT = Path(__file__).parents[2]
SAMPLES = 600
FEW = 100
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


def compressions(folder: Path) -> list[Path]:
    """The folders of a service's compressions."""
    return sorted((folder / "compressions").iterdir())


@asynccontextmanager
async def compressor_at(plane: ControlPlane, folder: Path, **changes: object) -> AsyncIterator[str]:
    values = {"static_addresses": plane.addresses, "drain_s": 2.0, "data_dir": folder}
    settings = CompressorSettings.model_validate(values | changes)
    async with Host("compressor", settings, build) as host:
        yield host.address


@asynccontextmanager
async def compressor(plane: ControlPlane, folder: Path, **changes: object) -> AsyncIterator[CompressionClient]:
    async with compressor_at(plane, folder, **changes) as address:
        yield CompressionClient(plane.channels(compressor=address))


async def manifest_of(plane: ControlPlane, version: VersionInfo) -> Manifest:
    return Manifest.from_json(await plane.registry.fetch(version, MANIFEST))


def expected_classes(pictures: np.ndarray) -> np.ndarray:
    preprocess = small_manifest().preprocess
    assert preprocess is not None
    classes = open_session(small_model()).run({"x": preprocess.normalise(pictures)})["logits"].argmax(axis=1)
    return np.asarray(classes)


# What comes out


async def test_a_chain_gets_8_bits_at_every_hop_and_an_exit(plane: ControlPlane, model: str, tmp_path: Path) -> None:
    source = await push_split(plane, model, samples=300, further=[["pooled"], ["mean"]])
    async with compressor(plane, tmp_path) as client:
        version, report = await client.compress(model, source.version, ["int8-cut", "exits"])
    made = await plane.registry.get_version(model, version)
    segments = [HEAD, "segment_1.onnx", "segment_2.onnx", TAIL]
    assert set(made.artifacts) - {DEFERRAL, UNUSUAL} == {WHOLE, *segments, MANIFEST, CALIBRATION, OUTCOMES, REPORT}
    manifest = await manifest_of(plane, made)
    assert manifest.split is not None
    assert manifest.exit is not None
    assert [[info.dtype for info in hop.wire] for hop in manifest.split.hops()] == [["uint8"]] * 3
    assert report.agreement is not None
    assert report.agreement.share > 0.95
    assert made.lineage.metrics["agreement"] == report.agreement.share
    assert made.lineage.seeds == (report.seed,)
    assert len(made.lineage.recipe_sha256) == 64
    assert made.lineage.task
    pictures = small_pictures(64, seed=8)
    preprocess = small_manifest().preprocess
    assert preprocess is not None
    sessions = [open_session(await plane.registry.fetch(made, name)) for name in segments]
    answers = run_chain(sessions, {"x": preprocess.normalise(pictures)})["logits"].argmax(axis=1)
    assert (answers == expected_classes(pictures)).mean() > 0.95


async def test_a_recipe_makes_a_small_split_with_an_exit_and_leaves_nothing_unfinished_behind(
    plane: ControlPlane, model: str, tmp_path: Path
) -> None:
    source = await push_split(plane, model)
    states: list[CompressionInfo] = []
    async with compressor(plane, tmp_path) as client:
        version, report = await client.compress(
            model, source.version, ["int8-cut", "exits"], seed=4, on_state=states.append
        )
        made = await plane.registry.get_version(model, version)
        assert (made.parent, made.created_by) == (source.version, "compressor")
        assert made.description == f"version {source.version} with int8-cut, exits"
        names = {WHOLE, HEAD, TAIL, TABLES, MANIFEST, CALIBRATION, OUTCOMES, DEFERRAL, UNUSUAL, REPORT}
        assert set(made.artifacts) == names
        for name in (WHOLE, CALIBRATION):
            assert made.artifacts[name] == source.artifacts[name]

        manifest = await manifest_of(plane, made)
        assert manifest.split is not None
        assert [(info.dtype, info.shape) for info in manifest.split.wire] == [("uint8", (-1, 8, 16, 16))]
        assert manifest.split.coding is not None
        assert manifest.exit is not None
        assert manifest.exit.holdout_samples == report.holdout_samples

        assert Report.from_json(await plane.registry.fetch(made, REPORT)) == report
        assert (report.seed, report.model) == (4, f"{model}:{source.version}")
        cuts = {point.name: point.wire_bytes for point in report.points if point.kind == "cut"}
        assert min(cuts.values()) < max(cuts.values()) / 2
        assert report.agreement is not None
        assert report.agreement.share > 0.95
        assert report.exits[-1].agreement.share > 0.8
        assert [step.step for step in report.steps] == ["int8-cut", "exits"]

        last = states[-1]
        assert (last.state, last.result_version, last.steps_done) == (CompressionState.SUCCEEDED, version, 2)
        assert (last.model, last.version, last.recipe) == (model, source.version, ("int8-cut", "exits"))
        assert [state.progress for state in states] == sorted(state.progress for state in states)
        steps = [state.step for state in states]
        assert any(step.startswith("int8-cut: ") for step in steps)
        assert any(step.startswith("exits: ") for step in steps)

        (folder,) = compressions(tmp_path)
        assert {path.name for path in folder.iterdir()} == {
            "request.json",
            "state.json",
            "report.json",
            "pictures",
            "pictures.json",
        }
        page = (await client.report(last.compression_id, html=True)).html
        assert page.lstrip().lower().startswith("<!doctype html>")
        assert model in page
        assert (await client.report(last.compression_id)).html == ""


async def test_the_outcomes_are_what_the_registered_head_does_on_samples_it_was_not_made_from(
    plane: ControlPlane, model: str, tmp_path: Path
) -> None:
    source = await push_split(plane, model)
    async with compressor(plane, tmp_path) as client:
        version, report = await client.compress(model, source.version, ["int8-cut", "exits"])
    made = await plane.registry.get_version(model, version)
    outcomes = CalibrationOutcomes.from_bytes(await plane.registry.fetch(made, OUTCOMES))
    eases, agrees = outcomes.columns()
    assert len(eases) == report.holdout_samples
    choice = choose_threshold(eases, agrees, max_disagreement=0.05, delta=0.05)
    assert choice.threshold <= 1
    # what the threshold promises holds on fresh pictures, with the very files of the version
    pictures = small_pictures(900, seed=99)
    preprocess = small_manifest().preprocess
    assert preprocess is not None
    exit_ = (await manifest_of(plane, made)).exit
    assert exit_ is not None
    head = open_session(await plane.registry.fetch(made, HEAD))
    answers = head.run({"x": preprocess.normalise(pictures)})[exit_.output]
    accepted = answers.max(axis=1) >= choice.threshold
    assert accepted.mean() > 0.3
    assert (accepted & (answers.argmax(axis=1) != expected_classes(pictures))).mean() < 0.05


async def test_a_whole_version_is_cut_by_its_recipe(plane: ControlPlane, model: str, tmp_path: Path) -> None:
    source = await push_small(plane.registry, model, samples=FEW)
    async with compressor(plane, tmp_path) as client:
        version, report = await client.compress(model, source.version, [f"split:at={CUT}", "int8-cut"])
    manifest = await manifest_of(plane, await plane.registry.get_version(model, version))
    assert manifest.split is not None
    assert [info.name for info in manifest.split.cut] == [CUT]
    assert [step.step for step in report.steps] == [f"split:at={CUT}", "int8-cut"]


async def test_8_bits_alone_need_no_labels(plane: ControlPlane, model: str, tmp_path: Path) -> None:
    source = await push_split(plane, model, samples=FEW, labels=False)
    async with compressor(plane, tmp_path) as client:
        version, report = await client.compress(
            model, source.version, ["int8-cut"], budget=Budget(max_output_error=0.5)
        )
    assert (report.agreement, report.exits) == (None, ())
    assert report.output_error is not None
    assert report.output_error < 0.1
    made = await plane.registry.get_version(model, version)
    assert OUTCOMES not in made.artifacts
    assert (await manifest_of(plane, made)).exit is None


async def test_an_exit_alone_leaves_the_cut_exact_and_8_bits_can_follow(
    plane: ControlPlane, model: str, tmp_path: Path
) -> None:
    source = await push_split(plane, model, samples=300)
    async with compressor(plane, tmp_path) as client:
        version, report = await client.compress(model, source.version, ["exits"])
        manifest = await manifest_of(plane, await plane.registry.get_version(model, version))
        assert report.agreement is not None
        assert report.agreement.share == 1.0
        assert manifest.split is not None
        assert manifest.split.quantisation == ()
        assert manifest.split.verification.max_abs_error < 1e-4

        again, report = await client.compress(model, version, ["int8-cut", "exits"])
        assert "cut again" in report.steps[0].remarks[0]
        manifest = await manifest_of(plane, await plane.registry.get_version(model, again))
        assert manifest.split is not None
        assert manifest.split.quantisation


def write_pictures(folder: Path, count: int) -> None:
    """One folder per class, as people keep them."""
    for index, pixels in enumerate(small_pictures(count)):
        place = folder / LABELS[index % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[..., 0]).save(place / f"{index:04}.png")


async def test_pictures_of_a_folder_stay_on_this_machine(plane: ControlPlane, model: str, tmp_path: Path) -> None:
    write_pictures(tmp_path / "samples" / "line-1", 150)
    source = await push_split(plane, model, samples=0)
    async with compressor(plane, tmp_path / "state", samples_dir=tmp_path / "samples") as client:
        version, report = await client.compress(
            model,
            source.version,
            ["int8-cut"],
            calibration_folder="line-1",
            budget=Budget(max_accuracy_loss=0.5),
        )
        assert report.labelled
        assert report.accuracy is not None
        made = await plane.registry.get_version(model, version)
        assert CALIBRATION not in made.artifacts
        assert not list((tmp_path / "state").rglob("*.u8"))
        # other pictures are other work
        write_pictures(tmp_path / "samples" / "line-1", 160)
        other, _ = await client.compress(
            model,
            source.version,
            ["int8-cut"],
            calibration_folder="line-1",
            budget=Budget(max_accuracy_loss=0.5),
        )
        assert other != version
        assert len(await client.list(model)) == 2


# What is refused


@pytest.mark.parametrize(
    "name", ["..", "../state", "line-1/../../state", "/etc", "nothing-here", "link", "inside", "a\0b", "x" * 2000]
)
async def test_no_name_and_no_link_leads_out_of_the_folder_of_samples(
    plane: ControlPlane, model: str, tmp_path: Path, name: str
) -> None:
    write_pictures(tmp_path / "elsewhere", 3)
    samples = tmp_path / "samples"
    (samples / "inside").mkdir(parents=True)
    (samples / "link").symlink_to(tmp_path / "elsewhere")
    (samples / "inside" / "picture.png").symlink_to(tmp_path / "elsewhere" / LABELS[0] / "0000.png")
    source = await push_split(plane, model, samples=FEW)
    async with compressor(plane, tmp_path / "state", samples_dir=samples) as client:
        with pytest.raises(MeshError, match="calibration_folder") as caught:
            await client.start(model, source.version, ["int8-cut"], calibration_folder=name)
    assert caught.value.reason is Reason.FIELD_INVALID
    assert str(tmp_path) not in caught.value.message


async def test_an_error_about_samples_does_not_say_where_they_lie(
    plane: ControlPlane, model: str, tmp_path: Path
) -> None:
    (tmp_path / "samples" / "line-1" / "empty").mkdir(parents=True)
    source = await push_split(plane, model, samples=0)
    async with compressor(plane, tmp_path / "state", samples_dir=tmp_path / "samples") as client:
        for name, said in (("line-1/empty", "line-1/empty"), (".", "the folder of samples")):
            with pytest.raises(MeshError, match=f"in {said}$") as caught:
                await client.compress(model, source.version, ["int8-cut"], calibration_folder=name)
            assert caught.value.reason is Reason.FIELD_INVALID
            assert str(tmp_path) not in f"{caught.value.message} {caught.value.fields}"


async def test_a_folder_is_refused_where_the_service_has_none(plane: ControlPlane, model: str, tmp_path: Path) -> None:
    source = await push_split(plane, model, samples=FEW)
    async with compressor(plane, tmp_path) as client:
        with pytest.raises(MeshError, match="SPLITMESH_SAMPLES_DIR") as caught:
            await client.start(model, source.version, ["int8-cut"], calibration_folder="line-1")
    assert caught.value.reason is Reason.FIELD_INVALID


async def test_what_cannot_be_compressed_is_refused_at_once(plane: ControlPlane, model: str, tmp_path: Path) -> None:
    await push_small(plane.registry, model, samples=FEW)
    await push_split(plane, model, samples=0)
    await push_split(plane, model, samples=FEW, labels=False)
    cases: list[tuple[str, int, list[str], Budget, Reason]] = [
        ("unknown", 1, ["int8-cut"], Budget(), Reason.MODEL_NOT_FOUND),
        (model, 9, ["int8-cut"], Budget(), Reason.VERSION_NOT_FOUND),
        (model, 0, ["int8-cut"], Budget(), Reason.FIELD_INVALID),
        (model, 1, ["int8-cut"], Budget(), Reason.MODEL_INCOMPLETE),  # not split
        (model, 2, ["int8-cut"], Budget(), Reason.MODEL_INCOMPLETE),  # no samples
        (model, 3, ["exits"], Budget(), Reason.MODEL_INCOMPLETE),  # no classes
        (model, 3, ["int8-cut"], Budget(max_disagreement=0.1), Reason.MODEL_INCOMPLETE),
        (model, 1, ["fp16"], Budget(max_output_error=0.1), Reason.FIELD_INVALID),
    ]
    async with compressor(plane, tmp_path) as client:
        for name, version, recipe, budget, reason in cases:
            with pytest.raises(MeshError) as caught:
                await client.start(name, version, recipe, budget=budget)
            assert caught.value.reason is reason, (name, version, recipe)
        assert await client.list() == []


def step(**fields: Any) -> compression_pb2.Step:
    return compression_pb2.Step(**fields)


@pytest.mark.parametrize(
    "recipe",
    [
        compression_pb2.Recipe(),
        compression_pb2.Recipe(steps=[compression_pb2.Step()]),
        compression_pb2.Recipe(
            steps=[step(exits=compression_pb2.ExitsStep()), step(quantise_cut=compression_pb2.QuantiseCutStep())]
        ),
        compression_pb2.Recipe(steps=[step(fp16=compression_pb2.Fp16Step()), step(int8=compression_pb2.Int8Step())]),
        compression_pb2.Recipe(steps=[step(prune=compression_pb2.PruneStep(share=0.95))]),
        compression_pb2.Recipe(steps=[step(split=compression_pb2.SplitStep())]),
        compression_pb2.Recipe(
            steps=[step(bottleneck=compression_pb2.BottleneckStep(method=7))]  # type: ignore[arg-type]
        ),
        compression_pb2.Recipe(steps=[step(fp16=compression_pb2.Fp16Step())], holdout_share=1.0),
        compression_pb2.Recipe(steps=[step(fp16=compression_pb2.Fp16Step())], seed=2**32 - 1),
        compression_pb2.Recipe(
            steps=[step(fp16=compression_pb2.Fp16Step())], budget=compression_pb2.Budget(max_disagreement=1.5)
        ),
        compression_pb2.Recipe(
            steps=[step(fp16=compression_pb2.Fp16Step())], budget=compression_pb2.Budget(max_output_error=float("nan"))
        ),
    ],
)
async def test_a_recipe_that_makes_no_sense_is_refused(
    plane: ControlPlane, model: str, tmp_path: Path, recipe: compression_pb2.Recipe
) -> None:
    async with compressor_at(plane, tmp_path) as address:
        stub = compression_pb2_grpc.CompressionServiceStub(await plane.channels(compressor=address).to("compressor"))
        with pytest.raises(MeshError) as caught:
            async with mesh_errors():
                await stub.CompressModel(compression_pb2.CompressModelRequest(model=model, version=1, recipe=recipe))
    assert caught.value.reason is Reason.FIELD_INVALID
    assert caught.value.fields[0][0].startswith("recipe")


async def test_an_unknown_compression_is_not_found_by_any_call(plane: ControlPlane, tmp_path: Path) -> None:
    async with compressor(plane, tmp_path) as client:
        calls: list[Callable[[str], Any]] = [client.report, client.cancel, client.resume, client.follow]
        for call in calls:
            for identifier in ("x", "../..", ""):
                with pytest.raises(MeshError) as caught:
                    await call(identifier)
                assert caught.value.reason is Reason.COMPRESSION_NOT_FOUND


# Over the budget


async def test_a_result_over_its_budget_is_rejected_with_its_report_and_not_registered(
    plane: ControlPlane, model: str, tmp_path: Path
) -> None:
    source = await push_split(plane, model, samples=FEW)
    recipe, budget = ["prune:share=0.9", "int8-cut"], Budget(max_disagreement=0.01)
    async with compressor(plane, tmp_path) as client:
        with pytest.raises(MeshError) as caught:
            await client.compress(model, source.version, recipe, budget=budget)
        assert caught.value.reason is Reason.BUDGET_EXCEEDED
        assert caught.value.metadata["what"] == "max_disagreement"
        assert float(caught.value.metadata["measured"]) > float(caught.value.metadata["allowed"])
        (info,) = await client.list(model)
        assert (info.state, info.result_version, info.steps_done) == (CompressionState.REJECTED, 0, 2)
        kept = await client.report(info.compression_id, html=True)
        assert (kept.version, kept.report.exceeded[0].what) == (0, "max_disagreement")
        assert kept.html
        assert (await client.resume(info.compression_id)).state is CompressionState.REJECTED
        assert not (compressions(tmp_path)[0] / "run").exists()
    # the same after a restart, and nothing runs again
    async with compressor(plane, tmp_path) as client:
        again = await client.start(model, source.version, recipe, budget=budget)
        assert again.state is CompressionState.REJECTED
        assert again.error is not None
        assert again.error.metadata == caught.value.metadata
        assert (await client.report(info.compression_id)).report == kept.report
    assert len(await plane.registry.list_versions(model)) == 1


# Failures, cancellation, restarts


async def test_repeating_a_compression_gives_the_same_version_even_when_the_service_forgot_it(
    plane: ControlPlane, model: str, tmp_path: Path
) -> None:
    source = await push_split(plane, model, samples=FEW)
    async with compressor(plane, tmp_path / "a") as client:
        first = await client.compress(model, source.version, ["int8-cut"])
        assert await client.compress(model, source.version, ["int8-cut"]) == first
    for folder in ("a", "b"):
        async with compressor(plane, tmp_path / folder) as client:
            assert await client.compress(model, source.version, ["int8-cut"]) == first
    assert len(await plane.registry.list_versions(model)) == 2


async def test_a_failure_is_a_state_with_the_reason_and_registers_nothing(
    plane: ControlPlane, model: str, tmp_path: Path
) -> None:
    source = await push_split(plane, model, samples=30)
    async with compressor(plane, tmp_path) as client:
        with pytest.raises(MeshError) as caught:
            await client.compress(model, source.version, ["int8-cut", "exits"])
        assert caught.value.reason is Reason.CALIBRATION_INSUFFICIENT
        (info,) = await client.list()
        assert info.state is CompressionState.FAILED
        with pytest.raises(MeshError) as caught:
            await client.report(info.compression_id)
        assert caught.value.reason is Reason.CALIBRATION_INSUFFICIENT
        assert (await client.follow(info.compression_id)).state is CompressionState.FAILED
    async with compressor(plane, tmp_path) as client:
        (kept,) = await client.list()
        assert kept.error is not None
        assert info.error is not None
        assert (kept.error.reason, kept.error.message) == (info.error.reason, info.error.message)
        assert kept.error.metadata == info.error.metadata
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
    plane: ControlPlane, model: str, tmp_path: Path, artifacts: dict[str, bytes], reason: Reason
) -> None:
    manifest, parts = split_bytes(small_model(), [CUT], preprocess=small_manifest().preprocess, labels=LABELS)
    parts = {**parts, MANIFEST: manifest.to_json().encode(), **artifacts}
    await plane.registry.create_version(model, parts, created_by="partitioner")
    async with compressor(plane, tmp_path) as client:
        with pytest.raises(MeshError) as caught:
            await client.compress(model, 1, ["exits"])
    assert caught.value.reason is reason


def crash(*_: object, progress: Progress) -> Result:
    progress("about to crash", 0.5)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def hang(folder: str, *_: object, progress: Progress) -> Result:
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "pid").write_text(str(os.getpid()))
    progress("hanging", 0.5)
    signal.pause()
    raise AssertionError("unreachable")


async def test_a_crash_of_the_child_is_a_failure_and_the_same_request_goes_on(
    plane: ControlPlane, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = await push_split(plane, model, samples=FEW)
    async with compressor(plane, tmp_path) as client:
        with monkeypatch.context() as patch:
            patch.setattr(apply_module, "run_in", crash)
            with pytest.raises(MeshError, match="SIGKILL") as caught:
                await client.compress(model, source.version, ["int8-cut"])
        assert caught.value.reason is Reason.INTERNAL
        assert len(await plane.registry.list_versions(model)) == 1
        version, _ = await client.compress(model, source.version, ["int8-cut"])
        assert version == 2
        assert len(await client.list()) == 1


async def test_a_compression_over_its_deadline_fails(
    plane: ControlPlane, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply_module, "run_in", hang)
    source = await push_split(plane, model, samples=FEW)
    async with compressor(plane, tmp_path, job_deadline_s=4.0) as client:
        with pytest.raises(MeshError) as caught:
            await client.compress(model, source.version, ["int8-cut"])
    assert caught.value.reason is Reason.DEADLINE_EXPIRED


async def until(client: CompressionClient, identifier: str, wanted: Callable[[CompressionInfo], bool]) -> None:
    """Follow until a state is as wanted."""
    reached = asyncio.Event()

    def look(info: CompressionInfo) -> None:
        if wanted(info):
            reached.set()

    following = asyncio.create_task(client.follow(identifier, look))
    try:
        async with asyncio.timeout(WAIT_S):
            await reached.wait()
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


async def test_cancelling_ends_the_child_and_resuming_goes_on(
    plane: ControlPlane, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = await push_split(plane, model, samples=FEW)
    async with compressor(plane, tmp_path) as client:
        with monkeypatch.context() as patch:
            patch.setattr(apply_module, "run_in", hang)
            started = await client.start(model, source.version, ["int8-cut"])
            await until(client, started.compression_id, lambda info: info.step == "hanging")
            pid = int((compressions(tmp_path)[0] / "run" / "pid").read_text())
            assert alive(pid)
            cancelled = await client.cancel(started.compression_id)
        assert cancelled.state is CompressionState.CANCELLED
        assert not alive(pid)
        with pytest.raises(MeshError, match="resume") as caught:
            await client.report(started.compression_id)
        assert caught.value.reason is Reason.NOT_READY
        assert (await client.cancel(started.compression_id)).state is CompressionState.CANCELLED
        assert len(await plane.registry.list_versions(model)) == 1
    # a cancelled one stays cancelled over a restart
    async with compressor(plane, tmp_path) as client:
        (info,) = await client.list()
        assert info.state is CompressionState.CANCELLED
        assert (await client.resume(info.compression_id)).state is CompressionState.QUEUED
        ended = await client.follow(info.compression_id)
        assert (ended.state, ended.result_version) == (CompressionState.SUCCEEDED, 2)
        assert (await client.cancel(info.compression_id)).state is CompressionState.SUCCEEDED
        assert (await client.resume(info.compression_id)).state is CompressionState.SUCCEEDED


async def test_cancelling_one_in_line_leaves_the_one_that_runs(
    plane: ControlPlane, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply_module, "run_in", hang)
    source = await push_split(plane, model, samples=FEW)
    async with compressor(plane, tmp_path) as client:
        first = await client.start(model, source.version, ["int8-cut"])
        second = await client.start(model, source.version, ["exits"])
        await until(client, first.compression_id, lambda info: info.step == "hanging")
        assert (await client.cancel(second.compression_id)).state is CompressionState.CANCELLED
        states = {info.compression_id: info.state for info in await client.list()}
        assert states[first.compression_id] is CompressionState.RUNNING


async def test_a_full_queue_refuses_and_what_was_stopped_goes_on_after_a_restart(
    plane: ControlPlane, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = [await push_split(plane, model, samples=FEW, cut=cut) for cut in (CUT, "pooled", "mixed")]
    with monkeypatch.context() as patch:
        patch.setattr(apply_module, "run_in", hang)
        async with (
            asyncio.timeout(WAIT_S),
            compressor_at(plane, tmp_path, max_queued=1, drain_s=3600.0) as address,
        ):
            channels = plane.channels(compressor=address)
            client = CompressionClient(channels)
            stub = compression_pb2_grpc.CompressionServiceStub(await channels.to("compressor"))
            running = await client.start(model, versions[0].version, ["int8-cut"])
            waiting = await client.start(model, versions[1].version, ["int8-cut"])
            with pytest.raises(MeshError) as caught:
                await client.start(model, versions[2].version, ["int8-cut"])
            assert caught.value.reason is Reason.QUEUE_FULL
            # the same work again joins the first and takes no place
            again = await client.start(model, versions[0].version, ["int8-cut"])
            assert again.compression_id == running.compression_id
            await until(client, running.compression_id, lambda info: info.step == "hanging")
            watches = [
                stub.WatchCompression(compression_pb2.WatchCompressionRequest(compression_id=info.compression_id))
                for info in (running, waiting)
            ]
            states = [(await watch.read()).compression.state for watch in watches]
            assert states == [
                compression_pb2.COMPRESSION_STATE_RUNNING,
                compression_pb2.COMPRESSION_STATE_QUEUED,
            ]
            with pytest.raises(MeshError) as caught:
                await client.report(waiting.compression_id)
            assert caught.value.reason is Reason.NOT_READY
        for call in watches:
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
    assert len(await plane.registry.list_versions(model)) == 3
    async with compressor(plane, tmp_path) as client:
        for info in (running, waiting):
            assert (await client.follow(info.compression_id)).state is CompressionState.SUCCEEDED
    assert len(await plane.registry.list_versions(model)) == 5


@pytest.mark.timeout(180)
async def test_a_service_that_is_killed_goes_on_behind_the_last_finished_step(
    plane: ControlPlane, model: str, tmp_path: Path
) -> None:
    source = await push_small(plane.registry, model, samples=1500)
    launcher = ProcessLauncher(ROOT, tmp_path / "logs")
    settings = {"static_addresses": plane.addresses, "data_dir": str(tmp_path / "state"), "drain_s": "2"}
    service = await launcher.launch("compressor", settings)
    try:
        client = CompressionClient(plane.channels(compressor=service.address))
        started = await client.start(model, source.version, [f"split:at={CUT}", "int8-cut", "exits"])
        await until(client, started.compression_id, lambda info: info.steps_done >= 1)
        await service.kill()
        (folder,) = compressions(tmp_path / "state")
        assert json.loads((folder / "state.json").read_bytes())["state"] == "RUNNING"
        first = json.loads((folder / "run" / "step_1" / "step.json").read_bytes())
        service = await launcher.launch("compressor", {**settings, "port": service.address.rpartition(":")[2]})
        ended = await client.follow(started.compression_id)
    finally:
        await service.stop()
    assert ended.state is CompressionState.SUCCEEDED, ended.error
    made = await plane.registry.get_version(model, ended.result_version)
    report = Report.from_json(await plane.registry.fetch(made, REPORT))
    # the very same run of the step, to the nanosecond
    assert report.steps[0].seconds == first["seconds"]
    assert [entry.step for entry in report.steps] == [f"split:at={CUT}", "int8-cut", "exits"]
    assert len(await plane.registry.list_versions(model)) == 2


async def test_a_crash_between_registering_and_writing_it_down_makes_no_second_version(
    plane: ControlPlane, model: str, tmp_path: Path
) -> None:
    source = await push_split(plane, model, samples=FEW)
    async with compressor(plane, tmp_path) as client:
        first = await client.compress(model, source.version, ["int8-cut"])
    (folder,) = compressions(tmp_path)
    (folder / "state.json").write_text('{"schema_version": 1, "state": "RUNNING"}')
    async with compressor(plane, tmp_path) as client:
        assert await client.compress(model, source.version, ["int8-cut"]) == first
    assert len(await plane.registry.list_versions(model)) == 2


async def test_a_damaged_state_is_a_failure_that_can_be_resumed_and_the_service_starts(
    plane: ControlPlane, model: str, tmp_path: Path
) -> None:
    source = await push_split(plane, model, samples=FEW)
    async with compressor(plane, tmp_path) as client:
        version, _ = await client.compress(model, source.version, ["int8-cut"])
    (folder,) = compressions(tmp_path)
    for content in (b"", b"{", b"[]", b'{"state": "DREAMING"}', b"\xff\xfe"):
        (folder / "state.json").write_bytes(content)
        async with compressor(plane, tmp_path) as client:
            (info,) = await client.list()
            assert info.state is CompressionState.FAILED
            assert info.error is not None
            assert "damaged" in info.error.message
    async with compressor(plane, tmp_path) as client:
        await client.resume(info.compression_id)
        assert (await client.follow(info.compression_id)).result_version == version


async def test_a_damaged_request_is_left_out_and_the_work_can_be_asked_for_again(
    plane: ControlPlane, model: str, tmp_path: Path
) -> None:
    source = await push_split(plane, model, samples=FEW)
    async with compressor(plane, tmp_path) as client:
        first = await client.compress(model, source.version, ["int8-cut"])
    (folder,) = compressions(tmp_path)
    (folder / "request.json").write_bytes(b"{}")
    (tmp_path / "compressions" / "something-else").mkdir()
    async with compressor(plane, tmp_path) as client:
        assert await client.list() == []
        assert await client.compress(model, source.version, ["int8-cut"]) == first
        assert len(await client.list()) == 1


async def test_a_full_disk_refuses_the_request_and_leaves_nothing(
    plane: ControlPlane, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = await push_split(plane, model, samples=FEW)
    async with compressor(plane, tmp_path) as client:
        with monkeypatch.context() as patch:

            def full(handle: int) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(os, "fsync", full)
            with pytest.raises(MeshError) as caught:
                await client.start(model, source.version, ["int8-cut"])
        assert caught.value.reason is Reason.STORAGE_FULL
        assert (await client.list(), compressions(tmp_path)) == ([], [])
        await client.compress(model, source.version, ["int8-cut"])


async def test_two_services_never_share_a_folder(plane: ControlPlane, tmp_path: Path) -> None:
    async with compressor_at(plane, tmp_path):
        with pytest.raises(MeshError, match="another compressor"):
            async with compressor_at(plane, tmp_path):
                pass


# Lists


async def test_lists_come_newest_first_in_pages_of_one_model_or_all(
    plane: ControlPlane, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply_module, "run_in", hang)
    other = f"{model}-other"
    await push_split(plane, model, samples=FEW)
    await push_split(plane, other, samples=FEW)
    async with compressor_at(plane, tmp_path) as address:
        channels = plane.channels(compressor=address)
        client = CompressionClient(channels)
        wanted = [(model, 0), (other, 0), (model, 1), (model, 2), (other, 1)]
        started = [(await client.start(name, 1, ["int8-cut"], seed=seed)).compression_id for name, seed in wanted]
        stub = compression_pb2_grpc.CompressionServiceStub(await channels.to("compressor"))
        request = compression_pb2.ListCompressionsRequest(page_size=2)
        pages: list[list[str]] = []
        while True:
            page = await stub.ListCompressions(request)
            pages.append([entry.compression_id for entry in page.compressions])
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        assert pages == [started[4:2:-1], started[2:0:-1], started[:1]]
        assert [info.compression_id for info in await client.list()] == started[::-1]
        assert [info.compression_id for info in await client.list(limit=2)] == started[:2:-1]
        assert [info.compression_id for info in await client.list(other)] == [started[4], started[1]]
        assert await client.list("nobody") == []
        for token in ("x", "!!!!", "cGFnZTo3", "Y29tcHJlc3Npb25zOi0x"):
            with pytest.raises(MeshError, match="page_token") as caught:
                async with mesh_errors():
                    await stub.ListCompressions(compression_pb2.ListCompressionsRequest(page_token=token))
            assert caught.value.reason is Reason.FIELD_INVALID
    # the order is that of asking, also over a restart
    async with compressor(plane, tmp_path) as client:
        infos = await client.list()
        assert [info.compression_id for info in infos] == started[::-1]
        assert [info.create_time for info in infos] == sorted((info.create_time for info in infos), reverse=True)


async def test_the_oldest_ended_ones_are_forgotten_with_their_files(
    plane: ControlPlane, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply_module, "run_in", crash)
    source = await push_split(plane, model, samples=FEW)
    async with compressor(plane, tmp_path, max_kept=2) as client:
        started: list[str] = []
        for seed in range(4):
            info = await client.start(model, source.version, ["int8-cut"], seed=seed)
            await client.follow(info.compression_id)
            started.append(info.compression_id)
        # the newest was asked for while two had ended
        assert [info.compression_id for info in await client.list()] == started[:0:-1]
    async with compressor(plane, tmp_path, max_kept=2) as client:
        assert [info.compression_id for info in await client.list()] == started[:1:-1]
    assert {folder.name for folder in compressions(tmp_path)} == set(started[2:])
