"""An uplink shared by three applications: what is gained within the budget, held against the best that hindsight could choose.

Solder joints, helmets and faces, on one head or a head each, on one uplink of 5 Mbit/s and one tail. They ask for about twice
what the link carries; in the second sixth of the run three times as many faces come, and in the middle third everything at the
tail takes three times as long. Worths follow Beta distributions, arrivals are Poisson, sizes normal; all seeded. A sample that
crosses is worth its application's weight times its worth if its answer is back within a second, else nothing.

Real are the heads' budgets, the router's board, and their messages; simulated are link, tail and time. The optimum is a linear
program over all samples of each second, known in advance, with the bytes and the tail's time of that second and the same minima.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress
from scipy.optimize import linprog

from benchmarks.budget_mesh import Shared
from benchmarks.budget_rivals import Chooser, EqualSplit, FirstCome, FixedPriorities
from benchmarks.budget_site import (
    APPLICATIONS,
    CLOUD_MS_PER_S,
    UPLINK_BYTES_PER_S,
    Sample,
    Site,
    least_shares,
    samples,
    slowdown,
    worst_window,
)
from benchmarks.harness import Result, arguments, publish
from benchmarks.simulated_time import run_simulated

GOAL_REACTION_S = 1.0
GOAL_VALUE = 0.9
"""Of what hindsight would have chosen, second by second."""
SETTLED_S = 2.0
"""Between the start of the heads and the first sample."""
LOOK_S = 0.25
"""The work that goes to the tail is looked at over so long."""
STAYS = 1.2
"""A rule that has reacted sends no more than this times what the tail does, in any second that is still slowed."""
MINIMUM_WINDOW_S = 10.0
OURS, APART = "splitmesh", "splitmesh, a head each"

Make = Callable[[Callable[[], float], Site, Path], Chooser]
CHOOSERS: dict[str, Make] = {
    OURS: lambda clock, site, folder: Shared(clock, site, folder, together=True),
    APART: lambda clock, site, folder: Shared(clock, site, folder, together=False),
    "first come": lambda clock, site, folder: FirstCome(clock),
    "equal split": lambda clock, site, folder: EqualSplit(clock),
    "fixed priorities": lambda clock, site, folder: FixedPriorities(clock),
}


@dataclass(frozen=True, slots=True)
class Run:
    """One chooser, one seed."""

    value: float
    """Of the optimum, 0..1."""
    slowed_value: float
    """While the tail is slowed."""
    crossed: int
    late: int
    """Crossed, and answered after the deadline."""
    worst: float
    """Bytes in the worst second, of the budget."""
    above: float
    """Share of the samples that end a second above the budget."""
    reaction_s: float
    """From the slowed tail until no more work goes there than it can do, and stays so; infinite: never."""
    peak_ms: float
    """Longest back-log of the tail."""
    least: dict[str, float]
    """Share of each application in its worst ten seconds."""


def main() -> None:
    """Entry point."""
    quick = arguments(__doc__).quick
    length_s, seeds = (30.0, 1) if quick else (120.0, 5)
    found: dict[str, list[Run]] = {name: [] for name in CHOOSERS}
    with Progress(transient=True) as progress:
        task = progress.add_task("optimum", total=seeds * (len(CHOOSERS) + 1))
        for seed in range(seeds):
            stream = samples(length_s, seed)
            progress.update(task, description=f"optimum, seed {seed}")
            best = _bests(stream, length_s)
            progress.advance(task)
            for name, make in CHOOSERS.items():
                progress.update(task, description=f"{name}, seed {seed}")
                found[name].append(run_simulated(play(make, stream, length_s, best)))
                progress.advance(task)
    _publish(found, length_s)


def _bests(stream: Sequence[Sample], length_s: float) -> tuple[float, float]:
    """The optimum of the rest, and that while the tail is slowed."""
    slowed = [sample for sample in stream if slowdown(sample.at_s, length_s) > 1]
    others = [sample for sample in stream if slowdown(sample.at_s, length_s) == 1]
    return optimum(others, length_s), optimum(slowed, length_s)


def optimum(stream: Sequence[Sample], length_s: float) -> float:
    """The largest value: of each second's samples any share crosses, within that second's bytes and the tail's time, with the
    stated minima where they fit."""
    total = 0.0
    for second in range(round(length_s)):
        now = [sample for sample in stream if second <= sample.at_s < second + 1]
        if not now:
            continue
        slow = slowdown(second + 0.5, length_s)
        limits = [[one.size_bytes for one in now], [one.application.cloud_ms * slow for one in now]]
        minima = [[-float(one.application is asked) for one in now] for asked in APPLICATIONS]
        least = [asked.min_share * sum(row) for asked, row in zip(APPLICATIONS, minima, strict=True)]
        gains, most = [-one.value for one in now], [UPLINK_BYTES_PER_S, CLOUD_MS_PER_S]
        solved = linprog(gains, A_ub=limits + minima, b_ub=most + least, bounds=(0, 1))
        if not solved.success:
            solved = linprog(gains, A_ub=limits, b_ub=most, bounds=(0, 1))
        total -= float(solved.fun)
    return total


async def play(make: Make, stream: Sequence[Sample], length_s: float, best: tuple[float, float]) -> Run:
    """All samples, each when it comes."""
    loop = asyncio.get_running_loop()
    begun_s = loop.time() + SETTLED_S
    site = Site(lambda: loop.time() - begun_s, length_s)
    with tempfile.TemporaryDirectory(prefix="splitmesh-budget-") as folder:
        chooser = make(loop.time, site, Path(folder))
        await chooser.start()
        try:
            for sample in stream:
                await asyncio.sleep(begun_s + sample.at_s - loop.time())
                if not site.late(sample) and chooser.crosses(sample):
                    site.send(sample, partial(chooser.answered, sample))
        finally:
            await chooser.stop()
    worst, above = worst_window(site.crossed)
    slowed_s = length_s / 3, 2 * length_s / 3
    slowed = [one for one in site.crossed if slowed_s[0] <= one.sample.at_s < slowed_s[1]]
    return Run(
        value=sum(one.value for one in site.crossed) / (best[0] + best[1]),
        slowed_value=sum(one.value for one in slowed) / best[1],
        crossed=len(site.crossed),
        late=sum(one.value == 0 for one in site.crossed),
        worst=worst / UPLINK_BYTES_PER_S,
        above=above,
        reaction_s=reaction_s(site, length_s),
        peak_ms=max(wait_ms for _, wait_ms in site.peaks),
        least=dict(least_shares(list(stream), site.crossed, MINIMUM_WINDOW_S)),
    )


def reaction_s(site: Site, length_s: float) -> float:
    """From when the tail is slowed to the end of the first look in which what was sent is no more work than it does, where that
    holds for the whole second from there on too, and the work of no later second is above ``STAYS`` times it; else infinite."""
    begin_s, end_s = length_s / 3, 2 * length_s / 3
    sent = [one.sample for one in site.crossed if begin_s <= one.sample.at_s < end_s]
    times = np.array([sample.at_s for sample in sent])
    work_ms = np.array([sample.application.cloud_ms * slowdown(begin_s, length_s) for sample in sent])
    total_ms = np.concatenate([[0.0], np.cumsum(work_ms)])
    starts = np.arange(begin_s, end_s - 1.0 + 1e-9, LOOK_S / 5)

    def within(seconds: float) -> NDArray[np.float64]:
        """Work that was sent from each start on, per second."""
        first, last = np.searchsorted(times, starts), np.searchsorted(times, starts + seconds)
        found: NDArray[np.float64] = (total_ms[last] - total_ms[first]) / seconds
        return found

    second = within(1.0)
    stays = np.maximum.accumulate(second[::-1])[::-1] <= STAYS * CLOUD_MS_PER_S
    reacted = (within(LOOK_S) <= CLOUD_MS_PER_S) & (second <= CLOUD_MS_PER_S) & stays
    return float(starts[np.argmax(reacted)] + LOOK_S - begin_s) if reacted.any() else math.inf


def _publish(found: dict[str, list[Run]], length_s: float) -> None:
    ours, rivals = found[OURS], [name for name in found if name not in (OURS, APART)]
    best = max(rivals, key=lambda name: _mean(found[name], "value"))
    value, worst = _mean(ours, "value"), max(run.worst for run in ours)
    slowest_s = max(run.reaction_s for run in ours)
    reacts = f"{slowest_s:.2f} s at the slowest" if math.isfinite(slowest_s) else "no lasting reaction in some run"
    publish(
        Result(
            name="budget",
            n=len(ours),
            baseline=f"{best}, the best simple rule: {_mean(found[best], 'value'):.1%} of the optimum; runs of {length_s:g} s",
            goal=f"{GOAL_VALUE:.0%} of the optimum, no second above the budget, less than {GOAL_REACTION_S:g} s to a slowed tail",
            measured=f"{value:.1%} of the optimum, the worst second {worst:.1%} of the budget, {reacts}",
            met=value >= GOAL_VALUE and worst <= 1 and slowest_s < GOAL_REACTION_S,
            rows=[_row(name, runs) for name, runs in found.items()],
        )
    )


def _row(name: str, runs: Sequence[Run]) -> dict[str, object]:
    minima = [
        f"{100 * min(run.least[one.name] for run in runs):.0f} of {100 * one.min_share:.0f}" for one in APPLICATIONS[1:]
    ]
    reaction_s = max(run.reaction_s for run in runs)
    return {
        "rule": name,
        "of_optimum_%": 100 * _mean(runs, "value"),
        "while_slowed_%": 100 * _mean(runs, "slowed_value"),
        "crossed": round(_mean(runs, "crossed")),
        "late": round(_mean(runs, "late")),
        "worst_second_%": 100 * max(run.worst for run in runs),
        "samples_ending_a_second_above_%": 100 * _mean(runs, "above"),
        "reaction_s": reaction_s if math.isfinite(reaction_s) else "never",
        "longest_backlog_ms": max(run.peak_ms for run in runs),
        "least_helmets_%": minima[0],
        "least_faces_%": minima[1],
    }


def _mean(runs: Sequence[Run], name: str) -> float:
    return float(np.mean([getattr(run, name) for run in runs]))


if __name__ == "__main__":
    main()
