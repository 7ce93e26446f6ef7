"""How quick and how right each candidate is, on made-up inputs of the actual segment.

First every candidate is opened alone, its answers are held against the reference's, and a few runs tell the hopeless ones; then
the best few are measured side by side, in turns, so that what else the host does meets all of them, and whoever falls behind
drops out. Runs are made as the host will make them: as many side by side as it computes. Knows sessions, nothing of hosts, files
or processes.

Made to run in a child process: a back end that crashes on a model takes nothing else along.
"""

from __future__ import annotations

import gc
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from splitmesh.errors import MeshError, Reason
from splitmesh.runtime.answers import largest_distance, other_class
from splitmesh.runtime.candidates import NEARLY, REFERENCE, TOLERANCES, Candidate, Measured, Wish
from splitmesh.runtime.inputs import random_feed
from splitmesh.runtime.opening import open_candidate
from splitmesh.runtime.providers import Compute
from splitmesh.runtime.session import Session
from splitmesh.tensor.spec import Array, TensorSpec

Clock = Callable[[], float]
Feeds = Mapping[str, Array]
Open = Callable[[Candidate, int], Session]
"""Opens the segment in a candidate's way for so many runs at once."""

CHECKED = 8
"""Made-up samples whose answers are compared."""
LEAST_CHECKED = 2
"""Of a segment so slow that comparing more would take more than"""
CHECK_SHARE = 0.05
"""of the budget by the reference alone."""
FIRST_RUNS = 3
"""Timed of every candidate, on each lane, beside one before them."""
FINALISTS = 4
HOPELESS = 0.5
"""Of the best one's frames per second: who gives less after the first runs is no finalist, and"""
BEHIND = 0.85
"""who gives less after some turns of the final drops out:"""
LEAST_TURNS = 3
"""so many, for what else the host does may have met one of them alone."""
FELL_BEHIND = "fell behind the best"
TURN_S = 0.1
"""About how long one finalist computes in its turn."""
MOST_TURN_RUNS = 50
LEAST_RUNS = 3
"""Of a finalist's turn, on each lane."""
ENOUGH_RUNS = 200
"""Of each finalist: its 99th percentile is of more than one run."""
POLITE = 15
"""How much further back in the line for a core, as nice(2) counts."""
FIRST_SHARE = 0.6
"""Of the budget that may be spent before the final."""


@dataclass(slots=True)
class _Figures:
    """What was seen of one candidate."""

    measured: Measured
    lanes: int = 1
    times_ms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    """Frames per second of the whole host, by turn."""

    @property
    def rate(self) -> float:
        return float(np.median(self.rates)) if self.rates else 0.0

    @property
    def best_rate(self) -> float:
        """What its quickest run promises: after few runs the others say more of what else the host does."""
        return self.lanes * 1e3 / max(min(self.times_ms), 1e-6) if self.times_ms else 0.0

    def refuse(self, why: str) -> None:
        self.measured = replace(self.measured, refused=why)

    def add(self, times_ms: Sequence[float], wall_s: float) -> None:
        self.times_ms += times_ms
        self.rates.append(len(times_ms) / max(wall_s, 1e-9))

    def summary(self) -> Measured:
        if not self.times_ms:
            return self.measured
        return replace(
            self.measured,
            p50_ms=float(np.median(self.times_ms)),
            p99_ms=float(np.percentile(self.times_ms, 99)),
            frames_per_s=self.rate,
            runs=len(self.times_ms),
        )


def measure_pieces(
    pieces: Sequence[bytes],
    found: Sequence[Candidate],
    wish: Wish,
    compute: Compute,
    budget_s: float,
    max_run_s: float,
    polite: bool = False,
) -> list[Measured]:
    """:func:`measure` for serialised models; what a child process is told to do.

    ``polite``: frames are answered beside it, whose work goes first; the figures are then worse than they will be.
    """
    if polite:
        os.nice(POLITE)

    def opens(candidate: Candidate, lanes: int) -> Session:
        return open_candidate(pieces, candidate, lanes=lanes, max_run_s=max_run_s, compute=compute)

    return measure(opens, found, wish, budget_s=budget_s)


def measure(
    opens: Open,
    found: Sequence[Candidate],
    wish: Wish,
    *,
    budget_s: float,
    clock: Clock = time.perf_counter,
) -> list[Measured]:
    """What each candidate does, in the order given; refused with the reason where it fails or answers otherwise.

    Args:
        opens: opens the segment.
        found: what is to be measured; those that there is no time for are refused, the last ones first.
        wish: what the host will be asked to do.
        budget_s: about how long it may take; a back end that takes long to open one candidate makes it longer.
        clock: seconds.

    Raises MODEL_SHAPE_UNKNOWN when no input can be made up, and what opening and running the reference raises.
    """
    begun = clock()
    figures: dict[Candidate, _Figures] = {}
    wrong: dict[tuple[str, str], str] = {}
    with (
        closing(opens(replace(REFERENCE, threads=wish.threads or wish.cores), 1)) as reference,
        ThreadPoolExecutor(max((wish.lanes(one) for one in found), default=1)) as pool,
    ):
        rng = np.random.default_rng(0)
        feeds = [random_feed(reference.inputs, 1, rng) for _ in range(CHECKED)]
        right: list[Feeds] = []
        for feed in feeds:
            right.append(reference.run(feed))
            if len(right) >= LEAST_CHECKED and clock() - begun > CHECK_SHARE * budget_s:
                break
        feeds = feeds[: len(right)]
        for candidate in found:
            one = _Figures(Measured(candidate), wish.lanes(candidate))
            if figures and clock() - begun > FIRST_SHARE * budget_s:
                one.refuse("the time for measuring was over before its turn")
            elif candidate.way in wrong:
                one.refuse(wrong[candidate.way])
            elif _hopeless(candidate, figures):
                one.refuse("with few threads and with all of them it was far behind the best")
            elif not _try(one, opens, reference, feeds, right, wish, pool, clock):
                wrong[candidate.way] = one.measured.refused
            figures[candidate] = one
        best = max((one.best_rate for one in figures.values()), default=0.0)
        able = [one for one in figures.values() if one.times_ms and one.best_rate >= HOPELESS * best]
        finalists = sorted(able, key=lambda one: -one.best_rate)[:FINALISTS]
        # Also who is quickest for one frame: it may be the only one that is quick enough.
        finalists += [
            one for one in figures.values() if one.rates and one not in finalists and _is_quickest(one, figures)
        ]
        # Figures of a few runs are none to choose by: their worst is not yet among them.
        for one in figures.values():
            if one.times_ms and one not in finalists:
                one.refuse(FELL_BEHIND)
        _final(finalists, opens, feeds[0], wish, pool, begun + budget_s, clock)
    return [one.summary() for one in figures.values()]


def _try(
    one: _Figures,
    opens: Open,
    reference: Session,
    feeds: Sequence[Feeds],
    right: Sequence[Feeds],
    wish: Wish,
    pool: ThreadPoolExecutor,
    clock: Clock,
) -> bool:
    """Open, compare, and time a few runs; whether it answers right, which does not depend on the number of threads."""
    candidate = one.measured.candidate
    lanes = wish.lanes(candidate)
    gc.collect()
    before = resident_bytes()
    try:
        with closing(opens(candidate, lanes)) as session:
            if not _alike(session, reference):
                one.refuse("sees other inputs or outputs in the model than the reference does")
                return False
            apart, refused = compare(session, feeds, right, TOLERANCES[candidate.precision], batch=wish.batch)
            one.measured = replace(
                one.measured, error=min(apart, 1e9), refused=refused, memory_bytes=max(0, resident_bytes() - before)
            )
            if not refused:
                one.add(*_turn(session, feeds[0], lanes, FIRST_RUNS, pool, clock))
            return not refused
    except MeshError as error:
        one.refuse(error.message)
        return error.reason is Reason.DEADLINE_EXPIRED  # more threads may be in time


def compare(
    session: Session, feeds: Sequence[Feeds], right: Sequence[Feeds], tolerance: float, *, batch: int = 1
) -> tuple[float, str]:
    """How far its answers are from the right ones, and why it must not be used; empty: it may.

    Where batches will come and the segment takes them, one of some samples is compared too.
    """
    worst = 0.0
    answers = [session.run(feed) for feed in feeds]
    pairs = list(zip(right, answers, strict=True))
    if batch > 1 and all(spec.shape[:1] == (-1,) for spec in (*session.inputs, *session.outputs)):
        together = session.run(_joined(feeds[:LEAST_CHECKED]))
        pairs.append((_joined(right[:LEAST_CHECKED]), together))
    for expected, answer in pairs:
        apart, output = largest_distance(expected, answer)
        worst = max(worst, apart)
        if not apart <= tolerance:
            return worst, (
                f"answers otherwise than the reference: {output!r} differs by {apart:.3g} of its largest magnitude, "
                f"{tolerance} is tolerated"
            )
        if output := other_class(expected, answer):
            return worst, f"names another class than the reference in {output!r}"
    return worst, ""


def _joined(samples: Sequence[Feeds]) -> dict[str, Array]:
    return {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}


def _turn(
    session: Session, feed: Feeds, lanes: int, runs: int, pool: ThreadPoolExecutor, clock: Clock
) -> tuple[list[float], float]:
    """Milliseconds of each run, and the seconds that all lanes together took."""

    def lane() -> list[float]:
        times = []
        for _ in range(runs):
            start = clock()
            session.run(feed)
            times.append((clock() - start) * 1e3)
        return times

    session.run(feed)
    begun = clock()
    done = [pool.submit(lane) for _ in range(lanes)]
    times = [ms for one in done for ms in one.result()]
    return times, clock() - begun


def _final(
    finalists: list[_Figures],
    opens: Open,
    feed: Feeds,
    wish: Wish,
    pool: ThreadPoolExecutor,
    ends: float,
    clock: Clock,
) -> None:
    """Side by side, in turns, until time is up or all have enough runs."""
    with ExitStack() as stack:
        opened: list[tuple[_Figures, Session]] = []
        for one in finalists:
            candidate = one.measured.candidate
            try:
                opened.append((one, stack.enter_context(closing(opens(candidate, wish.lanes(candidate))))))
            except MeshError as error:
                one.refuse(error.message)
        for one, _ in opened:  # the first runs were cold
            one.times_ms.clear()
            one.rates.clear()
        timed = False
        while opened and not (timed and clock() >= ends) and min(len(one.times_ms) for one, _ in opened) < ENOUGH_RUNS:
            for one, session in opened:
                lanes = wish.lanes(one.measured.candidate)
                try:
                    one.add(*_turn(session, feed, lanes, _runs(one), pool, clock))
                except MeshError as error:
                    one.refuse(error.message)
            timed = True
            opened = [(one, session) for one, session in opened if not one.measured.refused]
            if len(opened[0][0].rates if opened else []) < LEAST_TURNS:
                continue
            best = max(one.rate for one, _ in opened)
            fastest = min(float(np.median(one.times_ms)) for one, _ in opened)
            for one, _ in opened:
                if one.rate < BEHIND * best and float(np.median(one.times_ms)) > fastest / NEARLY:
                    one.refuse(FELL_BEHIND)
            opened = [(one, session) for one, session in opened if not one.measured.refused]


def _runs(one: _Figures) -> int:
    if not one.times_ms:
        return LEAST_RUNS
    return int(min(MOST_TURN_RUNS, max(LEAST_RUNS, TURN_S * 1e3 / max(float(np.median(one.times_ms)), 1e-3))))


def _hopeless(candidate: Candidate, figures: Mapping[Candidate, _Figures]) -> bool:
    """Neither few threads nor all were any good in this way: what lies between needs no time."""
    best = max((one.best_rate for one in figures.values()), default=0.0)
    same = [one for one in figures.values() if one.times_ms and one.measured.candidate.way == candidate.way]
    return len(same) >= 2 and all(one.best_rate < HOPELESS * best for one in same)


def _alike(session: Session, reference: Session) -> bool:
    """Whether a caller may use one as the other; a backend may know more of an output's sizes than another."""

    def seen(spec: TensorSpec) -> tuple[str, str, int, bool]:
        return spec.name, spec.dtype, len(spec.shape), spec.shape[:1] == (-1,)

    return session.inputs == reference.inputs and [*map(seen, session.outputs)] == [*map(seen, reference.outputs)]


def _is_quickest(one: _Figures, figures: Mapping[Candidate, _Figures]) -> bool:
    return float(np.median(one.times_ms)) <= min(
        float(np.median(other.times_ms)) for other in figures.values() if other.times_ms
    )


def resident_bytes() -> int:
    """Memory of this process that is in use now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * resource.getpagesize()
