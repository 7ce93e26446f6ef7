"""Deploying: an assignment is kept as what this host is to serve, then the heads are followed until all of them do.

Which head is told when is the links' business (``edge/agent/head.py``); a task that is begun again after a crash simply goes on.
A head that fails for a reason that passes by itself is waited for; one that refuses ends the task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edge.agent.desired import Desired, superseded
from edge.agent.heads import Heads, HeadView
from edge.agent.runners.port import Tell, progress
from splitmesh.api.fleet.v1 import fleet_pb2
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.client.transfer import is_passing
from splitmesh.errors import MeshError, Reason

PHASES: dict[serving_pb2.Phase.ValueType, tuple[str, float]] = {
    serving_pb2.PHASE_UNSPECIFIED: ("queued", 0.0),
    serving_pb2.PHASE_QUEUED: ("queued", 0.0),
    serving_pb2.PHASE_FAILED: ("failed", 0.0),
    serving_pb2.PHASE_DOWNLOADING: ("downloading", 0.05),
    serving_pb2.PHASE_VERIFYING: ("verifying", 0.65),
    serving_pb2.PHASE_LOADING: ("loading", 0.7),
    serving_pb2.PHASE_WARMING: ("warming", 0.85),
    serving_pb2.PHASE_WAITING_FOR_TAIL: ("waiting-for-tail", 0.95),
    serving_pb2.PHASE_SERVING: ("serving", 1.0),
}
"""What a phase is called, and how much of the work lies before it."""
WAITING = "waiting-for-head"
_WITHDRAWING = "withdrawing"


class DeployRunner:
    """A :class:`~edge.agent.runners.port.Runner`.

    Args:
        desired: gets the assignment.
        heads: are followed.
    """

    at_once = True

    def __init__(self, desired: Desired, heads: Heads) -> None:
        self._desired = desired
        self._heads = heads

    async def run(self, task: fleet_pb2.Task, tell: Tell) -> Mapping[str, str]:
        """Until every head of this host serves it, or one cannot.

        Raises MeshError: the head's reason; CANCELLED when a newer assignment stands in its place; FIELD_INVALID.
        """
        assignment = task.deploy.assignment
        await self._desired.assign(assignment)
        while True:
            changed = self._heads.changed
            newest = self._desired.assignments.get(assignment.model)
            if newest is None:
                raise MeshError(Reason.CANCELLED, f"the end of {assignment.model!r} gave way to newer assignments")
            if newest.generation > assignment.generation:
                raise superseded(assignment.model, newest.generation)
            views = self._heads.views(assignment.model)
            # All are looked at: one that refuses ends the task, however far the others are.
            done = [_is_done(view, assignment) for view in views]
            if done and all(done):
                return _result(assignment, views)
            tell(_progress(assignment, views))
            await changed.wait()


def _is_done(view: HeadView, assignment: serving_pb2.Assignment) -> bool:
    """Raises MeshError for a head that will not do it."""
    state = view.state
    if view.problem is not None and not is_passing(view.problem):
        raise _of(view, view.problem)
    if not view.connected:
        return False
    if not assignment.version:
        return state is None or state.generation == 0 or state.generation >= assignment.generation
    if state is None or state.generation < assignment.generation:
        return False
    if state.generation > assignment.generation:
        raise superseded(assignment.model, state.generation)
    for version in _versions(state, assignment):
        if version.phase == serving_pb2.PHASE_FAILED and (error := _refusal(version)) is not None:
            raise _of(view, error)
    wanted = state.wanted.version == assignment.version and state.wanted.phase == serving_pb2.PHASE_SERVING
    if not wanted or state.active_version != assignment.version:
        return False
    if not assignment.HasField("trial"):
        return True
    candidate = state.candidate
    return candidate.version == assignment.trial.candidate and candidate.phase == serving_pb2.PHASE_SERVING


def _versions(state: serving_pb2.ServingState, assignment: serving_pb2.Assignment) -> list[serving_pb2.VersionState]:
    """Those that the assignment names, as far as the head has begun with them."""
    named = {assignment.version, assignment.trial.candidate} - {0}
    return [version for version in (state.wanted, state.candidate) if version.version in named]


def _refusal(version: serving_pb2.VersionState) -> MeshError | None:
    """Why a version cannot be served; None when the head's next try may cure it."""
    known = version.reason in Reason.__members__
    reason = Reason(version.reason) if known else Reason.INTERNAL
    message = version.message or f"version {version.version} cannot be used"
    error = MeshError(reason, message, metadata={} if known else {"reason": version.reason[:64]})
    return None if known and is_passing(error) else error


def _of(view: HeadView, error: MeshError) -> MeshError:
    return MeshError(error.reason, f"{view.name}: {error.message}", metadata=error.metadata)


def _progress(assignment: serving_pb2.Assignment, views: Sequence[HeadView]) -> fleet_pb2.TaskProgress:
    """Of the head that is furthest behind."""
    if not views:
        return progress(WAITING, 0.0, "this host has no head")
    away = [view for view in views if not view.connected]
    if away:
        why = f": {away[0].problem.message}" if away[0].problem else ""
        return progress(WAITING, 0.0, f"{', '.join(view.name for view in away)} cannot be reached{why}")
    if not assignment.version:
        return progress(_WITHDRAWING, 0.5)
    steps = [_step(view, assignment) for view in views]
    phase, share, message = min(steps, key=lambda step: step[1])
    serving = sum(step[1] >= 1.0 for step in steps)
    if len(views) > 1:
        message = f"{serving} of {len(views)} heads serve it" + (f"; {message}" if message else "")
    return progress(phase, share, message)


def _step(view: HeadView, assignment: serving_pb2.Assignment) -> tuple[str, float, str]:
    """Phase, share and words of one head."""
    state = view.state
    if view.problem is not None:
        return "queued", 0.0, f"{view.name}: {view.problem.message}"
    if state is None or state.generation < assignment.generation:
        return "queued", 0.0, ""
    found = _versions(state, assignment)
    if not found:
        return "queued", 0.0, ""
    version = min(found, key=_share)
    return PHASES.get(version.phase, ("queued", 0.0))[0], _share(version), version.message


def _share(version: serving_pb2.VersionState) -> float:
    _, share = PHASES.get(version.phase, ("queued", 0.0))
    if version.phase == serving_pb2.PHASE_DOWNLOADING and version.total_bytes:
        following = PHASES[serving_pb2.PHASE_VERIFYING][1]
        share += (following - share) * min(1.0, version.done_bytes / version.total_bytes)
    return share


def _result(assignment: serving_pb2.Assignment, views: Sequence[HeadView]) -> Mapping[str, str]:
    result = {"model": assignment.model, "version": str(assignment.version), "heads": str(len(views))}
    chosen = next(
        (view.state.wanted.backend.chosen for view in views if view.state and view.state.wanted.HasField("backend")),
        None,
    )
    if assignment.version and chosen is not None:
        result["backend"] = f"{chosen.backend} {chosen.precision} {chosen.threads}"
    return result
