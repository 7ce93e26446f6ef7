"""A folder of bytes by their SHA-256: whole under their name or not there at all, whatever is killed when.

Knows files and fsync. Knows no records: who holds a content, and when it may go, its callers know. One process at a time works
in it; :class:`FolderLock` sees to that.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from splitmesh.durable import sync_folder
from splitmesh.errors import MeshError, Reason

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FOLDER = re.compile(r"[0-9a-f]{2}")


class Contents:
    """``root/ab/cd/abcd…`` and, while they are written, ``root/incoming/abcd…``. Methods raise OSError as the disk does."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / "incoming"

    def prepare(self) -> None:
        """Makes the folders; removes what was being written when the last process ended."""
        _make_folder(self._root)
        _make_folder(self._incoming)
        for entry in os.scandir(self._incoming):
            os.unlink(entry.path)

    def prepared(self) -> bool:
        """Whether this is a folder that :meth:`prepare` made, and no empty place where it should be."""
        return self._incoming.is_dir()

    def put(self, digest: str, data: bytes) -> bool:
        """Durable when it returns; whether it was not there before, or damaged. ``digest`` is the data's."""
        path = self.path_of(digest)
        if self.holds(digest, data):
            return False
        for folder in (self._incoming, path.parent.parent, path.parent):
            _make_folder(folder)
        temporary = self._incoming / digest
        try:
            _write(temporary, data)
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(path.parent)
        return True

    def holds(self, digest: str, data: bytes) -> bool:
        """Whether the content is there and these are its bytes."""
        path = self.path_of(digest)
        try:
            return path.stat().st_size == len(data) and path.read_bytes() == data
        except OSError:  # not there, or on a bad place of the disk: written again
            return False

    def get(self, digest: str) -> bytes:
        """MeshError ARTIFACT_NOT_FOUND when it is gone, DIGEST_MISMATCH when the disk changed it or cannot read it any more."""
        try:
            data = self.path_of(digest).read_bytes()
        except FileNotFoundError as error:
            raise MeshError(Reason.ARTIFACT_NOT_FOUND, f"the content {digest} is missing from the store") from error
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise MeshError(Reason.DIGEST_MISMATCH, f"the disk cannot read the content {digest}") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise MeshError(Reason.DIGEST_MISMATCH, f"the content {digest} was damaged in the store")
        return data

    def remove(self, digest: str) -> None:
        """Fine when it is not there."""
        with suppress(FileNotFoundError):
            os.unlink(self.path_of(digest))

    def path_of(self, digest: str) -> Path:
        """Where a content is, or would be."""
        return self._root / digest[:2] / digest[2:4] / digest

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Every content with its bytes; files that are none are passed over. OSError for a folder that cannot be read: nobody
        may take what is in it for gone."""
        for first in _inside(self._root, _FOLDER):
            for second in _inside(first, _FOLDER):
                for path in _inside(second, _SHA256):
                    with suppress(FileNotFoundError):  # removed meanwhile
                        yield path.name, path.stat().st_size


class FolderLock:
    """Makes a folder and holds it; the kernel lets go of it when the process dies in any way."""

    def __init__(self, folder: Path, what: str = "samples") -> None:
        """``what`` is in it, in words."""
        self._folder = folder
        self._what = what
        self._descriptor = -1

    def take(self) -> None:
        """SERVICE_UNAVAILABLE when another process, or another store of this one, holds it."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise MeshError(
                Reason.SERVICE_UNAVAILABLE, f"another process works in this folder of {self._what}"
            ) from error
        self._descriptor = descriptor

    def release(self) -> None:
        """Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _inside(folder: Path, names: re.Pattern[str]) -> list[Path]:
    try:
        return [folder / name for name in os.listdir(folder) if names.fullmatch(name)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        os.mkdir(folder, 0o700)
        sync_folder(folder.parent)
