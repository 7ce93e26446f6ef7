"""What moving content over a bad link takes: patience that grows with progress, sources to read.

Knows bytes, digests and waiting. Knows no service; a file that is being downloaded is a ``partial``.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from splitmesh.errors import MeshError, Reason

Result = TypeVar("Result")

PIECE_BYTES = 1024 * 1024
"""Most content in one message."""
BUSY_TRIES = 8
LONGEST_BUSY_S = 30.0
"""A server that says that it is busy for longer is asked after this time all the same."""

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
        tries: failures in a row without progress before the last one is raised; None: never give up. A server that is
            only busy (QUEUE_FULL) is asked ``BUSY_TRIES`` times as often.
        longest_s: longest wait, seconds, unless a busy server says that it takes longer. After an outage the first success
            comes within about this long.
    """

    def __init__(self, *, tries: int | None, longest_s: float = 1.0) -> None:
        self._tries = tries
        self._longest_s = longest_s
        self._failures = 0
        self._spent = 0.0
        self._furthest = 0

    def reached(self, position: int) -> None:
        """Progress was made, if this is further than ever: start counting anew."""
        if position > self._furthest:
            self._furthest = position
            self.renewed()

    def renewed(self) -> None:
        """It works again: start counting anew."""
        self._failures = 0
        self._spent = 0.0

    async def after(self, error: MeshError) -> None:
        """Waits before the next try; raises ``error`` when patience is over."""
        is_busy = error.reason is Reason.QUEUE_FULL
        self._failures += 1
        self._spent += 1 / BUSY_TRIES if is_busy else 1
        if self._tries is not None and self._spent >= self._tries:
            raise error
        wait_s = min(self._longest_s, 0.1 * 2 ** min(self._failures - 1, 16))
        if is_busy and (error.retry_after_s or 0.0) > self._longest_s:
            wait_s = min(LONGEST_BUSY_S, error.retry_after_s or 0.0)
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

    async def _read(self, offset: int, most: int) -> bytes:
        """At most so many bytes from ``offset`` on; empty at the end, which is where it was when it was measured."""
        length = min(most, self.size_bytes - offset)
        if isinstance(self._content, bytes):
            return self._content[offset : offset + length]
        return await asyncio.to_thread(_read_at, self._content, offset, length) if length > 0 else b""

    async def pieces(self, offset: int, most: int = PIECE_BYTES) -> AsyncGenerator[bytes, None]:
        """The content from ``offset`` to its end."""
        while data := await self._read(offset, most):
            offset += len(data)
            yield data

    def _measure(self) -> None:
        if isinstance(self._content, bytes):
            self.sha256, self.size_bytes = hashlib.sha256(self._content).hexdigest(), len(self._content)
            return
        with _readable(self._content), self._content.open("rb") as file:
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            self.size_bytes = file.tell()


async def in_thread(call: Callable[[], Result]) -> Result:
    """What the call gives, made in a thread. A caller who is cancelled goes on when the thread has ended, not before.

    So nothing is written to a file behind the back of who tidies it up.
    """
    thread = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        while not thread.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([thread])
        _ = thread.cancelled() or thread.exception()
        raise


def size_of(content: bytes | Path) -> int:
    """Bytes of content in memory or in a file; FIELD_INVALID when the file cannot be read."""
    if isinstance(content, bytes):
        return len(content)
    with _readable(content):
        return content.stat().st_size


def check_digest(found: str, expected: str) -> None:
    """DIGEST_MISMATCH unless they are equal."""
    if found != expected:
        raise MeshError(
            Reason.DIGEST_MISMATCH,
            f"the content received has SHA-256 {found}, expected was {expected}",
            metadata={"sha256": expected, "found": found},
        )


def _read_at(path: Path, offset: int, length: int) -> bytes:
    with _readable(path), path.open("rb", buffering=0) as file:
        file.seek(offset)
        return file.read(length)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MeshError(Reason.FIELD_INVALID, f"cannot read {path.name}: {error.strerror}") from error
