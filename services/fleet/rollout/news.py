"""Who watches deployments, and which hosts changed since each was told last. Knows no message.

A watcher is a place in a count, not a queue: who is slow sees only how things stand when he looks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.streams import Drain


class Topic:
    """One deployment that somebody watches."""

    def __init__(self) -> None:
        self.watchers = 0
        self.number = 0
        """Counts the changes."""
        self._hosts: dict[str, int] = {}
        self._changed = asyncio.Event()

    def tell(self, nodes: Iterable[str]) -> None:
        """These hosts changed, or the deployment itself."""
        self.number += 1
        for node in nodes:
            self._hosts[node] = self.number
        self.wake()

    def wake(self) -> None:
        """Somebody should look."""
        self._changed.set()
        self._changed = asyncio.Event()

    def since(self, number: int) -> list[str]:
        """Hosts that changed after that."""
        return [node for node, changed in self._hosts.items() if changed > number]

    async def wait(self, number: int, until: float) -> bool:
        """Until there is more than that, or somebody is woken; whether that was before the loop's time ``until``."""
        changed = self._changed
        if self.number > number:
            return True
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await changed.wait()
        return changed.is_set()


class News:
    """All of them.

    Args:
        max_watchers: at once, over all deployments.
        drain: ends every watch with NOT_READY.
    """

    def __init__(self, max_watchers: int, drain: Drain) -> None:
        self._max_watchers = max_watchers
        self._drain = drain
        self._topics: dict[str, Topic] = {}
        self._watchers = 0

    def tell(self, deployment_id: str, nodes: Iterable[str] = ()) -> None:
        """Something about it changed."""
        if topic := self._topics.get(deployment_id):
            topic.tell(nodes)

    @contextmanager
    def watch(self, deployment_id: str) -> Iterator[Topic]:
        """The topic while the block runs; QUEUE_FULL, NOT_READY."""
        if self._watchers >= self._max_watchers:
            raise MeshError(
                Reason.QUEUE_FULL, f"{self._max_watchers} watch deployments, which is the limit", retry_after_s=1.0
            )
        topic = self._topics.setdefault(deployment_id, Topic())

        def wake() -> None:  # one of its own for each watch: the drain knows them apart
            topic.wake()

        self._drain.enter(wake)
        topic.watchers += 1
        self._watchers += 1
        try:
            yield topic
        finally:
            self._watchers -= 1
            topic.watchers -= 1
            if not topic.watchers:
                del self._topics[deployment_id]
            self._drain.leave(wake)

    def require_running(self) -> None:
        """NOT_READY when the service is stopping."""
        if self._drain.begun.is_set():
            raise MeshError(Reason.NOT_READY, "the fleet is stopping", retry_after_s=0.5)
