"""What the parts of the fleet service ask of each other: nodes and tasks (``nodes``, ``tasks``), deployments (``rollout``).

Everything that changes is a transaction; what has to happen together is done on one connection, given by
``splitmesh.sql.Threads.write``. Callbacks come after the commit, in the event loop, and must not block or raise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from sqlalchemy import Connection

from services.fleet.values import Host, Target, TaskDraft
from splitmesh.api.fleet.v1 import fleet_pb2
from splitmesh.api.serving.v1 import serving_pb2


class NodeObserver(Protocol):
    """Told of hosts."""

    def connected(self, node: str) -> None:
        """Its agent has said hello, after what it serves and holds became known; also a host that was never seen before."""

    def disconnected(self, node: str) -> None:
        """Its agent is gone."""

    def serving_changed(self, node: str, states: Sequence[serving_pb2.ServingState]) -> None:
        """What its heads serve, as far as it changed; at hello all of it."""


class TaskObserver(Protocol):
    """Told of tasks."""

    def task_changed(self, task: fleet_pb2.Task) -> None:
        """It was offered, progressed, ended, or lost its host."""


class Nodes(Protocol):
    """The hosts as known: from the database, beside it who is connected."""

    def hosts(self, connection: Connection, target: Target) -> list[Host]:
        """Those that a target means, by name."""

    def is_online(self, node: str) -> bool:
        """Whether its agent is connected."""

    def serving(self, node: str) -> Sequence[serving_pb2.ServingState]:
        """What its heads serve, as last heard; also of a host that is offline."""

    def observe(self, observer: NodeObserver) -> None:
        """Tell it from now on."""


class Tasks(Protocol):
    """The lease table."""

    def insert(self, connection: Connection, drafts: Sequence[TaskDraft]) -> list[fleet_pb2.Task]:
        """Tasks made of drafts, within the caller's transaction; queued.

        One that deploys takes the place of those of the same host and model that have not ended (SUPERSEDED).
        QUEUE_FULL when as many wait as may.
        """

    def cancel(self, connection: Connection, task_ids: Iterable[str]) -> None:
        """Ends those that have not ended, within the caller's transaction."""

    def wake(self, nodes: Iterable[str] = ()) -> None:
        """After the commit: offer what waits to these hosts, and tell them what was cancelled; none named: to all."""

    def observe(self, observer: TaskObserver) -> None:
        """Tell it from now on."""
