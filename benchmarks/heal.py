"""How soon hard samples reach the cloud again after an outage: tails killed, the link cut, the link swallowing everything.

Frames flow all the time; the figure is from the moment the cause is gone (the tail is running, the link is up) to the
first CLOUD_TAIL answer. *Cut*: new connections are reset at once. *Swallowed*: nothing is reset, what is sent vanishes and
new connections hang, as behind a firewall or in a radio hole. With two tails both are hit. Every frame must be answered
within its deadline throughout.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np
from rich.progress import Progress

from benchmarks.harness import Result, arguments, deployed_mesh, publish
from examples.solder_joints.demo import MODEL
from splitmesh.client import Answer, AnsweredBy, FrameFailure
from splitmesh.client.routing import Goals, RoutingClient
from splitmesh.testing.links import PROFILES
from splitmesh.testing.mesh import LocalMesh

GOAL_S = 2.0
INTERVAL_S = 0.02
DEADLINE_MS = 500
OUTAGES_S = (3.0, 0.7, 8.0)
"""In turn: longer than it takes to see a dead link (3.2 s), shorter, and long enough for every back-off to be at its end."""

Step = Callable[[LocalMesh], Awaitable[None]]


@dataclass
class Found:
    """What the outages of one cause did."""

    waits: list[float] = field(default_factory=list)
    fallbacks: int = 0
    late: int = 0
    slowest_ms: float = 0.0
    lost: Counter[str] = field(default_factory=Counter)
    """By reason."""

    def add(self, wait: float, outcomes: list[Answer | FrameFailure]) -> None:
        """One outage."""
        self.waits.append(wait)
        answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
        self.lost.update(outcome.error.reason for outcome in outcomes if isinstance(outcome, FrameFailure))
        self.late += sum(answer.timings.total_ms > DEADLINE_MS for answer in answers)
        self.slowest_ms = max(self.slowest_ms, *(answer.timings.total_ms for answer in answers))
        self.fallbacks += sum(answer.answered_by is AnsweredBy.EDGE_FALLBACK for answer in answers)


def main() -> None:
    """Entry point."""
    if arguments(__doc__).quick:
        asyncio.run(measure(1, tails=(1,)))
    else:
        asyncio.run(measure(9, tails=(1, 2)))


async def measure(repeats: int, tails: tuple[int, ...]) -> None:
    """Every cause, several times, with so many tails."""
    rows: list[dict[str, object]] = []
    waits: list[float] = []
    with Progress(transient=True) as progress:
        task = progress.add_task("outages", total=3 * len(tails) * repeats)
        for count in tails:
            async with deployed_mesh(PROFILES["public-5g-nsa"], frames=20, calibration=300, tails=count) as deployed:
                mesh, pictures = deployed
                await RoutingClient(mesh.channels).set_goals(MODEL, Goals(1e-6))
                for cause, break_it, mend_it in (
                    ("killed", _kill, _start),
                    ("link cut", _cut, _heal),
                    ("link swallows", _swallow, _heal),
                ):
                    found = Found()
                    for turn in range(repeats):
                        outage_s = OUTAGES_S[turn % len(OUTAGES_S)]
                        found.add(*await _outage(mesh, pictures, break_it, mend_it, outage_s))
                        progress.advance(task)
                    waits += found.waits
                    rows.append(
                        {
                            "cause": cause,
                            "tails": count,
                            "outages": repeats,
                            "resume_p50_s": float(np.median(found.waits)),
                            "resume_max_s": max(found.waits),
                            "fallbacks": found.fallbacks,
                            "late": found.late,
                            "slowest_ms": found.slowest_ms,
                            "lost": found.lost.total(),
                            "why": " ".join(found.lost),
                        }
                    )
    publish(
        Result(
            name="heal",
            n=len(waits),
            baseline="gRPC's default reconnect back-off: 27 s after a 45 s outage",
            goal=f"escalation resumes within {GOAL_S} s, no frame lost or late",
            measured=f"slowest of {len(waits)}: {max(waits):.2f} s",
            met=max(waits) <= GOAL_S and not any(row["late"] or row["lost"] for row in rows),
            rows=rows,
        )
    )


async def _kill(mesh: LocalMesh) -> None:
    for tail in mesh.relays:
        await mesh.kill(tail)


async def _start(mesh: LocalMesh) -> None:
    await asyncio.gather(*(mesh.start(tail) for tail in mesh.relays))


async def _cut(mesh: LocalMesh) -> None:
    for relay in mesh.relays.values():
        relay.down()


async def _swallow(mesh: LocalMesh) -> None:
    for relay in mesh.relays.values():
        relay.down(refuse_new=False)


async def _heal(mesh: LocalMesh) -> None:
    for relay in mesh.relays.values():
        relay.up()


async def _outage(
    mesh: LocalMesh, pictures: list[bytes], break_it: Step, mend_it: Step, outage_s: float
) -> tuple[float, list[Answer | FrameFailure]]:
    """One outage under a steady stream: seconds from mended to the first CLOUD_TAIL answer, and all outcomes."""
    stop = asyncio.Event()
    tail_answered = asyncio.Event()
    outcomes: list[Answer | FrameFailure] = []

    async def camera() -> AsyncIterator[bytes]:
        for picture in itertools.cycle(pictures):
            if stop.is_set():
                return
            yield picture
            await asyncio.sleep(INTERVAL_S)

    async def follow() -> None:
        async with mesh.gateway(deadline_ms=DEADLINE_MS) as gateway, gateway.stream(window=64) as stream:
            async for outcome in stream.run(camera()):
                outcomes.append(outcome)
                if isinstance(outcome, Answer) and outcome.answered_by is AnsweredBy.CLOUD_TAIL:
                    tail_answered.set()

    following = asyncio.create_task(follow())
    following.add_done_callback(lambda _: tail_answered.set())  # should it fail, nobody waits for an answer
    async with asyncio.timeout(120):
        await tail_answered.wait()
        await break_it(mesh)
        await asyncio.sleep(outage_s)
        # Answers that left before the break may still have come during it.
        tail_answered.clear()
        await mend_it(mesh)
        mended = time.monotonic()
        await tail_answered.wait()
        wait = time.monotonic() - mended
        stop.set()
        await following
    return wait, outcomes


if __name__ == "__main__":
    main()
