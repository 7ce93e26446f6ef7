"""A content-addressed folder: ``blobs/aa/<sha256>`` whole and verified, ``uploads/<sha256>.part`` unfinished.

Knows files, digests, quotas and that one content is uploaded by one caller at a time. Does not know models, nor who
sends bytes how (``push``). A file under ``blobs`` was verified and synced before it got its name, and never changes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from services.registry.disk import Disk, make_folder, storage_full, sync_folder
from services.registry.upload_file import UploadFile
from splitmesh.errors import MeshError, Reason, field_error

log = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PART = ".part"


@dataclass(frozen=True, slots=True)
class BlobLimits:
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


class Upload:
    """One content being written; made by :meth:`BlobFolder.upload`."""

    def __init__(self, disk: Disk, file: UploadFile, sha256: str, size_bytes: int) -> None:
        self._disk = disk
        self._file = file
        self.sha256 = sha256
        self.size_bytes = size_bytes

    @property
    def offset(self) -> int:
        """Bytes on disk."""
        return self._file.size_bytes

    async def append(self, data: bytes) -> None:
        """Adds data; PROTOCOL_VIOLATION beyond the announced size, STORAGE_FULL when the disk is full."""
        if self.offset + len(data) > self.size_bytes:
            raise MeshError(
                Reason.PROTOCOL_VIOLATION,
                f"the upload was announced with {self.size_bytes} bytes, at least {self.offset + len(data)} came",
            )
        await self._disk.run(lambda: self._file.append(data))

    async def finish(self) -> None:
        """Verifies and makes it visible; DIGEST_MISMATCH discards it."""
        await self._disk.run(lambda: self._file.finish(self.sha256))


class BlobFolder:
    """The folder of one registry."""

    def __init__(self, folder: Path, limits: BlobLimits, *, now: Callable[[], float] = time.time) -> None:
        self._blobs = folder / "blobs"
        self._uploads = folder / "uploads"
        self._limits = limits
        self._now = now
        self._disk = Disk()
        self._used_bytes = 0
        self._promised_bytes = 0
        """What uploads in progress may still write: two of them cannot both have the last of the quota."""
        self._locks: dict[str, asyncio.Lock] = {}
        self._holders: Counter[str] = Counter()
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Makes the folders, counts what is there, removes stale uploads and keeps doing so."""
        self._used_bytes = await self._disk.run(self._prepare)
        await self.sweep()
        self._sweeper = asyncio.create_task(self._sweep_forever())

    async def stop(self) -> None:
        """Waits for file work in progress."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._sweeper
        await asyncio.to_thread(self._disk.close)

    async def progress(self, sha256: str) -> Progress:
        """How far a content has come; offset 0 when it is unknown."""
        _check_digest(sha256)
        return await self._disk.run(lambda: self._progress(sha256))

    async def size_of(self, sha256: str) -> int:
        """Size in bytes of a whole content; ARTIFACT_NOT_FOUND."""
        progress = await self.progress(sha256)
        if not progress.complete:
            raise MeshError(
                Reason.ARTIFACT_NOT_FOUND,
                f"there is no artefact {sha256}" + (", its upload is unfinished" if progress.offset else ""),
                metadata={"sha256": sha256},
            )
        return progress.offset

    async def read(self, sha256: str, offset: int, length: int) -> bytes:
        """Bytes of a whole content, fewer than ``length`` only at its end."""
        path = self.path_of(sha256)

        def work() -> bytes:
            with path.open("rb", buffering=0) as file:
                file.seek(offset)
                return file.read(length)

        return await self._disk.run(work)

    def path_of(self, sha256: str) -> Path:
        """Where a whole content is, or would be."""
        _check_digest(sha256)
        return self._blobs / sha256[:2] / sha256

    @asynccontextmanager
    async def upload(self, sha256: str, size_bytes: int) -> AsyncIterator[Upload | None]:
        """The right to write one content, or None when it is whole already. What was written is kept, durably, however
        the block ends, unless its digest was wrong.

        Raises:
            MeshError: FIELD_INVALID, FRAME_TOO_LARGE, STORAGE_FULL, or QUEUE_FULL when another caller goes on
                uploading the same content for longer than ``upload_wait_s``.
        """
        _check_digest(sha256)
        if size_bytes > self._limits.max_artifact_bytes:
            raise MeshError(
                Reason.FRAME_TOO_LARGE,
                f"the artefact has {size_bytes} bytes, at most {self._limits.max_artifact_bytes} are accepted",
                metadata={"limit_bytes": str(self._limits.max_artifact_bytes)},
            )
        async with self._alone(sha256):
            before = await self.progress(sha256)
            if before.complete:
                yield None
                return
            await self._check_space(size_bytes, before.offset)
            file = UploadFile(self._uploads / f"{sha256}{_PART}", self.path_of(sha256), before.offset)
            self._used_bytes -= before.offset
            self._promised_bytes += size_bytes
            try:
                await self._disk.run(lambda: file.open(size_bytes))
                yield Upload(self._disk, file, sha256, size_bytes)
            finally:
                try:
                    if file.is_open:
                        await self._disk.run(file.keep)
                finally:
                    self._promised_bytes -= size_bytes
                    self._used_bytes += file.size_bytes

    async def sweep(self) -> int:
        """Removes uploads nobody has continued for ``stale_upload_s``; how many."""
        names = await self._disk.run(lambda: [entry.name for entry in os.scandir(self._uploads)])
        removed = 0
        for name in names:
            if self._holders[name.removesuffix(_PART)]:
                continue
            async with self._alone(name.removesuffix(_PART)):
                freed = await self._disk.run(partial(self._remove_if_stale, self._uploads / name))
                self._used_bytes -= freed or 0
                removed += freed is not None
        if removed:
            log.info("removed %d unfinished uploads", removed)
        return removed

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(self._limits.sweep_every_s)
            try:
                await self.sweep()
            except (MeshError, OSError):
                log.exception("removing stale uploads failed; trying again in %s s", self._limits.sweep_every_s)

    @asynccontextmanager
    async def _alone(self, sha256: str) -> AsyncIterator[None]:
        lock = self._locks.setdefault(sha256, asyncio.Lock())
        self._holders[sha256] += 1
        try:
            try:
                async with asyncio.timeout(self._limits.upload_wait_s):
                    await lock.acquire()
            except TimeoutError as error:
                raise MeshError(
                    Reason.QUEUE_FULL, "another upload of the same content is in progress", retry_after_s=1.0
                ) from error
            try:
                yield
            finally:
                lock.release()
        finally:
            self._holders[sha256] -= 1
            if not self._holders[sha256]:
                del self._holders[sha256], self._locks[sha256]

    async def _check_space(self, size_bytes: int, on_disk: int) -> None:
        limit = self._limits.max_store_bytes
        if limit and self._used_bytes + self._promised_bytes - on_disk + size_bytes > limit:
            raise storage_full(f"{size_bytes} bytes do not fit: the registry keeps at most {limit} bytes")
        free = (await self._disk.run(lambda: shutil.disk_usage(self._uploads))).free
        if size_bytes - on_disk > free - self._limits.min_free_bytes:
            raise storage_full(f"{size_bytes} bytes do not fit on the registry's disk")

    def _prepare(self) -> int:
        for folder in (self._blobs, self._uploads):
            make_folder(folder)
        files = [*self._blobs.glob("*/*"), *self._uploads.iterdir()]
        return sum(path.stat().st_size for path in files)

    def _progress(self, sha256: str) -> Progress:
        for path, complete in ((self.path_of(sha256), True), (self._uploads / f"{sha256}{_PART}", False)):
            with suppress(FileNotFoundError):
                return Progress(path.stat().st_size, complete)
        return Progress(0, False)

    def _remove_if_stale(self, part: Path) -> int | None:
        """Bytes freed, or None when it stays."""
        try:
            status = part.stat()
        except FileNotFoundError:
            return None
        if status.st_mtime > self._now() - self._limits.stale_upload_s:
            return None
        part.unlink()
        sync_folder(self._uploads)
        return status.st_size


def _check_digest(sha256: str) -> None:
    # Also what keeps a caller inside the folder: 64 hexadecimal digits cannot name another one.
    if not _SHA256.fullmatch(sha256):
        raise field_error("sha256", "must be 64 lower-case hexadecimal digits")
