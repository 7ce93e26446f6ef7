"""What an answer says: from the whole model's outputs, or from an exit's row. Knows versions and rows, not where a frame goes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from opentelemetry.trace import Span as OtelSpan

from edge.head.active import ActiveModel
from edge.head.decided import TailSaid
from edge.head.frame import FrameAnswer, FrameRequest, StageTimes
from edge.head.perceive import Perceived
from splitmesh.client.answers import Routing
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.telemetry import trace_context_of, trace_id_of
from splitmesh.model.classes import as_probabilities, score_form
from splitmesh.routing.costs import NO_ANSWER
from splitmesh.routing.finding import NOTHING, SOMETHING, something_found
from splitmesh.routing.gate import Verdict, confidence
from splitmesh.routing.rule import DEFAULT
from splitmesh.tensor.spec import Array


def begun(request: FrameRequest, active: ActiveModel, seen: Perceived, span: OtelSpan, arrived_ns: int) -> FrameAnswer:
    """What an answer says before it is decided who gives it; ``span`` is the frame's."""
    return FrameAnswer(
        frame_id=request.frame_id,
        active=active,
        trace_id=trace_id_of(span),
        trace_context=trace_context_of(span),
        times=StageTimes(
            queue_ms=(seen.started_ns - arrived_ns) / 1e6 + seen.waited_ms,
            decode_ms=(seen.decoded_ns - seen.started_ns) / 1e6,
            head_ms=seen.head_ms,
            encode_ms=0.0 if seen.packed is None else (seen.packed_ns - seen.ended_ns) / 1e6,
        ),
        exit_confidence=_sureness(seen),
        routing=None if seen.verdict is None else _routing(seen, seen.verdict),
    )


def _sureness(seen: Perceived) -> float:
    """The exit's largest probability; 0 without an exit, or for a row that is no distribution."""
    if seen.exit_row is None or seen.verdict is None:
        return 0.0
    known = seen.score == DEFAULT and not math.isnan(seen.verdict.ease)  # that is the ease, and numpy takes 30 µs
    sureness = seen.verdict.ease if known else float(confidence(seen.exit_row)[0])
    return 0.0 if math.isnan(sureness) else sureness


def _routing(seen: Perceived, verdict: Verdict) -> Routing:
    return Routing(
        verdict.why,
        seen.score,
        None if math.isnan(verdict.ease) else verdict.ease,
        verdict.threshold,
        verdict.worth,
        policy_revision=seen.policy_revision,
    )


def add_routing(answer: FrameAnswer, *, refused: str = "", audited: bool = False) -> None:
    """Add what became of a frame after it was decided; nothing where there was nothing to decide."""
    if answer.routing is not None:
        answer.routing = replace(answer.routing, refused=refused, audited=audited)


def tail_said(active: ActiveModel, outputs: dict[str, Array], verdict: Verdict) -> TailSaid | None:
    """The whole model's outputs for a frame, beside what an exit of ``active`` said; None where they name nothing.

    An exit that named nothing did not disagree. Raises TENSOR_SHAPE_MISMATCH, and PROTOCOL_VIOLATION for outputs that lack one.
    """
    manifest = active.manifest
    finding = manifest.exit.finding if manifest.exit is not None else None
    name = manifest.class_output if finding is None else finding.output
    if name not in outputs:
        raise MeshError(Reason.PROTOCOL_VIOLATION, f"the answer lacks the output {name!r}")
    if finding is not None:
        found = something_found(outputs[name], finding.min_score)
        label, sure = (SOMETHING, _highest(outputs[name])) if found else (NOTHING, 1.0 - _highest(outputs[name]))
    else:
        row = as_probabilities(outputs[name])[0]
        if not np.isfinite(row).all():
            return None
        label, sure = int(row.argmax()), float(row.max())
    return TailSaid(label, sure, disagreed=verdict.answer not in (NO_ANSWER, label))


def exit_gives_outputs(active: ActiveModel) -> bool:
    """Whether an exit's probabilities can stand for the whole model's outputs: of a classifier with nothing beside its
    classes, once it is known what they hold."""
    manifest = active.manifest
    outputs = [tensor.name for tensor in manifest.whole.outputs]
    return active.scores is not None and bool(manifest.labels) and outputs == [manifest.class_output]


def fill_from_exit(answer: FrameAnswer, seen: Perceived) -> None:
    """The exit's classes, the one that it names first; of a detector's, that there is nothing or something."""
    if seen.exit_row is None or seen.verdict is None:
        raise AssertionError("only a frame that reached an exit is answered by one")
    answer.exit = seen.exit
    answer.row = _row(seen.exit_row)
    answer.named = None if seen.verdict.answer == NO_ANSWER else seen.verdict.answer


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


def _highest(scores: Array) -> float:
    """Of a detector's scores, 0..1: a score that is no number counts as the surest sign of something, none at all as 0."""
    if scores.size == 0:
        return 0.0
    highest = float(scores.astype(np.float64).max())
    return 1.0 if math.isnan(highest) else min(1.0, max(0.0, highest))
