"""A report with everything in it, for tests of what shows reports."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from splitmesh.compress.recipe import Budget
from splitmesh.compress.report import Exceeded, ExitPoint, ExitReport, Point, Proportion, Report, StepReport
from splitmesh.model.manifest import CutLeakage

N = 402


def full_report(**changes: object) -> Report:
    """A split classifier with four rates, exits, leakage and labels; numbers as they could be."""
    report = Report(
        model="solder_joints",
        steps=(
            StepReport(step="prune:share=0.4", seconds=12.3, figures={"macs_before": 41_230_000, "macs_after": 25_100_000}),
            StepReport(
                step="bottleneck:channels=8",
                seconds=48.7,
                remarks=("8 channels keep 98.1 % of the variance", "the cut is at /layer2/relu"),
            ),
            StepReport(step="exits", seconds=3.1),
            StepReport(step="leakage:steps=600", seconds=95.0),
        ),
        seed=7,
        fit_samples=1129,
        validation_samples=283,
        holdout_samples=N,
        labelled=True,
        budget=Budget(max_disagreement=0.02),
        accuracy_before=Proportion.of(397, N),
        agreement=Proportion.of(399, N),
        accuracy=Proportion.of(396, N),
        points=tuple(_points()),
        exits=(_exit("exit_1", 380, 0.35), _exit("exit_2", 393, 0.72)),
        leakage=(
            CutLeakage(cut=("/layer1/relu",), codec="float32", ssim=0.83, psnr_db=27.2, baseline_ssim=0.31, samples=64,
                       fit_samples=1129, steps=600),
            CutLeakage(cut=("/layer2/relu",), codec="bottleneck", ssim=0.42, psnr_db=18.9, baseline_ssim=0.31, samples=64,
                       fit_samples=1129, steps=600),
        ),
        size_bytes={"whole before": 2_812_345, "model.onnx": 1_743_210, "head.onnx": 211_034, "tail.onnx": 1_540_022,
                    "tables.safetensors": 18_220},
        latency_ms={"whole before": 5.81, "whole": 4.02, "head": 1.32, "encode": 0.21, "decode": 0.24, "tail": 2.91},
        threads=1,
        host="AMD EPYC 7B13, 2 cores, onnxruntime 1.23.0",
    )  # fmt: skip
    return Report.model_validate({**report.model_dump(), **changes})


def over_budget(report: Report) -> Report:
    """The same, refused."""
    return report.model_copy(update={"exceeded": (Exceeded(what="max_disagreement", measured=0.0311, allowed=0.02),)})


def png(side: int = 32) -> bytes:
    """A picture."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (2 * side, 6 * side), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _points() -> list[Point]:
    def point(name: str, kind: str, size: float, same: int, right: int, n: int = N) -> Point:
        return Point.model_validate(
            {"name": name, "kind": kind, "wire_bytes": size,
             "agreement": Proportion.of(same, n).model_dump(), "accuracy": Proportion.of(right, n).model_dump()}
        )  # fmt: skip

    return [
        point("bottleneck, rate 0", "cut", 612.4, 399, 396),
        point("bottleneck, rate 1", "cut", 401.2, 398, 396),
        point("bottleneck, rate 2", "cut", 243.0, 394, 392),
        point("bottleneck, rate 3", "cut", 120.9, 371, 370),
        point("mesh, 0.5% tolerated", "mesh", 210.3, 398, 396),
        point("mesh, 1.0% tolerated", "mesh", 160.8, 397, 395),
        point("float32 cut, zstd", "cut", 98_312, 402, 397),
        point("int8 cut, zstd", "cut", 21_455, 401, 397),
        *(
            point(f"{codec} q{quality}{full}", "upload", size * scale, same, same - 4, n)
            for full, scale, n in (("", 1, N), (", full size", 4.1, 200))
            for codec, quality, size, same in (
                ("jpeg", 30, 1012, n - 22), ("jpeg", 50, 1290, n - 9), ("jpeg", 70, 1702, n - 4), ("jpeg", 90, 3050, n - 1),
                ("webp", 5, 320, n - 71), ("webp", 20, 470, n - 33), ("webp", 50, 760, n - 12), ("webp", 80, 1303, n - 3),
            )
        ),
        point("png", "upload", 7420, N, 397),
        point("png, full size", "upload", 30_733, 200, 196, 200),
    ]  # fmt: skip


def _exit(name: str, same: int, coverage: float) -> ExitReport:
    return ExitReport(
        name=name,
        agreement=Proportion.of(same, N),
        points=tuple(
            ExitPoint(
                tolerated=tolerated,
                threshold=0.99 - 5 * tolerated,
                coverage=Proportion.of(int(N * min(1.0, coverage + 8 * tolerated)), N),
                disagreement=Proportion.of(int(N * tolerated * 0.9), N),
            )
            for tolerated in (0.001, 0.005, 0.01, 0.02, 0.05)
        ),
    )
