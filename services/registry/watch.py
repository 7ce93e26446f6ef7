"""Tells watchers every move of an alias: what they missed, once where it points now, then each move as it happens.

Where it points now is told to those who come back as well: a sequence alone does not say of which history it is, and a
registry that was set back to a backup soon reaches the sequences that its watchers know from before.

A watcher is a place in the history, not a queue: it reads on from the sequence that it was told last, as fast as its client
reads. Those that keep up read the last moves from memory, shared by all watchers of a topic; those that are behind read pages
from the store. Nothing is asked by polling: the process that moves aliases is this one (``folder_lock``, or the lock in the
database) and offers each move here, in the order of the sequences (``aliases``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from services.registry.limits import Slots
from services.registry.metadata.port import MetadataStore
from services.registry.metadata.records import AliasMove, Version
from services.registry.topic import Topic
from services.registry.versions_read import VersionReads
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.streams import Drain

log = logging.getLogger(__name__)

PAGE = 100
"""Moves that a watcher which is behind reads at once."""


@dataclass(frozen=True, slots=True)
class News:
    """One message to a watcher."""

    move: AliasMove | None
    """None: nothing has moved, only the rest is news."""
    version: Version | None
    """Where the move pointed the alias; None: nowhere, or to a version that was deleted since."""
    sequence: int
    """Everything up to here has been told."""
    keyring_version: int
    present: bool = False
    """Where the alias points now, not a move that happened now."""
    complete: bool = False
    """Every alias that points anywhere has been told as present in this stream."""


class ModelWatch:
    """All watchers of one registry.

    Args:
        store: asked where the aliases of a model point that nobody watches yet, and for what a watcher missed.
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
        self._versions = VersionReads(store)
        self._topics: dict[tuple[str, str], Topic] = {}
        self._newest = 0
        self._keyring_version = 0
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

    def offer(self, move: AliasMove) -> None:
        """An alias has moved; in the order of the sequences. One that was offered before is no news."""
        self._newest = max(self._newest, move.sequence)
        self.changed(move.model)
        for topic in self._topics_of(move.model, move.alias):
            topic.offer(move)

    def doubt(self, model: str, alias: str) -> None:
        """Nobody knows whether the alias has moved: its watchers ask the store."""
        self.changed(model)
        for topic in self._topics_of(model, alias):
            topic.forget()

    def changed(self, model: str) -> None:
        """Something about versions of a model is different: signatures, holders, aliases, or one is gone."""
        self._versions.forget(model)

    def keyring(self, version: int) -> None:
        """There is a new keyring."""
        self._keyring_version = version
        for topic in self._topics.values():
            topic.wake()

    async def follow(self, model: str, alias: str, after: int) -> AsyncGenerator[News, None]:
        """News of growing sequence; see ``WatchModel`` in the contract. An empty alias stands for all of the model.

        The first message comes at once in any case. QUEUE_FULL, NOT_READY, SERVICE_UNAVAILABLE (the store is away).
        """
        deadline = asyncio.get_running_loop().time() + self._stream_s
        with self._slots.take(), self._topic(model, alias) as topic:
            keyring, begun = -1, False
            sequence = after if await self._is_known(topic, after) else 0
            while not self._drain.begun.is_set():
                await self._load(topic)
                changed = topic.changed
                present = not begun and (not sequence or topic.has_told(sequence))
                moves, told = topic.now() if present else await self._after(topic, sequence)
                for index, move in enumerate(moves):
                    last = index == len(moves) - 1
                    sequence = max(sequence, told if last else move.sequence)
                    version = await self._versions.get(model, move.version)
                    keyring = self._keyring_version
                    yield News(move, version, sequence, keyring, present, complete=present and last)
                sequence = max(sequence, told)
                begun = begun or present
                if not moves and (present or (begun and keyring != self._keyring_version)):
                    keyring = self._keyring_version
                    yield News(None, None, sequence, keyring, complete=present)
                if moves or not begun or keyring != self._keyring_version:
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(deadline):
                        await changed.wait()
                if not changed.is_set():
                    return
        raise MeshError(Reason.NOT_READY, "the registry is stopping", retry_after_s=0.5)

    async def _load(self, topic: Topic) -> None:
        self._newest = max(self._newest, await topic.load())

    async def _is_known(self, topic: Topic, sequence: int) -> bool:
        """False for a sequence from another life of this registry, such as before a backup was brought back."""
        await self._load(topic)
        if sequence <= self._newest:
            return True
        _, self._newest = await self._store.alias_states(topic.model, topic.alias)
        if sequence > self._newest:
            log.warning("a watcher of %s knows move %d, the newest is %d", topic.model, sequence, self._newest)
        return sequence <= self._newest

    async def _after(self, topic: Topic, sequence: int) -> tuple[Sequence[AliasMove], int]:
        """What follows, at most ``PAGE`` moves, and up to where everything is told with them."""
        if (recent := topic.after(sequence)) is not None:
            return recent
        floor = topic.floor
        moves = await self._store.alias_moves_after(topic.model, topic.alias, sequence, PAGE)
        last = moves[-1].sequence if moves else sequence
        return moves, last if len(moves) == PAGE else max(last, floor)

    async def _wake_at_drain(self) -> None:
        await self._drain.begun.wait()
        for topic in self._topics.values():
            topic.wake()

    def _topics_of(self, model: str, alias: str) -> Iterator[Topic]:
        for key in ((model, alias), (model, "")):
            if topic := self._topics.get(key):
                yield topic

    @contextmanager
    def _topic(self, model: str, alias: str) -> Iterator[Topic]:
        self._drain.enter()
        topic = self._topics.setdefault((model, alias), Topic(self._store, model, alias))
        topic.watchers += 1
        try:
            yield topic
        finally:
            self._drain.leave()
            topic.watchers -= 1
            if not topic.watchers:
                del self._topics[model, alias]
