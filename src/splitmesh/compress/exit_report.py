"""What a version's exits would do, each alone and all together: the figures of a report, promised by nobody.

Thresholds are read off the validation samples, shares off the hold-out. Knows sessions and counts; promises are ``risk.py``'s.
"""

from __future__ import annotations

import numpy as np

from splitmesh.compress.exit_answers import ExitAnswers, exit_answers, exit_rows, target_probabilities
from splitmesh.compress.report import ExitPoint, ExitReport, Proportion
from splitmesh.compress.work import Samples, Work
from splitmesh.routing.threshold import answered_by, tolerated_threshold

TOLERATED = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05)
"""Disagreements that a report shows."""

ALL_EXITS = "all exits"
"""Name of the last entry of a report on several exits: what they do together, one after the other."""


def report(work: Work, samples: Samples, original: bytes, *, threads: int = 1) -> tuple[ExitReport, ...]:
    """What each exit would do alone and, where there are several, a last entry with what they do together.

    Thresholds are read off the validation samples, which also gave penalty and temperature; coverage and disagreement
    are the hold-out's. No promise is made: that is ``threshold.choose_threshold``'s, from the outcomes. Empty for a
    version without exits.
    """
    manifest = work.manifest
    exits = manifest.exits()
    if not exits or manifest.split is None:
        return ()
    segments = [work.artifacts[segment.artifact] for segment in manifest.stages or (manifest.split.head,)]
    outputs, finding = [entry.output for entry in exits], exits[-1].finding
    seen = []
    for rows in (samples.validation, samples.holdout):
        targets = target_probabilities(original, manifest, samples.calibration, rows, finding, threads=threads)
        given = exit_rows(segments, outputs, samples.calibration, rows, threads=threads)
        seen.append(exit_answers([given[output] for output in outputs], targets, finding))
    chosen, held = seen
    entries = [
        _report(entry.output, _columns(chosen, [number]), _columns(held, [number]))
        for number, entry in enumerate(exits)
    ]
    return (*entries, _report(ALL_EXITS, chosen, held)) if len(exits) > 1 else tuple(entries)


def _report(name: str, chosen: ExitAnswers, held: ExitAnswers) -> ExitReport:
    n = len(held.same)
    points = []
    for tolerated in TOLERATED:
        threshold = tolerated_threshold(chosen.confidences, chosen.agrees, tolerated)
        by = answered_by(held.confidences, threshold)
        answered = by >= 0
        wrong = answered & ~held.agrees[np.arange(n), by]
        points.append(
            ExitPoint(
                tolerated=tolerated,
                threshold=threshold,
                coverage=Proportion.of(int(answered.sum()), n),
                disagreement=Proportion.of(int(wrong.sum()), n),
            )
        )
    return ExitReport(name=name, agreement=Proportion.of(int(held.same[:, -1].sum()), n), points=tuple(points))


def _columns(answers: ExitAnswers, exits: list[int]) -> ExitAnswers:
    return ExitAnswers(answers.confidences[:, exits], answers.agrees[:, exits], answers.same[:, exits])
