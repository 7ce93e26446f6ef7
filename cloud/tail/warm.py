"""Opening a segment so that no frame pays for its first run, and learning meanwhile what batches of each size take."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import numpy as np

from cloud.tail.config import TailSettings
from splitmesh.errors import MeshError
from splitmesh.kernel.batch_times import BatchTimes
from splitmesh.runtime import Session, open_session
from splitmesh.runtime.inputs import random_feed

log = logging.getLogger(__name__)

RUNS = 3
"""Of each size, the first of which is not counted."""
BUDGET_S = 3.0
"""Once so much time is spent, sizes between one sample and the largest batch are left to production."""


@dataclass(frozen=True, slots=True)
class Warm:
    """An open segment that has run."""

    session: Session
    batchable: bool
    """Frames may be computed together."""
    times: BatchTimes
    """Of one sample, of the largest batch and of sizes between them."""


def open_warm(content: bytes, settings: TailSettings) -> Warm:
    """Open a segment and run it on noise: for one sample, for the largest batch, then for the sizes between.

    A detector that lists what it finds in all samples of a batch must get them one by one: nothing would say which row is
    whose. It shows in the number of rows.
    """
    session = open_session(
        content,
        threads=settings.compute_threads,
        max_run_s=settings.max_run_s,
        compute=settings.compute(settings.data_dir, settings.max_batch),
    )
    try:
        times = BatchTimes()
        return Warm(session, _runs_in_batches(session, settings.max_batch, times), times)
    except BaseException:
        session.close()
        raise


def _runs_in_batches(session: Session, most: int, times: BatchTimes) -> bool:
    batchable = all(spec.shape[:1] == (-1,) for spec in (*session.inputs, *session.outputs))
    until = time.perf_counter() + BUDGET_S
    for size in _sizes(most if batchable else 1):
        if size not in (1, most) and time.perf_counter() > until:
            break
        try:
            feed = random_feed(session.inputs, size, np.random.default_rng(0))
        except MeshError as error:
            log.info("not warmed for batches of %d: %s", size, error.message)
            break
        for turn in range(RUNS):
            begun = time.perf_counter()
            outputs = session.run(feed)
            ended = time.perf_counter()
            if turn or ended > until:
                times.record(size, ended - begun)
            if ended > until:
                break
        if any(array.shape[:1] != (size,) for array in outputs.values()):
            return False
    return batchable


def _sizes(most: int) -> list[int]:
    """One, the largest, then every power of two between, from the smallest on."""
    return list(dict.fromkeys((1, most, *(1 << power for power in range(1, most.bit_length()) if 1 << power < most))))
