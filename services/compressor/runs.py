"""Compressions under way, waiting and finished: a bounded queue, their states, and who follows them.

In memory only: what was running when the service stopped is forgotten and can be started again. Knows nothing of what a
compression does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from enum import StrEnum

from services.compressor.report import Report
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.jobs import Progress
from splitmesh.kernel.latest import Latest
from splitmesh.kernel.streams import Drain

log = logging.getLogger(__name__)

Work = Callable[[Progress], Awaitable[tuple[int, Report]]]
"""Does a compression: the version it made and its report."""


class State(StrEnum):
    """Where a compression stands."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


LAST = (State.SUCCEEDED, State.FAILED)


@dataclass(frozen=True, slots=True)
class Status:
    """A compression now."""

    compression_id: str
    state: State
    step: str = ""
    progress: float = 0.0
    """Share of the steps done, 0..1."""
    result_version: int = 0
    report: Report | None = None
    error: MeshError | None = None


class Runs:
    """All compressions of this process.

    Args:
        max_running: at a time.
        max_queued: in line.
        max_kept: finished ones that are remembered.
        watch_stream_s: longest life of one `follow`.
        drain: ends every `follow` with NOT_READY.
    """

    def __init__(
        self, *, max_running: int, max_queued: int, max_kept: int, watch_stream_s: float, drain: Drain
    ) -> None:
        self._limit = max_running + max_queued
        self._turn = asyncio.Semaphore(max_running)
        self._max_kept = max_kept
        self._watch_stream_s = watch_stream_s
        self._drain = drain
        self._known: dict[str, Latest[Status]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Nothing to open."""

    async def stop(self) -> None:
        """Ends what runs; nothing of it is registered."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def submit(self, compression_id: str, work: Work) -> Status:
        """Start, or join the one of the same id that waits, runs or succeeded; one that failed is started anew.

        QUEUE_FULL when too many wait already.
        """
        known = self._known.get(compression_id)
        if known is not None and (status := _now(known)).state is not State.FAILED:
            return status
        if len(self._tasks) >= self._limit:
            raise MeshError(
                Reason.QUEUE_FULL,
                f"{len(self._tasks)} compressions are running or waiting; no more are taken",
                retry_after_s=30.0,
            )
        self._known.pop(compression_id, None)
        status = Status(compression_id, State.QUEUED)
        latest = self._known[compression_id] = Latest(status)
        task = asyncio.create_task(self._run(latest, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._forget_old()
        return status

    async def follow(self, compression_id: str) -> AsyncGenerator[Status]:
        """The state now, then each change, ending after the last. COMPRESSION_NOT_FOUND, NOT_READY."""
        latest = self._find(compression_id)
        async with aclosing(latest.follow(self._drain, longest_s=self._watch_stream_s)) as states:
            async for status in states:
                yield status
                if status.state in LAST:
                    return

    def finished(self, compression_id: str) -> tuple[int, Report]:
        """Version and report. COMPRESSION_NOT_FOUND; NOT_READY while it goes on; its own error when it failed."""
        status = _now(self._find(compression_id))
        if status.error is not None:
            raise status.error
        if status.report is None:
            raise MeshError(
                Reason.NOT_READY, f"the compression is {status.state.value.lower()}; watch it", retry_after_s=1.0
            )
        return status.result_version, status.report

    def _find(self, compression_id: str) -> Latest[Status]:
        try:
            return self._known[compression_id]
        except KeyError:
            raise MeshError(
                Reason.COMPRESSION_NOT_FOUND,
                f"no compression {compression_id[:80]!r} is known; a restart of this service forgets them",
            ) from None

    async def _run(self, latest: Latest[Status], work: Work) -> None:
        def progress(step: str, share: float) -> None:
            latest.set(replace(_now(latest), state=State.RUNNING, step=step, progress=share))

        try:
            async with self._turn:
                version, report = await work(progress)
            done = replace(_now(latest), state=State.SUCCEEDED, step="", progress=1.0)
            latest.set(replace(done, result_version=version, report=report))
        except MeshError as error:
            log.info("compression %s failed: %s", _now(latest).compression_id, error)
            latest.set(replace(_now(latest), state=State.FAILED, error=error))
        except Exception:
            # The boundary of a background task: nobody above would see it.
            log.exception("compression %s failed", _now(latest).compression_id)
            unexpected = MeshError(Reason.INTERNAL, "unexpected failure; see the server's log")
            latest.set(replace(_now(latest), state=State.FAILED, error=unexpected))

    def _forget_old(self) -> None:
        finished = [key for key, latest in self._known.items() if _now(latest).state in LAST]
        for key in finished[: max(0, len(finished) - self._max_kept)]:
            del self._known[key]


def _now(latest: Latest[Status]) -> Status:
    status = latest.value
    if status is None:
        raise RuntimeError("a compression without a status")
    return status
