"""Files that are there whole after a power cut, or as they were before: written beside, synced, renamed, folder synced.

Blocking; the way to write small files for everyone who keeps something on a disk. Knows no content. Raises OSError as it comes:
the caller knows what could not be kept.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

LEFT_S = 3600.0
"""How long a file that is being written is left alone, seconds."""

_PREFIX = ".tmp-"


def write_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """``content`` at ``path``, on disk when it returns; folders above that are missing are made.

    A reader sees what was there before, or all of it. What a killed process leaves beside it begins with ``.tmp-``, and the next
    one that writes here after :data:`LEFT_S` takes it away; a writer that stood still for so long is refused.
    """
    make_folders(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_PREFIX)
    try:
        with os.fdopen(handle, "wb") as file:
            _clear(path.parent, os.fstat(handle).st_mtime - LEFT_S)
            file.write(content)
            file.flush()
            os.fchmod(handle, mode)
            os.fsync(handle)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def _clear(folder: Path, before: float) -> None:
    """What writers left that were killed; ``before`` by the clock of the disk, so that no other one has to agree with it."""
    for name in os.listdir(folder):
        if name.startswith(_PREFIX):
            with suppress(OSError):  # taken away meanwhile, or not ours to take
                if os.lstat(folder / name).st_mtime < before:
                    os.unlink(folder / name)


def make_folders(folder: Path) -> None:
    """The folder and those above it, whose names are on disk when it returns."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for one in reversed(missing):
        one.mkdir(exist_ok=True)
        sync_folder(one.parent)


def sync_folder(folder: Path) -> None:
    """What was created, renamed or removed in it stays so after a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
