"""Live re-planning: a weak edge, a link whose rate steps and wanders, and a head that changes its cut between two frames.

The plan for three rates names the ways (cuts, or no cut); one version adapts among them. A camera sends a frame every
200 ms. First the uplink steps through rates ten times apart; then it wanders like public 5G low band (see
``splitmesh.testing.links``). Every way alone goes through the same as a baseline. The edge is slow for real: its process
gets a fifth of one core.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich.progress import Progress

from benchmarks.architectures import build
from benchmarks.harness import Result, arguments, publish
from benchmarks.slow import quota_available, slowed
from examples.solder_joints.demo import ROOT, head_ready
from examples.solder_joints.frames import rendered_frames
from splitmesh.cli.model_parts import version_parts
from splitmesh.client import Answer
from splitmesh.client.compression import CompressionClient
from splitmesh.client.partition import PartitionClient
from splitmesh.model.calibration import pack_calibration
from splitmesh.model.manifest import CALIBRATION
from splitmesh.model.preprocess import Preprocess
from splitmesh.testing.links import FADE_S, PROFILES, LinkProfile, faded_mbps, fading_levels
from splitmesh.testing.mesh import LocalMesh, ProcessLauncher, ServiceProcess

MODEL = "solder-joints"
ARCHITECTURE = "resnet18"
EDGE_SHARE = 0.2
WIDTH, SIDE = 1.0, 160
PLANNED_MBPS = (200.0, 20.0, 2.0)
STEPS_MBPS = (200.0, 20.0, 2.0, 0.2, 2.0, 20.0, 200.0)
LINK = LinkProfile("steps", 200.0, 200.0, 20.0, 1.0)
EVERY_S = 0.2
LATE_MS = 500.0
DEADLINE_MS = 2000
GOAL_S = 1.0
CLASSES = 100
PREPROCESS = Preprocess(width=SIDE, height=SIDE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclass
class Frames:
    """What became of the frames of one run."""

    begun_s: float = 0.0
    sent: int = 0
    lost: int = 0
    twice: int = 0
    times_ms: list[float] = field(default_factory=list)
    versions: list[tuple[float, float, int]] = field(default_factory=list)
    """When each frame was sent and answered, and which version answered."""
    failed: int = 0
    """Answered by an error: for want of an exit a frame that no tail answers in time is refused."""

    def in_order(self) -> list[tuple[float, float, int]]:
        """``versions`` as the frames were sent; answers overtake each other."""
        return sorted(self.versions)

    def row(self, way: str, link: str) -> dict[str, object]:
        """One line of the table."""
        times = np.asarray(self.times_ms or [0.0])
        changes = sum(a[2] != b[2] for a, b in pairwise(self.in_order()))
        return {
            "way": way,
            "link": link,
            "frames": self.sent,
            "mean_ms": float(times.mean()),
            "p50_ms": float(np.percentile(times, 50)),
            "p95_ms": float(np.percentile(times, 95)),
            "late": int((times > LATE_MS).sum()),
            "refused": self.failed,
            "changes": changes,
            "lost": self.lost,
            "twice": self.twice,
        }


@dataclass(frozen=True)
class Deployed:
    """The versions of one model by what they are."""

    adaptive: int
    alone: dict[int, str]
    """Each way as a version of its own, with its name."""


def main() -> None:
    """Entry point."""
    quick = arguments(__doc__).quick
    if why := quota_available():
        print(f"replan is not run: {why}")
        raise SystemExit(1)
    asyncio.run(measure(quick=quick))


async def measure(*, quick: bool) -> None:
    """Every way alone and all together, through the steps and through the wandering link; quick: together only."""
    step_s, wander_s = (3.0, 4.0) if quick else (6.0, 40.0)
    rates = STEPS_MBPS[:4] if quick else STEPS_MBPS
    rows: list[dict[str, object]] = []
    reactions: list[float] = []
    async with _mesh() as (mesh, pictures):
        with Progress(transient=True) as progress:
            task = progress.add_task("deploying", total=None)
            deployed = await _deploy(mesh, PLANNED_MBPS[:1] if quick else PLANNED_MBPS, budget_s=4.0 if quick else 20.0)
            ways = {**({} if quick else deployed.alone), deployed.adaptive: "adaptive"}
            progress.update(task, total=2 * len(ways))
            for version, way in ways.items():
                progress.update(task, description=way)
                await mesh.registry().set_alias(MODEL, "production", version)
                await _answers(mesh, pictures[0])
                steps = await _stepped(mesh, pictures, rates, step_s)
                rows += [one.row(way, f"{mbps:g} Mbit/s") for mbps, one in steps]
                progress.advance(task)
                if version == deployed.adaptive:
                    reactions = _reactions(steps)
                wandering = await _wandering(mesh, pictures, wander_s)
                rows.append(wandering.row(way, "5G low band, wandering"))
                progress.advance(task)
    _publish(rows, reactions)


def _publish(rows: list[dict[str, object]], reactions: Sequence[float]) -> None:
    def total(way: str, column: str) -> float:
        return sum(float(str(row[column])) * (float(str(row["frames"])) if column == "mean_ms" else 1)
                   for row in rows if row["way"] == way)  # fmt: skip

    names = list(dict.fromkeys(str(row["way"]) for row in rows))
    frames = total("adaptive", "frames")
    means = {way: total(way, "mean_ms") / total(way, "frames") for way in names}
    single = [way for way in names if way != "adaptive"]
    baseline = "none in the quick version"
    if single:
        best = min(single, key=means.__getitem__)
        baseline = (
            f"the best way alone over all links, {best}: mean {means[best]:.1f} ms, "
            f"{total(best, 'late') + total(best, 'refused'):.0f} late or refused"
        )
    lost = total("adaptive", "lost") + total("adaptive", "twice")
    worst = max(reactions, default=float("nan"))
    publish(
        Result(
            name="replan",
            n=int(frames),
            baseline=baseline,
            goal=f"a new plan within {GOAL_S:g} s of a ten-fold step, no frame lost or answered twice",
            measured=f"changes after {', '.join(f'{value:.2f}' for value in reactions)} s; lost or twice {lost:.0f}; "
            f"mean {means['adaptive']:.1f} ms, "
            f"{total('adaptive', 'late') + total('adaptive', 'refused'):.0f} late or refused",
            met=bool(reactions) and worst <= GOAL_S and lost == 0,
            rows=rows,
        )
    )


@asynccontextmanager
async def _mesh() -> AsyncIterator[tuple[LocalMesh, list[bytes]]]:
    """Separate processes, a weak edge."""
    work_dir = Path(tempfile.mkdtemp(prefix="splitmesh-replan-"))
    pictures = rendered_frames(50, 1, PREPROCESS, lambda _: None).frames
    launcher = _SlowHeads(ROOT, work_dir)
    try:
        with launcher.slow:
            async with LocalMesh(launcher, work_dir, link=LINK) as mesh:
                yield mesh, pictures
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)


class _SlowHeads(ProcessLauncher):
    """Launches as usual, and gives heads little of the processor."""

    def __init__(self, root: Path, work_dir: Path) -> None:
        super().__init__(root, work_dir)
        self.slow = ExitStack()

    async def launch(self, service: str, settings: Mapping[str, str]) -> ServiceProcess:
        """The service."""
        running = await super().launch(service, settings)
        if service == "head":
            self.slow.enter_context(slowed(running.process.pid, EDGE_SHARE))
        return running


async def _deploy(mesh: LocalMesh, planned_mbps: Sequence[float], budget_s: float) -> Deployed:
    """Push, plan for each rate, split where the plan cuts, and make the version that adapts."""
    registry, partitioner = mesh.registry(), PartitionClient(mesh.channels)
    pushed = await registry.create_version(MODEL, _parts(), created_by="push")
    alone = {pushed.version: "edge only"}
    for cut in await _cuts(partitioner, pushed.version, planned_mbps, budget_s):
        split = await partitioner.split(MODEL, pushed.version, list(cut))
        small, _ = await CompressionClient(mesh.channels).compress(MODEL, split.version, ["int8-cut"])
        alone[small] = f"cut at {', '.join(cut)}"
    order = [*list(alone)[1:], pushed.version]
    adaptive = await partitioner.adapt(MODEL, order, uplink_mbps=LINK.uplink_mbps, rtt_ms=LINK.rtt_ms)
    return Deployed(adaptive, alone)


async def _cuts(
    partitioner: PartitionClient, version: int, planned_mbps: Sequence[float], budget_s: float
) -> list[tuple[str, ...]]:
    """The best cut for each planned rate, each once."""
    cuts: dict[tuple[str, ...], None] = {}
    for mbps in planned_mbps:
        plan = await partitioner.plan(
            MODEL, version, uplink_mbps=mbps, rtt_ms=LINK.rtt_ms, edge_slowdown=1 / EDGE_SHARE,
            picture_stays_on_site=True, budget_s=budget_s,
        )  # fmt: skip
        cuts[next(row.cut for row in plan.options if row.kind == "SPLIT" and "uint8" in row.codec)] = None
    return list(cuts)


def _parts() -> dict[str, bytes]:
    """The model with calibration pictures."""
    folder = ROOT / "build" / "replan"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(build(ARCHITECTURE, width=WIDTH, side=SIDE))
    (folder / "labels.json").write_text(json.dumps([f"class {index}" for index in range(CLASSES)]))
    (folder / "preprocess.json").write_text(PREPROCESS.model_dump_json())
    parts = version_parts(folder / "model.onnx", folder / "labels.json", folder / "preprocess.json", None)
    parts[CALIBRATION] = pack_calibration(rendered_frames(1, 100, PREPROCESS, lambda _: None).calibration)
    return parts


async def _answers(mesh: LocalMesh, picture: bytes) -> None:
    """Until the new version answers, and has settled."""
    await head_ready(mesh)
    mesh.relay.set_profile(LINK)
    async with mesh.gateway(deadline_ms=5000) as gateway, asyncio.timeout(60):
        for _ in range(20):
            await gateway.infer(picture)
            await asyncio.sleep(EVERY_S)


async def _stepped(
    mesh: LocalMesh, pictures: Sequence[bytes], rates: Sequence[float], step_s: float
) -> list[tuple[float, Frames]]:
    """The rate changes under a camera that goes on all the time; frames count for the rate they were sent under."""
    steps = [(mbps, Frames()) for mbps in rates]
    async with _Camera(mesh, pictures) as camera:
        for mbps, frames in steps:
            mesh.relay.set_profile(replace(LINK, uplink_mbps=mbps))
            await camera.watch(step_s, frames)
    return steps


async def _wandering(mesh: LocalMesh, pictures: Sequence[bytes], seconds: float) -> Frames:
    """The fitted series of public 5G, low band: a new rate every second, the same series for every way."""
    profile, frames = PROFILES["public-5g-sa"], Frames()
    levels = fading_levels(random.Random(5))
    async with _Camera(mesh, pictures) as camera:
        for _ in range(round(seconds / FADE_S)):
            mesh.relay.set_profile(replace(profile, uplink_mbps=faded_mbps(profile, next(levels))))
            await camera.watch(FADE_S, frames)
    return frames


class _Camera:
    """One stream, a frame at every tick, whatever became of those before."""

    def __init__(self, mesh: LocalMesh, pictures: Sequence[bytes]) -> None:
        self._gateway = mesh.gateway(deadline_ms=DEADLINE_MS)
        self._pictures = pictures
        self._sent: list[tuple[float, Frames]] = []
        self._answered: set[int] = set()
        self._now: Frames | None = None
        self._changed = asyncio.Event()

    async def __aenter__(self) -> _Camera:
        self._task = asyncio.create_task(self._receive())
        return self

    async def __aexit__(self, *error: object) -> None:
        """Stop sending, wait for the last answers, count what has none."""
        self._now = None
        await self._task
        for number, (_, counts) in enumerate(self._sent):
            counts.lost += number not in self._answered
        await self._gateway.close()

    async def watch(self, seconds: float, frames: Frames) -> None:
        """Send for so long; answers that come later still count for these frames."""
        frames.begun_s = frames.begun_s or time.monotonic()
        self._now = frames
        self._changed.set()
        await asyncio.sleep(seconds)

    async def _frames(self) -> AsyncIterator[bytes]:
        await self._changed.wait()
        while (frames := self._now) is not None:
            frames.sent += 1
            self._sent.append((time.monotonic(), frames))
            yield self._pictures[len(self._sent) % len(self._pictures)]
            await asyncio.sleep(EVERY_S)

    async def _receive(self) -> None:
        async with self._gateway.stream(window=64) as stream:
            async for outcome in stream.run(self._frames()):
                sent_s, frames = self._sent[outcome.frame_id]
                frames.twice += outcome.frame_id in self._answered
                self._answered.add(outcome.frame_id)
                if isinstance(outcome, Answer):
                    frames.times_ms.append((time.monotonic() - sent_s) * 1e3)
                    frames.versions.append((sent_s, time.monotonic(), outcome.version))
                else:
                    frames.failed += 1


def _reactions(steps: Sequence[tuple[float, Frames]]) -> list[float]:
    """Seconds from each step to the first answer of the version that then stays, where the version changed."""
    found = []
    for (_, before), (_, after) in pairwise(steps):
        versions = [version for _, _, version in after.in_order()]
        settled = versions[-1]
        if settled == before.in_order()[-1][2]:
            continue
        kept = next(n for n in range(len(versions)) if set(versions[n:]) == {settled})
        found.append(after.in_order()[kept][1] - after.begun_s)
    return found


if __name__ == "__main__":
    main()
