"""Compressions under way, waiting and ended: a bounded queue, their states, and who follows them.

What the disk says is what counts: a state is written before anybody is told, and what was queued or running when the
service stopped, in whatever way, goes on by itself when it starts. Knows nothing of what a compression does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

from services.compressor.store import ENDED, RESUMABLE, Request, State, Status, Store
from splitmesh.compress.child import Result
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.jobs import Progress
from splitmesh.kernel.latest import Latest
from splitmesh.kernel.streams import Drain

log = logging.getLogger(__name__)


class Work(Protocol):
    """Does a compression."""

    async def apply(self, request: Request, progress: Progress) -> Result:
        """Until there is something to register; can be cancelled at any time and goes on when it is called again."""
        ...

    async def register(self, request: Request, result: Result) -> tuple[int, bytes]:
        """The version and its report; the same when it is called again."""
        ...

    async def stands(self, request: Request, version: int) -> bool:
        """Whether the version that was registered is still there."""
        ...


@dataclass(slots=True)
class _Entry:
    """One compression in this process."""

    latest: Latest[Status]
    task: asyncio.Task[None] | None = None
    cancelled: bool = False
    ending: bool = False
    """Registers, or writes down how it ended: from here on a cancellation comes too late."""

    @property
    def status(self) -> Status:
        status = self.latest.value
        if status is None:
            raise RuntimeError("a compression without a status")
        return status


class Runs:
    """All compressions of this service.

    Args:
        store: where they are kept.
        work: does them.
        max_running: at a time.
        max_queued: in line.
        max_kept: ended ones that are remembered.
        watch_stream_s: longest life of one `follow`.
        drain: ends every `follow` with NOT_READY.
    """

    def __init__(
        self,
        store: Store,
        work: Work,
        *,
        max_running: int,
        max_queued: int,
        max_kept: int,
        watch_stream_s: float,
        drain: Drain,
    ) -> None:
        self._store = store
        self._work = work
        self._limit = max_running + max_queued
        self._turn = asyncio.Semaphore(max_running)
        self._max_kept = max_kept
        self._watch_stream_s = watch_stream_s
        self._drain = drain
        self._known: dict[str, _Entry] = {}
        self._changing = asyncio.Lock()

    async def start(self) -> None:
        """Reads what is kept; what had not ended goes on."""
        await asyncio.to_thread(self._store.open)
        for status in await asyncio.to_thread(self._store.load):
            entry = self._known[status.request.compression_id] = _Entry(Latest(status))
            if status.state not in ENDED:
                log.info("compression %s goes on behind step %d", status.request.compression_id, status.steps_done)
                entry.latest.set(replace(status, state=State.QUEUED))
                self._begin(entry)
        await self._forget_old()

    async def stop(self) -> None:
        """Ends what runs; it goes on when the service starts again."""
        tasks = [entry.task for entry in self._known.values() if entry.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._store.close()

    async def submit(self, request: Request) -> Status:
        """Start, or join the one of the same id; one that failed or was cancelled goes on, and one whose version was deleted
        is done anew. QUEUE_FULL, STORAGE_FULL."""
        async with self._changing:
            entry = self._known.get(request.compression_id)
            if entry is not None and await self._counts(entry.status):
                return await self._go_on(entry)
            self._require_room()
            number = 1 + max((known.status.request.number for known in self._known.values()), default=0)
            request = request.model_copy(update={"number": number})
            await asyncio.to_thread(self._store.create, request)
            entry = self._known[request.compression_id] = _Entry(Latest(Status(request, State.QUEUED)))
            self._begin(entry)
            await self._forget_old()
            return entry.status

    async def resume(self, compression_id: str) -> Status:
        """Go on with one that failed or was cancelled. COMPRESSION_NOT_FOUND, QUEUE_FULL, STORAGE_FULL."""
        async with self._changing:
            return await self._go_on(self._find(compression_id))

    async def cancel(self, compression_id: str) -> Status:
        """Stop one; it has ended when this returns. COMPRESSION_NOT_FOUND."""
        entry = self._find(compression_id)
        if (task := entry.task) is not None:
            # Once: a second blow would hit the end of the first, which is then never told.
            if not (entry.ending or entry.cancelled):
                entry.cancelled = True
                task.cancel()
            await asyncio.wait([task])
        return entry.status

    async def follow(self, compression_id: str) -> AsyncGenerator[Status]:
        """The state now, then each change, ending after the last. COMPRESSION_NOT_FOUND, NOT_READY."""
        latest = self._find(compression_id).latest
        async with aclosing(latest.follow(self._drain, longest_s=self._watch_stream_s)) as states:
            async for status in states:
                yield status
                if status.state in ENDED:
                    return

    def page(self, model: str, below: int | None, size: int) -> list[Status]:
        """The newest first, of one model or all, numbered below a place in the list; None: from the newest on."""
        found = (entry.status for entry in self._known.values())
        wanted = [
            status
            for status in found
            if model in ("", status.request.model) and (below is None or status.request.number < below)
        ]
        return sorted(wanted, key=lambda status: -status.request.number)[:size]

    def done(self, compression_id: str) -> Status:
        """One with a report. COMPRESSION_NOT_FOUND; NOT_READY before its end; its own error when it failed."""
        status = self._find(compression_id).status
        if status.state in (State.SUCCEEDED, State.REJECTED):
            return status
        if status.error is not None:
            raise status.error
        how = "resume it" if status.state is State.CANCELLED else "watch it"
        raise MeshError(Reason.NOT_READY, f"the compression is {status.state.value.lower()}; {how}", retry_after_s=1.0)

    def _find(self, compression_id: str) -> _Entry:
        try:
            return self._known[compression_id]
        except KeyError:
            raise MeshError(
                Reason.COMPRESSION_NOT_FOUND,
                f"no compression {compression_id[:80]!r} is known; the oldest ones are forgotten",
            ) from None

    async def _counts(self, status: Status) -> bool:
        """Not one that succeeded in making what is no longer there."""
        return status.state is not State.SUCCEEDED or await self._work.stands(status.request, status.result_version)

    async def _go_on(self, entry: _Entry) -> Status:
        if entry.status.state in RESUMABLE:
            self._require_room()
            await self._set(entry, replace(entry.status, state=State.QUEUED, step="", error=None))
            self._begin(entry)
        return entry.status

    def _require_room(self) -> None:
        active = sum(entry.task is not None for entry in self._known.values())
        if active >= self._limit:
            raise MeshError(
                Reason.QUEUE_FULL,
                f"{active} compressions are running or waiting; no more are taken",
                retry_after_s=30.0,
            )

    def _begin(self, entry: _Entry) -> None:
        entry.cancelled = entry.ending = False
        entry.task = asyncio.create_task(self._run(entry))

    async def _run(self, entry: _Entry) -> None:
        identifier = entry.status.request.compression_id
        try:
            ended = await self._until_ended(entry)
        except asyncio.CancelledError:
            if not entry.cancelled:  # the service stops: on disk it goes on
                raise
            ended = replace(entry.status, state=State.CANCELLED, step="")
        except MeshError as error:
            log.info("compression %s failed: %s", identifier, error)
            ended = replace(entry.status, state=State.FAILED, error=error)
        except Exception:
            # The boundary of a background task: nobody above would see it.
            log.exception("compression %s failed", identifier)
            unexpected = MeshError(Reason.INTERNAL, "unexpected failure; see the server's log")
            ended = replace(entry.status, state=State.FAILED, error=unexpected)
        entry.ending = True
        if ended.state in RESUMABLE:
            ended = replace(ended, steps_done=self._store.steps_done(identifier))
        try:
            await self._write(ended)
            if ended.state not in RESUMABLE:
                await asyncio.to_thread(self._store.clear_scratch, identifier)
        except (MeshError, OSError):
            # Told all the same; the disk still says that it runs, so that it goes on at the next start.
            log.exception("the state of compression %s could not be written", identifier)
        # Before anybody is told: who hears of the end may ask for more at once.
        entry.task = None
        entry.latest.set(ended)

    async def _until_ended(self, entry: _Entry) -> Status:
        request = entry.status.request
        identifier = request.compression_id

        def progress(step: str, share: float) -> None:
            if not entry.cancelled:
                done = self._store.steps_done(identifier)
                entry.latest.set(replace(entry.status, step=step, progress=share, steps_done=done))

        async with self._turn:
            await self._set(entry, replace(entry.status, state=State.RUNNING))
            result = await self._work.apply(request, progress)
            entry.ending = True
            over = result.error()
            if over is not None:
                version, report = 0, result.report.to_json()
            else:
                progress("register the version", entry.status.progress)
                version, report = await self._work.register(request, result)
            await asyncio.to_thread(self._store.keep_result, identifier, report, result.pictures)
        return replace(
            entry.status,
            state=State.REJECTED if over is not None else State.SUCCEEDED,
            step="",
            progress=1.0,
            steps_done=len(request.recipe.steps),
            result_version=version,
            error=over,
        )

    async def _set(self, entry: _Entry, status: Status) -> None:
        """On disk first."""
        await self._write(status)
        entry.latest.set(status)

    async def _write(self, status: Status) -> None:
        """Waited for also when cancelled: the next write must not overtake it."""
        writing = asyncio.ensure_future(asyncio.to_thread(self._store.write, status))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait([writing])
            writing.exception()
            raise

    async def _forget_old(self) -> None:
        ended = sorted(
            (entry.status for entry in self._known.values() if entry.status.state in ENDED),
            key=lambda status: status.request.number,
        )
        for status in ended[: max(0, len(ended) - self._max_kept)]:
            identifier = status.request.compression_id
            del self._known[identifier]
            await asyncio.to_thread(self._store.remove, identifier)
