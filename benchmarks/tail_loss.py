"""What one of three tails costs when it is killed, becomes slow, or is stopped: failed frames, fallbacks, latency, second copies.

A camera sends frames at a steady rate through a real head; every frame escalates. *Killed*: the tail's process gets SIGKILL and
is started again, which is part of *after*. *Drained*: it gets SIGTERM instead. *Slowed*: the relay before the tail takes ten
times the round trip (100 ms instead of 10), so that everything about this tail is late and nothing is broken. Latencies are the
head's own, from a frame's arrival to its answer; a frame belongs to the phase in which it was sent. The baseline is the same
head with its policy switched off (`SPLITMESH_BALANCE=in_flight`, `SPLITMESH_EJECT_FACTOR=0`, `SPLITMESH_HEDGE_BUDGET=0`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from rich.progress import Progress

from benchmarks.harness import Result, arguments, deployed_mesh, publish
from examples.solder_joints.demo import MODEL, head_ready
from splitmesh.api.segment.v1 import segment_pb2, segment_pb2_grpc
from splitmesh.client import Answer, AnsweredBy, FrameFailure
from splitmesh.client.routing import Goals, RoutingClient
from splitmesh.kernel.channels import open_channel
from splitmesh.testing.links import PROFILES
from splitmesh.testing.mesh import LocalMesh

LINK = PROFILES["private-5g"]
SLOW = replace(LINK, rtt_ms=10 * LINK.rtt_ms)
TAILS = 3
HIT = "tail-2"
INTERVAL_S = 0.02
WARM_UP_S = 2.0
DEADLINE_MS = 1000
PHASES = ("before", "during", "after")
OFF = {"balance": "in_flight", "eject_factor": "0", "hedge_budget": "0"}
POLICIES: dict[str, Mapping[str, str]] = {"ours": {}, "least in flight": OFF}

Step = Callable[[LocalMesh], Awaitable[None]]


async def _kill(mesh: LocalMesh) -> None:
    await mesh.kill(HIT)


async def _restart(mesh: LocalMesh) -> None:
    await mesh.start(HIT)


async def _stop(mesh: LocalMesh) -> None:
    await mesh.stop(HIT)


async def _slow(mesh: LocalMesh) -> None:
    mesh.relays[HIT].set_profile(SLOW)


async def _mend(mesh: LocalMesh) -> None:
    mesh.relays[HIT].set_profile(LINK)


FAULTS: dict[str, tuple[Step, Step]] = {
    "killed": (_kill, _restart),
    "slowed 10x": (_slow, _mend),
    "drained": (_stop, _restart),
}


@dataclass
class Phase:
    """One stretch of a run."""

    outcomes: list[Answer | FrameFailure] = field(default_factory=list)
    hedged: int = 0
    by_hit: int = 0
    """Answers of the tail that is hit."""

    @property
    def failed(self) -> int:
        """Frames without an answer."""
        return sum(isinstance(outcome, FrameFailure) for outcome in self.outcomes)

    @property
    def fallbacks(self) -> int:
        """Frames that no tail answered."""
        return sum(
            isinstance(outcome, Answer) and outcome.answered_by is AnsweredBy.EDGE_FALLBACK for outcome in self.outcomes
        )

    @property
    def p99_ms(self) -> float:
        """Of the answered frames."""
        return self._percentile(99)

    def add(self, other: Phase) -> None:
        """What the same phase of another round saw."""
        self.outcomes += other.outcomes
        self.hedged += other.hedged
        self.by_hit += other.by_hit

    def _reasons(self) -> str:
        reasons = Counter(
            outcome.error.reason.value if isinstance(outcome, FrameFailure) else outcome.fallback_reason
            for outcome in self.outcomes
        )
        return ", ".join(f"{reason} {count}" for reason, count in reasons.items() if reason)

    def _percentile(self, percent: float) -> float:
        times = [outcome.timings.total_ms for outcome in self.outcomes if isinstance(outcome, Answer)]
        return float(np.percentile(times, percent)) if times else 0.0

    def row(self, policy: str, fault: str, phase: str) -> dict[str, object]:
        """For the table."""
        return {
            "policy": policy,
            "tail": fault,
            "phase": phase,
            "frames": len(self.outcomes),
            "failed": self.failed,
            "fallbacks": self.fallbacks,
            "why": self._reasons(),
            "p50_ms": self._percentile(50),
            "p99_ms": self.p99_ms,
            "hedged": self.hedged,
            "by_hit_tail": self.by_hit,
        }


def main() -> None:
    """Entry point."""
    asyncio.run(measure(*((1, 1.5) if arguments(__doc__).quick else (4, 5.0))))


async def measure(rounds: int, phase_s: float) -> None:
    """Every policy and fault, in turns, so that what else the host does hits all alike."""
    found = {(policy, fault, phase): Phase() for policy in POLICIES for fault in FAULTS for phase in PHASES}
    async with deployed_mesh(LINK, frames=20, calibration=300, tails=TAILS) as (mesh, pictures):
        await RoutingClient(mesh.channels).set_goals(MODEL, Goals(1e-6))
        with Progress(transient=True) as progress:
            task = progress.add_task("faults", total=rounds * len(POLICIES) * len(FAULTS))
            for _, (policy, settings) in itertools.product(range(rounds), POLICIES.items()):
                await mesh.stop("head")
                await mesh.start("head", settings)
                await head_ready(mesh)
                for fault, (break_it, mend_it) in FAULTS.items():
                    for name, seen in zip(PHASES, await _run(mesh, pictures, break_it, mend_it, phase_s), strict=True):
                        found[policy, fault, name].add(seen)
                    progress.advance(task)
    _publish(found)


def _publish(found: dict[tuple[str, str, str], Phase]) -> None:
    lost = sum(phase.failed + phase.fallbacks for (policy, _, _), phase in found.items() if policy == "ours")
    during = {key[:2]: phase.p99_ms for key, phase in found.items() if key[2] == "during"}
    measured = "; ".join(
        f"{fault}: p99 during {during['ours', fault]:.0f} ms, baseline {during['least in flight', fault]:.0f} ms"
        for fault in FAULTS
    )
    publish(
        Result(
            name="tail_loss",
            n=sum(len(phase.outcomes) for phase in found.values()),
            baseline="the same head with least in flight, no ejection, no second copies",
            goal="no frame fails or falls back with our policy",
            measured=f"{lost} failed or fell back; {measured}",
            met=not lost,
            rows=[phase.row(*key) for key, phase in found.items()],
        )
    )


async def _run(mesh: LocalMesh, pictures: list[bytes], break_it: Step, mend_it: Step, phase_s: float) -> list[Phase]:
    """A stream of frames over one fault."""
    phases = [Phase() for _ in PHASES]
    phase_of: list[Phase | None] = []
    now: list[Phase | None] = [None]
    stop = asyncio.Event()

    async def camera() -> AsyncIterator[bytes]:
        for picture in itertools.cycle(pictures):
            if stop.is_set():
                return
            phase_of.append(now[0])
            yield picture
            await asyncio.sleep(INTERVAL_S)

    async def follow() -> None:
        async with mesh.gateway(deadline_ms=DEADLINE_MS) as gateway, gateway.stream(window=64) as stream:
            async for outcome in stream.run(camera()):
                phase = phase_of[outcome.frame_id]
                if phase is not None:
                    phase.outcomes.append(outcome)

    following = asyncio.create_task(follow())
    await asyncio.sleep(min(phase_s, WARM_UP_S))
    for phase, step in zip(phases, (None, break_it, mend_it), strict=True):
        hedged, by_hit = await _counts(mesh)
        now[0] = phase
        if step is not None:
            await step(mesh)
        await asyncio.sleep(phase_s)
        hedged_then, by_hit_then = await _counts(mesh)
        phase.hedged, phase.by_hit = hedged_then - hedged, by_hit_then - by_hit
    stop.set()
    await following
    return phases


async def _counts(mesh: LocalMesh) -> tuple[int, int]:
    """Second copies so far, and answers of the tail that is hit."""
    async with open_channel(mesh.address("head")) as channel:
        stub = segment_pb2_grpc.SegmentServiceStub(channel)
        described = await stub.Describe(segment_pb2.DescribeRequest())
    hit = mesh.relays[HIT].address
    return (
        sum(uplink.hedged for uplink in described.uplinks),
        sum(uplink.answered for uplink in described.uplinks if uplink.address == hit),
    )


if __name__ == "__main__":
    main()
