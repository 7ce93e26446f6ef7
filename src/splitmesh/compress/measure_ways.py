"""How a split version answers the hold-out and what then crosses: at every rate, and with its exits before the cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitmesh.compress.answering import Answering, exit_answers
from splitmesh.compress.reference import Reference
from splitmesh.compress.report import ExitReport, Point
from splitmesh.compress.tally import Classes, Tally, classes
from splitmesh.model.manifest import Manifest
from splitmesh.routing.rule import Judge
from splitmesh.routing.threshold import answered_by

MESH_TOLERATED = (0.005, 0.01)
"""Disagreements of exits that a ``mesh`` point is made for."""


def mesh_point(
    tolerated: float,
    threshold: float,
    confidences: NDArray[np.float64],
    answers: Classes,
    tail: Classes,
    sizes: NDArray[np.float64],
    expected: Classes,
    labels: Classes | None,
) -> Point:
    """Exits answer the easy samples, the features of the others cross at rate 0.

    Args:
        tolerated: disagreement of the exits that the threshold was chosen for; for the name.
        threshold: of all exits.
        confidences: ``[n, exits]`` from the input on, NaN where an exit may not answer.
        answers: classes that the exits name ``[n, exits]``.
        tail: what head + tail name ``[n]``; empty for a detector, as are ``answers`` and ``expected``.
        sizes: bytes that each sample would take ``[n]``.
        expected: what the original names ``[n]``.
        labels: ``[n]``, -1 where not known.
    """
    exit_ = answered_by(confidences, threshold)
    hard = exit_ < 0
    tally = Tally("classes")
    if len(expected):
        named = np.where(hard, tail, answers[np.arange(len(hard)), np.maximum(exit_, 0)])
        tally.add_classes(named, expected, labels)
    return tally.point(f"mesh, {tolerated:.1%} tolerated", "mesh", float(np.where(hard, sizes, 0.0).mean()))


@dataclass(frozen=True, slots=True)
class Ways:
    """Points, and the version's best rate as it was counted."""

    points: list[Point]
    best: Tally


def ways_of(version: Answering, manifest: Manifest, reference: Reference, exits: Sequence[ExitReport]) -> Ways:
    """Every rate, and exits at rate 0."""
    infos, output = manifest.exits(), reference.class_output
    tallies = [Tally(output) for _ in range(version.rates)]
    sizes: list[list[int]] = [[] for _ in tallies]
    confidences, answered, named, expected, labels = [], [], [], [], []
    for batch in reference:
        features = version.head(batch.feed)
        for rate, tally in enumerate(tallies):
            found = tally.add(version.tail(features, rate), batch.expected, batch.labels)
            sizes[rate] += version.sizes(features, rate)
            if rate == 0 and found is not None:
                named.append(found)
                expected.append(classes(batch.expected[output]))
        if batch.labels is not None:
            labels.append(batch.labels)
        if infos:
            given = [features[info.output] for info in infos]
            judge = Judge(finding=infos[0].finding is not None)
            confidences.append(np.stack([judge.eases(row)[0] for row in given], axis=1))
            answered.append(exit_answers(given))
    points = [
        tally.point(_rate_name(manifest, rate, version.rates), "cut", float(np.mean(sizes[rate])))
        for rate, tally in enumerate(tallies)
    ]
    if infos and exits:
        thresholds = {point.tolerated: point.threshold for point in exits[-1].points}
        nobody = np.empty(0, dtype=np.int64)
        points += [
            mesh_point(
                tolerated,
                thresholds[tolerated],
                np.concatenate(confidences),
                np.concatenate(answered),
                np.concatenate(named) if output else nobody,
                np.array(sizes[0], dtype=np.float64),
                np.concatenate(expected) if output else nobody,
                np.concatenate(labels) if labels else None,
            )
            for tolerated in MESH_TOLERATED
            if tolerated in thresholds
        ]
    return Ways(points, tallies[0])


def _rate_name(manifest: Manifest, rate: int, rates: int) -> str:
    split = manifest.split
    if split is None or not (split.quantisation or split.bottleneck):
        return "float32 cut, zstd"
    what = "bottleneck" if split.bottleneck is not None else "int8 cut"
    return f"{what}, zstd" if split.coding is None else f"{what}, rate {rate}"
