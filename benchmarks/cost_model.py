"""Predicted against measured, end to end: real head and tail processes, real gRPC, the link relay, one frame at a time.

The partitioner profiles head and tail on their own nodes and prices every option; some are then deployed (edge only, and
cuts spread over the model, plain and in 8 bits) and their p50 at the gateway is held against the price, on every link.
The arithmetic leaves out what every frame costs before and after it (decoding, preprocessing, the call to the head) and
says nothing of what a message costs beyond a constant, so each model lends two constants to its prices: the residual of
edge only, and that of one split, the middle cut in 8 bits on the first link. The rows they are learnt from count in no
error; the error without constants is told beside. Another table holds the measured stages against the predicted ones, so
that what is missing can be seen. Jitter is off. No picture crosses: the mesh has no road for "cloud only".
"""

from __future__ import annotations

import asyncio
import io
import math
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from rich.progress import Progress

from benchmarks.architectures import build
from benchmarks.harness import Result, arguments, publish
from benchmarks.pictures import CALIBRATION_SEED, TEST_SEED, natural_pictures
from examples.solder_joints.demo import ROOT, head_ready
from splitmesh.cli.model_parts import version_parts
from splitmesh.client import Answer
from splitmesh.client.compression import CompressionClient
from splitmesh.client.partition import PartitionClient, PlanRow
from splitmesh.model.calibration import pack_calibration
from splitmesh.model.manifest import CALIBRATION
from splitmesh.model.preprocess import Preprocess
from splitmesh.model.profile_data import FLOAT_CODEC, QUANTISED_CODEC
from splitmesh.testing.links import PROFILES, LinkProfile
from splitmesh.testing.mesh import WITHOUT_FLEET, LocalMesh, ProcessLauncher

HEAD_NODE, TAIL_NODE = "head-1", "tail-1"
SERVED = "served"
"""The model name that the head follows; every model of the benchmark is pushed under it, as further versions."""
SIDE = 128
GOAL = 0.10
MODELS = ("resnet18", "mobilenet_v2", "vit_tiny")
LINKS = tuple(replace(PROFILES[name], jitter_ms=0.0) for name in ("private-5g", "public-5g-nsa", "public-5g-sa", "lte"))
SLOWEST_S = 1.0
"""An option that would take longer per frame on a link is left out there."""
LEAST_FRAMES = 9


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    models: tuple[str, ...]
    links: tuple[LinkProfile, ...]
    cuts: int
    """In 8 bits; the middle one is deployed plain too."""
    frames: int
    profile_s: float
    reading_s: float
    """No further frame of an option on a link begins after this, once there are ``LEAST_FRAMES``."""


FULL = Effort(MODELS, LINKS, 4, 30, 12.0, 3.0)
QUICK = Effort(MODELS[:1], LINKS[::3], 1, 15, 4.0, 2.0)


@dataclass(frozen=True)
class Deployed:
    """One option as a version."""

    version: int
    cut: tuple[str, ...]
    codec: str

    @property
    def name(self) -> str:
        """For the table."""
        return f"{'+'.join(self.cut)} {self.codec}".strip() or "edge only"


@dataclass(frozen=True)
class Reading:
    """One option on one link."""

    model: str
    option: Deployed
    link: str
    predicted: PlanRow
    total_ms: float
    """p50 at the gateway."""
    stages: dict[str, float]
    """Medians of what head and tail reported."""


def main() -> None:
    """Entry point."""
    asyncio.run(run(QUICK if arguments(__doc__).quick else FULL))


async def run(effort: Effort) -> None:
    """Measure and publish."""
    readings: list[Reading] = []
    with Progress(transient=True) as progress:
        task = progress.add_task("cost model", total=len(effort.models))
        for model in effort.models:
            progress.update(task, description=model)
            async with _mesh() as mesh:
                readings += await _of_model(mesh, model, effort)
            progress.advance(task)
    _publish(readings)


@asynccontextmanager
async def _mesh() -> AsyncIterator[LocalMesh]:
    work_dir = Path(tempfile.mkdtemp(prefix="splitmesh-cost-"))
    try:
        settings: dict[str, dict[str, str]] = {"head": {"models": SERVED}, "partitioner": {}}
        async with LocalMesh(ProcessLauncher(ROOT, work_dir), work_dir, settings=settings) as mesh:
            # It starts before head and tail, and without a catalogue it must be told where they are.
            others = [service for service in WITHOUT_FLEET if service != "partitioner"]
            settings["partitioner"]["static_addresses"] = ",".join(f"{name}={mesh.address(name)}" for name in others)
            await mesh.stop("partitioner")
            await mesh.start("partitioner")
            yield mesh
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)


async def _of_model(mesh: LocalMesh, model: str, effort: Effort) -> list[Reading]:
    registry, partitioner = mesh.registry(), PartitionClient(mesh.channels)
    pushed = await registry.create_version(SERVED, _parts(model), created_by="push")
    for node in (HEAD_NODE, TAIL_NODE):
        await partitioner.profile(SERVED, pushed.version, node=node, budget_s=effort.profile_s)
    priced = {link.name: await _prices(partitioner, pushed.version, link, effort) for link in effort.links}
    options = await _deploy(mesh, pushed.version, priced[effort.links[0].name], effort.cuts)
    pictures = [_jpeg(picture) for picture in natural_pictures(effort.frames, SIDE, TEST_SEED)]
    readings = []
    for option in options:
        await registry.set_alias(SERVED, "production", option.version)
        await head_ready(mesh)
        for link in effort.links:
            row = _price(priced[link.name], option)
            if row.latency_ms < SLOWEST_S * 1e3:
                mesh.relay.set_profile(link)
                total_ms, stages = await _frames(mesh, option.version, pictures, effort.reading_s)
                readings.append(Reading(model, option, link.name, row, total_ms, stages))
        mesh.relay.set_profile(PROFILES["loopback"])
    return readings


def _parts(model: str) -> dict[str, bytes]:
    """The model with calibration pictures."""
    preprocess = Preprocess(width=SIDE, height=SIDE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    with tempfile.TemporaryDirectory() as scratch:
        network, pipeline = Path(scratch, "model.onnx"), Path(scratch, "preprocess.json")
        network.write_bytes(build(model, side=SIDE))
        pipeline.write_text(preprocess.model_dump_json())
        parts = version_parts(network, None, pipeline, None)
    parts[CALIBRATION] = pack_calibration(natural_pictures(80, SIDE, CALIBRATION_SEED))
    return parts


async def _prices(partitioner: PartitionClient, version: int, link: LinkProfile, effort: Effort) -> tuple[PlanRow, ...]:
    plan = await partitioner.plan(
        SERVED, version, uplink_mbps=link.uplink_mbps, rtt_ms=link.rtt_ms, edge_node=HEAD_NODE, cloud_node=TAIL_NODE,
        picture_stays_on_site=True, budget_s=effort.profile_s,
    )  # fmt: skip
    return plan.options


def _price(rows: Sequence[PlanRow], option: Deployed) -> PlanRow:
    """Of a deployed option."""
    return next(row for row in rows if (set(row.cut), row.codec) == (set(option.cut), option.codec))


async def _deploy(mesh: LocalMesh, whole: int, rows: Sequence[PlanRow], count: int) -> list[Deployed]:
    """Edge only, then cuts that divide the edge's time evenly, in 8 bits; the middle one plain as well."""
    splits = sorted(
        (row for row in rows if row.kind == "SPLIT" and row.codec == QUANTISED_CODEC),
        key=lambda row: row.stages["edge_ms"],
    )
    latest = splits[-1].stages["edge_ms"]
    wanted = [latest * (index + 1) / (count + 1) for index in range(count)]
    cuts = dict.fromkeys(min(splits, key=lambda row: abs(row.stages["edge_ms"] - at)).cut for at in wanted)
    options = [Deployed(whole, (), "")]
    for index, cut in enumerate(cuts):
        split = await PartitionClient(mesh.channels).split(SERVED, whole, list(cut))
        small, _ = await CompressionClient(mesh.channels).compress(SERVED, split.version, ["int8-cut"])
        options.append(Deployed(small, cut, QUANTISED_CODEC))
        if index == len(cuts) // 2:
            options.append(Deployed(split.version, cut, FLOAT_CODEC))
    return options


def _jpeg(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="JPEG", quality=90)
    return file.getvalue()


async def _frames(
    mesh: LocalMesh, version: int, pictures: Sequence[bytes], seconds: float
) -> tuple[float, dict[str, float]]:
    """One frame after the other; the first ones, until the version answers and the connection is warm, do not count."""
    times, answers = list[float](), list[Answer]()
    async with mesh.gateway(deadline_ms=20_000) as gateway, asyncio.timeout(300):
        while (await gateway.infer(pictures[0])).version != version:
            await asyncio.sleep(0.05)
        for picture in pictures[:3]:
            await gateway.infer(picture)
        until = time.monotonic() + seconds
        for picture in pictures:
            if len(times) >= LEAST_FRAMES and time.monotonic() > until:
                break
            start = time.perf_counter()
            answers.append(await gateway.infer(picture))
            times.append((time.perf_counter() - start) * 1e3)
    names = ("queue_ms", "decode_ms", "head_ms", "encode_ms", "link_ms", "tail_queue_ms", "tail_ms")
    return median(times), {name: median(getattr(answer.timings, name) for answer in answers) for name in names}


@dataclass(frozen=True)
class Constants:
    """What one model's plain prices leave out, in ms, and the readings that say so."""

    frame_ms: float
    message_ms: float
    learnt_from: tuple[Reading, ...]


def _constants(readings: Sequence[Reading]) -> Constants:
    alone = [reading for reading in readings if not reading.option.cut]
    # Edge only does not use the link, so its readings on all links say the same.
    frame_ms = median(reading.total_ms - reading.predicted.latency_ms for reading in alone)
    rounded = [reading for reading in readings if reading.option.codec == QUANTISED_CODEC]
    first = [reading for reading in rounded if reading.link == rounded[0].link]
    middle = first[len(first) // 2]
    return Constants(frame_ms, middle.total_ms - middle.predicted.latency_ms - frame_ms, (*alone, middle))


def _publish(readings: Sequence[Reading]) -> None:
    rows, plain, corrected, notes = [], list[float](), list[float](), list[str]()
    for model in dict.fromkeys(reading.model for reading in readings):
        own = [reading for reading in readings if reading.model == model]
        constants = _constants(own)
        notes.append(f"{model} {constants.frame_ms:.1f} + {constants.message_ms:.1f}")
        for reading in own:
            added = constants.frame_ms + (constants.message_ms if reading.option.cut else 0.0)
            predicted_ms = reading.predicted.latency_ms + added
            learnt_from = reading in constants.learnt_from
            plain.append(abs(reading.predicted.latency_ms / reading.total_ms - 1))
            if not learnt_from:
                corrected.append(abs(predicted_ms / reading.total_ms - 1))
            rows.append(_row(reading, predicted_ms, learnt_from))
    p50, p95 = np.percentile(plain, [50, 95])
    c50, c95 = np.percentile(corrected, [50, 95]) if corrected else (math.nan, math.nan)
    measured = (
        f"error p50 {c50:.1%}, p95 {c95:.1%} over {len(corrected)} rows, with constants learnt from the "
        f"{len(readings) - len(corrected)} others (ms per frame + per message: {'; '.join(notes)}); without constants, "
        f"all {len(plain)} rows: p50 {p50:.1%}, p95 {p95:.1%}"
    )
    baseline = "p50 at the gateway of the option itself, deployed"
    goal = f"the price with two constants per model within {GOAL:.0%} at p95"
    stages = [_stages(reading) for reading in readings]
    publish(
        Result("cost_model_stages", len(plain), baseline, "none: price/measured by stage, ms", measured, None, stages)
    )
    publish(Result("cost_model", len(plain), baseline, goal, measured, bool(c95 <= GOAL), rows))


def _row(reading: Reading, predicted_ms: float, learnt_from: bool) -> dict[str, object]:
    """``predicted_ms``: the price with the constants."""
    return {
        "model": reading.model,
        "option": reading.option.name,
        "link": reading.link,
        "timed": reading.predicted.measured,
        "price_ms": reading.predicted.latency_ms,
        "predicted_ms": predicted_ms,
        "measured_ms": reading.total_ms,
        "error_%": (predicted_ms / reading.total_ms - 1) * 100,
        "learnt_from": learnt_from,
        "price_error_%": (reading.predicted.latency_ms / reading.total_ms - 1) * 100,
    }


def _stages(reading: Reading) -> dict[str, object]:
    said, seen = reading.predicted.stages, reading.stages
    return {
        "model": reading.model,
        "option": reading.option.name,
        "link": reading.link,
        "decode": seen["decode_ms"],
        "head": f"{said.get('edge_ms', 0):.1f}/{seen['head_ms']:.1f}",
        "pack": f"{said.get('encode_ms', 0):.1f}/{seen['encode_ms']:.1f}",
        "way": f"{said.get('link_ms', 0) + said.get('rtt_ms', 0):.1f}/{seen['link_ms']:.1f}",
        "tail": f"{said.get('cloud_ms', 0):.1f}/{seen['tail_ms']:.1f}",
        "head_queue": seen["queue_ms"],
        "tail_queue": seen["tail_queue_ms"],
        "rest": reading.total_ms - sum(seen.values()),
    }


if __name__ == "__main__":
    main()
