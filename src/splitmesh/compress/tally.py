"""Counts answers: of one way against the original's and against the labels, or how far outputs are when there are none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from splitmesh.compress.report import Point, Proportion
from splitmesh.model.classes import as_probabilities
from splitmesh.model.output_error import OutputError
from splitmesh.tensor.spec import Array

Classes = NDArray[np.int64]
"""Class numbers ``[n]``; of labels -1 where not known."""


@dataclass(slots=True)
class Tally:
    """Answers of one way, batch by batch."""

    class_output: str
    """Of the original; empty: it names no classes."""
    n: int = 0
    same: int = 0
    labelled: int = 0
    right: int = 0
    error: OutputError = field(default_factory=OutputError)

    def add(
        self, outputs: Mapping[str, Array], expected: Mapping[str, Array], labels: Classes | None = None
    ) -> Classes | None:
        """One batch of outputs and of the original's; the classes that were named, None without classes."""
        if not self.class_output:
            self.error.add(expected, outputs)
            return None
        named = classes(outputs[self.class_output])
        self.add_classes(named, classes(expected[self.class_output]), labels)
        return named

    def add_classes(self, named: Classes, expected: Classes, labels: Classes | None = None) -> None:
        """One batch of class numbers."""
        self.n += len(named)
        self.same += int((named == expected).sum())
        if labels is not None:
            self.labelled += int((labels >= 0).sum())
            self.right += int(((named == labels) & (labels >= 0)).sum())

    @property
    def agreement(self) -> Proportion | None:
        """None without classes."""
        return Proportion.of(self.same, self.n) if self.n else None

    @property
    def accuracy(self) -> Proportion | None:
        """None without labels."""
        return Proportion.of(self.right, self.labelled) if self.labelled else None

    @property
    def output_error(self) -> float | None:
        """None with classes."""
        return None if self.class_output else self.error.relative()

    def point(self, name: str, kind: Literal["cut", "upload", "mesh"], wire_bytes: float) -> Point:
        """With what it costs."""
        return Point(
            name=name,
            kind=kind,
            wire_bytes=wire_bytes,
            agreement=self.agreement,
            accuracy=self.accuracy,
            output_error=self.output_error,
        )


def classes(scores: Array) -> Classes:
    """Class numbers ``[n]`` of scores ``[n, classes]``."""
    found: Classes = as_probabilities(scores).argmax(axis=1)
    return found
