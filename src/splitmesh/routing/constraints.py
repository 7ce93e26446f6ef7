"""What may go wrong at the edge, and how often: the constraints that a threshold is chosen under. Numpy only.

Each is about some of the samples and marks the answers that break it. Classes are numbers; the *reference* is the whole model's
answer, or the truth where labels are known. How a threshold comes to keep them, and what that is worth, is ``risk.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

from splitmesh.errors import field_error

Mask = NDArray[np.bool_]
Classes = NDArray[np.int64]


class Constraint(ABC):
    """At most ``limit`` of the samples that it is about are accepted with an answer that breaks it."""

    __slots__ = ()
    limit: float
    """A share between 0 and 1, both excluded."""

    @abstractmethod
    def judge(self, answers: Classes, reference: Classes) -> tuple[Mask, Mask]:
        """Of answers ``[n, exits]`` to samples of references ``[n]``: the samples that it is about ``[n]``, and the answers that
        break it if they are accepted ``[n, exits]``, which say nothing where it is not about the sample."""

    @abstractmethod
    def words(self) -> tuple[str, str]:
        """What follows "samples" to say which (empty for all), and what an answer that breaks it does, a verb in the plural."""


@dataclass(frozen=True, slots=True)
class Disagreement(Constraint):
    """P(accepted and the answer is not the reference) <= limit."""

    limit: float

    def __post_init__(self) -> None:
        require_share("limit", self.limit)

    def judge(self, answers: Classes, reference: Classes) -> tuple[Mask, Mask]:
        """About every sample."""
        return np.ones(len(reference), dtype=np.bool_), answers != reference[:, None]

    def words(self) -> tuple[str, str]:
        """For a reason."""
        return "", "disagree"


@dataclass(frozen=True, slots=True)
class Missed(Constraint):
    """P(accepted and the answer is not ``label`` | the reference is) <= limit: a missed defect."""

    label: int
    limit: float

    def __post_init__(self) -> None:
        _require_class(self.label)
        require_share("limit", self.limit)

    def judge(self, answers: Classes, reference: Classes) -> tuple[Mask, Mask]:
        """About the samples of the class."""
        return reference == self.label, answers != self.label

    def words(self) -> tuple[str, str]:
        """For a reason."""
        return f" of class {self.label}", "say another class"


@dataclass(frozen=True, slots=True)
class FalseAlarm(Constraint):
    """P(accepted and the answer is ``label`` | the reference is another class) <= limit."""

    label: int
    limit: float

    def __post_init__(self) -> None:
        _require_class(self.label)
        require_share("limit", self.limit)

    def judge(self, answers: Classes, reference: Classes) -> tuple[Mask, Mask]:
        """About the samples of the other classes."""
        return reference != self.label, answers == self.label

    def words(self) -> tuple[str, str]:
        """For a reason."""
        return f" of other classes than {self.label}", f"say class {self.label}"


def require_share(name: str, value: float) -> None:
    """MeshError FIELD_INVALID unless 0 < value < 1."""
    if not 0 < value < 1:
        raise field_error(name, f"is {value}, expected a number between 0 and 1, both excluded")


def _require_class(label: int) -> None:
    if not isinstance(label, Integral) or isinstance(label, bool) or label < 0:
        raise field_error("label", f"is {label!r}, expected the number of a class")
