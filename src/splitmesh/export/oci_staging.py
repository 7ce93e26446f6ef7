"""Where a version's files wait inside an OCI layout until they are added: one folder per version, and one process in it.

What a process that was cut off left there is what the next one goes on with; where none came, an export of another version takes
it away after :data:`LEFT_S`. Knows no registry.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from splitmesh.durable import make_folders
from splitmesh.errors import MeshError, Reason
from splitmesh.export.files import disk_error
from splitmesh.export.oci_blobs import LAYOUT, OWN, index, require_place

STAGING = f"{OWN}pull"
"""Inside a layout; no other tool looks there."""
_TRIES = 100
"""Others may take an empty folder away between two steps."""
LEFT_S = 86_400.0
"""How long files of an export that was cut off wait for the next one, seconds."""


@contextmanager
def staging(layout: Path, name: str, *, now: Callable[[], float] = time.time) -> Iterator[Path]:
    """A folder for files of the version ``name``, such as ``joints-4``; gone when the block ends well, kept when it does not.

    Raises MeshError before anything is made: FIELD_INVALID, ``layout`` holds other files; MODEL_CORRUPT, it is damaged. Then
    QUEUE_FULL, another process exports this version; STORAGE_FULL or SERVICE_UNAVAILABLE, it cannot be written.
    """
    require_place(layout)
    if (layout / LAYOUT).exists():
        index(layout)
    folder = layout / STAGING / name
    try:
        held = _held(folder)
    except BlockingIOError as error:
        text = f"another process is exporting {name} to {layout}"
        raise MeshError(Reason.QUEUE_FULL, text, retry_after_s=1.0) from error
    except OSError as error:
        raise disk_error(layout, error) from error
    try:
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
        _clear(folder.parent, now() - LEFT_S)
        with suppress(OSError):  # somebody else's files are in it
            folder.parent.rmdir()
    finally:
        os.close(held)


def _clear(staged: Path, before: float) -> None:
    """Takes away what was cut off, not touched since ``before``, and held by nobody."""
    with suppress(OSError):
        for name in os.listdir(staged):
            with suppress(OSError):
                _remove_left(staged / name, before)


def _remove_left(folder: Path, before: float) -> None:
    """OSError: it is held, somebody else's, or no folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        touched = max(one.lstat().st_mtime for one in (folder, *folder.iterdir()))
        if touched < before and os.path.samestat(os.fstat(descriptor), folder.stat()):
            shutil.rmtree(folder)
    finally:
        os.close(descriptor)


def _held(folder: Path) -> int:
    """A locked descriptor of the folder that has this name now. OSError; BlockingIOError: somebody else has it."""
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):
            make_folders(folder)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), folder.stat()):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
    raise BlockingIOError
