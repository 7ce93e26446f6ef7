"""What exits are made of and measured by: the model's answers, pooled features, the exits' own answers, for any samples.

Runs sessions over calibration samples, a few at a time. Knows nothing of fitting and of thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitmesh.compress.work import BATCH, Rows
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.calibration import Calibration
from splitmesh.model.classes import as_probabilities
from splitmesh.model.manifest import Finding, Manifest
from splitmesh.model.pooling import pool
from splitmesh.model.verify import run_all
from splitmesh.routing.finding import FINDINGS, NOTHING, something_found
from splitmesh.routing.rule import Judge
from splitmesh.runtime import Session, open_session
from splitmesh.tensor.spec import Array, TensorSpec

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class ExitAnswers:
    """What exits say about some samples, from the input on."""

    confidences: Floats
    """``[samples, exits]``; NaN where an exit gives none, or says "something"."""
    agrees: Booleans
    """``[samples, exits]``: as the artefact of outcomes holds it."""
    same: Booleans
    """``[samples, exits]``: the exit's class is the target's; for a detector "something" counts too."""


def batches(samples: Calibration, rows: Rows, *, size: int = BATCH) -> Iterator[tuple[dict[str, Array], int]]:
    """Feeds for these rows in order, and how many of each are real: a model's fixed batch is filled with the last row."""
    size = samples.fixed_batch or size
    for start in range(0, len(rows), size):
        chosen = rows[start : start + size]
        missing = size - len(chosen) if samples.fixed_batch else 0
        yield samples.feeds(np.concatenate([chosen, np.repeat(chosen[-1:], missing)])), len(chosen)


def target_probabilities(
    original: bytes, manifest: Manifest, samples: Calibration, rows: Rows, finding: Finding | None, *, threads: int = 1
) -> Floats:
    """``[rows, classes]``: what the whole model says; for a detector ``[rows, 2]``, nothing and something, 0 or 1.

    Raises MeshError MODEL_INCOMPLETE when the model gives no score per class, FIELD_INVALID when it has no such output
    or the output holds no scores, MODEL_SHAPE_UNKNOWN for a detector whose fixed batch cannot be told apart.
    """
    with closing(open_session(original, threads=threads)) as session:
        if finding is not None:
            return np.eye(len(FINDINGS))[_found(session, samples, rows, finding).astype(np.int64)]
        output = _class_output(session, manifest)
        return np.concatenate(
            [as_probabilities(session.run(feed)[output])[:count] for feed, count in batches(samples, rows)]
        )


def require_output(outputs: Sequence[TensorSpec], finding: Finding) -> None:
    """MeshError FIELD_INVALID unless a detector's scores can be there."""
    spec = next((spec for spec in outputs if spec.name == finding.output), None)
    if spec is None:
        known = ", ".join(repr(spec.name) for spec in outputs)
        raise field_error("recipe.exits.found_output", f"{finding.output!r} is no output of the model; it has {known}")
    if spec.dtype == "bool":
        raise field_error("recipe.exits.found_output", f"{finding.output!r} holds {spec.dtype}, no scores")


def pooled_features(
    model: bytes, tensors: Sequence[str], grids: Sequence[int], samples: Calibration, *, threads: int = 1
) -> list[Floats]:
    """Of every sample, in order: one ``[samples, features]`` for each of these outputs of ``model``, pooled in its grid."""
    parts: list[list[Floats]] = [[] for _ in tensors]
    with closing(open_session(model, threads=threads)) as session:
        for feed, count in batches(samples, np.arange(samples.samples)):
            given = session.run(feed)
            for part, tensor, grid in zip(parts, tensors, grids, strict=True):
                part.append(pool(given[tensor][:count], grid))
    return [np.concatenate(part) for part in parts]


def exit_rows(
    segments: Sequence[bytes], outputs: Sequence[str], samples: Calibration, rows: Rows, *, threads: int = 1
) -> dict[str, Array]:
    """What a head, or its stages in order, gives for these rows: ``[rows, ...]`` by the names of its outputs."""
    with ExitStack() as stack:
        sessions = [stack.enter_context(closing(open_session(content, threads=threads))) for content in segments]
        found: dict[str, list[Array]] = {output: [] for output in outputs}
        for feed, count in batches(samples, rows):
            given = run_all(sessions, feed)
            for output, parts in found.items():
                parts.append(given[output][:count])
    return {output: np.concatenate(parts) for output, parts in found.items()}


def exit_answers(given: Sequence[Array], targets: Floats, finding: Finding | None) -> ExitAnswers:
    """What the exits say, from their rows ``[samples, classes]`` each, from the input on, beside the targets of
    :func:`target_probabilities`."""
    expected = targets.argmax(axis=1)
    judge = Judge(finding=finding is not None)
    same = np.stack([rows.argmax(axis=1) == expected for rows in given], axis=1)
    sure = np.stack([judge.eases(rows)[0] for rows in given], axis=1)
    # A detector's exit can answer nothing but "nothing".
    agrees = same if finding is None else np.repeat((expected == NOTHING)[:, None], len(given), axis=1)
    return ExitAnswers(sure, agrees, same)


def _found(session: Session, samples: Calibration, rows: Rows, finding: Finding) -> Booleans:
    """Whether the model finds something in each row. One by one: what a detector gives may be of any size, and of a batch
    nothing says which find is whose."""
    require_output(session.outputs, finding)
    fixed = samples.fixed_batch or 1
    found = list[bool]()
    for feed, count in batches(samples, rows, size=1):
        scores = session.run(feed)[finding.output]
        if fixed > 1 and (scores.ndim == 0 or len(scores) != fixed):
            raise MeshError(
                Reason.MODEL_SHAPE_UNKNOWN,
                f"{finding.output!r} of shape {list(scores.shape)} has no row for each of the batch of {fixed}; export "
                "the detector with a batch of 1",
            )
        per_sample = [scores] if fixed == 1 else list(scores)
        found += [something_found(entry, finding.min_score) for entry in per_sample[:count]]
    return np.asarray(found, dtype=np.bool_)


def _class_output(session: Session, manifest: Manifest) -> str:
    names = [spec.name for spec in session.outputs]
    if manifest.class_output in names:
        return manifest.class_output
    classes = len(manifest.labels)
    for spec in session.outputs:
        if classes and spec.shape and spec.shape[-1] in (-1, classes):
            return spec.name
    raise MeshError(Reason.MODEL_INCOMPLETE, f"no output of the model has a score for each of {classes} classes")
