"""What an answer says, as a name by which answers of two versions are compared. Knows versions and outputs, no frame's way."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edge.head.active import ActiveModel
from edge.head.frame import FrameAnswer
from edge.head.perceive import Perceived
from edge.head.ways import Ways
from splitmesh.model.classes import as_probabilities
from splitmesh.model.manifest import Finding
from splitmesh.routing.costs import NO_ANSWER
from splitmesh.routing.finding import FINDINGS, NOTHING, SOMETHING, something_found
from splitmesh.tensor.spec import Array


def finding_of(*versions: Ways) -> Finding | None:
    """How a detector's answers are compared: whether something was found, as the first exit of these has it."""
    exits = [active.manifest.exit for ways in versions for active in ways.all]
    return next((one.finding for one in exits if one is not None and one.finding is not None), None)


def by_whole(active: ActiveModel, outputs: Mapping[str, Array], finding: Finding | None) -> str | None:
    """Of the whole model's outputs; None where they name nothing."""
    if finding is not None and finding.output in outputs:
        return FINDINGS[SOMETHING if something_found(outputs[finding.output], finding.min_score) else NOTHING]
    name = active.manifest.class_output
    if not name or name not in outputs:
        return None
    row = as_probabilities(outputs[name])[0]
    return _name(active, int(row.argmax())) if np.isfinite(row).all() else None


def by_exit(active: ActiveModel, seen: Perceived) -> str | None:
    """Of the exit that a frame got to; None without one, or where it names nothing."""
    if seen.exit_row is None or seen.verdict is None:
        return None
    answer = seen.verdict.answer
    if answer == NO_ANSWER:
        if not np.isfinite(seen.exit_row).all():
            return None
        answer = int(seen.exit_row[0].argmax())
    return _exit_name(active, answer)


def by_answer(answer: FrameAnswer, finding: Finding | None) -> str | None:
    """Of what was given to who asked."""
    if answer.outputs is not None:
        return by_whole(answer.active, answer.outputs, finding)
    if answer.row is None:
        return None
    return _exit_name(answer.active, int(answer.row.argmax()) if answer.named is None else answer.named)


def _exit_name(active: ActiveModel, number: int) -> str:
    exit_ = active.manifest.exit
    if exit_ is not None and exit_.finding is not None:
        return FINDINGS[number] if 0 <= number < len(FINDINGS) else str(number)
    return _name(active, number)


def _name(active: ActiveModel, number: int) -> str:
    labels = active.manifest.labels
    return labels[number] if 0 <= number < len(labels) else str(number)
