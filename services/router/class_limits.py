"""Goals as constraints on an exit's answers: class names become numbers, and sentences name classes. Pure.

Knows names and limits; which threshold keeps them is ``splitmesh.routing.risk``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.router.goals import Goals
from splitmesh.errors import field_error
from splitmesh.model.outcomes import CalibrationOutcomes
from splitmesh.routing.constraints import Constraint, Disagreement, FalseAlarm, Missed
from splitmesh.routing.finding import FINDINGS

_SHOWN = 8
"""Class names that a sentence spells out."""


@dataclass(frozen=True, slots=True)
class MissedClass(Missed):
    """A missed class that has a name."""

    name: str

    def words(self) -> tuple[str, str]:
        """For a reason."""
        return f" of class {self.name}", "say another class"


@dataclass(frozen=True, slots=True)
class FalseAlarmClass(FalseAlarm):
    """A falsely named class that has a name."""

    name: str

    def words(self) -> tuple[str, str]:
        """For a reason."""
        return f" of other classes than {self.name}", f"say class {self.name}"


def constraints_of(goals: Goals, labels: Sequence[str]) -> list[Constraint]:
    """The disagreement first, then of each limited class what is limited.

    Args:
        goals: what was stated.
        labels: the exit's classes, in their order.

    Raises MeshError FIELD_INVALID for a class that is not among them: its limit would be promised and not kept.
    """
    found: list[Constraint] = [Disagreement(goals.max_disagreement)]
    for limit in goals.classes:
        if limit.label not in labels:
            shown = ", ".join(labels[:_SHOWN]) + (f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else "")
            raise field_error("classes", f"limit {limit.label!r}, which this version does not know: it names {shown}")
        number = labels.index(limit.label)
        if limit.max_missed:
            found.append(MissedClass(number, limit.max_missed, limit.label))
        if limit.max_false_alarms:
            found.append(FalseAlarmClass(number, limit.max_false_alarms, limit.label))
    return found


def labels_of(outcomes: CalibrationOutcomes) -> tuple[str, ...]:
    """Names of the classes that the exits tell apart; their numbers where they have none."""
    if outcomes.finding:
        return FINDINGS
    return outcomes.names or tuple(str(number) for number in range(outcomes.probabilities.shape[2]))
