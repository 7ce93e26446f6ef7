"""The file of one unfinished upload, with its running digest. Blocking: every method runs in a disk thread.

Knows one part file. Does not know where it goes once it is whole, quotas, other uploads or the network.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from services.registry.content.disk import write_all
from splitmesh.durable import sync_folder
from splitmesh.errors import MeshError, Reason

_READ_BYTES = 1024 * 1024


class UploadFile:
    """Appends to ``part`` and says whether its SHA-256 is right.

    Args:
        part: where the unfinished content is.
        size_bytes: bytes the part has now.
    """

    def __init__(self, part: Path, size_bytes: int) -> None:
        self._part = part
        self._descriptor = -1
        self._digest = hashlib.sha256()
        self.size_bytes = size_bytes

    @property
    def is_open(self) -> bool:
        """Between :meth:`open` and :meth:`keep` or :meth:`moved`."""
        return self._descriptor >= 0

    def open(self, whole_bytes: int) -> None:
        """Reads what is there into the digest; a part longer than the whole is of no such content and is emptied."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self._part, flags, 0o600)
        if os.fstat(self._descriptor).st_size > whole_bytes:
            os.ftruncate(self._descriptor, 0)
        position = 0
        while data := os.pread(self._descriptor, _READ_BYTES, position):
            self._digest.update(data)
            position += len(data)
        self.size_bytes = position

    def take(self, file: Path, whole_bytes: int) -> None:
        """All of it is in this file, on the same disk: it becomes the part, and what came before goes away."""
        file.chmod(0o600)
        os.replace(file, self._part)
        self._close()
        self._digest = hashlib.sha256()
        self.open(whole_bytes)

    def append(self, data: bytes) -> None:
        """Adds to the end. OSError when the disk is full; the part then ends with what still fitted."""
        try:
            write_all(self._descriptor, data)
        except OSError:
            self.size_bytes = os.fstat(self._descriptor).st_size
            raise
        self._digest.update(data)
        self.size_bytes += len(data)

    def keep(self) -> None:
        """Ends the upload for now; what came is durable when this returns, and where nothing came nothing stays."""
        try:
            if self.size_bytes:
                self._sync()
                sync_folder(self._part.parent)
            else:
                self._discard()
        finally:
            self._close()

    def verify(self, sha256: str) -> None:
        """Checks the digest; the bytes are durable when this returns, still as a part.

        Raises:
            MeshError: DIGEST_MISMATCH; the part is gone.
        """
        if (found := self._digest.hexdigest()) != sha256:
            self._end()
            raise digest_mismatch(sha256, found)
        try:
            self._sync()
        except OSError:
            self._close()
            raise

    def moved(self) -> None:
        """The part has become the whole content, or nobody needs it."""
        self.size_bytes = 0
        self._close()

    def _end(self) -> None:
        try:
            self._discard()
        finally:
            self._close()

    def _sync(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError:
            # After a failed fsync nobody can say which pages reached the disk, and a second fsync may lie.
            self._discard()
            raise

    def _discard(self) -> None:
        self._part.unlink(missing_ok=True)
        self.size_bytes = 0
        sync_folder(self._part.parent)

    def _close(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1


def digest_mismatch(sha256: str, found: str) -> MeshError:
    """What came is not what was announced."""
    return MeshError(
        Reason.DIGEST_MISMATCH,
        f"the uploaded content has SHA-256 {found}, announced was {sha256}; it was discarded",
        metadata={"sha256": sha256, "found": found, "offset": "0"},
    )
