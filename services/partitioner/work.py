"""How a split is made, in a child process: bytes in, bytes out. Pure; knows no registry and no service."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from splitmesh.errors import MeshError, Reason
from splitmesh.model.artifacts import split_bytes
from splitmesh.model.calibration import Calibration, unpack_calibration
from splitmesh.model.manifest import MANIFEST, Manifest
from splitmesh.tensor.spec import Array

VERIFY_BATCHES = (1, 2, 5, 8, 8, 8)
"""Batch sizes on which a split is compared, one after the other, as far as the calibration samples reach."""


def split_version(
    whole: bytes, manifest: bytes, calibration: bytes | None, cuts: Sequence[Sequence[str]]
) -> dict[str, bytes]:
    """Cut a model and verify the segments: the artefacts of the new version by name, its manifest among them."""
    about = Manifest.from_json(manifest)
    samples = unpack_calibration(calibration, about) if calibration is not None else None
    new, artifacts = split_bytes(
        whole,
        cuts[0],
        further=cuts[1:],
        preprocess=about.preprocess,
        labels=about.labels,
        feeds=list(_verification_feeds(samples)) if samples is not None else None,
    )
    if {info.name for info in new.whole.inputs} != {info.name for info in about.whole.inputs}:
        raise MeshError(Reason.MODEL_CORRUPT, "the version's manifest describes other inputs than its model has")
    # The model is the same: what its plain cuts leak is too, and a plan of the new version must know it.
    plain = tuple(entry for entry in about.leakage if entry.codec == "float32")
    return {**artifacts, MANIFEST: new.model_copy(update={"leakage": plain}).to_json().encode()}


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
