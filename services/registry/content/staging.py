"""The folder of unfinished uploads, ``<sha256>.part`` each, and the count of bytes kept here and on the shelf.

Knows files, the quota and how long an upload may lie. Does not know whole contents.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from services.registry.content.disk import Disk, make_folder, storage_full
from services.registry.content.port import ContentLimits, is_digest
from splitmesh.durable import sync_folder

PART = ".part"


@dataclass(eq=False)
class Charge:
    """What one upload costs."""

    coming_bytes: int
    """That it may still write."""
    kept_bytes: int
    """That it has cost when it ends."""


class Staging:
    """Unfinished uploads of one registry.

    Args:
        folder: its parent is there.
        limits: of which it keeps the quota, the free space and the age of uploads.
        disk: threads for file work.
        now: seconds since 1970.
    """

    def __init__(self, folder: Path, limits: ContentLimits, disk: Disk, now: Callable[[], float]) -> None:
        self._folder = folder
        self._limits = limits
        self._disk = disk
        self._now = now
        self._promised_bytes = 0
        """The sizes of uploads in progress: two of them cannot both have the last of the quota."""
        self._charges: set[Charge] = set()
        self.used_bytes = 0

    async def start(self) -> None:
        """Makes the folder, counts what is there."""
        self.used_bytes += await self._disk.run(self._prepare)

    def part(self, sha256: str) -> Path:
        """Where an unfinished content is, or would be."""
        return self._folder / f"{sha256}{PART}"

    async def offset(self, sha256: str) -> int:
        """Bytes of an unfinished content; 0: there is none."""
        return await self._disk.run(lambda: _size(self.part(sha256)) or 0)

    @asynccontextmanager
    async def charge(self, size_bytes: int, on_disk: int) -> AsyncIterator[Charge]:
        """Room for a content of which ``on_disk`` bytes are here already; afterwards it costs what the charge says.

        Raises:
            MeshError: STORAGE_FULL.
        """
        limit = self._limits.max_store_bytes
        if limit and self.used_bytes + self._promised_bytes - on_disk + size_bytes > limit:
            raise storage_full(f"{size_bytes} bytes do not fit: the registry keeps at most {limit} bytes")
        charge = Charge(coming_bytes=max(0, size_bytes - on_disk), kept_bytes=on_disk)
        self.used_bytes -= on_disk
        self._promised_bytes += size_bytes
        try:
            await self._require_free(charge)
            self._charges.add(charge)
            yield charge
        finally:
            self._charges.discard(charge)
            self._promised_bytes -= size_bytes
            self.used_bytes += charge.kept_bytes

    @asynccontextmanager
    async def room(self, size_bytes: int) -> AsyncIterator[None]:
        """Room on the disk for a copy that goes with the block; STORAGE_FULL."""
        charge = Charge(coming_bytes=size_bytes, kept_bytes=0)
        await self._require_free(charge)
        self._charges.add(charge)
        try:
            yield
        finally:
            self._charges.discard(charge)

    async def _require_free(self, charge: Charge) -> None:
        """STORAGE_FULL unless the disk has room for it, for all that is coming besides, and for what must stay free."""
        free = (await self._disk.run(lambda: shutil.disk_usage(self._folder))).free
        coming = sum(one.coming_bytes for one in self._charges)
        if coming + charge.coming_bytes > free - self._limits.min_free_bytes:
            raise storage_full(f"{charge.coming_bytes} bytes do not fit on the registry's disk")

    async def unfinished(self) -> list[str]:
        """Digests of unfinished contents."""
        return [path.name.removesuffix(PART) for path in await self._disk.run(lambda: list(self._parts()))]

    async def remove_if_stale(self, sha256: str, age_s: float | None) -> bool:
        """Removes an upload that nobody has continued for ``stale_upload_s`` and that nobody is at.

        Args:
            sha256: of the whole content.
            age_s: since somebody was at it; None: as long as its file says.
        """
        freed = await self._disk.run(lambda: self._remove_if_stale(self.part(sha256), age_s))
        self.used_bytes -= freed or 0
        return freed is not None

    def _prepare(self) -> int:
        make_folder(self._folder)
        return sum(_size(path) or 0 for path in self._parts())

    def _parts(self) -> Iterator[Path]:
        """Files that it made itself; what else lies there is not touched."""
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.endswith(PART) and is_digest(entry.name.removesuffix(PART)) and entry.is_file():
                    yield Path(entry)

    def _remove_if_stale(self, part: Path, age_s: float | None) -> int | None:
        """Bytes freed, or None when it stays."""
        try:
            status = part.stat()
        except FileNotFoundError:
            return None
        if (self._now() - status.st_mtime if age_s is None else age_s) < self._limits.stale_upload_s:
            return None
        part.unlink()
        sync_folder(self._folder)
        return status.st_size


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
