"""What an answer says: from the whole model's outputs, or from an exit's row. Knows versions and rows, not where a frame goes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge.head.active import ActiveModel
from edge.head.frame import FrameAnswer
from edge.head.perceive import Perceived
from splitmesh.errors import MeshError, Reason
from splitmesh.model.classes import as_probabilities, score_form
from splitmesh.model.finding import SOMETHING, something_found
from splitmesh.tensor.spec import Array


def disagrees(answer: FrameAnswer, outputs: dict[str, Array], exit_row: Array) -> bool:
    """Whether the exit would have said something else than the tail."""
    manifest, at_exit = answer.active.manifest, int(np.argmax(exit_row[0]))
    finding = manifest.exit.finding if manifest.exit is not None else None
    if finding is not None:
        return something_found(outputs[finding.output], finding.min_score) != (at_exit == SOMETHING)
    return answer.row is not None and int(np.argmax(answer.row)) != at_exit


def exit_gives_outputs(active: ActiveModel) -> bool:
    """Whether an exit's probabilities can stand for the whole model's outputs: of a classifier with nothing beside its
    classes, once it is known what they hold."""
    manifest = active.manifest
    outputs = [tensor.name for tensor in manifest.whole.outputs]
    return active.scores is not None and bool(manifest.labels) and outputs == [manifest.class_output]


def fill_from_exit(answer: FrameAnswer, seen: Perceived) -> None:
    """The exit's classes; of a detector's, that there is nothing or something."""
    if seen.exit_row is None:
        raise AssertionError("only a frame that reached an exit is answered by one")
    answer.exit = seen.exit
    answer.row = _row(seen.exit_row)


def fill(answer: FrameAnswer, active: ActiveModel, outputs: dict[str, Array], *, classes: bool = True) -> None:
    """The whole model's outputs, and the classes of a classifier where they are wanted."""
    manifest = active.manifest
    names = [tensor.name for tensor in manifest.whole.outputs]
    if missing := set(names) - outputs.keys():
        raise MeshError(Reason.PROTOCOL_VIOLATION, f"the answer lacks the outputs {sorted(missing)}")
    classifier = manifest.task != "raw"
    answer.row = _row(outputs[manifest.class_output]) if classifier and classes else None  # first: it may be none
    answer.outputs = {name: outputs[name] for name in names}
    if classifier and active.scores is None:
        active.scores = score_form(outputs[manifest.class_output])


def _row(output: Array) -> NDArray[np.float64]:
    row: NDArray[np.float64] = as_probabilities(output)[0]
    if not np.isfinite(row).all():
        raise MeshError(Reason.TENSOR_NOT_FINITE, "the model gave no distribution over its classes for this frame")
    return row
