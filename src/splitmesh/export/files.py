"""Files that are there whole or not at all, and digests of files too large for memory."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from splitmesh.durable import sync_folder
from splitmesh.errors import MeshError, Reason, field_error

PIECE_BYTES = 1024 * 1024
_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_file(path: Path, content: bytes) -> None:
    """``content`` at ``path``, on disk when it returns; a reader sees what was there before or all of it. As :func:`new_file`."""
    with new_file(path) as descriptor:
        write_all(descriptor, content)


@contextmanager
def new_file(path: Path) -> Iterator[int]:
    """A descriptor to write to; when the block ends without an error the file is synced and gets its name.

    Raises MeshError STORAGE_FULL, or SERVICE_UNAVAILABLE when it cannot be written for another reason.
    """
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".splitmesh-", dir=path.parent)
        try:
            yield descriptor
            os.fsync(descriptor)
            os.fchmod(descriptor, 0o644)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        temporary = None
        sync_folder(path.parent)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


def write_all(descriptor: int, content: bytes) -> None:
    """All of it: one call may write less."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def disk_error(path: Path, error: OSError) -> MeshError:
    """What to raise when ``path`` cannot be written: STORAGE_FULL where there is no space, else SERVICE_UNAVAILABLE."""
    reason = Reason.STORAGE_FULL if error.errno in _FULL else Reason.SERVICE_UNAVAILABLE
    return MeshError(reason, f"{path} cannot be written: {error.strerror or error}")


def pieces(path: Path) -> Iterator[bytes]:
    """A file's content, 1 MiB at a time; never through a link. FIELD_INVALID when it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield piece
    except OSError as error:
        raise field_error("path", f"{path} cannot be read: {error.strerror}") from error


def digest_of(path: Path) -> tuple[str, int]:
    """SHA-256 and size of a file."""
    digest, size_bytes = hashlib.sha256(), 0
    for piece in pieces(path):
        digest.update(piece)
        size_bytes += len(piece)
    return digest.hexdigest(), size_bytes
