"""Threads between the event loop and a database that blocks: one for writes, some for reads where that helps.

Writes that wait at the same moment become one transaction (``together``). What waits for a thread is bounded by the calls that
the server takes at once. Knows no table. ``sqlite_database`` and ``postgres_database`` are the databases.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection

from splitmesh.errors import MeshError, Reason
from splitmesh.sql.together import Outcome, Work

T = TypeVar("T")

PAUSE_S = 0.25
"""Between two looks whether another owner has let go of the database; the server keeps no record of them."""

MOST_TOGETHER = 256
"""Writes in one transaction: a failed commit is all of theirs, and a read on SQLite waits for them."""

log = logging.getLogger(__name__)


class DatabaseTakenError(MeshError):
    """Another owner has the database now; it may let go of it."""


class DatabaseLostError(MeshError):
    """Another owner has begun on the database of this one, which is of no use any more."""


class Hold(Protocol):
    """While it lasts no other process can become the database's owner; every method blocks."""

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
        """Keeps other processes from becoming the owner; :class:`DatabaseLostError` when one has."""

    def read(self, work: Callable[[Connection], T]) -> T:
        """Runs statements that change nothing, all at one moment."""

    def write(self, work: Callable[[Connection], T]) -> T:
        """Runs statements as one transaction that is on disk when this returns; ``work`` may be run again."""

    def write_each(self, works: Sequence[Work]) -> list[Outcome]:
        """Runs each as if it were alone, in order, in one transaction that is on disk when this returns.

        What one that raises has changed is taken back, and only that. Raises when nothing of any of them was kept, or this is
        not known.
        """


@dataclass(frozen=True, slots=True)
class _Write:
    """Waits for the thread of writes."""

    work: Work
    answer: asyncio.Future[Any]


class Threads:
    """A database for callers in the event loop.

    Args:
        database: not open.
        open_wait_s: how long a start waits for the owner before this one to let go of the database.
        check_every_s: between two looks whether this process still owns the database.
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
        self._waiting: deque[_Write] = deque()
        """Written by the event loop, taken by the thread of writes."""
        self._checks: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Opens; raises what :meth:`Database.open` does."""
        self._readers = self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="database")
        try:
            await self._open()
        except BaseException:
            await self.stop()
            raise
        if self._database.readers:
            self._readers = ThreadPoolExecutor(self._database.readers, thread_name_prefix="database-reads")
            self._checks = asyncio.create_task(self._check_on())

    async def stop(self) -> None:
        """Finishes what was accepted and closes; safe after a failed start."""
        writer, readers, self._writer, self._readers = self._writer, self._readers, None, None
        if self._checks is not None:
            self._checks.cancel()
            with suppress(asyncio.CancelledError):
                await self._checks
            self._checks = None
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
        """Runs it after the writes before it; a caller that leaves before it begins takes it back.

        It may share its transaction with others, whose failures are not its own; it may run more than once. It is on disk when
        this returns.
        """
        if self._writer is None:
            raise _closed()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self._waiting.append(_Write(work, answer))
        # One call for each write; most find theirs done by the call of one before. So what else waits for the thread keeps its
        # place, and no write can be forgotten.
        self._writer.submit(self._write_waiting, loop)
        try:
            return await answer
        except DatabaseLostError as error:
            self._on_lost(error)
            raise

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

    def _write_waiting(self, loop: asyncio.AbstractEventLoop) -> None:
        """In the thread of writes: what waits, as one transaction."""
        together: list[_Write] = []
        while self._waiting and len(together) < MOST_TOGETHER:
            write = self._waiting.popleft()
            if not write.answer.cancelled():
                together.append(write)
        if not together:
            return
        outcomes: list[Outcome]
        try:
            if len(together) == 1:
                outcomes = [Outcome(self._database.write(together[0].work))]
            else:
                outcomes = self._database.write_each([write.work for write in together])
        except BaseException as error:  # whatever it is, somebody waits for it
            outcomes = [Outcome(error=error)] * len(together)
        loop.call_soon_threadsafe(_answer, together, outcomes)

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
            raise _closed()
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
                    log.error("database: %s", error.message)
                said = error.message
            else:
                if said:
                    log.warning("database: it answers again")
                said = ""


def _answer(together: Sequence[_Write], outcomes: Sequence[Outcome]) -> None:
    for write, outcome in zip(together, outcomes, strict=True):
        if write.answer.done():  # its caller has left meanwhile
            continue
        if isinstance(outcome.error, StopIteration):  # no future takes it, and the others would never be told
            write.answer.set_exception(RuntimeError("a write ended with StopIteration"))
        elif outcome.error is not None:
            write.answer.set_exception(outcome.error)
        else:
            write.answer.set_result(outcome.value)


def _closed() -> MeshError:
    return MeshError(Reason.NOT_READY, "the database is closed", retry_after_s=1.0)
