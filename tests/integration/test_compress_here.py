"""`splitmesh compress --calibration`: a recipe on this machine, for a file and for a registered version."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image

from splitmesh.client.registry import RegistryClient
from splitmesh.compress.report import Report
from splitmesh.model.artifacts import split_bytes
from splitmesh.model.calibration import unpack_calibration
from splitmesh.model.manifest import CALIBRATION, HEAD, MANIFEST, PLAN, REPORT, TABLES, TAIL, WHOLE, Manifest
from tests.integration.command_line import Ended, model_files, refused, splitmesh, splitmesh_here
from tests.integration.registry_world import World, running
from tests.integration.small_model import CUT, LABELS, small_model, small_pictures

COUNT = 120
STEPS = ("--recipe", f"split:at={CUT}", "--recipe", "int8-cut", "--recipe", "exits")


def class_folders(folder: Path, count: int = COUNT) -> Path:
    for number, picture in enumerate(small_pictures(count)):
        place = folder / LABELS[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[..., 0]).save(place / f"{number:04}.png")
    return folder


@dataclass
class Files:
    folder: Path

    def model(self) -> list[object]:
        return [
            *("compress", self.folder / "small.onnx", "--labels", self.folder / "labels.json"),
            *("--preprocess", self.folder / "preprocess.json", "--calibration", self.folder / "pictures"),
        ]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("files")
    model_files(folder)
    class_folders(folder / "pictures")
    return Files(folder)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where work folders are, instead of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path / "cache" / "splitmesh" / "compress"


def require_version(out: Path) -> Manifest:
    """A folder that holds a whole version and no picture."""
    manifest = Manifest.from_json((out / MANIFEST).read_bytes())
    names = {path.name for path in out.iterdir()}
    assert names >= {WHOLE, HEAD, TAIL, TABLES, REPORT, MANIFEST, *manifest.artifacts()}
    assert not [name for name in names if name.endswith((".png", ".jpg", ".u8")) or name == CALIBRATION]
    assert manifest.split is not None
    assert manifest.split.coding is not None
    assert manifest.exit is not None
    return manifest


async def test_a_file_becomes_a_version_and_a_page(files: Files, cache: Path, tmp_path: Path) -> None:
    page = tmp_path / "pages" / "report.html"
    ended = await splitmesh(*files.model(), *STEPS, "--out", tmp_path / "out", "--report", page, "--json")
    shown = ended.json
    manifest = require_version(tmp_path / "out")
    assert manifest.labels == LABELS
    report = Report.from_json((tmp_path / "out" / REPORT).read_bytes())
    assert json.loads(report.to_json()) == shown["report"]
    assert (shown["version"], shown["within_budget"], shown["out"]) == (0, True, str(tmp_path / "out"))
    assert report.labelled
    assert report.accuracy_before is not None
    assert report.fit_samples + report.validation_samples + report.holdout_samples == COUNT
    assert {point.kind for point in report.points} == {"cut", "mesh", "upload"}
    text = page.read_text()
    assert text.startswith("<!DOCTYPE html>")
    assert all(point.name in text for point in report.points)
    assert not list(cache.iterdir())


def test_for_people_the_points_are_a_table(files: Files, tmp_path: Path) -> None:
    ended = splitmesh_here(*files.model(), *STEPS[:4], "--report", tmp_path / "report.html", "--limit", 90)
    assert ended.code == 0, ended
    assert "int8 cut, rate 0" in ended.out
    assert "webp q20" in ended.out
    assert "agrees with the original on" in ended.out
    assert f"report: {tmp_path / 'report.html'}" in ended.out


def test_over_its_budget_nothing_is_written_but_the_report(files: Files, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    steps = ("--recipe", f"split:at={CUT}", "--recipe", "bottleneck:channels=1,rates=1")
    ended = splitmesh_here(
        *files.model(), *steps, "--max-disagreement", 0.0, "--out", tmp_path / "out", "--report", page
    )
    assert "max_disagreement" in refused(ended, "BUDGET_EXCEEDED")
    assert not (tmp_path / "out").exists()
    assert "Over the budget" in page.read_text()


def test_a_second_call_goes_on_behind_the_finished_steps(files: Files, tmp_path: Path) -> None:
    work = tmp_path / "work"
    command = [*files.model(), *STEPS, "--work", work, "--out", tmp_path / "out", "--json"]
    first = splitmesh_here(*command).json["report"]
    again = splitmesh_here(*command).json["report"]
    assert again == first  # times of steps and latencies too: nothing was done twice
    fresh = splitmesh_here(*command, "--fresh").json["report"]
    assert fresh["latency_ms"] != first["latency_ms"]
    assert [step["step"] for step in fresh["steps"]] == [step["step"] for step in first["steps"]]


def _hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_the_child_and_keeps_what_is_finished(files: Files, tmp_path: Path) -> None:
    work = tmp_path / "work"
    command = [*files.model(), *STEPS, "--work", work, "--out", tmp_path / "out"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from splitmesh.cli import main; main()", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests may run where a shell has made its background jobs deaf to Ctrl-C, and children inherit that.
        preexec_fn=_hear_ctrl_c,
    )
    until = time.monotonic() + 60
    while not (work / "step_1").is_dir() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "the same command goes on from there" in err
    assert (work / "step_1").is_dir()
    assert not (tmp_path / "out").exists()
    assert splitmesh_here(*command).code == 0


def test_the_same_call_twice_at_once_is_refused_and_takes_nothing_from_the_first(
    files: Files, cache: Path, tmp_path: Path
) -> None:
    command = [*files.model(), *STEPS, "--out", tmp_path / "out"]
    first = subprocess.Popen(
        [sys.executable, "-c", "from splitmesh.cli import main; main()", *map(str, command)], stderr=subprocess.PIPE
    )
    until = time.monotonic() + 60
    while not list(cache.glob("*/spool")) and time.monotonic() < until and first.poll() is None:
        time.sleep(0.02)
    # before its first step is finished: nothing is there yet that would keep the folder
    for options in ((), ("--fresh",)):
        refused(splitmesh_here(*command, *options), "SERVICE_UNAVAILABLE")
    _, err = first.communicate(timeout=60)
    assert first.returncode == 0, err
    require_version(tmp_path / "out")
    assert not list(cache.iterdir())


@pytest.mark.parametrize("place", ["page.html/below", "a folder"])
def test_a_page_that_cannot_be_written_is_refused_before_the_work(files: Files, tmp_path: Path, place: str) -> None:
    (tmp_path / "page.html").write_text("a file")
    (tmp_path / "a folder").mkdir()
    work = tmp_path / "work"
    ended = splitmesh_here(*files.model(), *STEPS, "--report", tmp_path / place, "--work", work)
    assert "report" in refused(ended, "FIELD_INVALID")
    assert not work.exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--recipe", "prune"), "--out or --report is needed"),
        (("--out", "x", "--calibration-folder", "y"), "--calibration-folder is the compressor's"),
    ],
)
def test_wrong_usage_ends_with_code_two(files: Files, options: tuple[str, ...], complaint: str) -> None:
    ended = splitmesh_here(*files.model(), *options)
    assert ended.code == 2, ended
    assert complaint in " ".join(ended.err.replace("│", " ").split())


def test_a_file_needs_pictures_of_this_machine(files: Files) -> None:
    ended = splitmesh_here("compress", files.folder / "small.onnx", "--out", "x")
    assert (ended.code, "--calibration is needed" in ended.err) == (2, True)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (("--recipe", "shrink"), "FIELD_INVALID"),
        (("--recipe", "exits", "--recipe", "int8-cut"), "FIELD_INVALID"),
        (("--recipe", "int8-cut"), "MODEL_INCOMPLETE"),
        (("--recipe", "split:at=nowhere"), "CUT_INVALID"),
    ],
)
def test_recipes_that_cannot_be_done_are_refused(
    files: Files, cache: Path, tmp_path: Path, steps: tuple[str, ...], reason: str
) -> None:
    refused(splitmesh_here(*files.model(), *steps, "--out", tmp_path / "out"), reason)
    assert not (tmp_path / "out").exists()
    assert not list(cache.glob("*"))


def test_a_model_nobody_should_trust_is_refused_by_the_child(files: Files, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\x00" * 64)
    command = files.model()
    command[1] = tmp_path / "bad.onnx"
    refused(splitmesh_here(*command, *STEPS, "--out", tmp_path / "out"), "MODEL_CORRUPT")


@dataclass
class Registry:
    world: World
    files: Files

    async def run(self, *arguments: object) -> Ended:
        return await splitmesh(*arguments, STATIC_ADDRESSES=f"registry={self.world.address}")

    @property
    def client(self) -> RegistryClient:
        return self.world.client


@pytest_asyncio.fixture
async def registry(files: Files, tmp_path: Path) -> AsyncIterator[Registry]:
    async with running(tmp_path / "registry") as world:
        yield Registry(world, files)


async def push(registry: Registry, *options: object) -> Any:
    folder = registry.files.folder
    return (
        await registry.run(
            *("models", "import", folder / "small.onnx", "--name", "small", "--labels", folder / "labels.json"),
            *("--preprocess", folder / "preprocess.json", "--json", *options),
        )
    ).json


async def test_a_pushed_folder_carries_its_classes(registry: Registry) -> None:
    await push(registry, "--calibration", registry.files.folder / "pictures")
    version = await registry.client.get_version("small")
    manifest = Manifest.from_json(await registry.client.fetch(version, MANIFEST))
    samples = unpack_calibration(await registry.client.fetch(version, CALIBRATION), manifest)
    assert samples.labels is not None
    assert samples.samples == COUNT
    assert [int((samples.labels == number).sum()) for number in range(3)] == [COUNT // 3] * 3


async def test_a_registered_version_gets_a_successor_without_pictures(
    registry: Registry, cache: Path, tmp_path: Path
) -> None:
    await push(registry)
    pushed = await registry.client.get_version("small")
    whole = Manifest.from_json(await registry.client.fetch(pushed, MANIFEST))
    manifest, parts = split_bytes(small_model(), [CUT], preprocess=whole.preprocess, labels=whole.labels)
    planned = {**parts, MANIFEST: manifest.to_json().encode(), PLAN: b"why it is cut there"}
    source = await registry.client.create_version("small", planned, parent=1, created_by="partitioner")
    pictures = registry.files.folder / "pictures"
    ended = await registry.run("compress", "small", "--calibration", pictures, *STEPS, "--json")
    assert ended.json["version"] == 3
    version = await registry.client.get_version("small")
    assert (version.version, version.parent, version.created_by) == (3, 2, "compress")
    assert CALIBRATION not in version.artifacts
    assert version.artifacts[PLAN] == source.artifacts[PLAN]
    assert version.artifacts.keys() >= {WHOLE, HEAD, TAIL, TABLES, REPORT, MANIFEST}
    report = Report.from_json(await registry.client.fetch(version, REPORT))
    assert json.loads(report.to_json()) == ended.json["report"]
    assert version.lineage.metrics == report.figures()

    steps = ("--recipe", f"split:at={CUT}", "--recipe", "bottleneck:channels=1,rates=1", "--max-disagreement", 0.0)
    refused(await registry.run("compress", "small:1", "--calibration", pictures, *steps), "BUDGET_EXCEEDED")
    out = await registry.run(
        "compress", "small:1", "--calibration", pictures, *STEPS, "--out", tmp_path / "out", "--json"
    )
    assert out.json["version"] == 0
    require_version(tmp_path / "out")
    assert len(await registry.client.list_versions("small")) == 3
    assert not list(cache.iterdir())
