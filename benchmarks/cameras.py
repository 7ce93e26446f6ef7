"""How many cameras one head carries: 1 to 64 cameras of 10 pictures a second each, into one head with three tails, two, and one.

Every camera is a stream of its own over one gateway process, which drops the oldest frame when pictures come too fast
(`drop="oldest"`), as a live camera does. Pictures are JPEGs of 1280 x 960. The head, the tails, the relays before them and all
the cameras share this host's cores, so the figures are of this host and not of a head alone: the columns *cores* say who used
them (*own*: cameras and relays), *ms* the processor time of an answered frame. Latency is the gateway's own clock, from the
camera to the outcome. A load is carried when 99 % of its frames were answered within the deadline; memory is what processes have
to themselves (PSS). The baseline is one camera.
"""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import Progress

from benchmarks.harness import Result, arguments, deployed_mesh, publish
from benchmarks.serving.cost import tree_cpu_s, tree_memory_bytes, tree_pids
from splitmesh.client import Answer, AnsweredBy, Mesh, Reason, Stream, StreamCounts
from splitmesh.testing.links import PROFILES
from splitmesh.testing.mesh import LocalMesh

FRAMES_PER_S = 10.0
DEADLINE_MS = 500
CARRIED = 0.99
SIZE = (1280, 960)
NOISE = 2.0
"""Standard deviation of a sensor's noise, of 255."""
PICTURES = 24
TAILS = 3


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    cameras: Sequence[int]
    tails: Sequence[int]
    seconds: float
    warm_up_s: float
    calibration: int


FULL = Effort((1, 2, 4, 8, 16, 32, 64), (3, 2, 1), 10.0, 2.0, 600)
QUICK = Effort((1, 4, 64), (3, 1), 2.0, 0.5, 400)


@dataclass
class Load:
    """What became of the frames of all cameras of one load."""

    latencies_ms: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    by_tail: int = 0
    counted: bool = False
    """Whether frames count already: not while the load warms up."""

    @property
    def ended(self) -> int:
        """Frames with an outcome."""
        return len(self.latencies_ms) + self.failures.total()

    @property
    def late(self) -> int:
        """Answers that came after the deadline."""
        return sum(latency > DEADLINE_MS for latency in self.latencies_ms)


@dataclass(frozen=True)
class Cost:
    """Of head, tails and everything else (cameras and relays) so far: seconds of a processor, and bytes."""

    head: tuple[float, int]
    tails: tuple[float, int]
    cameras_s: float

    @classmethod
    def now(cls) -> Cost:
        """As it stands."""
        pids = {name: _pids(name) for name in ("edge.head", "cloud.tail")}
        costs = {
            name: (sum(map(tree_cpu_s, found)), sum(map(tree_memory_bytes, found))) for name, found in pids.items()
        }
        usage = os.times()
        return cls(costs["edge.head"], costs["cloud.tail"], usage.user + usage.system)


def _pids(module: str) -> list[int]:
    """Processes below this one that run a module."""
    return [
        pid
        for pid in tree_pids(os.getpid())
        if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    ]


def main() -> None:
    """Entry point."""
    asyncio.run(measure(QUICK if arguments(__doc__).quick else FULL))


async def measure(effort: Effort) -> None:
    """Run every load with every number of tails."""
    rows: list[dict[str, object]] = []
    async with deployed_mesh(PROFILES["loopback"], frames=PICTURES, calibration=effort.calibration, tails=TAILS) as (
        mesh,
        rendered,
    ):
        pictures = [_camera_picture(picture, number) for number, picture in enumerate(rendered)]
        running = TAILS
        with Progress(transient=True) as progress:
            task = progress.add_task("cameras", total=len(effort.cameras) * len(effort.tails))
            for tails in effort.tails:
                while running > tails:
                    await mesh.stop(f"tail-{running}")
                    running -= 1
                for cameras in effort.cameras:
                    rows.append(await _load(mesh, pictures, cameras, tails, effort))
                    progress.advance(task)
    publish(
        Result(
            name="cameras",
            n=sum(int(str(row["frames"])) for row in rows),
            baseline=f"one camera of {FRAMES_PER_S:g} pictures a second, {_kilobytes(pictures):.0f} kB each",
            goal=f"none stated; a load is carried when {CARRIED:.0%} of its frames are answered within {DEADLINE_MS} ms",
            measured="; ".join(_found(rows, tails) for tails in effort.tails),
            met=None,
            rows=rows,
        )
    )


def _camera_picture(rendered: bytes, seed: int) -> bytes:
    """The rendered joint at the size and with the noise of a camera."""
    image = Image.open(io.BytesIO(rendered)).convert("L").resize(SIZE, Image.Resampling.BICUBIC)
    noise = np.random.default_rng(seed).normal(0.0, NOISE, (SIZE[1], SIZE[0]))
    noisy = np.clip(np.asarray(image, np.float32) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _kilobytes(pictures: list[bytes]) -> float:
    return sum(map(len, pictures)) / len(pictures) / 1000


async def _load(mesh: LocalMesh, pictures: list[bytes], cameras: int, tails: int, effort: Effort) -> dict[str, object]:
    """All cameras for some seconds."""
    load = Load()
    stop = asyncio.Event()
    async with mesh.gateway(deadline_ms=DEADLINE_MS) as gateway, asyncio.TaskGroup() as tasks:
        lines = [
            tasks.create_task(_camera(gateway, number, cameras, pictures, load, stop)) for number in range(cameras)
        ]
        await asyncio.sleep(effort.warm_up_s)
        load.counted = True
        begun, before = time.monotonic(), Cost.now()
        await asyncio.sleep(effort.seconds)
        load.counted = False
        elapsed_s, after = time.monotonic() - begun, Cost.now()
        stop.set()
    superseded = sum(line.result().superseded for line in lines)
    assert superseded >= load.failures[Reason.FRAME_SUPERSEDED.value]
    return _row(load, cameras, tails, elapsed_s, before, after)


async def _camera(
    gateway: Mesh, number: int, cameras: int, pictures: list[bytes], load: Load, stop: asyncio.Event
) -> StreamCounts:
    """One camera until it is stopped: pictures at its own pace, whatever becomes of them."""
    loop = asyncio.get_running_loop()
    sent_at: dict[int, float] = {}

    async def take(stream: Stream) -> None:
        due = loop.time() + number / cameras / FRAMES_PER_S
        while not stop.is_set():
            await asyncio.sleep(due - loop.time())
            due += 1 / FRAMES_PER_S
            taken = loop.time()
            frame_id = await stream.send(pictures[(number + len(sent_at)) % len(pictures)])
            sent_at[frame_id] = taken
        stream.end()

    async with gateway.stream(f"camera-{number}", drop="oldest") as stream:
        taking = asyncio.create_task(take(stream))
        async for outcome in stream:
            # Read in the same turn of the loop in which it was sent at the earliest: a frame is entered by then.
            latency_ms = (loop.time() - sent_at.get(outcome.frame_id, loop.time())) * 1000
            if not load.counted:
                continue
            if isinstance(outcome, Answer):
                load.latencies_ms.append(latency_ms)
                load.by_tail += outcome.answered_by is AnsweredBy.CLOUD_TAIL
            else:
                load.failures[outcome.error.reason.value] += 1
        await taking
        return stream.counts


def _row(load: Load, cameras: int, tails: int, elapsed_s: float, before: Cost, after: Cost) -> dict[str, object]:
    answered = len(load.latencies_ms)
    p50, p99 = (float(value) for value in np.percentile(load.latencies_ms or [0.0], [50, 99]))
    superseded = load.failures[Reason.FRAME_SUPERSEDED.value]
    head_s, tails_s = after.head[0] - before.head[0], after.tails[0] - before.tails[0]
    cameras_s = after.cameras_s - before.cameras_s
    return {
        "tails": tails,
        "cameras": cameras,
        "frames": load.ended,
        "per_s": round(answered / elapsed_s, 1),
        "p50_ms": round(p50),
        "p99_ms": round(p99),
        "drops": superseded,
        "refused": load.failures.total() - superseded,
        "late": load.late,
        "in_time": (answered - load.late) / max(1, load.ended),
        "by_tail": load.by_tail / max(1, answered),
        "head_ms": 1000 * head_s / max(1, answered),
        "tails_ms": 1000 * tails_s / max(1, answered),
        "head_cores": head_s / elapsed_s,
        "tails_cores": tails_s / elapsed_s,
        "own_cores": cameras_s / elapsed_s,
        "head_MB": round(after.head[1] / 1e6),
        "tails_MB": round(after.tails[1] / 1e6),
    }


def _found(rows: list[dict[str, object]], tails: int) -> str:
    """At which load this host saturates, in words."""
    own = [row for row in rows if row["tails"] == tails]
    carried = [row for row in own if float(str(row["in_time"])) >= CARRIED]
    best = max(float(str(row["per_s"])) for row in own)
    most = max((int(str(row["cameras"])) for row in carried), default=0)
    too_many = [int(str(row["cameras"])) for row in own if row not in carried]
    cores = os.cpu_count() or 1
    limit = f"{min(too_many)} are too many" if too_many else "no load was too many"
    most_per_s = f"at most {best:.0f} frames/s on {cores} cores ({best / cores:.0f} a core)"
    return f"{tails} tail{'s' if tails > 1 else ''}: {most} cameras are carried, {limit}, {most_per_s}"


if __name__ == "__main__":
    main()
