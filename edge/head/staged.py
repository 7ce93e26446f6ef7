"""The head in one piece or in several: run until an exit is sure, and no further.

Knows sessions, exits and the gate. What an answer looks like is ``answer.py``'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edge.head.together import Together
from splitmesh.model.manifest import ExitInfo, Manifest
from splitmesh.routing.finding import FINDINGS
from splitmesh.routing.gate import Gate, Verdict
from splitmesh.runtime import Session
from splitmesh.runtime.pieces import Pieces, run_piece
from splitmesh.tensor.spec import Array


class StagedHead(Pieces):
    """A head whose pieces run one after the other; as a session it gives what the head in one piece gives."""


@dataclass(frozen=True, slots=True)
class HeadRun:
    """What a head gave for one frame."""

    outputs: dict[str, Array]
    """Of the head, as far as it ran; what one piece only hands to the next is let go."""
    exit_row: Array | None
    """Of the deepest exit that was reached ``[1, classes]``; None without an exit."""
    exit: int
    """Its number, counted from the input; -1 without an exit."""
    verdict: Verdict | None
    """About its row; None without an exit."""
    complete: bool
    """The whole head ran."""
    waited_ms: float = 0.0
    """For the run of other frames to end, before this one's began."""


def run_head(
    session: Session, manifest: Manifest, gate: Gate, feeds: Mapping[str, Array], *, camera: str = "", escalate: bool
) -> HeadRun:
    """Run until an exit is sure, or to the end; with ``escalate`` to the end in any case, no exit being sure."""
    exits = manifest.exits()
    if not isinstance(session, StagedHead):
        outputs, waited_ms = session.run_timed(feeds) if isinstance(session, Together) else (session.run(feeds), 0.0)
        if not exits:
            return HeadRun(outputs, None, -1, None, complete=True, waited_ms=waited_ms)
        verdict = judged(manifest, exits[-1], gate, outputs, camera=camera, asked=escalate)
        return HeadRun(outputs, outputs[exits[-1].output], 0, verdict, complete=True, waited_ms=waited_ms)
    tensors, last = dict(feeds), len(exits) - 1
    for number, (stage, exit_) in enumerate(zip(session.stages, exits, strict=True)):
        tensors |= run_piece(stage, tensors)
        verdict = judged(manifest, exit_, gate, tensors, camera=camera, asked=escalate)
        if verdict.sure or number == last:
            kept = {name: tensors[name] for name in _given_by(manifest) if name in tensors}
            return HeadRun(kept, tensors[exit_.output], number, verdict, complete=number == last)
    raise AssertionError("a staged head has an exit")


def judged(
    manifest: Manifest,
    exit_: ExitInfo,
    gate: Gate,
    outputs: Mapping[str, Array],
    *,
    camera: str = "",
    asked: bool = False,
) -> Verdict:
    """What the gate says about an exit, by what the head gave so far; errors as :meth:`Gate.verdict`.

    Scores that were fitted, and what is unusual, are known of the exit at the cut alone.
    """
    at_cut = exit_ is manifest.exit
    return gate.verdict(
        outputs[exit_.output],
        logits=None if exit_.logits is None else outputs[exit_.logits],
        features=outputs[exit_.features] if at_cut and exit_.features is not None else None,
        camera=camera,
        labels=FINDINGS if exit_.finding is not None else manifest.labels,
        asked=asked,
        at_cut=at_cut,
    )


def _given_by(manifest: Manifest) -> list[str]:
    return [] if manifest.split is None else [info.name for info in manifest.split.head.outputs]
