"""Tells watchers where an alias points: the current state first, then changes.

One shared slot per watched alias holds the newest state; a watcher that was slow finds the newest there, so nothing
queues up. The database is read once per watched alias, not per watcher and not by polling: the process that moves an
alias is this one (``folder_lock``) and offers the new state here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress

from services.registry.limits import Slots
from services.registry.store import AliasState, MetadataStore
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.streams import Drain


class _Topic:
    def __init__(self) -> None:
        self.latest: AliasState | None = None
        self.changed = asyncio.Event()
        self.watchers = 0

    def offer(self, state: AliasState) -> None:
        if self.latest is None or state.revision > self.latest.revision:
            self.latest = state
            self.wake()

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class AliasWatch:
    """All watchers of one registry.

    Args:
        store: asked for the current state of an alias that nobody watches yet.
        slots: how many watchers at once.
        stream_s: longest life of one watch; then it ends well and the client asks again. Bounds how long a client that
            vanished without a word holds a place.
        drain: ends every watch with NOT_READY, so that clients ask elsewhere or again.
    """

    def __init__(self, store: MetadataStore, slots: Slots, *, stream_s: float, drain: Drain) -> None:
        self._store = store
        self._slots = slots
        self._stream_s = stream_s
        self._drain = drain
        self._topics: dict[tuple[str, str], _Topic] = {}
        self._waker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """One task waits for the drain on behalf of all watchers."""
        self._waker = asyncio.create_task(self._wake_at_drain())

    async def stop(self) -> None:
        """Safe after a failed start."""
        if self._waker is not None:
            self._waker.cancel()
            with suppress(asyncio.CancelledError):
                await self._waker

    def offer(self, state: AliasState) -> None:
        """An alias has moved; older states than the one known are ignored."""
        if topic := self._topics.get((state.model, state.alias)):
            topic.offer(state)

    async def follow(self, model: str, alias: str) -> AsyncGenerator[AliasState, None]:
        """States of growing revision, beginning with the current one; QUEUE_FULL, NOT_READY."""
        deadline = asyncio.get_running_loop().time() + self._stream_s
        with self._slots.take(), self._topic(model, alias) as topic:
            if topic.latest is None:
                topic.offer(await self._store.alias_state(model, alias))
            sent = -1
            while not self._drain.begun.is_set():
                changed, latest = topic.changed, topic.latest
                if latest is not None and latest.revision > sent:
                    sent = latest.revision
                    yield latest
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(deadline):
                        await changed.wait()
                if not changed.is_set():
                    return
        raise MeshError(Reason.NOT_READY, "the registry is stopping", retry_after_s=0.5)

    async def _wake_at_drain(self) -> None:
        await self._drain.begun.wait()
        for topic in self._topics.values():
            topic.wake()

    @contextmanager
    def _topic(self, model: str, alias: str) -> Iterator[_Topic]:
        self._drain.enter()
        topic = self._topics.setdefault((model, alias), _Topic())
        topic.watchers += 1
        try:
            yield topic
        finally:
            self._drain.leave()
            topic.watchers -= 1
            if not topic.watchers:
                del self._topics[model, alias]
