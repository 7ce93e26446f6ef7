"""Those who follow single tasks: each hears how it stands, then every change, until it has ended. Knows no table."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from services.fleet.tasks import lease
from splitmesh.api.fleet.v1 import fleet_pb2
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.latest import Latest
from splitmesh.kernel.streams import Drain


class _Topic:
    """One task that is followed."""

    def __init__(self) -> None:
        self.task = Latest[fleet_pb2.Task]()
        self.followers = 0


class Followers:
    """At most ``most`` at once, each for at most ``stream_s`` seconds; who is still there asks again."""

    def __init__(self, drain: Drain, *, most: int, stream_s: float) -> None:
        self._drain = drain
        self._most = most
        self._stream_s = stream_s
        self._count = 0
        self._topics: dict[str, _Topic] = {}

    @property
    def watched(self) -> list[str]:
        """Tasks that somebody follows."""
        return list(self._topics)

    def changed(self, task: fleet_pb2.Task) -> None:
        """It stands so now."""
        if topic := self._topics.get(task.id):
            topic.task.set(task)

    async def follow(
        self, task_id: str, read: Callable[[str], Awaitable[fleet_pb2.Task]]
    ) -> AsyncGenerator[fleet_pb2.Task]:
        """See ``WatchTask``; ``read`` says how the task stands now. QUEUE_FULL, NOT_READY, what ``read`` raises."""
        if self._count >= self._most:
            raise MeshError(Reason.QUEUE_FULL, f"{self._most} follow tasks already", retry_after_s=5.0)
        topic = self._topics.setdefault(task_id, _Topic())
        topic.followers += 1
        self._count += 1
        try:
            now = await read(task_id)
            if topic.task.value is None:
                topic.task.set(now)  # nothing newer has come while it was read
            async with aclosing(topic.task.follow(self._drain, longest_s=self._stream_s)) as states:
                async for task in states:
                    yield task
                    if task.state in lease.ENDED:
                        return
        finally:
            self._count -= 1
            topic.followers -= 1
            if not topic.followers:
                del self._topics[task_id]
