"""Runs one function in a child process of its own, with a wall deadline and a memory limit.

For work that is too heavy for the event loop or that may crash: profiling, cutting and fitting models. The child is
spawned, never forked (gRPC's threads do not survive a fork), runs one function and ends. The function finds only
:func:`~splitmesh.kernel.child_env.child_environment` of the environment. It is a limit, not a sandbox: same user, same files.
So what it returns is trusted as much as our own code is, and travels as pickle; what the function reads out of foreign bytes
never does. Knows nothing of models.
"""

from __future__ import annotations

import asyncio
import logging
import math
import multiprocessing
import os
import resource
import signal
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Protocol, TypeVar, cast

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.child_env import child_environment

log = logging.getLogger(__name__)

T = TypeVar("T")

MIB = 1 << 20

LATE_GRACE_S = 5
"""A child ends by itself this long after its deadline, should its parent hang."""

_DONE, _PROGRESS, _REFUSED, _FAILED, _OUT_OF_MEMORY = range(5)


class Progress(Protocol):
    """What a job calls to say where it stands."""

    def __call__(self, step: str, share: float) -> None:
        """``step``: what begins now; ``share``: of the whole job that is done, 0..1."""
        ...


async def run_job(
    function: Callable[..., T],
    *args: Any,
    deadline_s: float,
    max_memory_bytes: int,
    on_progress: Progress | None = None,
) -> T:
    """``function(*args)`` in a child process; with ``on_progress``, ``function(*args, progress=...)``.

    Args:
        function: at the top level of a module that the child can import.
        args: picklable; also its result.
        deadline_s: wall time from now, the start of the process included (about 1 s).
        max_memory_bytes: of the child's address space (RLIMIT_AS), libraries included.
        on_progress: called in this event loop.

    A cancelled call kills the child and returns when it is gone. Raises the function's own MeshError; DEADLINE_EXPIRED;
    MODEL_TOO_LARGE when the function ran out of memory; INTERNAL when it crashed or raised anything else, the details
    of which go to the log.
    """
    loop = asyncio.get_running_loop()
    report: Progress | None = None
    if on_progress is not None:
        wanted = on_progress

        def report(step: str, share: float) -> None:
            loop.call_soon_threadsafe(wanted, step, share)

    child = _Child(function, args, deadline_s, max_memory_bytes, report)
    running = asyncio.ensure_future(asyncio.to_thread(child.run))
    try:
        return cast(T, await asyncio.shield(running))
    except asyncio.CancelledError:
        child.kill()
        await asyncio.wait([running])
        # Looked at, so that asyncio does not complain: the child was killed, an error is expected.
        running.exception()
        raise


class JobSlots:
    """At most ``running`` jobs at a time and ``waiting`` more in line; the next one is refused with QUEUE_FULL."""

    def __init__(self, running: int, waiting: int) -> None:
        self._limit = running + waiting
        self._taken = 0
        self._turn = asyncio.Semaphore(running)

    async def __aenter__(self) -> None:
        """Wait for a turn."""
        if self._taken >= self._limit:
            raise MeshError(
                Reason.QUEUE_FULL, f"{self._taken} jobs are running or waiting; no more are taken", retry_after_s=5.0
            )
        self._taken += 1
        try:
            await self._turn.acquire()
        except BaseException:
            self._taken -= 1
            raise

    async def __aexit__(self, *_: object) -> None:
        """Let the next one start."""
        self._taken -= 1
        self._turn.release()


class _Child:
    """The parent's side, in a thread: reading the pipe blocks, and ends when the child does."""

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        deadline_s: float,
        max_memory_bytes: int,
        report: Progress | None,
    ) -> None:
        self._deadline = time.monotonic() + deadline_s
        self._deadline_s = deadline_s
        self._max_memory_bytes = max_memory_bytes
        self._report = report
        context = multiprocessing.get_context("spawn")
        self._ours, self._theirs = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_child,
            args=(self._theirs, function, args, math.ceil(deadline_s), max_memory_bytes, report is not None),
            name=f"job {function.__name__}",
            daemon=True,
        )
        self._killed = False

    def kill(self) -> None:
        """End it now; called from another thread, perhaps before it started. Never blocks."""
        self._killed = True
        if self._process.pid is not None:
            self._process.kill()

    def run(self) -> Any:
        try:
            self._process.start()
            self._theirs.close()
            # Either kill() saw the process, or its flag is seen here: no lock, which start() would hold for a second.
            if self._killed:
                raise MeshError(Reason.CANCELLED, "the job was cancelled while it started")
            return self._follow()
        finally:
            self._ours.close()
            self._theirs.close()
            if self._process.pid is not None:
                self._process.kill()
                self._process.join()

    def _follow(self) -> Any:
        name = self._process.name
        while self._ours.poll(max(0.0, self._deadline - time.monotonic())):
            try:
                kind, content = self._ours.recv()
            except (EOFError, ConnectionResetError):
                raise self._ended() from None
            if kind == _PROGRESS:
                if self._report is not None:
                    self._report(*content)
            elif kind == _DONE:
                return content
            elif kind == _REFUSED:
                raise _error_from(content)
            elif kind == _OUT_OF_MEMORY:
                raise MeshError(
                    Reason.MODEL_TOO_LARGE,
                    f"the work needs more memory than the {self._max_memory_bytes // MIB} MiB it may have",
                    metadata={"max_memory_bytes": str(self._max_memory_bytes)},
                )
            else:
                log.error("%s failed\n%s", name, content)
                raise MeshError(Reason.INTERNAL, "unexpected failure in a child process; see the server's log")
        raise MeshError(Reason.DEADLINE_EXPIRED, f"not done within {self._deadline_s:g} s; the work was stopped")

    def _ended(self) -> MeshError:
        self._process.join()
        if self._killed:
            return MeshError(Reason.CANCELLED, "the job was cancelled")
        code = self._process.exitcode
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit status {code}"
        log.error("%s ended by %s", self._process.name, how)
        return MeshError(Reason.INTERNAL, f"the child process doing the work crashed ({how})", metadata={"how": how})


def _child(
    pipe: Connection,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    deadline_s: int,
    max_memory_bytes: int,
    with_progress: bool,
) -> None:
    """The child's whole life."""
    for name in os.environ.keys() - child_environment(os.environ).keys():
        del os.environ[name]
    # The terminal's Ctrl-C goes to the whole group; the parent decides what becomes of us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.alarm(deadline_s + LATE_GRACE_S)
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    resource.setrlimit(resource.RLIMIT_AS, (max_memory_bytes, max_memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def progress(step: str, share: float) -> None:
        pipe.send((_PROGRESS, (step, share)))

    try:
        answer = (_DONE, function(*args, progress=progress) if with_progress else function(*args))
    except MeshError as error:
        answer = (_REFUSED, (error.reason, error.message, error.metadata, error.fields, error.retry_after_s))
    except MemoryError:
        answer = (_OUT_OF_MEMORY, None)
    except Exception:
        answer = (_FAILED, traceback.format_exc())
    pipe.send(answer)


def _end_with_parent() -> None:
    """Work that nobody waits for any more must not go on: its successor may write to the same files."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _error_from(content: tuple[Any, ...]) -> MeshError:
    """Field by field: an exception with keyword arguments does not survive pickle."""
    reason, message, metadata, fields, retry_after_s = content
    return MeshError(reason, message, metadata=metadata, fields=fields, retry_after_s=retry_after_s)
