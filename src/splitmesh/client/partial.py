"""A file being downloaded beside its final path, so that a killed process or a power cut costs little.

Beside ``model.onnx`` lie ``.model.onnx.<digest>.part``, the bytes so far, and ``.model.onnx.<digest>.synced``, how many of them
are certainly on disk: a line per step, appended only after the bytes were synced. After a power cut a part can have the right
length and zeros at its end; everything behind the last synced byte is dropped and fetched again.

Knows files and digests. Knows no service.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from splitmesh.client.transfer import PIECE_BYTES, check_digest
from splitmesh.durable import sync_folder
from splitmesh.errors import MeshError, Reason, field_error

SYNC_BYTES = 16 * 1024 * 1024
"""A power cut costs at most this much."""
_LINE_BYTES = 26
"""16 digits of an offset, a blank, 8 of its CRC-32, a line feed."""

_PART = re.compile(r"\.[0-9a-f]{16}\.part")
_CLONE = 0x40049409
"""FICLONE of Linux; named in Python from 3.12 on."""


class Partial:
    """Takes bytes in order and makes them the file at ``path`` when they are whole. Blocking.

    Args:
        path: where the file shall be; its folder exists.
        sha256: of the whole file.
        size_bytes: of the whole file.
        sync_bytes: synced after so many.

    Attributes:
        offset: bytes there are; what an earlier process left and synced counts.

    Raises:
        MeshError: from every method, STORAGE_FULL, the file cannot be written; here also QUEUE_FULL, somebody else is at it,
            and FIELD_INVALID, a link or a folder has the name.
    """

    def __init__(self, path: Path, sha256: str, size_bytes: int, *, sync_bytes: int = SYNC_BYTES) -> None:
        stem = f".{path.name}.{sha256[:16]}"
        self._path = path
        self._part, self._note = path.with_name(f"{stem}.part"), path.with_name(f"{stem}.synced")
        self._sha256, self._size_bytes = sha256, size_bytes
        self._sync_bytes = sync_bytes
        require_plain(path)
        with _writable(path):
            self._file = _open_alone(self._part, path)
            try:
                self.offset = self._synced = min(_synced(self._note), os.fstat(self._file).st_size)
                if self._synced > size_bytes:
                    self.offset = self._synced = 0
                os.ftruncate(self._file, self._synced)
                # Of what is resumed or copied, nothing is known before it is read again.
                self._digest = None if self._synced else hashlib.sha256()
            except BaseException:
                os.close(self._file)
                raise

    def append(self, data: bytes) -> None:
        """Adds to the end."""
        with _writable(self._path):
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]
            if self._digest is not None:
                self._digest.update(data)
            self.offset += len(data)
            if self.offset - self._synced >= self._sync_bytes:
                self._sync()

    def empty(self) -> None:
        """Forgets what is there."""
        with _writable(self._path):
            self._note.unlink(missing_ok=True)
            # Before a byte is written anew: a line that came back after a power cut would vouch for it.
            sync_folder(self._path.parent)
            os.ftruncate(self._file, 0)
        self.offset = self._synced = 0
        self._digest = hashlib.sha256()

    def copy(self, source: BinaryIO) -> None:
        """Takes over a whole file; where the disk can, both share its blocks until one of them is changed."""
        self.empty()
        with _writable(self._path):
            if _cloned(source, self._part):
                self._digest = None
            else:
                while self.offset < self._size_bytes and (data := source.read(PIECE_BYTES)):
                    self.append(data)
            self.offset = os.fstat(self._file).st_size

    def finish(self) -> None:
        """Verifies, syncs and renames; DIGEST_MISMATCH leaves the final path as it was."""
        with _writable(self._path):
            if (digest := self._digest) is None:
                with self._part.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256")
            check_digest(digest.hexdigest(), self._sha256)
            os.fsync(self._file)
            require_plain(self._path)
            os.replace(self._part, self._path)
            sync_folder(self._path.parent)
        with suppress(OSError):  # without its part it says nothing
            self._note.unlink(missing_ok=True)

    def close(self) -> None:
        """Keeps an unfinished part for the next time."""
        try:
            if self.offset > self._synced and self._part.exists():
                with suppress(OSError):  # a full disk: less is known to be there
                    self._sync()
        finally:
            os.close(self._file)

    def _sync(self) -> None:
        os.fsync(self._file)
        note = os.open(self._note, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            size_bytes = os.fstat(note).st_size
            # Over a line that was not written to its end.
            os.pwrite(note, _line(self.offset), size_bytes // _LINE_BYTES * _LINE_BYTES)
            os.fsync(note)
        finally:
            os.close(note)
        if not size_bytes:
            # The names of part and note.
            sync_folder(self._path.parent)
        self._synced = self.offset


def left_of(path: Path, sha256: str, size_bytes: int) -> int:
    """Bytes that a download to ``path`` has yet to fetch, as far as can be said before it begins."""
    note = path.with_name(f".{path.name}.{sha256[:16]}.synced")
    return size_bytes - min(_synced(note), size_bytes)


def drop_others(path: Path, sha256: str) -> None:
    """Removes what was begun for this path of other contents than this one, unless somebody is at it."""
    mine = f".{path.name}.{sha256[:16]}.part"
    for part in path.parent.glob(f".{path.name}.*.part"):
        if part.name == mine or not _PART.fullmatch(part.name.removeprefix(f".{path.name}")):
            continue
        with suppress(OSError):  # a disk that only reads: it stays
            file = os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.with_suffix(".synced").unlink(missing_ok=True)
                part.unlink(missing_ok=True)
            finally:
                os.close(file)


def require_plain(path: Path) -> None:
    """FIELD_INVALID when something else than a file, such as a symbolic link, has the name."""
    with _writable(path), suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise field_error("path", f"{path.name} is there already and is no plain file")


def _cloned(source: BinaryIO, part: Path) -> bool:
    # By a handle of its own: a clone is refused to one that appends.
    with part.open("r+b") as target, suppress(OSError):  # another disk, or one that cannot
        fcntl.ioctl(target, _CLONE, source.fileno())
        return True
    return False


def _open_alone(part: Path, path: Path) -> int:
    """Opened for appending, and locked; a lock goes with its process."""
    while True:
        file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another one may have finished in between: then this is the whole file, and no part any more.
            if _is(file, part):
                return file
        except BlockingIOError as error:
            os.close(file)
            raise MeshError(
                Reason.QUEUE_FULL, f"{path.name} is being downloaded by somebody else", retry_after_s=1.0
            ) from error
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _is(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.lstat())
    except FileNotFoundError:
        return False


def _synced(note: Path) -> int:
    """Of the last line that is whole; 0 without one."""
    try:
        content = note.read_bytes()
    except OSError:
        return 0
    for start in range(len(content) // _LINE_BYTES * _LINE_BYTES - _LINE_BYTES, -1, -_LINE_BYTES):
        line = content[start : start + _LINE_BYTES]
        with suppress(ValueError):
            if line == _line(offset := int(line[:16])):
                return offset
    return 0


def _line(offset: int) -> bytes:
    number = b"%016d" % offset
    return b"%s %08x\n" % (number, zlib.crc32(number))


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MeshError(Reason.STORAGE_FULL, f"cannot write {path.name}: {error.strerror}") from error
