"""What may become of a task: who may have it, when it is offered again, when it has ended. Knows no store, no clock, no stream.

A try of a task is named by its number. A host that says something about an older try is not heard: what it does there is
somebody else's task by now. A try whose lease ran out and that nobody else has got yet is still that host's: its word counts
again when it comes back.
"""

from __future__ import annotations

from enum import Enum, auto

from splitmesh.api.fleet.v1 import fleet_pb2
from splitmesh.errors import Reason

Task = fleet_pb2.Task

QUEUED = fleet_pb2.TASK_STATE_QUEUED
OFFERED = fleet_pb2.TASK_STATE_OFFERED
RUNNING = fleet_pb2.TASK_STATE_RUNNING
DONE = fleet_pb2.TASK_STATE_DONE
FAILED = fleet_pb2.TASK_STATE_FAILED
CANCELLED = fleet_pb2.TASK_STATE_CANCELLED
SUPERSEDED = fleet_pb2.TASK_STATE_SUPERSEDED

WITH_HOST = (OFFERED, RUNNING)
ACTIVE = (QUEUED, OFFERED, RUNNING)
ENDED = (DONE, FAILED, CANCELLED, SUPERSEDED)

FIRST_REST_S = 2.0
"""A task that failed and may be tried again rests so long before its second try, twice as long before each further one."""
MAX_REST_S = 300.0


class Heard(Enum):
    """What a host's word about a task amounts to."""

    CHANGED = auto()
    """The task stands elsewhere now."""
    RENEWED = auto()
    """It goes on; how far it is may have changed."""
    OLD = auto()
    """The host speaks of something that is not its task, or not any more."""


def is_bound(task: Task) -> bool:
    """One host alone may have it."""
    return not task.HasField("target")


def is_exhausted(task: Task) -> bool:
    """It has had all its tries."""
    return task.attempt >= task.max_attempts


def offer(task: Task, node: str) -> None:
    """A queued task goes to a host, as its next try."""
    task.state, task.node = OFFERED, node
    task.attempt += 1
    task.ClearField("progress")
    task.reason = task.message = ""


def end(task: Task, state: fleet_pb2.TaskState.ValueType, message: str = "", reason: str = "") -> None:
    """For good."""
    task.state, task.message, task.reason = state, message, reason
    task.ClearField("lease_time")


def give_up(task: Task) -> None:
    """Its tries are used up; what the last one came to is kept."""
    why = task.message or "nothing was heard of the last one"
    end(task, FAILED, f"{task.attempt} tries: {why}", task.reason or Reason.DEADLINE_EXPIRED.value)


def lose(task: Task, why: str) -> None:
    """Its host has it no more, or nobody knows. One that a single host may have waits for that host, whose last try may go on."""
    if not is_bound(task):
        task.node = ""
    task.state, task.message = QUEUED, why
    task.ClearField("lease_time")
    if not is_bound(task) and is_exhausted(task):
        give_up(task)


def resume(task: Task, node: str, attempt: int) -> bool:
    """A host that comes back has this try of it: it goes on, unless the try is not the host's any more."""
    if not _is_of(task, node, attempt):
        return False
    task.state, task.node, task.message = RUNNING, node, ""
    return True


def hear(task: Task, node: str, update: fleet_pb2.TaskUpdate) -> Heard:
    """What a host says of a try of it."""
    if not _is_of(task, node, update.attempt):
        return Heard.OLD
    was = task.state
    task.node = node
    task.progress.CopyFrom(update.progress)
    if update.state == RUNNING:
        task.state, task.message = RUNNING, ""
        return Heard.RENEWED if was == RUNNING else Heard.CHANGED
    if update.state == DONE:
        end(task, DONE, update.message)
        task.progress.share = 1.0
        task.result.clear()
        task.result.update(update.result)
    elif update.state == CANCELLED:
        end(task, CANCELLED, update.message)
    elif update.retry and not is_exhausted(task):
        lose(task, update.message)
        task.reason = update.reason
    else:
        end(task, FAILED, update.message, update.reason)
    return Heard.CHANGED


def rest_s(attempt: int) -> float:
    """How long a task rests after a failed try."""
    return min(MAX_REST_S, FIRST_REST_S * 2.0 ** min(attempt - 1, 20))


def _is_of(task: Task, node: str, attempt: int) -> bool:
    """Whether this try of the task is the last one, and this host's."""
    if task.state not in ACTIVE or not attempt or attempt != task.attempt:
        return False
    return task.node == node or (task.state == QUEUED and not is_bound(task))
