"""The content port: bytes by their SHA-256, and what every store of them promises.

Knows nothing of models. ``folder`` keeps files on this machine's disk, ``bucket`` keeps objects anywhere that fsspec reaches
(S3 first) and unfinished uploads on this machine's disk; one conformance suite holds for both.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from splitmesh.errors import MeshError, Reason, field_error

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ContentLimits:
    """Bounds on what is stored; see the settings of the same names."""

    max_artifact_bytes: int
    max_store_bytes: int
    min_free_bytes: int
    upload_wait_s: float
    stale_upload_s: float
    sweep_every_s: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a content has come."""

    offset: int
    complete: bool


@dataclass(frozen=True, slots=True)
class Kept:
    """One whole content."""

    sha256: str
    size_bytes: int
    age_s: float
    """Since it was last written, pushed again, asked for by :meth:`ContentStore.missing` or made by a patch; what this process
    does not remember counts from its start, and is infinitely old an hour later."""


class Upload(Protocol):
    """One content being written."""

    sha256: str
    size_bytes: int

    @property
    def offset(self) -> int:
        """Bytes kept."""

    async def append(self, data: bytes) -> None:
        """Adds data; PROTOCOL_VIOLATION beyond the announced size, STORAGE_FULL when there is no space."""

    async def take(self, file: Path) -> None:
        """All of it, in place of what came before, is this file on the disk of the uploads; it goes away."""

    async def finish(self) -> None:
        """Verifies and makes it visible; DIGEST_MISMATCH discards it."""


class ContentStore(Protocol):
    """A content is visible whole and verified or not at all, and durable once it is; it never changes."""

    async def start(self) -> None:
        """Ready when it returns. SERVICE_UNAVAILABLE or NOT_READY, with the reason, when it cannot be."""

    async def claim(self, identity: str, *, adopt: bool) -> None:
        """These contents are those of the database with this identity: what it does not name may be removed. Between the
        start and everything else.

        A place that belongs to none belongs to it from now on.

        Raises:
            MeshError: NOT_READY, it belongs to another database, unless ``adopt``; SERVICE_UNAVAILABLE.
        """

    async def stop(self) -> None:
        """Waits for work in progress."""

    async def progress(self, sha256: str) -> Progress:
        """How far a content has come, or how many bytes a whole one has; offset 0 when it is unknown. FIELD_INVALID for what
        is no digest."""

    async def size_of(self, sha256: str) -> int:
        """Size in bytes of a whole content; ARTIFACT_NOT_FOUND."""

    async def read(self, sha256: str, offset: int, length: int) -> bytes:
        """Bytes of a whole content, fewer than ``length`` only at its end. Read whole in one go it is checked.

        Raises:
            MeshError: ARTIFACT_NOT_FOUND; INTERNAL, it is damaged, and out of view from now on, so that it can be pushed
                again.
        """

    async def doubt(self, sha256: str) -> None:
        """Reads a whole content again; the errors of :meth:`read`."""

    def local(self, sha256: str) -> AbstractAsyncContextManager[Path]:
        """A whole content as a file of this machine, to be read only, for as long as the block lasts. It is checked first;
        the errors of :meth:`read`."""

    def upload(self, sha256: str, size_bytes: int) -> AbstractAsyncContextManager[Upload | None]:
        """The right to write one content, or None when it is whole already. What was written is kept, durably, however
        the block ends, unless its digest was wrong.

        Raises:
            MeshError: FIELD_INVALID, also for another size than the content of this digest has; FRAME_TOO_LARGE, STORAGE_FULL,
                or QUEUE_FULL when another caller goes on uploading the same content for longer than ``upload_wait_s``.
        """

    def room(self, size_bytes: int) -> AbstractAsyncContextManager[None]:
        """Room on the disk of the uploads for a file that goes with the block, or before it; STORAGE_FULL."""

    async def put(self, contents: Sequence[tuple[str, bytes]]) -> None:
        """Keeps small contents, all of them durable when it returns; those that are there cost nothing.

        Raises:
            MeshError: DIGEST_MISMATCH (none of them is kept), STORAGE_FULL, FIELD_INVALID.
        """

    async def missing(self, sha256s: Sequence[str], *, touch: bool = True) -> list[str]:
        """Those that are not whole here, in the order asked; ``touch``: those asked for are as young as new ones now."""

    def listing(self) -> AsyncIterator[Kept]:
        """Every whole content, in no order; what comes or goes meanwhile may be in it or not. NOT_READY when the place has come
        to belong to another database than the one that claimed it here."""

    async def remove(self, sha256: str, min_age_s: float = 0.0) -> int | None:
        """Takes a content away; bytes freed, or None when it is not there, is being uploaded, read by :meth:`local`, or younger
        than ``min_age_s``. A reader in :meth:`read` may then see ARTIFACT_NOT_FOUND."""


def is_digest(name: str) -> bool:
    """Whether it can be a SHA-256."""
    return _SHA256.fullmatch(name) is not None


def check_digest(sha256: str) -> None:
    """FIELD_INVALID for what is no SHA-256."""
    # Also what keeps a caller inside a folder or bucket: 64 hexadecimal digits cannot name another one.
    if not is_digest(sha256):
        raise field_error("sha256", "must be 64 lower-case hexadecimal digits")


def content_not_found(sha256: str, *, unfinished: bool = False) -> MeshError:
    """There is no whole content of this digest."""
    return MeshError(
        Reason.ARTIFACT_NOT_FOUND,
        f"there is no artefact {sha256}" + (", its upload is unfinished" if unfinished else ""),
        metadata={"sha256": sha256},
    )


def too_large(size_bytes: int, limit_bytes: int) -> MeshError:
    """Refused before a byte is written."""
    return MeshError(
        Reason.FRAME_TOO_LARGE,
        f"the artefact has {size_bytes} bytes, at most {limit_bytes} are accepted",
        metadata={"limit_bytes": str(limit_bytes)},
    )
