"""A segment in several pieces, as one session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from splitmesh.runtime.session import Session
from splitmesh.tensor.spec import Array, TensorSpec


class Pieces:
    """Sessions run one after the other; each takes by name what the input and those before it gave.

    Implements :class:`splitmesh.runtime.Session`.
    """

    def __init__(self, stages: Sequence[Session]) -> None:
        self.stages = tuple(stages)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a piece takes and none before it gave."""
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
        """All pieces; inputs are among what comes back."""
        tensors = dict(feeds)
        for stage in self.stages:
            tensors |= run_piece(stage, tensors)
        return tensors

    def close(self) -> None:
        """All pieces."""
        for stage in self.stages:
            stage.close()


def run_piece(stage: Session, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """What one piece gives, of what is there so far."""
    return stage.run({spec.name: tensors[spec.name] for spec in stage.inputs})
