"""What is known of a frame once it is answered, for those who count it, keep it or ask about it again.

Plain values: an observer never delays an answer, and an answer never depends on one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from edge.head.active import ActiveModel
from edge.head.frame import FrameAnswer, FrameRequest
from edge.head.perceive import Perceived
from splitmesh.routing.gate import Verdict


@dataclass(frozen=True, slots=True)
class TailSaid:
    """The tail's answer to a frame, beside the exit's."""

    label: int
    """Class; for a detector 0: nothing, 1: something."""
    confidence: float
    """0..1."""
    disagreed: bool
    """The exit said otherwise."""


@dataclass(frozen=True, slots=True)
class Decided:
    """One frame that passed an exit."""

    request: FrameRequest
    active: ActiveModel
    """The version whose exit decided; another than the answer's where the whole model stepped in."""
    seen: Perceived
    verdict: Verdict
    answer: FrameAnswer
    arrived: datetime
    """UTC."""
    tail: TailSaid | None
    """None: it was not asked, or it did not answer."""


class Observer(Protocol):
    """Told of every frame that passed an exit. Neither method may block or raise."""

    def decided(self, frame: Decided) -> None:
        """It is answered."""

    def audited(self, frame: Decided, tail: TailSaid) -> None:
        """The tail has checked a sure exit's answer, some time after it was given."""
