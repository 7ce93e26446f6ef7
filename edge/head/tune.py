"""How this host runs a head best, by measuring when it is loaded: threads inside an operator, and frames computed together.

Threads: with few, many frames are computed side by side and no core waits; with many, one frame is done sooner. Chosen here
only where one back end is all there is; ``chosen.py`` has both chosen together, by the same rule. Batches: used where they cost
clearly less per frame than singles, and give the same answers. Knows sessions, nothing of versions or frames.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from edge.head.line import MOST_COMPANY
from splitmesh.errors import MeshError, Reason
from splitmesh.runtime import Session
from splitmesh.runtime.candidates import (
    NEARLY,
    REFERENCE_BACKEND,
    Candidate,
    Measured,
    Wish,
    choose,
    thread_counts,
)
from splitmesh.runtime.host_backends import FP32
from splitmesh.runtime.inputs import random_feed
from splitmesh.runtime.ort import CPU
from splitmesh.tensor.spec import Array

Clock = Callable[[], float]
Open = Callable[[int], Session]
"""Opens the head with so many threads."""

RUNS = 3
"""Timed, of each setting, beside one before them."""
THREADS_BUDGET_S = 0.8
BATCHES_BUDGET_S = 0.4
SINGLES_BUDGET_S = 0.2
SINGLES = 100
ENOUGH_S = 0.1
"""After so long one timed run is enough."""
BATCHES = (2, 4, MOST_COMPANY)
MUST_SAVE = 0.2
"""Share of a single's time that a frame of a batch must save, and"""
MUST_SAVE_MS = 0.1
"""this much of it: what waiting for each other costs."""
TOLERANCE = 1e-3
"""Of an output's largest magnitude; batches whose answers differ by more are not used."""

_ONE_AT_A_TIME = threading.Lock()
"""Heads of one process measured side by side would measure each other. Those of several processes are, each on its share of the
cores, as they will run."""


@dataclass(frozen=True, slots=True)
class Batching:
    """Frames computed together."""

    most: int
    """1: none are."""
    per_frame_ms: Mapping[int, float]
    """What was measured, by size."""


def choose_threads(run_ms: Mapping[int, float], *, cores: int, workers: int, latency_ms: float) -> int:
    """Threads inside an operator, of those measured.

    Args:
        run_ms: of one frame, by threads.
        cores: of the host.
        workers: frames computed side by side at most.
        latency_ms: what one frame should take at most.

    By the rule of :func:`splitmesh.runtime.candidates.choose`.
    """
    wish = Wish(cores, workers, latency_ms)
    measured = []
    for threads, ms in run_ms.items():
        candidate = Candidate(REFERENCE_BACKEND, FP32, threads)
        measured.append(Measured(candidate, ms, ms, wish.lanes(candidate) * 1e3 / max(ms, 1e-6)))
    return choose(measured, latency_ms).candidate.threads


def open_tuned(
    open_with: Open, *, workers: int, latency_ms: float, cores: int, clock: Clock = time.perf_counter
) -> tuple[Session, int, dict[int, float]]:
    """The head opened with the threads that suit it; the threads; and what was measured, milliseconds by threads.

    Blocking, for about ``THREADS_BUDGET_S`` at most beside opening, and where that was not enough to find it quick enough for
    the time of one more measurement, with all of the host; a head that cannot be run on made-up inputs, or that
    no processor computes, gets one thread. Errors as ``open_with``.
    """
    opened: dict[int, Session] = {}
    run_ms: dict[int, float] = {}
    with _ONE_AT_A_TIME:
        try:
            begun = clock()
            for count in thread_counts(cores):
                in_time = clock() - begun <= THREADS_BUDGET_S
                # A slow head needs the threads most: the whole host is tried, whatever time is left.
                if not in_time and (count < cores or min(run_ms.values()) <= latency_ms):
                    continue
                opened[count] = open_with(count)
                feed = _feed(opened[count], 1)
                if feed is None or opened[count].providers[0] != CPU:
                    return opened[count], count, {}
                run_ms[count] = _time_to_end(opened[count], feed, clock)
                if _slower(run_ms):
                    break
        except BaseException:
            for session in opened.values():
                session.close()
            raise
    chosen = choose_threads(run_ms, cores=cores, workers=workers, latency_ms=latency_ms)
    for count, session in opened.items():
        if count != chosen:
            session.close()
    return opened[chosen], chosen, run_ms


def measure_batches(session: Session, run_ms: float | None, *, clock: Clock = time.perf_counter) -> Batching:
    """Time batches of a head that takes them; ``run_ms`` is a single's time, None where it is not known.

    Blocking, for about ``BATCHES_BUDGET_S`` at most.
    """
    if run_ms is None or any(spec.shape[:1] != (-1,) for spec in (*session.inputs, *session.outputs)):
        return Batching(1, {})
    per_frame_ms = {1: run_ms}
    with _ONE_AT_A_TIME:
        begun = clock()
        for count in (1, *BATCHES):
            expected_s = (3 + RUNS) * count * run_ms / 1e3
            if clock() - begun + expected_s > BATCHES_BUDGET_S:
                break
            try:
                feed = _feed(session, count)
                if feed is None or (count > 1 and not _same_answers(session, feed, count)):
                    break
                per_frame_ms[count] = _time(session, feed, clock) / count
            except MeshError:  # says that it takes batches and does not
                break
    return Batching(choose_batch(per_frame_ms), per_frame_ms)


def choose_batch(per_frame_ms: Mapping[int, float]) -> int:
    """The size with the least time per frame, of those that save enough; 1 where none does."""
    best = min(per_frame_ms, key=per_frame_ms.__getitem__)
    saved = per_frame_ms[1] - per_frame_ms[best]
    return best if saved >= max(MUST_SAVE * per_frame_ms[1], MUST_SAVE_MS) else 1


def time_singles(session: Session, *, clock: Clock = time.perf_counter) -> list[float]:
    """Milliseconds of each of some runs of one sample, within ``SINGLES_BUDGET_S``; none of a head that is not run."""
    feed = _feed(session, 1)
    if feed is None:
        return []
    times: list[float] = []
    with _ONE_AT_A_TIME:
        while len(times) < SINGLES and sum(times) < SINGLES_BUDGET_S * 1e3:
            begun = clock()
            session.run(feed)
            times.append((clock() - begun) * 1e3)
    return times


def _slower(run_ms: Mapping[int, float]) -> bool:
    """More threads made it no quicker: still more will not."""
    times = list(run_ms.values())
    return len(times) > 1 and times[-1] > times[-2] * NEARLY


def _feed(session: Session, batch: int) -> dict[str, Array] | None:
    """None for a head with open sizes, which is not run."""
    if any(-1 in spec.shape[1:] for spec in session.inputs):
        return None
    try:
        return random_feed(session.inputs, batch, np.random.default_rng(0))
    except MeshError:  # too large to be made up
        return None


def _time(session: Session, feed: Mapping[str, Array], clock: Clock) -> float:
    """The best of a few runs, milliseconds: what else the host does must not choose."""
    session.run(feed)
    times: list[float] = []
    while len(times) < RUNS and sum(times) < ENOUGH_S * 1e3:
        begun = clock()
        session.run(feed)
        times.append((clock() - begun) * 1e3)
    return min(times)


def _time_to_end(session: Session, feed: Mapping[str, Array], clock: Clock) -> float:
    """As :func:`_time`; infinite where a run was stopped because it took too long: with more threads it may not."""
    try:
        return _time(session, feed, clock)
    except MeshError as error:
        if error.reason != Reason.DEADLINE_EXPIRED:
            raise
        return math.inf


def _same_answers(session: Session, feed: Mapping[str, Array], count: int) -> bool:
    """Whether every sample of a batch is answered as it is alone."""
    together = session.run(feed)
    for row in range(count):
        alone = session.run({name: array[row : row + 1] for name, array in feed.items()})
        for name, array in alone.items():
            if together[name].shape[:1] != (count,) or not _close(together[name][row : row + 1], array):
                return False
    return True


def _close(one: Array, other: Array) -> bool:
    left, right = np.asarray(one, np.float64), np.asarray(other, np.float64)
    # A code may round the other way.
    allowed = 1.0 if other.dtype.kind in "iu" else TOLERANCE * max(1e-6, float(np.abs(right).max(initial=0.0)))
    return bool(left.shape == right.shape and np.all(np.abs(left - right) <= allowed))


def describe(choice: Mapping[int, float]) -> str:
    """Measured times for people."""
    return ", ".join(f"{count}: {ms:.2f} ms" for count, ms in choice.items())
