"""What is known of one model's alias, or of all its aliases: where they point, and the last moves. Shared by its watchers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from services.registry.metadata.port import MetadataStore
from services.registry.metadata.records import AliasMove
from splitmesh.errors import MeshError, Reason

REMEMBERED = 64
"""Moves in memory; a watcher that is further behind reads the store."""


class Topic:
    """One of them; it exists while somebody watches.

    Attributes:
        changed: set, and replaced by a new one, at every news.
        watchers: how many there are.
    """

    def __init__(self, store: MetadataStore, model: str, alias: str) -> None:
        """An empty alias stands for all of the model."""
        self.model = model
        self.alias = alias
        self.changed = asyncio.Event()
        self.watchers = 0
        self._store = store
        self._states: dict[str, AliasMove] = {}
        self._now: Sequence[AliasMove] | None = None
        self._recent: deque[AliasMove] = deque()
        self._newest = self._floor = 0
        self._loading: asyncio.Task[None] | None = None

    @property
    def floor(self) -> int:
        """Every move of the topic above this is in memory."""
        return self._floor

    async def load(self) -> int:
        """Asks the store unless it is known; the sequence up to where everything is known. One read for all who wait."""
        while self._loading is None or not self._loading.done() or self._loading.exception():
            if self._loading is None or self._loading.done():
                self._loading = asyncio.create_task(self._load())
                self._loading.add_done_callback(_seen)
            await asyncio.shield(self._loading)
        return self._newest

    def now(self) -> tuple[Sequence[AliasMove], int]:
        """The last move of each alias that points somewhere, by sequence, and up to where that tells everything."""
        if self._now is None:
            pointing = [move for move in self._states.values() if move.version]
            self._now = sorted(pointing, key=lambda move: move.sequence)
        return self._now, self._newest

    def has_told(self, sequence: int) -> bool:
        """Whether no move follows."""
        return sequence >= self._floor and not (self._recent and self._recent[-1].sequence > sequence)

    def after(self, sequence: int) -> tuple[Sequence[AliasMove], int] | None:
        """Every move that follows, and up to where that tells everything; None when some are not in memory."""
        if sequence < self._floor:
            return None
        return [move for move in self._recent if move.sequence > sequence], max(sequence, self._newest)

    def offer(self, move: AliasMove) -> None:
        """Takes a move that is newer than all it knows."""
        if move.sequence <= self._newest:
            return
        self._take(move)
        self.wake()

    def forget(self) -> None:
        """The next reader asks the store."""
        self._loading = None
        self._states.clear()
        self._now = None
        self._recent.clear()
        self._newest = self._floor = 0
        self.wake()

    def wake(self) -> None:
        """There is news."""
        self.changed.set()
        self.changed = asyncio.Event()

    async def _load(self) -> None:
        mine = asyncio.current_task()
        states, newest = await self._store.alias_states(self.model, self.alias)
        last, below = await self._last_moves(newest)
        if self._loading is not mine:
            return
        early = [move for move in self._recent if move.sequence > newest]
        self._recent.clear()
        self._states, self._now = {move.alias: move for move in states}, None
        if self._floor <= newest:  # of what came meanwhile nothing has left memory again
            self._recent.extend(last)
            self._floor = below
        self._newest = newest
        for move in early:
            self._take(move)

    async def _last_moves(self, newest: int) -> tuple[Sequence[AliasMove], int]:
        """The store's last ``REMEMBERED`` moves, oldest first, without those after ``newest``; and above what that is all."""
        try:
            found = await self._store.alias_moves_before(self.model, self.alias, 0, REMEMBERED)
        except MeshError as error:
            if error.reason is not Reason.MODEL_NOT_FOUND:
                raise
            found = []
        last = [move for move in reversed(found) if move.sequence <= newest]
        if len(found) < REMEMBERED:
            return last, 0
        return last, last[0].sequence - 1 if last else newest

    def _take(self, move: AliasMove) -> None:
        if len(self._recent) == REMEMBERED:
            self._floor = max(self._floor, self._recent.popleft().sequence)
        self._recent.append(move)
        self._states[move.alias], self._now = move, None
        self._newest = move.sequence


def _seen(task: asyncio.Task[None]) -> None:
    # Where nobody waits any more nobody asks why it failed.
    _ = task.cancelled() or task.exception()
