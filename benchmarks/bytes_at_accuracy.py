"""Bytes on the wire per sample at no more than one point of accuracy below the full model, by every way there is.

    python -m benchmarks.bytes_at_accuracy [--quick]

Ways: the picture as JPEG, WebP or PNG, at the network's size and at its full size, into the full model; the plain cut in
8 bits and zstd; a closed-form and a trained bottleneck; and the mesh, whose exits answer the easy samples so that only hard
ones cross. Everything is made from the train split and chosen on the validation split (cut, quality, rate, tolerance:
the fewest bytes whose validation accuracy is at most one point below the full model's); then the test split is read once.
``--quick`` takes the rendered joints and the closed form only.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich.progress import Progress, TaskID

from benchmarks.harness import Result, arguments, publish
from benchmarks.trained import NETS, Part, Trained, available, net
from examples.solder_joints.demo import SHIPPED_MODEL
from examples.solder_joints.samples import rendered
from splitmesh.api.segment.v1.segment_pb2 import RunRequest, SegmentFrame
from splitmesh.compress import bottleneck, exits
from splitmesh.compress.measure import Measurements, measure
from splitmesh.compress.recipe import Bottleneck, Exits
from splitmesh.compress.report import Point
from splitmesh.compress.work import Context, Samples, Work
from splitmesh.kernel.tensors import header_to_message
from splitmesh.model.calibration import PIXELS, Calibration
from splitmesh.model.manifest import WHOLE
from splitmesh.model.preprocess import Preprocess
from splitmesh.tensor.framing import FrameHeader

LOSS = 0.01
"""Of accuracy, against the full model on the same split."""

CUTS = {
    "joints-resnet": ("stage1", "stage2", "stage3"),
    "cells-resnet": ("stage1", "stage2", "stage3"),
    "rendered": ("waist",),
}
TRAINED_AT = {"joints-resnet": ("stage2",), "cells-resnet": ("stage2",), "rendered": ("waist",)}
"""Training takes minutes; one cut each, in the middle of the network."""

RENDERED = {"train": 800, "val": 400, "test": 400}
RENDERED_SEEDS = {"train": 31_001, "val": 31_002, "test": 31_003}
"""Of none of the pictures that the shipped model was trained on."""

GOALS = {"joints-resnet": 50.0, "rendered": 50.0, "cells-resnet": 10.0}
"""Times below the upload of every picture as WebP, for the mesh."""
BOTTLENECK_GOAL = 2.0
"""Times below the smallest WebP of equal accuracy, for the trained bottleneck."""

THREADS = 2

PAYLOAD = 100
TRACE_CONTEXT = b"t" * 25


@dataclass(frozen=True)
class Family:
    """Ways that differ in one setting, of which the validation split chooses one."""

    name: str
    prefixes: tuple[str, ...]
    """Of the names of points that belong to it."""


FAMILIES = (
    Family("png", ("png",)),
    Family("jpeg", ("jpeg",)),
    Family("webp", ("webp",)),
    Family("int8 cut, zstd", ("int8",)),
    Family("closed-form bottleneck", ("closed-form",)),
    Family("trained bottleneck", ("trained",)),
    Family("mesh, closed-form", ("mesh closed-form",)),
    Family("mesh, trained", ("mesh trained",)),
)


def main() -> None:
    """Run, print, write."""
    quick = arguments(__doc__).quick
    names = ["rendered"] if quick else ["rendered", *NETS]
    rows: list[dict[str, object]] = []
    verdicts: list[tuple[str, bool]] = []
    tested = 0
    with Progress() as progress:
        for name in names:
            if name != "rendered" and not available(name):
                progress.console.print(f"{name}: skipped, its pictures are not here (SPLITMESH_DATA)")
                continue
            trained = _rendered(quick) if name == "rendered" else net(name, progress=progress)
            found = _of_net(name, trained, quick, progress)
            rows += found
            tested += len(trained.splits["test"])
            verdicts += _verdicts(name, found)
    publish(
        Result(
            name="bytes_at_accuracy",
            n=tested,
            baseline="the smallest WebP upload of every picture, into the full model, within the same loss",
            goal=f"trained bottleneck {BOTTLENECK_GOAL:g}x below it; mesh 50x below it on joints, 10x on cells",
            measured="; ".join(text for text, _ in verdicts)
            + f"; all figures are payloads: the message of a frame that crosses has {_header_bytes()} bytes more",
            met=all(met for _, met in verdicts) if verdicts else None,
            rows=rows,
        )
    )


def _of_net(name: str, trained: Trained, quick: bool, progress: Progress) -> list[dict[str, object]]:
    """The rows of one network."""
    samples = _samples(trained)
    measured: dict[str, dict[str, list[Point]]] = {"val": {}, "test": {}}
    before: dict[str, float] = {}
    wanted = [("closed-form", at) for at in CUTS[name]]
    if not quick:
        wanted += [("trained", at) for at in TRAINED_AT[name]]
    for number, (method, at) in enumerate(wanted):
        with _task(progress, f"{name}: {method} at {at}") as tell:
            work = _made(trained, samples, method, at, tell)
            for split in ("val", "test"):
                found = _measured(trained, work, samples, split, tell, uploads=number == 0)
                if found.accuracy_before is None:
                    raise AssertionError("the benchmark's samples have labels")
                before[split] = found.accuracy_before.share
                for point in found.points:
                    measured[split].setdefault(_family_name(point, method), []).append(
                        point.model_copy(
                            update={"name": f"{point.name} at {at}" if point.kind != "upload" else point.name}
                        )
                    )
    rows = []
    for family in FAMILIES:
        for suffix in ("", ", full size"):
            candidates = {
                split: [
                    point
                    for key, points in measured[split].items()
                    for point in points
                    if key.startswith(family.prefixes)
                    and point.name.split(" at ")[0].endswith(", full size") == bool(suffix)
                ]
                for split in ("val", "test")
            }
            if candidates["val"]:
                rows.append(_row(name, family.name + suffix, candidates, before, trained))
    return rows


def _family_name(point: Point, method: str) -> str:
    if point.kind == "mesh":
        return f"mesh {method}"
    if point.kind == "cut" and not point.name.startswith(("int8", "float32")):
        return method
    return point.name


def _row(
    name: str, family: str, candidates: dict[str, list[Point]], before: dict[str, float], trained: Trained
) -> dict[str, object]:
    """The candidate with the fewest bytes that keeps the validation accuracy, as it does on the test split."""
    keeping = [point for point in candidates["val"] if _accuracy(point) >= before["val"] - LOSS - 1e-9]
    chosen = min(keeping, key=lambda point: point.wire_bytes) if keeping else max(candidates["val"], key=_accuracy)
    test = next(point for point in candidates["test"] if point.name == chosen.name)
    accuracy = test.accuracy
    if accuracy is None:
        raise AssertionError("the benchmark's samples have labels")
    return {
        "data": name,
        "way": family,
        "chosen": chosen.name + ("" if keeping else " (none keeps it)"),
        "bytes": round(test.wire_bytes, 1),
        "accuracy": f"{accuracy.share:.3f} ({accuracy.low:.3f}-{accuracy.high:.3f})",
        "full_model": f"{before['test']:.3f}",
        "kept": bool(keeping) and accuracy.share >= before["test"] - LOSS - 1e-9,
        "agreement": "" if test.agreement is None else f"{test.agreement.share:.3f}",
        "val_n": len(trained.splits["val"]),
        "test_n": accuracy.n,
    }


def _verdicts(name: str, rows: Sequence[dict[str, object]]) -> Iterator[tuple[str, bool]]:
    size = {str(row["way"]): float(str(row["bytes"])) for row in rows}
    kept = {str(row["way"]): bool(row["kept"]) for row in rows}
    webp = size.get("webp")
    if not webp:
        return
    for way, goal in (
        ("trained bottleneck", BOTTLENECK_GOAL),
        ("mesh, trained", GOALS[name]),
        ("mesh, closed-form", 0.0),
    ):
        if way in size:
            ratio = webp / size[way] if size[way] else math.inf
            said = f"{ratio:.1f}x below WebP" if size[way] else "sent nothing"
            yield (
                f"{name}: {way} {said}{'' if kept[way] else ', accuracy not kept'}",
                (not goal or (ratio >= goal and kept[way])),
            )


def _accuracy(point: Point) -> float:
    return point.accuracy.share if point.accuracy is not None else 0.0


def _samples(trained: Trained) -> Samples:
    parts = [trained.splits[split] for split in ("train", "val", "test")]
    offsets = np.cumsum([0, *(len(part) for part in parts)])
    fit, validation, held = (np.arange(start, end, dtype=np.int64) for start, end in pairwise(offsets))
    manifest = trained.manifest()
    calibration = Calibration(
        tensors={PIXELS: np.concatenate([part.pixels for part in parts])},
        preprocess=trained.preprocess,
        inputs=tuple(info.spec() for info in manifest.whole.inputs),
        labels=np.concatenate([part.targets for part in parts]),
        groups=np.concatenate([part.groups for part in parts]),
        sources=_sources(trained),
    )
    return Samples(calibration, fit, validation, held, seed=0, holdout_share=0.3)


def _sources(trained: Trained) -> tuple[Path, ...] | None:
    parts = [trained.splits[split].paths for split in ("train", "val", "test")]
    return None if any(not paths for paths in parts) else tuple(path for paths in parts for path in paths)


def _made(trained: Trained, samples: Samples, method: str, at: str, tell: _Tell) -> Work:
    """The version with a bottleneck and an exit."""
    work = Work(trained.manifest(), {WHOLE: trained.model})
    with tempfile.TemporaryDirectory(prefix="splitmesh-bench-") as folder:
        context = Context(samples, trained.model, work.manifest, Path(folder), tell.part(0.0, 0.6), threads=THREADS)
        step = Bottleneck.model_validate({"method": method, "at": (at,)})
        work = bottleneck.apply(work, step, context)
        context = replace(context, folder=Path(folder) / "exits", progress=tell.part(0.6, 0.7))
        context.folder.mkdir()
        return exits.apply(work, Exits(), context)


def _measured(
    trained: Trained, work: Work, samples: Samples, split: str, tell: _Tell, *, uploads: bool
) -> Measurements:
    held = samples if split == "test" else replace(samples, holdout=samples.validation)
    begin = 0.7 if split == "val" else 0.85
    return measure(
        trained.model,
        trained.manifest(),
        work,
        held,
        threads=THREADS,
        progress=tell.part(begin, begin + 0.15),
        uploads=uploads,
    )


def _header_bytes() -> int:
    """Of a frame's message, beside its payload; gRPC and TCP add theirs. Names and shapes stay out: the version states them."""
    header = header_to_message(FrameHeader((), "range", PAYLOAD, 0, 1))
    payload = bytes(PAYLOAD)
    frame = SegmentFrame(frame_id=1000, header=header, payload=payload, trace_context=TRACE_CONTEXT, deadline_ms=1000)
    return RunRequest(frame=frame).ByteSize() - PAYLOAD


def _rendered(quick: bool) -> Trained:
    """The shipped model and pictures made up."""
    preprocess = Preprocess.model_validate_json((SHIPPED_MODEL / "preprocess.json").read_bytes())
    splits = {}
    for split, wanted in RENDERED.items():
        count = wanted // 2 if quick else wanted
        made = rendered(count, RENDERED_SEEDS[split], preprocess, lambda: None)
        splits[split] = Part(made.pixels, made.targets, np.arange(count, dtype=np.int64))
    model = (SHIPPED_MODEL / "model.onnx").read_bytes()
    labels = tuple(json.loads((SHIPPED_MODEL / "labels.json").read_text()))
    return Trained("rendered", model, labels, preprocess, splits, 0.0)


class _Tell:
    """One bar for several pieces of work."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def part(self, begin: float, end: float) -> _Part:
        return _Part(self, begin, end)

    def at(self, share: float) -> None:
        self._progress.update(self._task, completed=share)


@dataclass(frozen=True)
class _Part:
    tell: _Tell
    begin: float
    end: float

    def __call__(self, step: str, share: float) -> None:
        self.tell.at(self.begin + (self.end - self.begin) * share)


@contextmanager
def _task(progress: Progress, name: str) -> Iterator[_Tell]:
    task = progress.add_task(name, total=1.0)
    yield _Tell(progress, task)
    progress.update(task, completed=1.0)


if __name__ == "__main__":
    main()
