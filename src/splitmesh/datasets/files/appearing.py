"""A folder that appears whole or not at all, also after a power cut. Knows files, no form."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from splitmesh.durable import make_folders, sync_folder
from splitmesh.errors import MeshError, Reason, field_error

STAGING = ".splitmesh-export-"
"""How the hidden folder beside the target begins; a killed process leaves it, and it may be removed by hand."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SYNCING = 8
"""Files that are synced at once: a file system writes several in one go."""


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes its place when the block ends well and is gone when it does not.

    Raises MeshError FIELD_INVALID for a folder that holds something, is a link or is where the process runs; STORAGE_FULL or
    SERVICE_UNAVAILABLE when it cannot be written.
    """
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise _taken()
    folder = folder.resolve()  # "." has no name to make another one of
    if folder.exists() and folder.samefile(os.curdir):
        raise field_error("folder", f"{folder} is where this command runs: give another one, which may be below it")
    own: Path | None = None
    try:
        make_folders(folder.parent)
        # Its own folder is for its owner alone; the one inside gets the rights that any new folder gets.
        own = Path(tempfile.mkdtemp(prefix=STAGING, dir=folder.parent))
        staging = own / "new"
        staging.mkdir()
        yield staging
        _sync(staging)
        _rename(staging, folder)
        sync_folder(folder.parent)
    except OSError as error:
        reason = Reason.STORAGE_FULL if error.errno in _FULL else Reason.SERVICE_UNAVAILABLE
        raise MeshError(reason, f"the export cannot be written: {error.strerror}") from error
    finally:
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)


def _taken() -> MeshError:
    return field_error("folder", "is there and not an empty folder")


def _rename(staging: Path, folder: Path) -> None:
    try:
        os.replace(staging, folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):  # somebody put something there meanwhile
            raise _taken() from error
        raise


def _sync(folder: Path) -> None:
    folders: list[Path] = []
    with ThreadPoolExecutor(_SYNCING) as pool:
        for at, _, names in os.walk(folder, onerror=_raise):
            folders.append(Path(at))
            for _ in pool.map(_sync_file, [Path(at, name) for name in names]):
                pass
    for one in reversed(folders):
        sync_folder(one)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _raise(error: OSError) -> None:
    raise error
