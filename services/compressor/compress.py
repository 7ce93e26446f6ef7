"""The recipes: quantise the cut, attach an exit. Bytes in, bytes out; runs in a child process. Pure.

Order matters: the calibration samples are divided first, so that the hold-out decides about nothing; ranges and the
exit come from the rest; then everything is measured on the hold-out with the very files that are registered. Only the
whole model's own answers are used, never labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from services.compressor.measure import Measured, measure
from services.compressor.report import Report
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.jobs import Progress
from splitmesh.model.calibration import Calibration, unpack_calibration
from splitmesh.model.chain import calibrate_chain, quantise_chain
from splitmesh.model.classes import as_probabilities
from splitmesh.model.exit_graph import EXIT_OUTPUT, attach_exit
from splitmesh.model.exits import FittedExit, choose_feature, fit_exit, split_samples
from splitmesh.model.load import load_model
from splitmesh.model.manifest import (
    HEAD,
    MANIFEST,
    OUTCOMES,
    REPORT,
    WHOLE,
    ExitInfo,
    Manifest,
    Quantisation,
    SplitInfo,
    TensorInfo,
)
from splitmesh.model.outcomes import CalibrationOutcomes
from splitmesh.model.pooling import choose_grid, pool
from splitmesh.model.verify import EXACT_TOLERANCE, verify_chain
from splitmesh.runtime import open_session
from splitmesh.tensor.spec import Array, TensorSpec

BATCH = 16
"""Samples per run: bounds the memory, features of one sample can be megabytes."""

COMPARE_SAMPLES = 512
"""Samples, none of the hold-out, on which one scale per tensor is compared with one per channel."""

VERIFY_SAMPLES = 64
"""Samples on which the segments are compared with the whole, element by element."""

Rows = NDArray[np.int64]
Quantisations = tuple[tuple[Quantisation, ...], ...]
"""One entry per hop of the split."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to do; at least one."""

    quantise_cut: bool
    attach_exit: bool


@dataclass(frozen=True, slots=True)
class Division:
    """Which calibration samples are for what."""

    made_from: Rows
    """What ranges and exit may see."""
    holdout: Rows


def compress(
    artifacts: Mapping[str, bytes],
    calibration: bytes,
    recipe: Recipe,
    holdout_share: float,
    seed: int,
    *,
    progress: Progress,
) -> dict[str, bytes]:
    """The artefacts of the compressed version by name, made from those of a split one.

    Args:
        artifacts: manifest, whole and every segment.
        calibration: the version's samples.
        recipe: what to do.
        holdout_share: part of the samples that is only measured on.
        seed: of their division.
        progress: told each step.

    Raises CALIBRATION_INSUFFICIENT, CUT_INVALID, SPLIT_NOT_EQUAL and the other MeshErrors of the model's modules.
    """
    progress("read the calibration samples", 0.0)
    manifest = Manifest.from_json(artifacts[MANIFEST])
    split = require_split(manifest)
    samples = unpack_calibration(calibration, manifest)
    division = divide(samples, recipe, holdout_share, seed)
    plain = {segment.artifact: artifacts[segment.artifact] for segment in split.segments()}
    models = [load_model(content) for content in plain.values()]
    fitted, feature = None, ""
    if recipe.attach_exit:
        progress("fit the exit", 0.1)
        source = choose_feature([info.spec() for info in split.cut])
        feature = source.name
        fitted = _fit(artifacts, manifest, samples, source, holdout_share, seed)
    quantisation: Quantisations = ((),) * len(split.hops())
    if recipe.quantise_cut:
        progress("quantise the cut", 0.4)
        models, quantisation = _quantise(artifacts[WHOLE], list(plain.values()), Feeds(samples, division.made_from))
    if fitted is not None:
        models[0] = attach_exit(models[0], feature, fitted)
    segments = {name: _bytes(model) for name, model in zip(plain, models, strict=True)}
    progress("verify the segments", 0.6)
    batch, classes = split.cut[0].shape[0], len(manifest.labels)
    exit_info = TensorInfo(name=EXIT_OUTPUT, dtype="float32", shape=(batch, classes)) if fitted is not None else None
    split = split.rounded(quantisation, exit_info)
    exact = None if any(quantisation) else EXACT_TOLERANCE
    compared = Feeds(samples, division.holdout[:VERIFY_SAMPLES])
    verification = verify_chain(artifacts[WHOLE], list(segments.values()), compared, exact)
    progress("measure on the hold-out", 0.7)
    exit_output = EXIT_OUTPUT if fitted is not None else ""
    measured = measure(
        artifacts[WHOLE],
        list(segments.values()),
        plain[split.head.artifact],
        Feeds(samples, division.holdout),
        class_output=manifest.class_output,
        exit_output=exit_output,
    )
    made = manifest.model_copy(
        update={
            "split": split.model_copy(update={"verification": verification}),
            "exit": _exit_info(fitted, measured) if fitted is not None else None,
        }
    )
    report = Report(
        wire_bytes_before=measured.wire_bytes_before,
        wire_bytes_after=measured.wire_bytes_after,
        tail_agreement=measured.tail_agreement,
        exit_agreement=measured.exit_agreement,
        holdout_samples=measured.samples,
        fit_samples=fitted.fit_samples if fitted is not None else len(division.made_from),
        head_size_bytes=len(segments[split.head.artifact]),
        tail_size_bytes=sum(len(segments[segment.artifact]) for segment in split.segments()[1:]),
    )
    result = {
        WHOLE: artifacts[WHOLE],
        **segments,
        # Through the parser once more: model_copy checks nothing.
        MANIFEST: Manifest.from_json(made.to_json()).to_json().encode(),
        REPORT: report.to_json(),
    }
    if fitted is not None:
        result[OUTCOMES] = CalibrationOutcomes.of(measured.confidences, measured.agrees, seed=seed).to_json()
    return result


def require_split(manifest: Manifest) -> SplitInfo:
    """The split of a version that can be compressed; MODEL_INCOMPLETE when it is whole, or compressed already."""
    if manifest.split is None:
        raise MeshError(Reason.MODEL_INCOMPLETE, "this version is not split; split it first")
    if manifest.split.quantisation or manifest.exit is not None:
        raise MeshError(
            Reason.MODEL_INCOMPLETE, "this version is compressed already; compress the split version it was made from"
        )
    return manifest.split


def divide(samples: Calibration, recipe: Recipe, holdout_share: float, seed: int) -> Division:
    """The samples for making and for measuring, each sorted; the same as the exit's own fit divides them.

    MeshError CALIBRATION_INSUFFICIENT when there are too few for the recipe, FIELD_INVALID for a fixed batch.
    """
    fixed = samples.fixed_batch
    if fixed not in (None, 1):
        raise MeshError(
            Reason.MODEL_SHAPE_UNKNOWN,
            f"the model takes batches of exactly {fixed}; export it with a batch of 1 or one that varies",
        )
    if recipe.attach_exit:
        fit, validation, holdout = split_samples(samples.samples, holdout=holdout_share, seed=seed)
        return Division(np.union1d(fit, validation), holdout)
    order = np.random.default_rng(seed).permutation(samples.samples)
    held = round(holdout_share * len(order))
    if not 0 < held < len(order):
        raise MeshError(
            Reason.CALIBRATION_INSUFFICIENT,
            f"{len(order)} calibration samples do not leave some to make ranges from and some to measure on",
        )
    return Division(np.sort(order[held:]), np.sort(order[:held]))


class Feeds(Sequence[dict[str, Array]]):
    """Model inputs for some samples, a few at a time, made when they are read: all at once may not fit into memory."""

    def __init__(self, samples: Calibration, rows: Rows) -> None:
        self._samples = samples
        size = samples.fixed_batch or BATCH
        self._rows = [rows[start : start + size] for start in range(0, len(rows), size)]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Array]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Array]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Array] | list[dict[str, Array]]:
        if isinstance(index, slice):
            return [self._samples.feeds(rows) for rows in self._rows[index]]
        return self._samples.feeds(self._rows[index])


def _fit(
    artifacts: Mapping[str, bytes],
    manifest: Manifest,
    samples: Calibration,
    source: TensorSpec,
    holdout_share: float,
    seed: int,
) -> FittedExit:
    output = manifest.class_output
    if not output:
        raise MeshError(Reason.MODEL_INCOMPLETE, "an exit needs a model that names classes; its manifest has no labels")
    grid = choose_grid(source, samples.samples)
    pooled, answers = [], []
    everything = np.arange(samples.samples, dtype=np.int64)
    with closing(open_session(artifacts[HEAD])) as head, closing(open_session(artifacts[WHOLE])) as whole:
        for feed in Feeds(samples, everything):
            # Pooled at once: the features of all samples need not fit into memory.
            pooled.append(pool(head.run(feed)[source.name], grid))
            answers.append(as_probabilities(whole.run(feed)[output]))
    return fit_exit(np.concatenate(pooled), np.concatenate(answers), holdout=holdout_share, seed=seed, grid=grid)


def _quantise(
    whole: bytes, segments: Sequence[bytes], feeds: Sequence[Mapping[str, Array]]
) -> tuple[list[ModelProto], Quantisations]:
    """The segments with 8 bits between them: one scale per tensor where that costs no answer, else one per channel.

    One scale leaves more zeros, which pack better (18 to 32 % fewer bytes on a small ResNet, at the same answers).
    """
    ranges = calibrate_chain(segments, feeds)
    fine, coarse = (quantise_chain(segments, ranges, per_channel=per_channel) for per_channel in (True, False))
    if not any(fine[1]):
        raise MeshError(Reason.CUT_INVALID, "no tensor of the cut holds floating-point numbers; nothing to quantise")
    compared = feeds[: -(-COMPARE_SAMPLES // BATCH)]
    agreement = [
        verify_chain(whole, [_bytes(model) for model in made[0]], compared, None).top1_agreement
        for made in (fine, coarse)
    ]
    if agreement[0] is None or agreement[1] is None or agreement[1] < agreement[0]:
        return fine
    return coarse


def _exit_info(fitted: FittedExit, measured: Measured) -> ExitInfo:
    return ExitInfo(
        output=EXIT_OUTPUT,
        temperature=fitted.temperature,
        fit_samples=fitted.fit_samples,
        holdout_samples=measured.samples,
        holdout_agreement=measured.exit_agreement or 0.0,
    )


def _bytes(model: ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)
