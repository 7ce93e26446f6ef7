"""The steps of a profile that run in child processes: bytes in, plain data out. Pure; knows no registry and no service."""

from __future__ import annotations

from dataclasses import dataclass

from splitmesh.model.agreement import rounded_agreement
from splitmesh.model.calibration import Calibration, unpack_calibration
from splitmesh.model.cuts import resolve_cut
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model
from splitmesh.model.manifest import Manifest
from splitmesh.model.picture_cost import picture_costs
from splitmesh.model.points import Point, per_sample
from splitmesh.model.profile import pieces
from splitmesh.model.profile_data import Profile
from splitmesh.model.survey import MAX_SAMPLES, Survey, Tensors, survey
from splitmesh.runtime.timing import Timing, time_piece

SAMPLE_BATCH = 16
MAX_COMPARED_SAMPLES = 256
"""Calibration samples on which a rounded cut is compared with the whole model."""
PICTURE_SHARE = 0.1
"""Of a budget, for comparing answers to coded pictures."""


@dataclass(frozen=True, slots=True)
class Version:
    """What is profiled."""

    whole: bytes
    manifest: bytes
    calibration: bytes | None

    def about(self) -> Manifest:
        """The manifest, read."""
        return Manifest.from_json(self.manifest)

    def samples(self, about: Manifest) -> Calibration | None:
        """The calibration samples, unpacked."""
        return unpack_calibration(self.calibration, about) if self.calibration is not None else None


@dataclass(frozen=True, slots=True)
class Timed:
    """How a piece is timed."""

    batch: int
    threads: int
    backend: str
    repeats: int
    budget_s: float


@dataclass(frozen=True, slots=True)
class Pieces:
    """A cut, made."""

    head: bytes
    tail: bytes
    agreement: float | None
    """Of the cut rounded to 8 bits; None where it cannot be known."""


def survey_version(version: Version, known: Profile | None, budget_s: float, threads: int) -> Survey:
    """Everything but times. Raises the MeshErrors of reading and running."""
    about = version.about()
    samples = version.samples(about)
    pictures = dict(known.pictures) if known is not None else {}
    if not pictures:
        pictures = picture_costs(about, samples, version.whole, threads=threads, budget_s=PICTURE_SHARE * budget_s)
    return survey(
        version.whole,
        Graph(load_model(version.whole)),
        feeds=list(samples.batches(1, limit=MAX_SAMPLES)) if samples is not None else None,
        pictures=pictures,
        known=known,
        budget_s=budget_s,
        threads=threads,
    )


def cut_version(version: Version, tensors: Tensors, threads: int, budget_s: float) -> Pieces:
    """Head and tail; of a classifier with calibration samples also whether rounding the cut changes its answers."""
    graph = Graph(load_model(version.whole))
    head, tail = pieces(graph, tensors)
    about = version.about()
    samples = version.samples(about)
    if samples is None or not about.class_output:
        return Pieces(head, tail, None)
    agreement = rounded_agreement(
        graph,
        resolve_cut(graph, tensors),
        tail,
        samples.batches(SAMPLE_BATCH, limit=MAX_COMPARED_SAMPLES),
        about.class_output,
        threads=threads,
        budget_s=budget_s,
    )
    return Pieces(head, tail, agreement)


def time_model(model: bytes, how: Timed) -> Timing:
    """Times one model in this process."""
    return time_piece(
        model,
        batch=how.batch,
        threads=how.threads,
        providers=[how.backend],
        repeats=how.repeats,
        budget_s=how.budget_s,
    )


def time_cut(version: Version, tensors: Tensors, how: Timed) -> Point:
    """Makes a cut and times both pieces in this process."""
    made = cut_version(version, tensors, how.threads, how.budget_s)
    head, tail = (per_sample(time_model(piece, how), how.batch) for piece in (made.head, made.tail))
    return Point(head, tail, made.agreement)
