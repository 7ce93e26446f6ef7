"""The head in one piece or in several: run until an exit is sure, and no further.

Knows sessions, exits and the gate. What an answer looks like is ``answer.py``'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge.head.together import Together
from splitmesh.model.gate import Gate
from splitmesh.model.manifest import ExitInfo, Manifest
from splitmesh.runtime import Session
from splitmesh.tensor.spec import Array, TensorSpec


class StagedHead:
    """A head whose pieces run one after the other; as a session it gives what the head in one piece gives.

    A piece takes by name what the input and the pieces before it gave.
    """

    def __init__(self, stages: Sequence[Session]) -> None:
        self.stages = tuple(stages)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The head's: what a piece takes and none before it gave."""
        given, needed = set[str](), dict[str, TensorSpec]()
        for stage in self.stages:
            needed |= {spec.name: spec for spec in stage.inputs if spec.name not in given | needed.keys()}
            given |= {spec.name for spec in stage.outputs}
        return tuple(needed.values())

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Of every piece; some only feed the next one."""
        return tuple({spec.name: spec for stage in self.stages for spec in stage.outputs}.values())

    @property
    def providers(self) -> tuple[str, ...]:
        """Of the first piece; all are opened the same way."""
        return self.stages[0].providers

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All pieces."""
        tensors = dict(feeds)
        for stage in self.stages:
            tensors |= _run(stage, tensors)
        return tensors

    def close(self) -> None:
        """All pieces."""
        for stage in self.stages:
            stage.close()


@dataclass(frozen=True, slots=True)
class HeadRun:
    """What a head gave for one frame."""

    outputs: dict[str, Array]
    """Of the head, as far as it ran; what one piece only hands to the next is let go."""
    exit_row: Array | None
    """Of the deepest exit that was reached ``[1, classes]``; None without an exit."""
    exit: int
    """Its number, counted from the input; -1 without an exit."""
    sure: bool
    """It may answer."""
    complete: bool
    """The whole head ran."""
    waited_ms: float = 0.0
    """For the run of other frames to end, before this one's began."""


def run_head(
    session: Session, manifest: Manifest, gate: Gate, feeds: Mapping[str, Array], *, escalate: bool
) -> HeadRun:
    """Run until an exit is sure, or to the end; with ``escalate`` to the end in any case, no exit being sure."""
    exits = manifest.exits()
    if not isinstance(session, StagedHead):
        outputs, waited_ms = session.run_timed(feeds) if isinstance(session, Together) else (session.run(feeds), 0.0)
        if not exits:
            return HeadRun(outputs, None, -1, sure=False, complete=True, waited_ms=waited_ms)
        row = outputs[exits[-1].output]
        sure = not escalate and may_answer(exits[-1], gate, row)
        return HeadRun(outputs, row, 0, sure=sure, complete=True, waited_ms=waited_ms)
    tensors, last = dict(feeds), len(exits) - 1
    for number, (stage, exit_) in enumerate(zip(session.stages, exits, strict=True)):
        tensors |= _run(stage, tensors)
        row = tensors[exit_.output]
        sure = not escalate and may_answer(exit_, gate, row)
        if sure or number == last:
            kept = {name: tensors[name] for name in _given_by(manifest) if name in tensors}
            return HeadRun(kept, row, number, sure=sure, complete=number == last)
    raise AssertionError("a staged head has an exit")


def may_answer(exit_: ExitInfo, gate: Gate, row: Array) -> bool:
    """Whether the exit's row ``[1, classes]`` may stand as the answer.

    A detector's exit can only say that there is nothing: what it is that was found, and where, the tail says.
    """
    return bool(gate.decide(row, finding=exit_.finding is not None)[0])


def _given_by(manifest: Manifest) -> list[str]:
    return [] if manifest.split is None else [info.name for info in manifest.split.head.outputs]


def _run(stage: Session, tensors: Mapping[str, Array]) -> dict[str, Array]:
    return stage.run({spec.name: tensors[spec.name] for spec in stage.inputs})
