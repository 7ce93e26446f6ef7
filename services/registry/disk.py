"""Blocking file work off the event loop, and the file operations whose durability the registry promises.

Knows threads, fsync and what a full disk looks like. Knows no artefacts.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from splitmesh.errors import MeshError, Reason

THREADS = 4
"""Enough to keep a disk busy while another upload is being hashed."""

T = TypeVar("T")


class Disk:
    """A few threads for file work."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="registry-disk")

    async def run(self, work: Callable[[], T]) -> T:
        """Runs ``work`` in a thread. A caller cancelled meanwhile is kept until the work is over, so that nothing
        still writes to a file that its owner closes next.

        Raises:
            MeshError: STORAGE_FULL, the disk or a quota is full.
        """
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        cancelled: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            future.exception()
            raise cancelled
        try:
            return future.result()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise storage_full("no space is left on the registry's disk") from error
            raise

    def close(self) -> None:
        """Waits for work in progress."""
        self._threads.shutdown()


def storage_full(message: str) -> MeshError:
    """What came before stays on disk, so the same upload may be resumed once there is space."""
    return MeshError(Reason.STORAGE_FULL, message, retry_after_s=60.0)


def write_all(descriptor: int, data: bytes) -> None:
    """Writes everything; on failure (a full disk) a prefix may have been written."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_folder(folder: Path) -> None:
    """Makes names created in, renamed into or removed from the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Makes a folder, private to this user, and its name durable; fine when it is there."""
    if not folder.is_dir():
        folder.mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder.parent)
