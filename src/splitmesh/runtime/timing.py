"""How long a segment takes: on made-up inputs when it is profiled, and in production as its runs come by.

Needs a runtime and nothing else, so that a MEC host can time a piece that another host cut for it.
"""

from __future__ import annotations

import os
import platform
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime

from splitmesh.errors import field_error
from splitmesh.runtime import open_session
from splitmesh.runtime.inputs import random_feed

Clock = Callable[[], float]

MIN_RUNS = 3
"""Timed runs that happen even when the budget is spent."""

LIVE_WINDOW = 256
"""Runs of one batch size that a live median is taken of."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of one session, milliseconds per run."""

    median_ms: float
    p90_ms: float
    runs: int
    """Timed ones."""
    backend: str
    """Execution provider that ran it, the preferred one when there are several."""
    threads: int
    """Inside one operator."""
    p99_ms: float = 0.0
    """Of few runs the longest, nearly; 0: not known."""


def time_piece(
    model: bytes,
    *,
    batch: int = 1,
    threads: int = 1,
    providers: Sequence[str] = (),
    repeats: int = 20,
    warmup: int = 3,
    budget_s: float = 10.0,
    clock: Clock = time.perf_counter,
) -> Timing:
    """Time one model on random inputs.

    Args:
        model: the serialised model.
        batch: samples per run. A model whose batch is fixed is run as it is and takes no other ``batch`` than 1.
        threads: inside one operator.
        providers: as :class:`splitmesh.runtime.OrtSession`; empty: the CPU.
        repeats: most timed runs.
        warmup: runs before them, not timed; one at least when the budget is spent.
        budget_s: about how long warm-up and runs may take together; ``MIN_RUNS`` are timed in any case.
        clock: seconds.

    Raises MeshError FIELD_INVALID for values out of range, MODEL_SHAPE_UNKNOWN when an input's size is not known, and
    what opening and running a session raise.
    """
    for name, value, least in (("batch", batch, 1), ("threads", threads, 1), ("repeats", repeats, 1)):
        if value < least:
            raise field_error(name, f"is {value}, expected at least {least}")
    with closing(open_session(model, threads=threads, providers=tuple(providers) or None)) as session:
        if batch > 1 and any(spec.shape[:1] != (-1,) for spec in session.inputs):
            raise field_error("batch", f"is {batch}, but the model takes a fixed batch")
        feed = random_feed(session.inputs, batch, np.random.default_rng(0))
        begun = clock()
        for turn in range(warmup):
            session.run(feed)
            if turn and clock() - begun > budget_s / 2:
                break
        times: list[float] = []
        for _ in range(repeats):
            start = clock()
            session.run(feed)
            end = clock()
            times.append((end - start) * 1e3)
            if len(times) >= MIN_RUNS and end - begun > budget_s:
                break
        return Timing(
            float(np.median(times)),
            float(np.percentile(times, 90)),
            len(times),
            session.providers[0],
            threads,
            float(np.percentile(times, 99)),
        )


def time_foreign(model: bytes, batch: int, threads: int, backend: str, repeats: int, budget_s: float) -> Timing:
    """:func:`time_piece` for a model from elsewhere, in a process of its own: no file is found beside the model.

    Changes the process's working folder for good.
    """
    nowhere = tempfile.mkdtemp()
    os.chdir(nowhere)
    os.rmdir(nowhere)
    return time_piece(model, batch=batch, threads=threads, providers=[backend], repeats=repeats, budget_s=budget_s)


def host_text() -> str:
    """Processor, cores and runtime of this host."""
    return f"{_processor()}, {os.cpu_count()} cores, onnxruntime {onnxruntime.__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or f"{platform.system()} {platform.machine()}"


@dataclass(frozen=True, slots=True)
class LiveTiming:
    """Recent runs of one batch size, milliseconds per run."""

    batch: int
    runs: int
    """All since the segment was loaded; the median is of the last ``LIVE_WINDOW``."""
    median_ms: float
    p90_ms: float
    p99_ms: float = 0.0
    """What a deadline has to reckon with."""


@dataclass(slots=True)
class _Window:
    runs: int = 0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=LIVE_WINDOW))


class LiveTimings:
    """What a segment's runs in production took. Any thread may record."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._windows: dict[int, _Window] = {}

    def record(self, batch: int, ms: float) -> None:
        """One run of ``batch`` samples took ``ms`` milliseconds."""
        with self._lock:
            window = self._windows.get(batch)
            if window is None:
                window = self._windows[batch] = _Window()
            window.runs += 1
            window.recent.append(ms)

    def summary(self) -> list[LiveTiming]:
        """One entry per batch size that was run, ascending."""
        with self._lock:
            windows = [(batch, window.runs, list(window.recent)) for batch, window in sorted(self._windows.items())]
        return [
            LiveTiming(
                batch,
                runs,
                float(np.median(recent)),
                float(np.percentile(recent, 90)),
                float(np.percentile(recent, 99)),
            )
            for batch, runs, recent in windows
        ]
