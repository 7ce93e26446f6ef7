"""What a switch costs the frames: deployments of two versions in turn, under cameras that go on.

Eight cameras of ten pictures a second stream into one head, with every service a process of its own; an operator deploys one
version after the other through fleet and agent, and each time all hosts have to say that they serve it. The model has no exit, so
that every frame needs head and tail of one version, and it says itself when they are not (``marked_model``). *Lost*: a frame
without an answer. *Pause*: the longest time without an answer of any one camera during a deployment, beyond the time between two
of its pictures. The baseline is the same in windows of the same length while nothing is deployed.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich.progress import Progress

from benchmarks.harness import Result, arguments, publish
from benchmarks.marked_model import MIXED, WAIST, labels, marked
from examples.solder_joints.demo import MODEL, ROOT, SHIPPED_MODEL, head_ready
from examples.solder_joints.frames import rendered_frames
from splitmesh.cli.model_parts import version_parts
from splitmesh.client import Answer, AnsweredBy, Mesh
from splitmesh.client.fleet import FleetClient
from splitmesh.client.fleet_deployments import DeploymentState, Strategy
from splitmesh.client.fleet_nodes import NodeState, Target
from splitmesh.client.partition import PartitionClient
from splitmesh.client.stream import Stream
from splitmesh.model.preprocess import Preprocess
from splitmesh.testing.links import PROFILES
from splitmesh.testing.mesh import MODULES, LocalMesh, ProcessLauncher

CAMERAS = 8
FRAMES_PER_S = 10.0
DEADLINE_MS = 2000
PICTURES = 24
DEPLOYMENTS = 100
QUICK_DEPLOYMENTS = 5
SETTLE_S = 0.5
"""After a deployment, and as much of it belongs to its window."""
CONNECTED_S = 60.0
DEPLOYED_S = 120.0
EVERYWHERE = Target(every=True)


@dataclass
class Seen:
    """What became of the frames of all cameras."""

    answered_s: list[list[float]] = field(default_factory=lambda: [[] for _ in range(CAMERAS)])
    """When, by camera."""
    sent: int = 0
    answered: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    by: Counter[AnsweredBy] = field(default_factory=Counter)
    versions: Counter[int] = field(default_factory=Counter)
    mixed: int = 0

    def pause_ms(self, since: float, until: float) -> float:
        """The longest gap of a camera that reaches into the window, beyond the usual one."""
        longest = 0.0
        for times in self.answered_s:
            inside = np.asarray([moment for moment in times if since - 5.0 <= moment <= until + 5.0])
            gaps = [after - before for before, after in pairwise(inside) if after > since and before < until]
            longest = max(longest, *gaps) if gaps else float("inf")
        return max(0.0, longest - 1 / FRAMES_PER_S) * 1000


@asynccontextmanager
async def switching_mesh() -> AsyncIterator[tuple[LocalMesh, list[bytes], tuple[int, int]]]:
    """Every service, two split versions whose marks differ, the first one in production."""
    work_dir = Path(tempfile.mkdtemp(prefix="splitmesh-bench-"))
    preprocess_file = SHIPPED_MODEL / "preprocess.json"
    preprocess = Preprocess.model_validate_json(preprocess_file.read_bytes())
    pictures = rendered_frames(PICTURES, 1, preprocess, lambda _: None).frames
    names = work_dir / "labels.json"
    names.write_text(json.dumps(labels()))
    # A frame that may not cross because the tails are crowded has no exit to be answered by: that would be no loss of a switch.
    settings = {"head": {"models": MODEL, "max_backlog_ms": str(10 * DEADLINE_MS)}}
    try:
        async with LocalMesh(
            ProcessLauncher(ROOT, work_dir),
            work_dir,
            link=PROFILES["loopback"],
            services=tuple(MODULES),
            settings=settings,
        ) as mesh:
            registry, versions = mesh.registry(), []
            for mark in (0, 1):
                file = work_dir / f"marked-{mark}.onnx"
                file.write_bytes(marked(mark))
                pushed = await registry.create_version(
                    MODEL, version_parts(file, names, preprocess_file, None), created_by="push"
                )
                split = await PartitionClient(mesh.channels).split(MODEL, pushed.version, [WAIST])
                versions.append(split.version)
            await registry.set_alias(MODEL, "production", versions[0])
            await head_ready(mesh)
            yield mesh, pictures, (versions[0], versions[1])
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)


async def measure(deployments: int) -> None:
    """All deployments, one after the other, and as long without any."""
    seen, stop = Seen(), asyncio.Event()
    async with switching_mesh() as (mesh, pictures, versions):
        fleet = FleetClient(mesh.channels)
        await _connected(fleet)
        with Progress(transient=True) as progress:
            task = progress.add_task("deployments", total=deployments)
            async with mesh.gateway(deadline_ms=DEADLINE_MS) as gateway, asyncio.TaskGroup() as tasks:
                for number in range(CAMERAS):
                    tasks.create_task(_camera(gateway, number, pictures, seen, stop))
                windows: list[tuple[float, float]] = []
                for number in range(deployments):
                    since = time.monotonic()
                    await _deployed(fleet, versions[(number + 1) % 2])
                    windows.append((since, time.monotonic() + SETTLE_S))
                    await asyncio.sleep(2 * SETTLE_S)
                    progress.advance(task)
                longest_s = max(until - since for since, until in windows)
                quiet: list[tuple[float, float]] = []
                while len(quiet) < max(5, deployments // 5):
                    quiet.append((time.monotonic(), time.monotonic() + longest_s))
                    await asyncio.sleep(longest_s)
                stop.set()
    _publish(seen, windows, quiet, versions)


async def _connected(fleet: FleetClient) -> None:
    async with asyncio.timeout(CONNECTED_S):
        while not await fleet.nodes(state=NodeState.ONLINE):
            await asyncio.sleep(0.1)


async def _deployed(fleet: FleetClient, version: int) -> None:
    """Until every host serves it."""
    async with asyncio.timeout(DEPLOYED_S):
        made = await fleet.deploy(MODEL, version, EVERYWHERE, Strategy(require_tail=True))
        async with aclosing(fleet.watch_deployment(made.id)) as news:
            async for one in news:
                last = one.deployment
    if last.state is not DeploymentState.DONE:
        raise RuntimeError(f"the deployment of version {version} is {last.state}: {last.message}")


async def _camera(gateway: Mesh, number: int, pictures: Sequence[bytes], seen: Seen, stop: asyncio.Event) -> None:
    """One camera until it is stopped, and until its last frame has its outcome."""
    loop = asyncio.get_running_loop()

    async def take(stream: Stream) -> None:
        due = loop.time() + number / CAMERAS / FRAMES_PER_S
        count = number
        while not stop.is_set():
            await asyncio.sleep(due - loop.time())
            due += 1 / FRAMES_PER_S
            await stream.send(pictures[count % len(pictures)])
            count += 1
            seen.sent += 1
        stream.end()

    async with gateway.stream(f"camera-{number}") as stream:
        taking = asyncio.create_task(take(stream))
        async for outcome in stream:
            if not isinstance(outcome, Answer):
                seen.lost[outcome.error.reason.value] += 1
                continue
            seen.answered += 1
            seen.answered_s[number].append(time.monotonic())
            seen.by[outcome.answered_by] += 1
            seen.versions[outcome.version] += 1
            seen.mixed += outcome.label.name == MIXED
        await taking


def _publish(
    seen: Seen, windows: Sequence[tuple[float, float]], quiet: Sequence[tuple[float, float]], versions: tuple[int, int]
) -> None:
    rows = [_row("deployments", seen, windows), _row("nothing deployed", seen, quiet)]
    lost = seen.sent - seen.answered
    why = f" ({dict(seen.lost)})" if seen.lost else ""
    crossed = seen.by[AnsweredBy.CLOUD_TAIL]
    publish(
        Result(
            name="switch",
            n=len(windows),
            baseline="the same cameras while nothing is deployed",
            goal="frames lost 0, mixed pairs 0",
            measured=f"{lost} of {seen.sent} frames lost{why}, {seen.mixed} mixed pairs in {crossed} "
            f"answers of both halves, {seen.versions[versions[0]]} and {seen.versions[versions[1]]} answers by version; "
            f"pause p99 {rows[0]['pause_p99_ms']:.0f} ms, {rows[1]['pause_p99_ms']:.0f} ms without",
            met=lost == 0 and seen.mixed == 0 and crossed > 0,
            rows=rows,
        )
    )


def _row(what: str, seen: Seen, windows: Sequence[tuple[float, float]]) -> dict[str, object]:
    pauses_ms = [seen.pause_ms(*window) for window in windows]
    took_s = [until - since - SETTLE_S for since, until in windows]
    return {
        "what": what,
        "n": len(windows),
        "took_p50_s": float(np.percentile(took_s, 50)) if what == "deployments" else "",
        "took_p99_s": float(np.percentile(took_s, 99)) if what == "deployments" else "",
        "pause_p50_ms": float(np.percentile(pauses_ms, 50)),
        "pause_p99_ms": float(np.percentile(pauses_ms, 99)),
        "worst_ms": max(pauses_ms),
    }


def main() -> None:
    """The command line."""
    asyncio.run(measure(QUICK_DEPLOYMENTS if arguments(__doc__).quick else DEPLOYMENTS))


if __name__ == "__main__":
    main()
