"""What runs in a child process: bytes in, bytes out. Pure; knows no registry and no service."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from services.partitioner.profiles import PictureSize, StoredProfile
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.artifacts import split_bytes
from splitmesh.model.calibration import JPEG_QUALITY, Calibration, unpack_calibration
from splitmesh.model.escalation import with_escalation
from splitmesh.model.manifest import MANIFEST, Manifest
from splitmesh.model.profile import MAX_SAMPLES, profile_cuts
from splitmesh.tensor.spec import DTYPES, Array

TRIAL_BATCH = 16
MAX_TRIAL_SAMPLES = 2000
"""Calibration samples on which exits are tried."""

VERIFY_BATCHES = (1, 2, 5, 8, 8, 8)
"""Batch sizes on which a split is compared, one after the other, as far as the calibration samples reach."""


@dataclass(frozen=True, slots=True)
class ExitTrial:
    """How exits are tried at the cuts; see the settings of the same names."""

    max_disagreement: float
    delta: float
    holdout_share: float


def profile_version(
    whole: bytes,
    manifest: bytes,
    calibration: bytes | None,
    budget_s: float,
    threads: int,
    trial: ExitTrial,
) -> StoredProfile:
    """Time the cuts of a model for about ``budget_s`` seconds; of a classifier with calibration samples, try exits too.

    Raises the MeshErrors of reading and profiling.
    """
    about = Manifest.from_json(manifest)
    samples = unpack_calibration(calibration, about) if calibration is not None else None
    feeds = list(samples.batches(1, limit=MAX_SAMPLES)) if samples is not None else None
    profile = profile_cuts(whole, budget_s=budget_s, threads=threads, feeds=feeds)
    if samples is not None and about.task == "classification":
        profile = with_escalation(
            profile,
            whole,
            samples.batches(TRIAL_BATCH, limit=MAX_TRIAL_SAMPLES),
            about.class_output,
            samples=min(samples.samples, MAX_TRIAL_SAMPLES),
            max_disagreement=trial.max_disagreement,
            delta=trial.delta,
            holdout=trial.holdout_share,
            budget_s=budget_s,
        )
    return StoredProfile(budget_s=budget_s, picture=_picture_size(about, samples), profile=profile)


def split_version(whole: bytes, manifest: bytes, calibration: bytes | None, cut: Sequence[str]) -> dict[str, bytes]:
    """Cut a model and verify the halves: the artefacts of the new version by name, its manifest among them."""
    about = Manifest.from_json(manifest)
    samples = unpack_calibration(calibration, about) if calibration is not None else None
    new, artifacts = split_bytes(
        whole,
        cut,
        preprocess=about.preprocess,
        labels=about.labels,
        feeds=list(_verification_feeds(samples)) if samples is not None else None,
    )
    if {info.name for info in new.whole.inputs} != {info.name for info in about.whole.inputs}:
        raise MeshError(Reason.MODEL_CORRUPT, "the version's manifest describes other inputs than its model has")
    return {**artifacts, MANIFEST: new.to_json().encode()}


def _picture_size(about: Manifest, samples: Calibration | None) -> PictureSize:
    """What "cloud only" would send: the pictures as JPEG where there are some, else the model's input as raw bytes."""
    measured = samples.mean_jpeg_bytes() if samples is not None else None
    if measured is not None:
        return PictureSize(codec=f"jpeg q{JPEG_QUALITY}", size_bytes=measured)
    if about.preprocess is not None:
        size = about.preprocess.width * about.preprocess.height * about.preprocess.channels
    else:
        inputs = about.whole.inputs
        size = sum(math.prod(max(1, dim) for dim in info.shape) * DTYPES[info.dtype].itemsize for info in inputs)
    if size < 1:
        raise field_error("picture_bytes", "cannot be known for a model without inputs")
    return PictureSize(codec="raw", size_bytes=size)


def _verification_feeds(samples: Calibration) -> Iterator[dict[str, Array]]:
    if samples.fixed_batch is not None:
        yield from samples.batches(1, limit=samples.fixed_batch * len(VERIFY_BATCHES))
        return
    start = 0
    for size in VERIFY_BATCHES:
        stop = min(start + size, samples.samples)
        if start < stop:
            yield samples.feeds(slice(start, stop))
        start = stop
