"""What flows through a recipe: the version as it is after each step, the samples, and what a step may use.

A step is a function ``apply(work, step, context) -> Work``. It never changes what it was given, measures only on the
hold-out, decides only on the other samples, and keeps whatever it wants to find again after an interruption in its own
folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from splitmesh.compress.recipe import Budget
from splitmesh.model.calibration import Calibration
from splitmesh.model.exits import split_samples
from splitmesh.model.manifest import Manifest
from splitmesh.tensor.spec import Array

BATCH = 16
"""Samples per run: bounds the memory, features of one sample can be megabytes."""

Rows = NDArray[np.int64]


class Progress(Protocol):
    """What a step calls to say where it stands."""

    def __call__(self, step: str, share: float) -> None:
        """``step``: what begins now; ``share``: of the step that is done, 0..1."""
        ...


@dataclass(frozen=True, slots=True)
class Work:
    """A version in the making: its manifest and every artefact that the manifest names."""

    manifest: Manifest
    artifacts: Mapping[str, bytes]
    """By name, and the outcomes of the exits where there are some; not the manifest, the report, the calibration samples."""

    def whole(self) -> bytes:
        """The whole model as it is now."""
        return self.artifacts[self.manifest.whole.artifact]

    def segments(self) -> list[bytes]:
        """Every segment in order; empty for a version that is whole."""
        split = self.manifest.split
        return [] if split is None else [self.artifacts[segment.artifact] for segment in split.segments()]


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """The calibration samples and which of them are for what; a group (the pictures of one unit) is never divided."""

    calibration: Calibration
    fit: Rows
    """Weights, ranges, tables come from these."""
    validation: Rows
    """Choices (channels, rates, thresholds of no promise, when to stop) come from these."""
    holdout: Rows
    """Figures come from these, and nothing else does."""
    seed: int
    holdout_share: float

    @classmethod
    def divide(cls, calibration: Calibration, *, holdout_share: float, seed: int) -> Samples:
        """The same samples and seed give the same parts. MeshError CALIBRATION_INSUFFICIENT for too few."""
        fit, validation, held = split_samples(
            calibration.samples, holdout=holdout_share, seed=seed, groups=calibration.groups
        )
        return cls(calibration, fit, validation, held, seed, holdout_share)

    @property
    def made_from(self) -> Rows:
        """Everything but the hold-out, sorted."""
        return np.union1d(self.fit, self.validation)

    def feeds(self, rows: Rows, *, batch: int = BATCH) -> Feeds:
        """The model's inputs for these rows, in batches, in order."""
        return Feeds(self.calibration, rows, batch=batch)

    def labels(self, rows: Rows) -> NDArray[np.int64] | None:
        """Class numbers ``[rows]``, -1 where not known; None when no sample has one."""
        labels = self.calibration.labels
        return None if labels is None else labels[rows]


class Feeds(Sequence[dict[str, Array]]):
    """Model inputs for some samples, a few at a time, made when they are read: all at once may not fit into memory."""

    def __init__(self, samples: Calibration, rows: Rows, *, batch: int = BATCH) -> None:
        self._samples = samples
        size = samples.fixed_batch or batch
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

    def __iter__(self) -> Iterator[dict[str, Array]]:
        for rows in self._rows:
            yield self._samples.feeds(rows)


@dataclass(slots=True)
class Context:
    """What a step may use beside the work."""

    samples: Samples
    original: bytes
    """The whole model before the first step: what every agreement is measured against."""
    original_manifest: Manifest
    folder: Path
    """The step's own, on disk; still there when an interrupted recipe goes on."""
    progress: Progress
    budget: Budget = field(default_factory=Budget)
    threads: int = 1
    """Of every session and of torch."""
    remarks: list[str] = field(default_factory=list)
    """What a person should know about this step; goes into the report."""
    figures: dict[str, float] = field(default_factory=dict)
    """Numbers for the report, with the unit in the name, such as ``macs_before``."""

    def remark(self, text: str) -> None:
        """Tell the reader of the report."""
        self.remarks.append(text)


Apply = Callable[[Work, Any, Context], Work]
"""A step's function: the version after it; MeshError when it cannot be done."""
