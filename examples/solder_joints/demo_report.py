"""What the demo reports: who answered, how well, how many bytes, how long each stage took, and the slowest frame's trace."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from examples.solder_joints.frames import DemoFrames
from splitmesh.client import Answer, AnsweredBy, FrameFailure, Timings
from splitmesh.model.classes import as_probabilities
from splitmesh.model.preprocess import Preprocess
from splitmesh.runtime import open_session
from splitmesh.testing.otlp import ReceivedSpan, render_tree

BATCH = 64
Classes = NDArray[np.int64]


@dataclass(frozen=True)
class Run:
    """One run of the demo."""

    frames: DemoFrames
    answers: Mapping[int, Answer]
    failures: Sequence[FrameFailure]
    elapsed_s: float
    relay_bytes: int
    """Everything that crossed the link towards the tail: features, protocol, keepalive."""
    traces: Mapping[str, Sequence[ReceivedSpan]]
    model_folder: Path
    head: bytes
    """The deployed head, for the exit's answers alone."""
    link: str
    max_disagreement: float


def report(run: Run, console: Console) -> dict[str, object]:
    """Print everything; returns the figures."""
    figures = measure(run)
    _who_answered(run, console)
    _how_well(figures, console)
    _bytes(figures, console)
    _stages(run, console)
    slowest = max(run.answers.values(), key=lambda answer: answer.timings.total_ms, default=None)
    if slowest is not None and slowest.trace_id in run.traces:
        console.print(f"\nThe slowest frame, number {slowest.frame_id}:")
        console.print(render_tree(run.traces[slowest.trace_id]), highlight=False, markup=False)
    return figures


def measure(run: Run) -> dict[str, object]:
    """The figures of ``build/demo.json``."""
    full, alone = _local_answers(run)
    n = len(run.frames.frames)
    answered = sorted(run.answers)
    mesh = np.array([run.answers[number].label.index for number in answered], dtype=np.int64)
    truth = run.frames.targets
    who = [answer.answered_by for answer in run.answers.values()]
    totals = [answer.timings.total_ms for answer in run.answers.values()]
    p50, p95, p99 = (float(value) for value in np.percentile(totals, [50, 95, 99])) if totals else (0.0, 0.0, 0.0)
    return {
        "source": run.frames.source,
        "frames": n,
        "answered": len(answered),
        "lost": n - len(answered),
        "edge_exit": who.count(AnsweredBy.EDGE_EXIT),
        "cloud_tail": who.count(AnsweredBy.CLOUD_TAIL),
        "edge_fallback": who.count(AnsweredBy.EDGE_FALLBACK),
        "agreement_with_full_model": _share(mesh == full[answered]),
        "accuracy": _share(mesh == truth[answered]),
        "ng": int((truth > 0).sum()),
        "ng_recall": _ng_recall(mesh, truth[answered]),
        "full_model_accuracy": _share(full == truth),
        "full_model_ng_recall": _ng_recall(full, truth),
        "exit_alone_accuracy": _share(alone == truth),
        "exit_alone_ng_recall": _ng_recall(alone, truth),
        "exit_alone_agreement": _share(alone == full),
        "max_disagreement": run.max_disagreement,
        "uplink_bytes": run.relay_bytes,
        "feature_bytes": sum(answer.uplink_bytes for answer in run.answers.values()),
        "jpeg_bytes": sum(len(frame) for frame in run.frames.frames),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "frames_per_s": n / run.elapsed_s,
        "link": run.link,
    }


def write_json(figures: Mapping[str, object], path: Path) -> None:
    """Write the figures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n")


def _local_answers(run: Run) -> tuple[Classes, Classes]:
    """Classes the full model and the exit alone give to every frame, computed here, outside the mesh."""
    preprocess = Preprocess.model_validate_json((run.model_folder / "preprocess.json").read_bytes())
    whole = open_session((run.model_folder / "model.onnx").read_bytes())
    head = open_session(run.head)
    exit_name = next(spec.name for spec in head.outputs if spec.name.startswith("exit"))
    full: list[Classes] = []
    alone: list[Classes] = []
    for start in range(0, len(run.frames.frames), BATCH):
        inputs = preprocess.batch(run.frames.frames[start : start + BATCH])
        outputs = whole.run({whole.inputs[0].name: inputs})
        full.append(as_probabilities(outputs[whole.outputs[0].name]).argmax(axis=1))
        alone.append(head.run({head.inputs[0].name: inputs})[exit_name].argmax(axis=1))
    return np.concatenate(full), np.concatenate(alone)


def _share(mask: NDArray[np.bool_]) -> float:
    return float(mask.mean()) if mask.size else 0.0


def _ng_recall(classes: Classes, truth: Classes) -> float:
    """Share of the bad joints (class above 0) that were called bad, whichever defect was named."""
    return _share(classes[truth > 0] > 0)


def _who_answered(run: Run, console: Console) -> None:
    table = Table(title=f"{len(run.frames.frames)} frames, {run.frames.source}, {run.link}", title_justify="left")
    for column in ("answered by", "frames", "share", "p50 ms", "p95 ms", "p99 ms"):
        table.add_column(column, justify="left" if column == "answered by" else "right")
    for who in AnsweredBy:
        totals = [answer.timings.total_ms for answer in run.answers.values() if answer.answered_by is who]
        if totals:
            share = len(totals) / len(run.frames.frames)
            table.add_row(who.value, str(len(totals)), f"{share:.1%}", *_percentiles(totals))
    totals = [answer.timings.total_ms for answer in run.answers.values()]
    table.add_row("all", str(len(totals)), "", *(_percentiles(totals) if totals else ()), style="bold")
    console.print(table)


def _how_well(figures: Mapping[str, object], console: Console) -> None:
    table = Table(title=f"n = {figures['frames']}, {figures['ng']} of them bad joints", title_justify="left")
    for column in ("", "agreement with full model", "accuracy", "recall on bad joints"):
        table.add_column(column, justify="right" if column else "left")
    rows = (
        ("full model", 1.0, figures["full_model_accuracy"], figures["full_model_ng_recall"]),
        ("exit alone", *(figures[f"exit_alone_{name}"] for name in ("agreement", "accuracy", "ng_recall"))),
        ("mesh", figures["agreement_with_full_model"], figures["accuracy"], figures["ng_recall"]),
    )
    for name, *values in rows:
        table.add_row(str(name), *(f"{value:.3f}" for value in values))
    console.print(table)


def _bytes(figures: Mapping[str, object], console: Console) -> None:
    table = Table(title="uplink", title_justify="left")
    for column in ("", "bytes", "bytes a frame"):
        table.add_column(column, justify="right" if column else "left")
    for name, key in (
        ("features of hard samples", "feature_bytes"),
        ("all that crossed the link (with protocol)", "uplink_bytes"),
        ("JPEG upload of every picture instead", "jpeg_bytes"),
    ):
        value = int(str(figures[key]))
        table.add_row(name, f"{value:,}", f"{value / max(1, int(str(figures['frames']))):,.0f}")
    console.print(table)


def _stages(run: Run, console: Console) -> None:
    table = Table(title="milliseconds by stage, frames that passed it", title_justify="left")
    for column in ("stage", "frames", "p50", "p95", "p99"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage in Timings.__dataclass_fields__:
        values = [getattr(answer.timings, stage) for answer in run.answers.values()]
        passed = [value for value in values if value > 0]
        if passed:
            table.add_row(stage.removesuffix("_ms"), str(len(passed)), *_percentiles(passed))
    console.print(table)


def _percentiles(values: Sequence[float]) -> list[str]:
    return [f"{value:.2f}" for value in np.percentile(values, [50, 95, 99])]
