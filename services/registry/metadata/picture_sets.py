"""Sets of pictures on their way in and out: many short transactions, so that other writes go in between. Knows no dataset."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from sqlalchemy import Connection

from services.registry.metadata import sql_pictures
from splitmesh.errors import MeshError
from splitmesh.sql.database import Threads

log = logging.getLogger(__name__)


class PictureSets:
    """See the module; raises what the database does."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._filling: set[int] = set()
        """Sets on their way in; the thread for writes adds and asks, so that no number is given between the two."""
        self._left: list[int] = []
        """Sets that nothing names and that could not be removed so far."""
        self._working: set[asyncio.Task[None]] = set()

    async def stop(self) -> None:
        """Finishes what was accepted."""
        await asyncio.gather(*self._working, return_exceptions=True)

    async def clean(self) -> None:
        """Removes what a process that was killed left behind."""
        left = await self._threads.read(sql_pictures.sets_without_version)
        for picture_set in left:
            await self._drop(picture_set)
        if left:
            log.info("metadata: %d unfinished sets of pictures removed", len(left))

    @asynccontextmanager
    async def filled(self, sha256s: Collection[str]) -> AsyncIterator[int]:
        """A new set of these, on disk. It goes after the block, unless a version names it by then."""
        picture_set = await self._threads.write(self._begin)
        try:
            ordered = await asyncio.to_thread(lambda: sorted(set(sha256s)))
            for start in range(0, len(ordered), sql_pictures.AT_ONCE):
                some = ordered[start : start + sql_pictures.AT_ONCE]
                await self._threads.write(partial(sql_pictures.add_pictures, picture_set=picture_set, sha256s=some))
            yield picture_set
        finally:
            await self._to_the_end(self._forget(picture_set))

    async def delete(self, work: Callable[[Connection], int]) -> None:
        """A write that takes a version away and says which set it had, and then the end of that set; also for a caller that
        leaves."""
        await self._to_the_end(self._delete(work))

    async def _delete(self, work: Callable[[Connection], int]) -> None:
        await self._forget(await self._threads.write(work))

    async def _forget(self, picture_set: int) -> None:
        """Removes a set unless a version names it, and with it those that could not be removed before."""
        self._filling.discard(picture_set)
        self._left.append(picture_set)
        while self._left:
            one = self._left.pop()
            try:
                await self._drop(one)
            except MeshError as error:
                self._left.append(one)
                log.warning("metadata: unneeded pictures stay until others go, or until the next start: %s", error)
                return

    def _begin(self, connection: Connection) -> int:
        picture_set = sql_pictures.begin_set(connection)
        self._filling.add(picture_set)
        return picture_set

    async def _drop(self, picture_set: int) -> None:
        def some(connection: Connection) -> bool:
            # Where the answer to its removal was lost, another one that is on its way in may have the number now.
            return picture_set not in self._filling and sql_pictures.drop_pictures(connection, picture_set)

        while await self._threads.write(some):
            pass

    async def _to_the_end(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        await asyncio.shield(task)
