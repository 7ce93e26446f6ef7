"""What was heard since the last turn: who came and went, whose heads said something, counts, tasks that ended.

What heads serve is not kept here: it is looked up when the turn comes, so that only the newest counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from splitmesh.api.fleet.v1 import fleet_pb2
from splitmesh.api.serving.v1 import serving_pb2

ENDED = (
    fleet_pb2.TASK_STATE_DONE,
    fleet_pb2.TASK_STATE_FAILED,
    fleet_pb2.TASK_STATE_CANCELLED,
    fleet_pb2.TASK_STATE_SUPERSEDED,
)


@dataclass(slots=True)
class Inbox:
    """Between two turns."""

    connected: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    """Hosts of which anything else is news."""
    counts: dict[tuple[str, str, str], serving_pb2.TrialCounts] = field(default_factory=dict)
    """By host, trial and source: the last ones of each."""
    tasks: dict[str, fleet_pb2.Task] = field(default_factory=dict)
    """Deploy tasks that ended, by id."""
    removed: set[str] = field(default_factory=set)
    due: set[str] = field(default_factory=set)
    """Deployments that may have hosts to take in which appeared meanwhile."""

    def __bool__(self) -> bool:
        return bool(self.connected or self.changed or self.counts or self.tasks or self.removed or self.due)

    def hear(self, node: str, states: Sequence[serving_pb2.ServingState]) -> None:
        """What heads of a host said."""
        self.changed.add(node)
        for state in states:
            if state.HasField("counts") and state.counts.trial_id:
                counts = state.counts
                self.counts[node, counts.trial_id, counts.source] = counts

    def hear_task(self, task: fleet_pb2.Task) -> None:
        """What became of a task; only ends of those that deploy matter."""
        if task.kind == fleet_pb2.TASK_KIND_DEPLOY and task.state in ENDED:
            self.tasks[task.id] = task

    def put_back(self, before: Inbox) -> None:
        """What a turn could not finish is news again; what came meanwhile goes before it."""
        self.connected |= before.connected
        self.changed |= before.changed
        self.counts = before.counts | self.counts
        self.tasks = before.tasks | self.tasks
        self.removed |= before.removed
        self.due |= before.due
