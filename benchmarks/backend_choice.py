"""Whether the back end that is chosen by measuring is the best one: frames per second of this host, by every candidate.

    python -m benchmarks.backend_choice [--quick]

First the choice is made as a head makes it, in a child process within its budget. Then every candidate whose answers hold is
measured by itself at length: all of them in turns, round after round, so that what else the host does meets each alike; as many
frames side by side as the host computes; the median round counts. Networks have random weights: times are those of trained
ones, and whether bf16 answers right is another question for each of them.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

import numpy as np

from benchmarks.architectures import build
from benchmarks.harness import Result, arguments, publish
from examples.solder_joints.demo import SHIPPED_MODEL
from splitmesh.kernel.child_env import child_environment
from splitmesh.kernel.jobs import run_job
from splitmesh.runtime import Session
from splitmesh.runtime.candidates import Candidate, Measured, Wish, candidates, choose
from splitmesh.runtime.host import describe_host_apart
from splitmesh.runtime.inputs import random_feed
from splitmesh.runtime.measure import FELL_BEHIND, measure_pieces
from splitmesh.runtime.opening import open_candidate
from splitmesh.runtime.providers import Compute

GOAL = 0.95
"""Of the best candidate's frames per second that the chosen one has to give, on every model."""
LATENCY_MS = 250.0
"""A quarter of the head's default deadline."""
MAX_RUN_S = 10.0

MODELS = ("solder", "mobilenet_v2", "mobilenet_v3", "efficientnet_b0", "resnet18", "vit_tiny", "unet", "yolo")
QUICK = ("solder", "mobilenet_v3", "resnet18")


@dataclass(frozen=True, slots=True)
class Effort:
    """How long is measured."""

    budget_s: float
    """Of the choice."""
    rounds: int
    turn_s: float
    """Of one candidate in one round."""


FULL, SHORT = Effort(20.0, 12, 0.5), Effort(8.0, 4, 0.2)


@dataclass(slots=True)
class Seen:
    """What one candidate did in all rounds."""

    rates: list[float] = field(default_factory=list)
    times_ms: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return float(np.median(self.rates))

    @property
    def p50_ms(self) -> float:
        return float(np.median(self.times_ms))


def content(name: str) -> bytes:
    """The model's file."""
    return (SHIPPED_MODEL / "model.onnx").read_bytes() if name == "solder" else build(name)


async def chosen(
    model: bytes, found: Sequence[Candidate], wish: Wish, budget_s: float
) -> tuple[Measured, list[Measured]]:
    """As a head chooses."""
    measured = await run_job(
        measure_pieces,
        [model],
        list(found),
        wish,
        Compute("cpu"),
        budget_s,
        MAX_RUN_S,
        deadline_s=budget_s + 60.0,
        max_memory_bytes=16 << 30,
    )
    return choose(measured, wish.latency_ms), measured


def in_turns(model: bytes, found: Sequence[Candidate], wish: Wish, effort: Effort) -> dict[Candidate, Seen]:
    """Every candidate in every round; the round's order goes round too."""
    seen = {candidate: Seen() for candidate in found}
    with ExitStack() as stack:
        sessions = {
            one: stack.enter_context(closing(open_candidate([model], one, lanes=wish.lanes(one), max_run_s=MAX_RUN_S)))
            for one in found
        }
        pool = stack.enter_context(ThreadPoolExecutor(wish.workers))
        feed = random_feed(next(iter(sessions.values())).inputs, 1, np.random.default_rng(1))
        for session in sessions.values():
            session.run(feed)
        for number in range(effort.rounds):
            order = [*found[number % len(found) :], *found[: number % len(found)]]
            for candidate in order:
                _turn(sessions[candidate], feed, wish.lanes(candidate), effort.turn_s, pool, seen[candidate])
    return seen


def _turn(
    session: Session, feed: dict[str, np.ndarray], lanes: int, turn_s: float, pool: ThreadPoolExecutor, seen: Seen
) -> None:
    session.run(feed)
    begun = time.perf_counter()

    def lane() -> list[float]:
        times: list[float] = []
        while (start := time.perf_counter()) < begun + turn_s or not times:
            session.run(feed)
            times.append((time.perf_counter() - start) * 1e3)
        return times

    done = [pool.submit(lane) for _ in range(lanes)]
    times = [ms for one in done for ms in one.result()]
    seen.rates.append(len(times) / (time.perf_counter() - begun))
    seen.times_ms += times


def row(name: str, wish: Wish, found: Sequence[Candidate], effort: Effort) -> dict[str, object]:
    """One model."""
    model = content(name)
    best, measured = asyncio.run(chosen(model, found, wish, effort.budget_s))
    # What answers otherwise may be as quick as it likes; what there was no time for may still be the best.
    unknown = ("time for measuring", FELL_BEHIND, "far behind")
    right = [one.candidate for one in measured if not one.refused or any(why in one.refused for why in unknown)]
    seen = in_turns(model, right, wish, effort)
    quickest = max(seen, key=lambda one: seen[one].rate)
    slowest = min(seen, key=lambda one: seen[one].rate)
    ours = seen[best.candidate]
    wrong = {f"{one.candidate.backend} {one.candidate.precision}" for one in measured if one.candidate not in right}
    return {
        "model": name,
        "chosen": str(best.candidate).replace(" threads", ""),
        "frames_per_s": ours.rate,
        "p50_ms": ours.p50_ms,
        "best": str(quickest).replace(" threads", ""),
        "its_frames_per_s": seen[quickest].rate,
        "its_p50_ms": seen[quickest].p50_ms,
        "of_best": ours.rate / seen[quickest].rate,
        "worst_frames_per_s": seen[slowest].rate,
        "times_worst": ours.rate / seen[slowest].rate,
        "refused": ", ".join(sorted(wrong)) or "-",
    }


def main() -> None:
    quick = arguments(__doc__).quick
    effort = SHORT if quick else FULL
    cores = len(os.sched_getaffinity(0))
    wish = Wish(cores=cores, workers=cores, latency_ms=LATENCY_MS, provider="cpu", batch=8)
    found, _ = candidates(wish, describe_host_apart(child_environment(os.environ)).backends)
    rows = [row(name, wish, found, effort) for name in (QUICK if quick else MODELS)]
    shares = {str(one["model"]): float(str(one["of_best"])) for one in rows}
    publish(
        Result(
            name="backend_choice",
            n=effort.rounds,
            baseline="every candidate (back end, precision, threads) whose answers hold, measured in turns",
            goal=f"the chosen one gives at least {GOAL:.2f} of the best one's frames per second on every model",
            measured=f"at least {min(shares.values()):.2f} ({min(shares, key=shares.__getitem__)}); "
            f"{min(float(str(one['times_worst'])) for one in rows):.1f} to "
            f"{max(float(str(one['times_worst'])) for one in rows):.1f} times the worst",
            met=min(shares.values()) >= GOAL,
            rows=rows,
        )
    )


if __name__ == "__main__":
    main()
