"""What moving content over a bad link takes: patience that grows with progress, sources to read, files to complete.

Knows bytes, digests and waiting. Knows no service.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from splitmesh.errors import MeshError, Reason

PIECE_BYTES = 1024 * 1024
"""Most content in one message."""

_PASSING = frozenset(
    {
        Reason.SERVICE_UNAVAILABLE,
        Reason.NOT_READY,
        Reason.QUEUE_FULL,
        Reason.DEADLINE_EXPIRED,
        Reason.CANCELLED,
        Reason.UPLOAD_TRUNCATED,
        Reason.UPLOAD_OFFSET_MISMATCH,
    }
)


def is_passing(error: MeshError) -> bool:
    """Trying again can cure it."""
    # A write that fails before the server's own status has arrived is reported by gRPC as INTERNAL, without a reason of
    # ours; the next try shows the real one.
    return error.reason in _PASSING or (error.reason is Reason.INTERNAL and "grpc_status" in error.metadata)


class Patience:
    """Decides whether to try again, and waits: 0.1 s doubling to ``longest_s``, each time a little different.

    Args:
        tries: failures in a row without progress before the last one is raised; None: never give up.
        longest_s: longest wait, seconds. After an outage the first success comes within about this long.
    """

    def __init__(self, *, tries: int | None, longest_s: float = 1.0) -> None:
        self._tries = tries
        self._longest_s = longest_s
        self._failures = 0
        self._furthest = 0

    def reached(self, position: int) -> None:
        """Progress was made, if this is further than ever: start counting anew."""
        if position > self._furthest:
            self._furthest = position
            self._failures = 0

    def renewed(self) -> None:
        """It works again: start counting anew."""
        self._failures = 0

    async def after(self, error: MeshError) -> None:
        """Waits before the next try; raises ``error`` when patience is over."""
        self._failures += 1
        if self._tries is not None and self._failures >= self._tries:
            raise error
        wait_s = min(self._longest_s, 0.1 * 2 ** min(self._failures - 1, 16))
        # Spread out, so that a thousand clients of a restarted server do not come in step.
        await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))


class Source:
    """Content to send, from memory or a file; a file is read in pieces and may be larger than memory.

    Raises:
        MeshError: FIELD_INVALID, the file cannot be read.
    """

    def __init__(self, content: bytes | Path) -> None:
        self._content = content
        self.sha256 = ""
        self.size_bytes = 0

    async def measure(self) -> Source:
        """Finds size and digest; returns itself."""
        await asyncio.to_thread(self._measure)
        return self

    async def read(self, offset: int) -> bytes:
        """At most one piece; empty at the end."""
        if isinstance(self._content, bytes):
            return self._content[offset : offset + PIECE_BYTES]
        return await asyncio.to_thread(_read_at, self._content, offset)

    def _measure(self) -> None:
        if isinstance(self._content, bytes):
            self.sha256, self.size_bytes = hashlib.sha256(self._content).hexdigest(), len(self._content)
            return
        with _readable(self._content), self._content.open("rb") as file:
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            self.size_bytes = file.tell()


class Partial:
    """A file being downloaded beside its final path; resumes what an earlier process left. Blocking.

    One process at a time per path; two would tear the part, which the digest then refuses.

    Raises:
        MeshError: STORAGE_FULL, from every method, when the file cannot be written.
    """

    def __init__(self, path: Path, sha256: str, size_bytes: int) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.{sha256[:16]}.part")
        self._sha256 = sha256
        with _writable(path):
            self._file = self._part.open("ab", buffering=0)
            if self._file.tell() > size_bytes:
                self._file.truncate(0)
            self.offset = os.fstat(self._file.fileno()).st_size

    def append(self, data: bytes) -> None:
        """Adds to the end."""
        with _writable(self._path):
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) or 0 :]
        self.offset += len(data)

    def empty(self) -> None:
        """Forgets what is there."""
        with _writable(self._path):
            self._file.truncate(0)
        self.offset = 0

    def finish(self) -> None:
        """Verifies, syncs and renames; DIGEST_MISMATCH leaves the final path as it was."""
        with _writable(self._path):
            with self._part.open("rb") as file:
                check_digest(hashlib.file_digest(file, "sha256").hexdigest(), self._sha256)
            os.fsync(self._file.fileno())
            os.replace(self._part, self._path)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def close(self) -> None:
        """Keeps an unfinished part for the next time."""
        self._file.close()


def check_digest(found: str, expected: str) -> None:
    """DIGEST_MISMATCH unless they are equal."""
    if found != expected:
        raise MeshError(
            Reason.DIGEST_MISMATCH,
            f"the content received has SHA-256 {found}, expected was {expected}",
            metadata={"sha256": expected, "found": found},
        )


def _read_at(path: Path, offset: int) -> bytes:
    with _readable(path), path.open("rb", buffering=0) as file:
        file.seek(offset)
        return file.read(PIECE_BYTES)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MeshError(Reason.FIELD_INVALID, f"cannot read {path.name}: {error.strerror}") from error


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MeshError(Reason.STORAGE_FULL, f"cannot write {path.name}: {error.strerror}") from error
