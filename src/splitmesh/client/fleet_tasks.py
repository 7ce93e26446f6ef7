"""Tasks of a fleet as values: what is to be done, by whom, and how far it is.

Knows the messages of ``splitmesh.api.fleet.v1``; asks nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from google.protobuf.timestamp_pb2 import Timestamp

from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.client.fleet_nodes import Target, target_of


class TaskKind(StrEnum):
    """What kind of work."""

    DEPLOY = "DEPLOY"
    PROFILE = "PROFILE"
    COLLECT = "COLLECT"
    TRAIN = "TRAIN"
    UNKNOWN = "UNKNOWN"
    """Of a later release of the fleet."""


class TaskState(StrEnum):
    """Where a task stands."""

    QUEUED = "QUEUED"
    OFFERED = "OFFERED"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    SUPERSEDED = "SUPERSEDED"


ENDED = frozenset({TaskState.DONE, TaskState.FAILED, TaskState.CANCELLED, TaskState.SUPERSEDED})


@dataclass(frozen=True, slots=True)
class ProfileWork:
    """Times a version's pieces on the host; the profile goes to the registry."""

    model: str
    version: int
    budget_s: float = 0.0
    """Longest time; 0: 300."""


@dataclass(frozen=True, slots=True)
class CollectWork:
    """Makes a dataset of samples that the host's heads keep."""

    dataset: str
    models: tuple[str, ...] = ()
    """Empty: all."""
    unlabelled: bool = False
    max_samples: int = 0
    """0: all."""
    description: str = ""


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """A task now."""

    id: str
    kind: TaskKind
    what: str
    """For people, such as ``joints:4``."""
    node: str
    """Who has it, or alone may have it; empty: nobody yet."""
    state: TaskState
    attempt: int
    max_attempts: int
    phase: str
    share: float
    """Of the whole task, 0..1."""
    note: str
    """What the host last said."""
    figures: Mapping[str, float]
    create_time: datetime
    update_time: datetime
    lease_time: datetime | None
    created_by: str
    deployment_id: str
    target: Target
    result: Mapping[str, str]
    reason: str
    message: str

    @property
    def ended(self) -> bool:
        """It will not change any more."""
        return self.state in ENDED


def state_numbers(states: tuple[TaskState, ...]) -> list[pb.TaskState.ValueType]:
    """As they travel."""
    return [pb.TaskState.Value(f"TASK_STATE_{state.value}") for state in states]


def kind_number(kind: TaskKind | None) -> pb.TaskKind.ValueType:
    """As it travels; None: all kinds."""
    return pb.TaskKind.Value(f"TASK_KIND_{kind.value}") if kind is not None else pb.TASK_KIND_UNSPECIFIED


def task_of(message: pb.Task) -> TaskInfo:
    """As it came."""
    known = message.kind in pb.TaskKind.values() and message.kind != pb.TASK_KIND_UNSPECIFIED
    return TaskInfo(
        id=message.id,
        kind=TaskKind(pb.TaskKind.Name(message.kind).removeprefix("TASK_KIND_")) if known else TaskKind.UNKNOWN,
        what=_what(message),
        node=message.node,
        state=TaskState(pb.TaskState.Name(message.state).removeprefix("TASK_STATE_")),
        attempt=message.attempt,
        max_attempts=message.max_attempts,
        phase=message.progress.phase,
        share=message.progress.share,
        note=message.progress.message,
        figures=dict(message.progress.figures),
        create_time=_time(message.create_time),
        update_time=_time(message.update_time),
        lease_time=_time(message.lease_time) if message.HasField("lease_time") else None,
        created_by=message.created_by,
        deployment_id=message.deployment_id,
        target=target_of(message.target),
        result=dict(message.result),
        reason=message.reason,
        message=message.message,
    )


def _what(message: pb.Task) -> str:
    work = message.WhichOneof("work")
    if work == "deploy":
        assignment = message.deploy.assignment
        if not assignment.version:
            return f"{assignment.model}: nothing more"
        tried = f", {assignment.trial.candidate} tried" if assignment.HasField("trial") else ""
        return f"{assignment.model}:{assignment.version}{tried}"
    if work == "profile":
        return f"{message.profile.model}:{message.profile.version}"
    return message.collect.dataset if work == "collect" else ""


def _time(message: Timestamp) -> datetime:
    return message.ToDatetime(tzinfo=UTC)
