"""The demo, which is the main job: a few frames through the whole mesh, the arithmetic of its report, the real frames."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from examples.solder_joints import demo, real_data
from examples.solder_joints.demo_report import Run, measure, report
from examples.solder_joints.frames import DemoFrames, real_frames
from splitmesh.client import Answer, AnsweredBy, FrameFailure, Timings
from splitmesh.client.answers import Label
from splitmesh.errors import MeshError, Reason
from splitmesh.model.manifest import HEAD
from splitmesh.model.preprocess import Preprocess
from tests.support.models import LABELS, SIDE, exit_version, picture, whole_model
from tests.support.worlds import ROOT

FRAMES = 40
DEMO_TIMEOUT_S = 150.0
FIELDS = {
    *("frames", "answered", "lost", "edge_exit", "cloud_tail", "edge_fallback", "agreement_with_full_model"),
    *("accuracy", "uplink_bytes", "jpeg_bytes", "p50_ms", "p95_ms", "p99_ms"),
}
REAL_DATA = Path(os.environ.get("SPLITMESH_SOLDER_DATA", ROOT.parent / "shared" / "data" / "solder_joints"))

BRIGHTNESS = (0.05, 0.35, 0.9, 0.5, 0.35)
"""The whole model says 0 1 2 1 1, the exit 0 0 2 1 0; see ``tests.support.models``."""
TRUTH = (0, 1, 2, 0, 0)


async def _demo(*arguments: object) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "examples.solder_joints.demo"),
        *map(str, arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(DEMO_TIMEOUT_S):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)  # on which it stops its services
            await process.wait()
    return process.returncode, out.decode()


@pytest.mark.timeout(200)
async def test_the_demo_answers_every_frame_at_edge_and_cloud_and_saves_uplink(tmp_path: Path) -> None:
    # Few calibration pictures carry a loose promise only.
    options = ("--frames", FRAMES, "--calibration", 400, "--max-disagreement", 0.1, "--out", tmp_path / "demo.json")
    code, out = await _demo(*options)
    assert code == 0, out
    figures = json.loads((tmp_path / "demo.json").read_text())
    assert figures.keys() >= FIELDS
    assert (figures["frames"], figures["answered"], figures["lost"]) == (FRAMES, FRAMES, 0)
    assert figures["edge_exit"] + figures["cloud_tail"] + figures["edge_fallback"] == FRAMES
    assert figures["edge_exit"] > 0
    assert figures["cloud_tail"] > 0
    assert 0 < figures["feature_bytes"] < figures["uplink_bytes"] < figures["jpeg_bytes"]
    assert 0 < figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]
    assert figures["agreement_with_full_model"] > 0.8
    assert figures["accuracy"] > 0.8
    assert "tail.frame" in out, "the slowest frame's trace reaches the tail"


def _answer(frame_id: int, who: AnsweredBy, index: int, total_ms: float, uplink_bytes: int = 0) -> Answer:
    return Answer(
        frame_id=frame_id,
        labels=(Label(LABELS[index], index, 0.9),),
        answered_by=who,
        fallback_reason="",
        model="m",
        version=3,
        cut=("features",),
        uplink_bytes=uplink_bytes,
        exit_confidence=0.5,
        timings=Timings(0, 0, 0, 0, 0, 0, 0, total_ms),
        trace_id=f"{frame_id:032x}",
        outputs={},
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Five frames: one by the exit, one by the tail, one wrong fallback, one refused, one lost."""
    (tmp_path / "model.onnx").write_bytes(whole_model())
    (tmp_path / "preprocess.json").write_text(Preprocess(width=SIDE, height=SIDE, mode="L").model_dump_json())
    pictures = [picture(level) for level in BRIGHTNESS]
    return Run(
        frames=DemoFrames("by hand", pictures, np.array(TRUTH), np.zeros((1, SIDE, SIDE, 1), dtype=np.uint8)),
        answers={
            2: _answer(2, AnsweredBy.EDGE_FALLBACK, 0, 50.0, 30),
            0: _answer(0, AnsweredBy.EDGE_EXIT, 0, 10.0),
            1: _answer(1, AnsweredBy.CLOUD_TAIL, 1, 30.0, 700),
        },
        failures=[FrameFailure(3, MeshError(Reason.QUEUE_FULL, "full"))],
        elapsed_s=2.0,
        relay_bytes=1234,
        traces={},
        model_folder=tmp_path,
        head=exit_version()[HEAD],
        link="lte",
        max_disagreement=0.02,
    )


def test_the_report_counts_who_answered_how_well(run: Run) -> None:
    figures = measure(run)
    assert figures.keys() >= FIELDS
    counts = ("frames", "answered", "lost", "edge_exit", "cloud_tail", "edge_fallback", "ng")
    # every frame of the demo is a sound picture: one that was refused is as lost as one nobody spoke of
    assert [figures[name] for name in counts] == [5, 3, 2, 1, 1, 1, 2]
    assert figures["agreement_with_full_model"] == pytest.approx(2 / 3)
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["ng_recall"] == 0.5
    assert (figures["full_model_accuracy"], figures["full_model_ng_recall"]) == (0.6, 1.0)
    assert (figures["exit_alone_accuracy"], figures["exit_alone_ng_recall"]) == (0.6, 0.5)
    assert figures["exit_alone_agreement"] == 0.6
    assert (figures["uplink_bytes"], figures["feature_bytes"]) == (1234, 730)
    assert figures["jpeg_bytes"] == sum(len(picture(level)) for level in BRIGHTNESS)
    percentiles = [figures[name] for name in ("p50_ms", "p95_ms", "p99_ms")]
    np.testing.assert_allclose(np.array(percentiles, dtype=float), [30.0, 48.0, 49.6])
    assert (figures["frames_per_s"], figures["link"]) == (2.5, "lte")


def test_a_run_without_an_answer_is_reported_too(run: Run) -> None:
    nothing = Run(**{**{name: getattr(run, name) for name in Run.__dataclass_fields__}, "answers": {}, "failures": []})
    figures = report(nothing, Console(quiet=True))
    assert (figures["lost"], figures["accuracy"], figures["p99_ms"]) == (5, 0.0, 0.0)


def test_a_lost_frame_is_said_aloud_and_fails_the_demo(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def ran(*_: object) -> Run:
        return run

    monkeypatch.setattr(demo, "run_demo", ran)
    monkeypatch.setattr(demo, "load_frames", lambda *_: run.frames)
    assert demo.main(["--out", str(tmp_path / "demo.json")]) == 1
    assert "2 frames were lost" in capsys.readouterr().out
    assert json.loads((tmp_path / "demo.json").read_text())["lost"] == 2


@pytest.fixture
def real() -> Path:
    if not (REAL_DATA / "labels.csv").is_file():
        pytest.skip(f"no real pictures at {REAL_DATA}: set SPLITMESH_SOLDER_DATA to a folder with labels.csv")
    return REAL_DATA


def test_real_frames_are_the_test_split_and_calibration_the_validation_split(real: Path) -> None:
    joints = real_data.load(real)
    splits = {name: [joint for joint in joints if joint.split == name] for name in real_data.SPLITS}
    found = real_frames(real, Preprocess(width=32, height=24, mode="L"))
    assert len(found.frames) == len(found.targets) == len(splits["test"]) > 0
    assert found.calibration.shape == (len(splits["val"]), 24, 32, 1)
    assert found.targets.tolist() == [int(joint.quality == "ng") for joint in splits["test"]]
    assert {*found.targets.tolist()} == {0, 1}
    assert found.frames[0] == splits["test"][0].image.read_bytes()


def test_no_unit_of_the_real_pictures_is_in_two_splits(real: Path) -> None:
    joints = real_data.load(real)
    units = {name: {joint.unit for joint in joints if joint.split == name} for name in real_data.SPLITS}
    assert all(units.values())
    assert sum(map(len, units.values())) == len({joint.unit for joint in joints})
