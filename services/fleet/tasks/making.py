"""Makes tasks of drafts and ends them at somebody's word, in the caller's transaction. Tells no host: see ``board``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from services.fleet.targets import target_to
from services.fleet.tasks import lease, store
from services.fleet.tasks.store import Kept
from services.fleet.values import TaskDraft
from splitmesh.api.fleet.v1 import fleet_pb2
from splitmesh.errors import MeshError, Reason, field_error

NEVER_ASKED = "waits for its host"


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes tasks."""

    now: Callable[[], datetime]
    new_id: Callable[[], str]
    max_queued: int
    """More may not wait."""

    def insert(self, connection: Connection, drafts: Sequence[TaskDraft]) -> list[fleet_pb2.Task]:
        """See :class:`services.fleet.ports.Tasks`; a request that was made before gets what was made of it then."""
        before = store.find_requests(connection, {draft.request_id for draft in drafts if draft.request_id})
        fresh = [draft for draft in drafts if draft.request_id not in before]
        self._supersede(connection, fresh)
        if fresh and store.count_queued(connection) + len(fresh) > self.max_queued:
            raise MeshError(
                Reason.QUEUE_FULL,
                f"{self.max_queued} tasks may wait, and with {len(fresh)} more there would be more",
                metadata={"limit": str(self.max_queued)},
                retry_after_s=10.0,
            )
        sequence = store.last_sequence(connection) if fresh else 0
        made: list[tuple[Kept, str]] = []
        tasks = []
        for draft in drafts:
            task = before.get(draft.request_id) if draft.request_id else None
            if task is None:
                task = self._task(draft)
                made.append((Kept(task, sequence + len(made) + 1), draft.request_id))
                if draft.request_id:
                    before[draft.request_id] = task
            tasks.append(task)
        store.add(connection, made)
        return tasks

    def cancel(self, connection: Connection, task_ids: Iterable[str], message: str = "") -> None:
        """Ends those that have not ended."""
        self._end(connection, store.find(connection, task_ids), lease.CANCELLED, message)

    def _supersede(self, connection: Connection, drafts: Sequence[TaskDraft]) -> None:
        models = {
            (draft.node, draft.work.assignment.model)
            for draft in drafts
            if isinstance(draft.work, fleet_pb2.DeployWork)
        }
        if models:
            found = store.deploying(connection, {node for node, _ in models})
            older = [one for one in found if (one.task.node, one.task.deploy.assignment.model) in models]
            self._end(connection, older, lease.SUPERSEDED, "a newer one stands in its place")

    def _end(
        self, connection: Connection, found: Sequence[Kept], state: fleet_pb2.TaskState.ValueType, message: str
    ) -> None:
        active = [one for one in found if one.task.state in lease.ACTIVE]
        now = self.now()
        for one in active:
            lease.end(one.task, state, message)
            one.task.update_time.FromDatetime(now)
        store.write(connection, active)

    def _task(self, draft: TaskDraft) -> fleet_pb2.Task:
        task = fleet_pb2.Task(
            id=self.new_id(),
            node=draft.node,
            state=lease.QUEUED,
            max_attempts=max(1, draft.max_attempts),
            created_by=draft.created_by,
            deployment_id=draft.deployment_id,
            message=NEVER_ASKED,
        )
        now = self.now()
        task.create_time.FromDatetime(now)
        task.update_time.FromDatetime(now)
        if not draft.node:
            if draft.target is None:
                raise field_error("target", "is unset, and no host is named")
            task.target.CopyFrom(target_to(draft.target))
        work = draft.work
        if isinstance(work, fleet_pb2.DeployWork):
            task.kind = fleet_pb2.TASK_KIND_DEPLOY
            task.deploy.CopyFrom(work)
        elif isinstance(work, fleet_pb2.ProfileWork):
            task.kind = fleet_pb2.TASK_KIND_PROFILE
            task.profile.CopyFrom(work)
        else:
            task.kind = fleet_pb2.TASK_KIND_COLLECT
            task.collect.CopyFrom(work)
        return task
