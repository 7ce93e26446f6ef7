"""The original model's answers on some samples, and how far the answers of a tail are from them.

Knows class scores and tensors; nothing of cuts or rates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from splitmesh.compress.tally import classes
from splitmesh.compress.work import BATCH, Context, Rows
from splitmesh.errors import MeshError, Reason
from splitmesh.model.classes import as_probabilities
from splitmesh.model.output_error import OutputError
from splitmesh.runtime import Session, open_session
from splitmesh.tensor.spec import Array

MAX_ANSWER_BYTES = 128 << 20
"""Answers held in memory; of a model with large outputs fewer samples are compared."""


SMALLEST = 1e-9
"""A probability below it is taken for it: its logarithm says nothing any more."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Distance:
    """How far answers are from the original's."""

    samples: int
    output_error: float
    """Root mean square of the outputs' difference, as a share of the outputs'; of class scores too."""
    agreed: int | None = None
    """Samples where the same class is named; None without classes."""
    right: int | None = None
    """Samples where the labelled class is named; None without labels."""
    expected: float | None = None
    """Share of samples expected to get another class, see :func:`expected_disagreement`; None without classes."""

    @property
    def agreement(self) -> float | None:
        """Share of samples where the same class is named."""
        return None if self.agreed is None else self.agreed / self.samples


def expected_disagreement(margins: Floats, moved: Floats) -> float:
    """How often a class changes when every sample's margin may move as any sample's did.

    The lead of the best class over the next is ``margins`` ``[n]``; ``moved`` ``[n]`` is what was added to it. Counting
    the samples that did change says nothing below ``1 / n``; all ``n * n`` pairs do, and notice the near misses.
    """
    order = np.sort(moved)
    return float(np.searchsorted(order, -margins, side="left").mean() / len(order))


@dataclass(slots=True)
class Comparison:
    """Answers counted, batch by batch."""

    samples: int = 0
    agreed: int | None = None
    right: int | None = None
    error: OutputError = field(default_factory=OutputError)
    margins: list[Floats] = field(default_factory=list)
    moved: list[Floats] = field(default_factory=list)

    def distance(self) -> Distance:
        """What came out."""
        expected = (
            expected_disagreement(np.concatenate(self.margins), np.concatenate(self.moved)) if self.moved else None
        )
        return Distance(self.samples, self.error.relative(), self.agreed, self.right, expected)


class Original:
    """The whole model before the first step, opened once."""

    def __init__(self, context: Context, class_output: str) -> None:
        """``class_output``: of the version that is compared, with a score per class; empty: none."""
        self._context = context
        self._session = open_session(context.original, threads=context.threads)
        self.theirs = context.original_manifest.class_output if class_output else ""
        self.mine = class_output if self.theirs else ""

    def close(self) -> None:
        """Give the memory back."""
        self._session.close()

    def answers(self, rows: Rows) -> Answers:
        """To these samples, or to as many of the first as fit into memory.

        MeshError CALIBRATION_INSUFFICIENT without a sample or an output of numbers.
        """
        kept: dict[str, list[Array]] = {}
        count = held = 0
        for feed in self._context.samples.feeds(rows):
            given = self._session.run(feed)
            for name, array in given.items():
                if name == self.theirs or (not self.theirs and array.dtype.kind == "f"):
                    kept.setdefault(name, []).append(array)
                    held += array.nbytes
            count += len(next(iter(feed.values())))
            if held > MAX_ANSWER_BYTES:
                break
        if not kept:
            raise MeshError(Reason.CALIBRATION_INSUFFICIENT, "no sample or no floating-point output to compare")
        rows = rows[:count]
        labels = self._context.samples.labels(rows) if self.theirs else None
        return Answers(rows, {name: np.concatenate(arrays) for name, arrays in kept.items()}, labels, self)


class Answers:
    """What the original says to some samples."""

    def __init__(
        self, rows: Rows, outputs: Mapping[str, Array], labels: NDArray[np.int64] | None, original: Original
    ) -> None:
        """``outputs``: by name, those that count."""
        self.rows = rows
        self._outputs = outputs
        self._labels = labels
        self._original = original
        self._classes = classes(outputs[original.theirs]) if original.theirs else None
        empty = np.zeros(0)
        self._margins = empty if self._classes is None else _margins(outputs[original.theirs], self._classes)

    @property
    def right(self) -> int | None:
        """Samples to which the original names the labelled class; None without labels."""
        if self._labels is None or self._classes is None:
            return None
        return int((self._classes == self._labels)[self._labels >= 0].sum())

    @property
    def commonest(self) -> float:
        """Share of samples with the class named most often; 0 without classes."""
        return 0.0 if self._classes is None else float(np.bincount(self._classes).max() / len(self.rows))

    def distance(self, tail: Session, cut: Mapping[str, Array]) -> Distance:
        """Of the tail's answers to ``cut``: by name the tensors it takes, one row per row here."""
        found = Comparison()
        self.compare(tail, cut, found)
        return found.distance()

    def compare(self, tail: Session, cut: Mapping[str, Array], into: Comparison) -> None:
        """The same, added to what was counted before."""
        for begin in range(0, len(self.rows), BATCH):
            rows = slice(begin, begin + BATCH)
            given = tail.run({name: array[rows] for name, array in cut.items()})
            if self._original.theirs:
                given = {self._original.theirs: given[self._original.mine]}
            into.error.add({name: array[rows] for name, array in self._outputs.items()}, given)
            into.samples += len(self.rows[rows])
            if self._classes is not None:
                named = classes(given[self._original.theirs])
                mine = _margins(given[self._original.theirs], self._classes[rows])
                into.margins.append(self._margins[rows])
                into.moved.append(mine - self._margins[rows])
                into.agreed = (into.agreed or 0) + int((named == self._classes[rows]).sum())
                if self._labels is not None:
                    labels = self._labels[rows]
                    into.right = (into.right or 0) + int((named == labels)[labels >= 0].sum())


def _margins(scores: Array, of: NDArray[np.int64]) -> Floats:
    """``[n]``: by how much the logarithm of this class's probability is above the best other one's."""
    logs = np.log(np.maximum(as_probabilities(scores), SMALLEST))
    rows = np.arange(len(logs))
    own = logs[rows, of]
    logs[rows, of] = -np.inf
    found: Floats = own - logs.max(axis=1)
    return found
