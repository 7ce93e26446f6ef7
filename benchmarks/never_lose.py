"""Does the plan ever lose? Its choice, measured, against the best of edge only, cloud with each image codec, and the best cut.

Per model a profile with a budget (few timed cuts, the others interpolated) makes the plan for every edge slowdown and
uplink. Then every option is measured anew, none predicted: heads and tails as real sessions in turns, plain and in 8
bits, their features and the pictures coded with the product's codecs, on other pictures than the profile's. The cuts it
is held against are spread over the model, in each part the one that sends least, and those that any plan chose. An edge
that is k times slower takes k times as long for what it does; the link sends bytes at its rate after its round trip
(``cost_model`` holds that against real processes). Weights are random: activations are sparser in trained nets.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from benchmarks.architectures import ARCHITECTURES, build
from benchmarks.harness import Result, arguments, publish
from benchmarks.measured import Cost, Feed, Key, key_of, measure, rival_cuts, times_ms
from benchmarks.pictures import CALIBRATION_SEED, TEST_SEED, natural_pictures
from splitmesh.model.artifacts import tensor_infos
from splitmesh.model.calibration import PIXELS, Calibration
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model
from splitmesh.model.manifest import WHOLE, Manifest, SegmentInfo
from splitmesh.model.picture_cost import picture_costs
from splitmesh.model.plan import make_plan
from splitmesh.model.plan_options import Constraints, Kind, Link, Option, Workload
from splitmesh.model.preprocess import Preprocess
from splitmesh.model.profile import profile_cuts
from splitmesh.model.profile_data import Profile
from splitmesh.runtime import open_session

GOAL = 1.05
RTT_MS = 20.0
SLOWDOWNS = (1.0, 2.0, 5.0, 10.0, 20.0)
UPLINKS = tuple(float(rate) for rate in np.geomspace(0.1, 100, 9))
CALIBRATION = 8
TEST = 16
SMALLER = {"unet": 128, "yolo": 160, "convnext_tiny": 128, "swin_tiny": 128, "densenet121": 160}
"""Pixels of nets that would take minutes each at their own size."""
REFERENCE_RUNS = 10
"""Of the whole model, before the profile and after it."""


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    models: tuple[str, ...]
    slowdowns: tuple[float, ...] = SLOWDOWNS
    uplinks: tuple[float, ...] = UPLINKS
    side: int | None = None
    """Of the pictures; None: the net's own, or that of ``SMALLER``."""
    rivals: int = 10
    profile_s: float = 8.0
    measure_s: float = 12.0


FULL = Effort(tuple(name for name, builder in ARCHITECTURES.items() if len(builder.inputs) == 1 and name != "deeplab"))
QUICK = Effort(("mobilenet_v2", "resnet18", "vit_tiny"), (1.0, 5.0, 20.0), (0.1, 3.16, 100.0), 128, 6, 3.0, 4.0)


@dataclass(frozen=True)
class Cell:
    """One model, one edge, one link."""

    model: str
    slowdown: float
    link: Link
    chosen: Option
    chosen_ms: float
    best: Key
    best_ms: float

    @property
    def regret(self) -> float:
        """Time of the choice over time of the best."""
        return self.chosen_ms / self.best_ms

    def row(self) -> dict[str, object]:
        """For the table of cells that are worse."""
        kind, cut, codec = self.best
        return {
            "model": self.model,
            "edge_slowdown": self.slowdown,
            "uplink_mbps": self.link.uplink_mbps,
            "chosen": self.chosen.name,
            "predicted_ms": self.chosen.latency_ms,
            "measured_ms": self.chosen_ms,
            "best": f"{kind.value.lower()} {'+'.join(cut)} {codec}".strip(),
            "best_ms": self.best_ms,
            "regret": self.regret,
        }


def main() -> None:
    """Entry point."""
    run(QUICK if arguments(__doc__).quick else FULL)


def run(effort: Effort) -> None:
    """Measure every model and publish."""
    cells: list[Cell] = []
    with Progress(transient=True) as progress:
        task = progress.add_task("never lose", total=len(effort.models))
        for model in effort.models:
            progress.update(task, description=model)
            cells += of_model(model, effort)
            progress.advance(task)
    _publish(cells)


def of_model(model: str, effort: Effort) -> list[Cell]:
    """All cells of one model."""
    side = effort.side or SMALLER.get(model, ARCHITECTURES[model].side)
    whole = build(model, side=side)
    graph = Graph(load_model(whole))
    preprocess = Preprocess(width=side, height=side, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    pixels = natural_pictures(CALIBRATION, side, CALIBRATION_SEED)
    feeds: list[Feed] = [{graph.inputs[0]: preprocess.normalise(picture[None])} for picture in pixels]
    with closing(open_session(whole)) as session:
        times = times_ms(session, feeds, REFERENCE_RUNS)
        profile = _profile(whole, graph, preprocess, pixels, feeds, effort.profile_s)
        times += times_ms(session, feeds, REFERENCE_RUNS)
    circumstances = [(slowdown, Link(rate, RTT_MS)) for slowdown in effort.slowdowns for rate in effort.uplinks]
    plans = [make_plan(profile, link, Workload(), Constraints(), edge_slowdown=slow) for slow, link in circumstances]
    pictures = natural_pictures(TEST, side, TEST_SEED)
    cuts = {tuple(sorted(cut.tensors)): cut.tensors for cut in rival_cuts(graph, effort.rivals)}
    cuts |= {tuple(sorted(plan.best.cut)): plan.best.cut for plan in plans if plan.best.cut}
    costs = measure(
        *(whole, graph, list(cuts.values()), preprocess, feeds, pictures),
        reference_ms=statistics.median(times),
        seconds=effort.measure_s,
    )
    return [
        _cell(model, slowdown, link, plan.best, costs)
        for (slowdown, link), plan in zip(circumstances, plans, strict=True)
    ]


def _profile(
    whole: bytes,
    graph: Graph,
    preprocess: Preprocess,
    pixels: NDArray[np.uint8],
    feeds: Sequence[Feed],
    budget_s: float,
) -> Profile:
    """As the partitioner makes it."""
    specs = tensor_infos(graph, graph.inputs)
    about = Manifest(
        task="raw",
        preprocess=preprocess,
        whole=SegmentInfo(artifact=WHOLE, inputs=specs, outputs=tensor_infos(graph, graph.outputs)),
    )
    samples = Calibration({PIXELS: pixels}, preprocess, tuple(graph.require_spec(name) for name in graph.inputs))
    return profile_cuts(whole, budget_s=budget_s, feeds=feeds, pictures=picture_costs(about, samples, whole))


def _cell(model: str, slowdown: float, link: Link, chosen: Option, costs: dict[Key, Cost]) -> Cell:
    times = {key: cost.latency_ms(slowdown, link) for key, cost in costs.items()}
    best = min(times, key=times.__getitem__)
    return Cell(model, slowdown, link, chosen, times[key_of(chosen)], best, times[best])


def _publish(cells: Sequence[Cell]) -> None:
    regrets = np.asarray([cell.regret for cell in cells])
    worse = sorted((cell for cell in cells if cell.regret > GOAL), key=lambda cell: -cell.regret)
    p50, p95 = (float(value) for value in np.percentile(regrets, [50, 95]))
    baseline = "the best, measured, of edge only, cloud with JPEG, WebP or PNG, and all measured cuts"
    goal = f"the chosen plan takes at most {GOAL:g} times the best in every cell"
    kinds = Counter(cell.chosen.kind for cell in cells)
    measured = (
        f"{len(worse)} of {len(cells)} cells above; regret p50 {p50:.3f}, p95 {p95:.3f}, max {regrets.max():.3f}; chosen: "
        + ", ".join(f"{kind.value} {kinds[kind]}" for kind in Kind if kinds[kind])
    )
    if worse:
        rows = [cell.row() for cell in worse]
        publish(Result("never_lose_worse_cells", len(worse), baseline, goal, measured, False, rows))
    rows = [
        _model_row(model, [cell for cell in cells if cell.model == model])
        for model in dict.fromkeys(cell.model for cell in cells)
    ]
    publish(Result("never_lose", len(cells), baseline, goal, measured, not worse, rows))


def _model_row(model: str, cells: Sequence[Cell]) -> dict[str, object]:
    regrets = [cell.regret for cell in cells]
    chosen, best = Counter(cell.chosen.kind for cell in cells), Counter(cell.best[0] for cell in cells)
    row: dict[str, object] = {
        "model": model,
        "cells": len(cells),
        "worse": sum(regret > GOAL for regret in regrets),
        "mean_regret": statistics.fmean(regrets),
        "max_regret": max(regrets),
    }
    for kind in (Kind.EDGE_ONLY, Kind.CLOUD_ONLY, Kind.SPLIT):
        row[f"{kind.value.lower()} chosen/best"] = f"{chosen[kind]}/{best[kind]}"
    return row


if __name__ == "__main__":
    main()
