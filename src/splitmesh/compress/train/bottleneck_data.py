"""What a bottleneck is trained on: features at the cut and the original model's answers, computed once and kept on disk.

Pictures are also used mirrored, shifted and a little brighter or darker, because a few hundred are soon known by heart;
the original answers for those too, so nothing is assumed about what may be mirrored. Knows nothing of networks.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from splitmesh.compress.work import BATCH, Context, Rows
from splitmesh.errors import MeshError, Reason
from splitmesh.model.calibration import PIXELS, Calibration
from splitmesh.runtime import Session, open_session
from splitmesh.tensor.spec import Array

ENOUGH = 4096
"""Training samples from which on no further copies are made."""

MOST_COPIES = 6
MOST_BYTES = 4 << 30
"""Of features on disk; fewer copies, then fewer samples, where it would be more."""

_SHIFT, _BRIGHTER = 0.06, 0.1
_SAFE_IN_FLOAT16 = 1e4


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """Training rows first, then the validation's."""

    features: NDArray[np.float16] | NDArray[np.float32]
    """``[rows, ...]`` at the cut, on disk."""
    answers: NDArray[np.float32]
    """``[rows, ...]``: the original model's first output."""
    training: int
    """Number of rows to train on."""
    labels: NDArray[np.int64] | None
    """Of the validation rows, -1 where unknown."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample's features."""
        return tuple(self.features.shape[1:])

    def batch(self, rows: Rows) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Features and answers of these rows."""
        return self.features[rows].astype(np.float32), self.answers[rows]


def gather(head: bytes, tensor: str, context: Context) -> Lesson:
    """Read the lesson from the step's folder, or compute it. The head gives ``tensor``; the hold-out is not touched.

    MeshError CUT_INVALID when the head does not give the tensor, or not as float32.
    """
    with closing(open_session(head, threads=context.threads)) as session:
        spec = next((spec for spec in session.outputs if spec.name == tensor), None)
        if spec is None or spec.dtype != "float32":
            raise MeshError(Reason.CUT_INVALID, f"the head gives no float32 tensor {tensor!r}")
        plan = _Plan.make(session, tensor, context)
        index = context.folder / "lesson.json"
        key = plan.key(head, tensor, context)
        if not _is(index, key):
            _compute(session, tensor, plan, context)
            _write(index, json.dumps({"key": key, "features": plan.dtype, "shape": plan.shape}).encode())
    features = np.memmap(context.folder / _FEATURES, dtype=plan.dtype, mode="r", shape=(plan.rows, *plan.shape))
    with safe_open(context.folder / _ANSWERS, framework="np") as file:
        answers = file.get_tensor("answers")
    labels = context.samples.labels(plan.validation)
    return Lesson(features, answers, len(plan.fit) * plan.copies, labels)


_FEATURES, _ANSWERS = "lesson.features", "lesson.answers"


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """Which samples, how often, and how their features are stored."""

    fit: Rows
    validation: Rows
    copies: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def rows(self) -> int:
        return len(self.fit) * self.copies + len(self.validation)

    @classmethod
    def make(cls, session: Session, tensor: str, context: Context) -> _Plan:
        samples = context.samples
        fit, validation = samples.fit, samples.validation if len(samples.validation) else samples.fit
        calibration = samples.calibration
        first = session.run(calibration.feeds(_filled(fit[:BATCH], calibration)))[tensor]
        dtype = "float16" if float(np.abs(first).max()) < _SAFE_IN_FLOAT16 else "float32"
        room = MOST_BYTES // (first[0].size * np.dtype(dtype).itemsize) - len(validation)
        if room < len(fit):
            fit = fit[: max(BATCH, room)]
            context.remark(f"trained on {len(fit)} samples only: the features of all take over {MOST_BYTES >> 30} GiB")
        copies = 1
        if calibration.pictures is not None:
            copies = max(1, min(MOST_COPIES, -(-ENOUGH // len(fit)), room // len(fit)))
        return cls(fit, validation, copies, tuple(first.shape[1:]), dtype)

    def key(self, head: bytes, tensor: str, context: Context) -> str:
        """The same for the same lesson."""
        calibration = context.samples.calibration
        settings = [tensor, self.copies, context.samples.seed, context.threads]
        found = hashlib.sha256(json.dumps(settings).encode())
        for part in (head, context.original, self.fit.tobytes(), self.validation.tobytes()):
            found.update(hashlib.sha256(part).digest())
        for name, values in sorted(calibration.tensors.items()):
            found.update(name.encode() + hashlib.sha256(np.ascontiguousarray(values).data).digest())
        return found.hexdigest()


def _compute(session: Session, tensor: str, plan: _Plan, context: Context) -> None:
    calibration = context.samples.calibration
    features = np.memmap(context.folder / _FEATURES, dtype=plan.dtype, mode="w+", shape=(plan.rows, *plan.shape))
    answers: list[NDArray[np.float32]] = []
    done = 0
    with closing(open_session(context.original, threads=context.threads)) as original:
        name = original.outputs[0].name
        for feeds, count in _feeds(plan, calibration, context.samples.seed):
            features[done : done + count] = session.run(feeds)[tensor][:count]
            answers.append(original.run(feeds)[name][:count].astype(np.float32))
            done += count
            context.progress("computing features", done / plan.rows)
    features.flush()
    _write(context.folder / _ANSWERS, save({"answers": np.concatenate(answers)}))


def _feeds(plan: _Plan, calibration: Calibration, seed: int) -> Iterator[tuple[dict[str, Array], int]]:
    """Inputs and how many samples of them count: the copies of the fit one after the other, then the validation."""
    size = calibration.fixed_batch or BATCH
    for copy in range(plan.copies + 1):
        rows = plan.fit if copy < plan.copies else plan.validation
        for start in range(0, len(rows), size):
            chosen = rows[start : start + size]
            given = _filled(chosen, calibration)
            if 0 < copy < plan.copies:
                rng = np.random.default_rng((seed, copy, start))
                pixels = calibration.tensors[PIXELS][given].astype(np.uint8, copy=False)
                yield replace(calibration, tensors={PIXELS: _varied(pixels, rng)}).feeds(slice(None)), len(chosen)
            else:
                yield calibration.feeds(given), len(chosen)


def _filled(rows: Rows, calibration: Calibration) -> Rows:
    """Rows repeated until they fill the batch that is written in the model."""
    fixed = calibration.fixed_batch
    return rows if fixed is None else np.resize(rows, max(fixed, len(rows)))


def _is(index: Path, key: str) -> bool:
    try:
        return bool(json.loads(index.read_text())["key"] == key)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    part = path.with_suffix(".part")
    part.write_bytes(data)
    os.replace(part, path)


def _varied(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Each picture ``[n, h, w, c]`` perhaps mirrored, shifted by up to 6 % of its sides, up to 10 % brighter or darker."""
    result = np.empty_like(pixels)
    height, width = pixels.shape[1:3]
    for number, picture in enumerate(pixels):
        down, right = (round(rng.uniform(-_SHIFT, _SHIFT) * side) for side in (height, width))
        rows = np.clip(np.arange(height) + down, 0, height - 1)
        columns = np.clip(np.arange(width) + right, 0, width - 1)
        moved = picture[rows][:, columns if rng.random() < 0.5 else columns[::-1]]
        result[number] = np.clip(moved * rng.uniform(1 - _BRIGHTER, 1 + _BRIGHTER), 0, 255)
    return result
