"""How soon hard samples reach the cloud again after an outage: the tail killed and restarted, the link cut and healed.

Frames flow all the time; the figure is from the moment the cause is gone (the tail is running, the link is up) to the
first CLOUD_TAIL answer. Every frame must be answered within its deadline throughout.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np
from rich.progress import Progress

from benchmarks.harness import Result, arguments, deployed_mesh, publish
from examples.solder_joints.demo import MODEL
from splitmesh.client import Answer, AnsweredBy
from splitmesh.client.routing import RoutingClient
from splitmesh.testing.links import PROFILES
from splitmesh.testing.mesh import LocalMesh

GOAL_S = 2.0
INTERVAL_S = 0.02
DEADLINE_MS = 500
OUTAGE_S = 3.0


def main() -> None:
    """Entry point."""
    repeats = 2 if arguments(__doc__).quick else 10
    asyncio.run(measure(repeats))


async def measure(repeats: int) -> None:
    """Every cause, several times."""
    rows: list[dict[str, object]] = []
    waits: list[float] = []
    async with deployed_mesh(PROFILES["public-5g-nsa"], frames=20, calibration=300) as (mesh, pictures):
        await RoutingClient(mesh.channels).set_tolerance(MODEL, 1e-6)
        with Progress(transient=True) as progress:
            task = progress.add_task("outages", total=2 * repeats)
            for cause, break_it, mend_it in (
                ("tail killed", lambda: mesh.kill("tail"), lambda: mesh.start("tail")),
                ("link cut", lambda: _link(mesh, up=False), lambda: _link(mesh, up=True)),
            ):
                found = []
                lost = late = fallbacks = 0
                for _ in range(repeats):
                    wait, answered = await _outage(mesh, pictures, break_it, mend_it)
                    found.append(wait)
                    lost += sum(not isinstance(outcome, Answer) for outcome in answered)
                    done = [outcome for outcome in answered if isinstance(outcome, Answer)]
                    late += sum(outcome.timings.total_ms > DEADLINE_MS for outcome in done)
                    fallbacks += sum(outcome.answered_by is AnsweredBy.EDGE_FALLBACK for outcome in done)
                    progress.advance(task)
                waits += found
                rows.append(
                    {
                        "cause": cause,
                        "outages": repeats,
                        "resume_p50_s": float(np.median(found)),
                        "resume_max_s": max(found),
                        "fallbacks": fallbacks,
                        "late": late,
                        "lost": lost,
                    }
                )
    publish(
        Result(
            name="heal",
            n=2 * repeats,
            baseline="gRPC's default reconnect back-off: 27 s after a 45 s outage",
            goal=f"escalation resumes within {GOAL_S} s, no frame lost or late",
            measured=f"slowest of {len(waits)}: {max(waits):.2f} s",
            met=max(waits) <= GOAL_S and not any(row["late"] or row["lost"] for row in rows),
            rows=rows,
        )
    )


async def _link(mesh: LocalMesh, *, up: bool) -> None:
    mesh.relay.up() if up else mesh.relay.down()


async def _outage(
    mesh: LocalMesh,
    pictures: list[bytes],
    break_it: Callable[[], Awaitable[None]],
    mend_it: Callable[[], Awaitable[None]],
) -> tuple[float, list[object]]:
    """One outage under a steady stream: seconds from mended to the first CLOUD_TAIL answer, and all outcomes."""
    stop = asyncio.Event()
    tail_answered = asyncio.Event()
    outcomes: list[object] = []

    async def camera() -> AsyncIterator[bytes]:
        for picture in itertools.cycle(pictures):
            if stop.is_set():
                return
            yield picture
            await asyncio.sleep(INTERVAL_S)

    async def follow() -> None:
        async with mesh.gateway(deadline_ms=DEADLINE_MS) as gateway:
            async for outcome in gateway.stream(camera(), window=64):
                outcomes.append(outcome)
                if isinstance(outcome, Answer) and outcome.answered_by is AnsweredBy.CLOUD_TAIL:
                    tail_answered.set()

    following = asyncio.create_task(follow())
    async with asyncio.timeout(120):
        await tail_answered.wait()
        await break_it()
        await asyncio.sleep(OUTAGE_S)
        await mend_it()
        mended = time.monotonic()
        tail_answered.clear()
        await tail_answered.wait()
        wait = time.monotonic() - mended
        stop.set()
        await following
    return wait, outcomes


if __name__ == "__main__":
    main()
