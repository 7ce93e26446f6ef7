"""What the mesh costs on top of the arithmetic: frames through real processes against the same model in this process.

Three roads: the exit at the edge, the tail over the loopback, the tail over an emulated 5G link. One frame at a time for
latency, a window of frames for throughput. The baseline is decode + preprocess + whole model in one process, one thread.
"""

from __future__ import annotations

import asyncio
import time

import numpy as np
from rich.progress import Progress

from benchmarks.harness import Result, arguments, deployed_mesh, publish
from examples.solder_joints.demo import MODEL, SHIPPED_MODEL
from splitmesh.client import Answer, AnsweredBy
from splitmesh.client.routing import Goals, RoutingClient
from splitmesh.model.preprocess import Preprocess
from splitmesh.runtime import open_session
from splitmesh.testing.links import PROFILES
from splitmesh.testing.mesh import LocalMesh

WINDOW = 16
TIGHT, LOOSE = 1e-6, 0.9
"""Tolerances that send every frame to the tail, or answer nearly every frame at the exit."""


def main() -> None:
    """Entry point."""
    quick = arguments(__doc__).quick
    frames = 60 if quick else 400
    asyncio.run(measure(frames))


async def measure(count: int) -> None:
    """Run every road."""
    rows: list[dict[str, object]] = []
    with Progress(transient=True) as progress:
        task = progress.add_task("frame path", total=6)
        for link in ("loopback", "public-5g-nsa"):
            async with deployed_mesh(PROFILES[link], frames=count, calibration=300) as (mesh, pictures):
                if not rows:
                    rows.append(_in_process(pictures))
                for who, tolerance in ((AnsweredBy.CLOUD_TAIL, TIGHT), (AnsweredBy.EDGE_EXIT, LOOSE)):
                    if link != "loopback" and who is AnsweredBy.EDGE_EXIT:
                        continue
                    await RoutingClient(mesh.channels).set_goals(MODEL, Goals(tolerance))
                    await _settled(mesh, pictures[0], who)
                    for window in (1, WINDOW):
                        rows.append(await _road(mesh, pictures, who, window, link))
                        progress.advance(task)
    base = float(str(rows[0]["p50_ms"]))
    tail = next(row for row in rows if row["road"] == "tail, loopback" and row["window"] == 1)
    ratio = float(str(tail["p50_ms"])) / base
    publish(
        Result(
            name="frame_path",
            n=count,
            baseline="decode, preprocess and whole model in one process, one thread",
            goal="none stated yet; the fast path is measured here from now on",
            measured=f"one frame at a time through head and tail takes {ratio:.1f}x the baseline's p50",
            met=None,
            rows=rows,
        )
    )


def _in_process(pictures: list[bytes]) -> dict[str, object]:
    preprocess = Preprocess.model_validate_json((SHIPPED_MODEL / "preprocess.json").read_bytes())
    session = open_session((SHIPPED_MODEL / "model.onnx").read_bytes())
    name = session.inputs[0].name
    times = []
    begun = time.perf_counter()
    for picture in pictures:
        start = time.perf_counter()
        session.run({name: preprocess.batch([picture])})
        times.append((time.perf_counter() - start) * 1000)
    return _row("in process", 1, times, time.perf_counter() - begun, 0)


async def _settled(mesh: LocalMesh, picture: bytes, who: AnsweredBy) -> None:
    """Until the new threshold is in force: a frame is answered by the wanted road."""
    async with asyncio.timeout(20), mesh.gateway(deadline_ms=5000) as gateway:
        while (await gateway.infer(picture)).answered_by is not who:
            await asyncio.sleep(0.05)


async def _road(mesh: LocalMesh, pictures: list[bytes], who: AnsweredBy, window: int, link: str) -> dict[str, object]:
    """Stream all pictures; the gateway's own clock, send to answer."""
    times: list[float] = []
    others = 0
    async with mesh.gateway(deadline_ms=5000) as gateway:
        await gateway.infer(pictures[0])
        begun = time.perf_counter()
        if window == 1:
            for picture in pictures:
                start = time.perf_counter()
                answer = await gateway.infer(picture)
                times.append((time.perf_counter() - start) * 1000)
                others += answer.answered_by is not who
        else:
            async with gateway.stream(window=window) as stream:
                async for outcome in stream.run(pictures):
                    if isinstance(outcome, Answer):
                        times.append(outcome.timings.total_ms)
                        others += outcome.answered_by is not who
        elapsed_s = time.perf_counter() - begun
    road = "tail" if who is AnsweredBy.CLOUD_TAIL else "exit"
    return _row(f"{road}, {link}", window, times, elapsed_s, others)


def _row(road: str, window: int, times: list[float], elapsed_s: float, others: int) -> dict[str, object]:
    p50, p95, p99 = (float(value) for value in np.percentile(times, [50, 95, 99]))
    return {
        "road": road,
        "window": window,
        "frames": len(times),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "frames_per_s": len(times) / elapsed_s,
        "answered_otherwise": others,
    }


if __name__ == "__main__":
    main()
