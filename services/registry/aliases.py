"""The rules of aliases: a move is told to watchers in the order of its sequence, whatever becomes of who asked for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime

from services.registry.limits import Slots
from services.registry.metadata.port import MetadataStore
from services.registry.metadata.records import Actor, AliasChange, AliasMove
from services.registry.names import check_alias, check_change, check_model_name
from services.registry.watch import ModelWatch
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.pages import number_from_token, page, page_size

MAX_MOVES = 256
"""Moves being written at once; they wait for each other."""

_REFUSALS = frozenset(
    {
        Reason.FIELD_INVALID,
        Reason.MODEL_NOT_FOUND,
        Reason.VERSION_NOT_FOUND,
        Reason.ALIAS_NOT_FOUND,
        Reason.ALIAS_MOVED,
        Reason.STORAGE_FULL,
    }
)
"""After one of these it is certain that nothing has moved."""


class Aliases:
    """Aliases of one registry."""

    def __init__(self, store: MetadataStore, watch: ModelWatch, now: Callable[[], datetime]) -> None:
        self._store = store
        self._watch = watch
        self._now = now
        self._slots = Slots("moves of aliases", MAX_MOVES)
        self._in_order = asyncio.Lock()
        self._moving: set[asyncio.Task[AliasMove]] = set()

    async def start(self) -> None:
        """Nothing to begin with."""

    async def stop(self) -> None:
        """Waits for what was accepted."""
        await asyncio.gather(*self._moving, return_exceptions=True)

    async def set(self, change: AliasChange, actor: Actor) -> AliasMove:
        """Points an alias, or takes it away, and tells the watchers.

        Raises:
            MeshError: FIELD_INVALID, MODEL_NOT_FOUND, VERSION_NOT_FOUND, ALIAS_NOT_FOUND, ALIAS_MOVED, STORAGE_FULL,
                QUEUE_FULL.
        """
        check_change(change, actor.by)
        with self._slots.take() as place:
            # A caller that hangs up in the middle cannot stop the write; watchers must hear of it all the same.
            move = asyncio.create_task(self._set(change, actor))
            place.keep_until(move)
            self._moving.add(move)
            move.add_done_callback(self._moving.discard)
            return await asyncio.shield(move)

    async def moves(self, model: str, alias: str, asked: int, token: str) -> tuple[Sequence[AliasMove], str]:
        """One page, newest first, and the token of the next, empty after the last; MODEL_NOT_FOUND."""
        check_model_name(model)
        if alias:
            check_alias(alias)
        size, kind = page_size(asked), f"moves:{model}:{alias}"
        found = await self._store.alias_moves_before(model, alias, number_from_token(kind, token), size + 1)
        return page(kind, found, size, lambda move: move.sequence)

    async def _set(self, change: AliasChange, actor: Actor) -> AliasMove:
        async with self._in_order:
            try:
                move = await self._store.set_alias(change, actor, self._now())
            except BaseException as error:
                if not (isinstance(error, MeshError) and error.reason in _REFUSALS):
                    # A database that did not answer may have done it all the same.
                    self._watch.doubt(change.model, change.alias)
                raise
            self._watch.offer(move)
            return move
