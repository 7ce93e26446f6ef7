"""Blocking work off the event loop, and the file operations whose durability the registry promises.

Knows threads, fsync and what a full disk looks like. Knows no artefacts.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from splitmesh.durable import sync_folder
from splitmesh.errors import MeshError, Reason

THREADS = 4
"""Enough to keep a disk busy while another upload is being hashed."""

T = TypeVar("T")


class Disk:
    """A few threads for work that blocks."""

    def __init__(self, threads: int = THREADS, *, name: str = "registry-disk") -> None:
        self._threads = ThreadPoolExecutor(max_workers=threads, thread_name_prefix=name)

    async def run(self, work: Callable[[], T]) -> T:
        """Runs ``work`` in a thread. A caller cancelled meanwhile is kept until the work is over, so that nothing
        still writes to a file that its owner closes next.

        Raises:
            MeshError: as :func:`disk_error`.
        """
        try:
            return await to_the_end(asyncio.get_running_loop().run_in_executor(self._threads, work))
        except OSError as error:
            if (told := disk_error(error)) is None:
                raise
            raise told from error

    def close(self) -> None:
        """Waits for work in progress."""
        self._threads.shutdown()


async def to_the_end(work: Awaitable[T]) -> T:
    """Awaits work that must not be left half done: a caller cancelled meanwhile is kept until it is over."""
    future = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        future.exception()
        raise cancelled
    return future.result()


def disk_error(error: OSError) -> MeshError | None:
    """What a caller is told; None: nothing that it could act on."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return storage_full("no space is left on the registry's disk")
    if error.errno == errno.EFBIG:
        return MeshError(Reason.FRAME_TOO_LARGE, "the registry's disk takes no file of this size")
    if error.errno == errno.EROFS:
        return MeshError(Reason.SERVICE_UNAVAILABLE, "the registry's disk is read only", retry_after_s=60.0)
    return None


def storage_full(message: str) -> MeshError:
    """What came before stays on disk, so the same upload may be resumed once there is space."""
    return MeshError(Reason.STORAGE_FULL, message, retry_after_s=60.0)


def write_all(descriptor: int, data: bytes) -> None:
    """Writes everything; on failure (a full disk) a prefix may have been written."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def make_folder(folder: Path) -> None:
    """Makes a folder, private to this user, and its name durable; fine when it is there."""
    make_folders([folder])


def make_folders(folders: Iterable[Path]) -> None:
    """The same for several, with one sync of each parent."""
    made = [folder for folder in folders if not folder.is_dir()]
    for folder in made:
        folder.mkdir(mode=0o700, exist_ok=True)
    for parent in {folder.parent for folder in made}:
        sync_folder(parent)
