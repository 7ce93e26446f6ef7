"""What a version costs and how it answers, on the hold-out: on the wire at every rate, beside other ways, and in time.

Everything is measured with the very files that are registered, against the original whole model, on samples that decided
nothing. Ranges of the plain 8-bit cut come from the fit samples, thresholds of the exits from the validation samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np

from splitmesh.compress.answering import Answering
from splitmesh.compress.exit_report import report as report_exits
from splitmesh.compress.measure_plain import plain_cut
from splitmesh.compress.measure_ways import ways_of
from splitmesh.compress.recipe import Budget
from splitmesh.compress.reference import Reference
from splitmesh.compress.report import Exceeded, ExitReport, Point, Proportion
from splitmesh.compress.tally import Tally
from splitmesh.compress.uploads import measure_uploads
from splitmesh.compress.work import Progress, Rows, Samples, Work
from splitmesh.errors import MeshError, Reason
from splitmesh.model.calibration import Calibration
from splitmesh.model.manifest import Manifest
from splitmesh.runtime import open_session

REPEATS = 30
"""Timed runs behind a median."""
WARMUP = 5


@dataclass(frozen=True, slots=True)
class Measurements:
    """The measured half of a ``Report``; fields as there."""

    points: tuple[Point, ...]
    agreement: Proportion | None
    accuracy: Proportion | None
    output_error: float | None
    accuracy_before: Proportion | None
    exits: tuple[ExitReport, ...]
    latency_ms: Mapping[str, float]
    size_bytes: Mapping[str, int]


def measure(
    original: bytes,
    original_manifest: Manifest,
    work: Work,
    samples: Samples,
    *,
    threads: int,
    progress: Progress,
    uploads: bool = True,
) -> Measurements:
    """Measure a version.

    Args:
        original: the whole model before the first step.
        original_manifest: of the version it came from.
        work: the version as it is to be registered.
        samples: divided; the hold-out is measured on.
        threads: of every session.
        progress: told what begins and the share that is done.
        uploads: also measure sending the pictures, which takes longest and says nothing of the version.

    Raises CALIBRATION_INSUFFICIENT for a hold-out below the model's fixed batch, and what opening and running the
    models raise.
    """
    output = original_manifest.class_output
    exits = report_exits(work, samples, original) if work.manifest.exit is not None else ()
    points: list[Point] = []
    with closing(open_session(original, threads=threads)) as session:
        progress("answers of the original", 0.0)
        reference = Reference(session, samples, samples.holdout, output)
        before = _before(reference)
        if work.manifest.split is not None:
            progress("answers of the version", 0.1)
            with Answering(work, threads=threads) as version:
                ways = ways_of(version, work.manifest, reference, exits)
            points += ways.points
            result = ways.best
            progress("the plain cut", 0.4)
            points += plain_cut(original, work, samples, reference, threads)
        else:
            result = _new_whole(work.whole(), reference, threads)
        if uploads:
            progress("uploads", 0.5)
            points += measure_uploads(
                samples, session, output, on_progress=lambda share: progress("uploads", 0.5 + 0.4 * share)
            )
    progress("latencies", 0.9)
    return Measurements(
        points=tuple(points),
        agreement=result.agreement,
        accuracy=result.accuracy,
        output_error=result.output_error,
        accuracy_before=before.accuracy,
        exits=exits,
        latency_ms=_latencies(original, work, samples.calibration, reference.rows, threads),
        size_bytes={
            "whole before": len(original),
            **{name: len(data) for name, data in sorted(work.artifacts.items())},
        },
    )


def exceeded(budget: Budget, found: Measurements) -> tuple[Exceeded, ...]:
    """The limits that are not kept; empty within the budget.

    MeshError CALIBRATION_INSUFFICIENT when a limit is set for what could not be measured: it must not pass unseen.
    """
    loss = None
    if found.accuracy is not None and found.accuracy_before is not None:
        loss = max(0.0, _share(found.accuracy_before) - _share(found.accuracy))
    disagreement = None if found.agreement is None else 1 - _share(found.agreement)
    broken = []
    for what, allowed, measured in (
        ("max_disagreement", budget.max_disagreement, disagreement),
        ("max_accuracy_loss", budget.max_accuracy_loss, loss),
        ("max_output_error", budget.max_output_error, found.output_error),
    ):
        if allowed is None:
            continue
        if measured is None:
            raise MeshError(
                Reason.CALIBRATION_INSUFFICIENT,
                f"the budget's {what} cannot be measured: no hold-out sample says anything about it",
            )
        if measured > allowed + _ROUNDING:
            broken.append(Exceeded(what=what, measured=measured, allowed=allowed))
    return tuple(broken)


_ROUNDING = 1e-12
"""1 of 100 is not more than 0.01, although 1 - 0.99 is."""


def _before(reference: Reference) -> Tally:
    tally = Tally(reference.class_output)
    for batch in reference:
        tally.add(batch.expected, batch.expected, batch.labels)
    return tally


def _new_whole(whole: bytes, reference: Reference, threads: int) -> Tally:
    tally = Tally(reference.class_output)
    with closing(open_session(whole, threads=threads)) as session:
        for batch in reference:
            tally.add(session.run(batch.feed), batch.expected, batch.labels)
    return tally


def _latencies(original: bytes, work: Work, calibration: Calibration, rows: Rows, threads: int) -> dict[str, float]:
    """Of one real sample (one batch, where the model fixes it); every way is timed after the same warm-up."""
    feed = calibration.feeds(rows[: calibration.fixed_batch or 1])
    found: dict[str, float] = {}
    for name, model in (("whole before", original), ("whole", work.whole())):
        if name == "whole" and model == original:
            found[name] = found["whole before"]
            continue
        with closing(open_session(model, threads=threads)) as session:
            found[name] = _median_ms(partial(session.run, feed))
    if work.manifest.split is not None:
        with Answering(work, threads=threads) as version:
            features = version.head(feed)
            frame = version.encode(features)
            found["head"] = _median_ms(partial(version.head, feed))
            found["encode"] = _median_ms(partial(version.encode, features))
            found["decode"] = _median_ms(partial(version.decode, frame))
            found["tail"] = _median_ms(partial(version.finish, features))
    return found


def _median_ms(run: Callable[[], object]) -> float:
    for _ in range(WARMUP):
        run()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return float(np.median(times))


def _share(found: Proportion) -> float:
    return round(found.share * found.n) / found.n
