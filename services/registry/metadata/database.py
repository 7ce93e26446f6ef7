"""Threads between the event loop and a database that blocks: one for writes, some for reads where that helps.

What waits for a thread is bounded by the calls that the server takes at once. Knows no table. ``sqlite_database`` and
``postgres_database`` are the databases.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Protocol, TypeVar

from sqlalchemy import Connection

from splitmesh.errors import MeshError, Reason

T = TypeVar("T")

PAUSE_S = 0.25
"""Between two looks whether another registry has let go of the database; the server keeps no record of them."""

log = logging.getLogger(__name__)


class DatabaseTakenError(MeshError):
    """Another registry has the database now; it may let go of it."""


class DatabaseLostError(MeshError):
    """Another registry has begun on the database of this one, which is of no use any more."""


class Hold(Protocol):
    """While it lasts no other process can become the database's registry; every method blocks."""

    def check(self) -> None:
        """SERVICE_UNAVAILABLE when it may have ended by itself."""

    def end(self) -> None:
        """Lets go; fine when it has ended."""


class Database(Protocol):
    """Connections and transactions; every method blocks."""

    @property
    def readers(self) -> int:
        """Threads for reads beside the one for everything else; 0: reads go there too."""

    def open(self) -> None:
        """Ready for reads and writes when it returns; :class:`DatabaseTakenError`: it may be asked again."""

    def close(self) -> None:
        """Fine when it is not open."""

    def check(self) -> None:
        """Raises when this process must not write any more, or does not know; :class:`DatabaseLostError` when it never may."""

    def hold(self) -> Hold:
        """Keeps other processes from becoming the registry; :class:`DatabaseLostError` when one has."""

    def read(self, work: Callable[[Connection], T]) -> T:
        """Runs statements that change nothing, all at one moment."""

    def write(self, work: Callable[[Connection], T]) -> T:
        """Runs statements as one transaction that is on disk when this returns."""


class Threads:
    """A database for callers in the event loop.

    Args:
        database: not open.
        open_wait_s: how long a start waits for the registry before this one to let go of the database.
        check_every_s: between two looks whether this is still the database's registry.
        on_lost: told when it is not and will not be again; several times.
    """

    def __init__(
        self,
        database: Database,
        *,
        open_wait_s: float,
        check_every_s: float,
        on_lost: Callable[[DatabaseLostError], None],
    ) -> None:
        self._database = database
        self._open_wait_s = open_wait_s
        self._check_every_s = check_every_s
        self._on_lost = on_lost
        self._writer: ThreadPoolExecutor | None = None
        self._readers: ThreadPoolExecutor | None = None
        self._checks: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Opens; raises what :meth:`Database.open` does."""
        self._readers = self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="registry-metadata")
        try:
            await self._open()
        except BaseException:
            await self.stop()
            raise
        if self._database.readers:
            self._readers = ThreadPoolExecutor(self._database.readers, thread_name_prefix="registry-metadata-reads")
            self._checks = asyncio.create_task(self._check_on())

    async def stop(self) -> None:
        """Finishes what was accepted and closes; safe after a failed start."""
        if self._checks is not None:
            self._checks.cancel()
            with suppress(asyncio.CancelledError):
                await self._checks
            self._checks = None
        writer, readers, self._writer, self._readers = self._writer, self._readers, None, None
        if writer is None or readers is None:
            return
        if readers is not writer:
            await asyncio.to_thread(readers.shutdown)
        await asyncio.get_running_loop().run_in_executor(writer, self._database.close)
        writer.shutdown()

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Runs it beside writes; a caller that leaves before it begins takes it back."""
        return await self._run(self._readers, lambda: self._database.read(work))

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Runs it after the writes before it; a caller that leaves before it begins takes it back."""
        return await self._run(self._writer, lambda: self._database.write(work))

    async def check(self) -> None:
        """See :meth:`Database.check`."""
        await self._run(self._writer, self._database.check)

    @asynccontextmanager
    async def held(self) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """See :meth:`Database.hold`; yields what :meth:`Hold.check` is. Reads and writes of this process go on."""
        hold = await self._run(self._readers, self._database.hold)
        try:
            yield lambda: self._run(self._readers, hold.check)
        finally:
            await self._run(self._readers, hold.end)

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._open_wait_s
        while True:
            try:
                return await self._run(self._writer, self._database.open)
            except DatabaseTakenError:
                left_s = until - loop.time()
                if left_s <= 0:
                    raise
            await asyncio.sleep(min(PAUSE_S, left_s))

    async def _run(self, threads: ThreadPoolExecutor | None, work: Callable[[], T]) -> T:
        if threads is None:
            raise MeshError(Reason.NOT_READY, "the metadata store is closed", retry_after_s=1.0)
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, work)
        except DatabaseLostError as error:
            self._on_lost(error)
            raise

    async def _check_on(self) -> None:
        said = ""
        while True:
            await asyncio.sleep(self._check_every_s)
            try:
                await self.check()
            except DatabaseLostError:
                return
            except MeshError as error:
                if error.message != said:
                    log.error("metadata: %s", error.message)
                said = error.message
            else:
                if said:
                    log.warning("metadata: the database answers again")
                said = ""
