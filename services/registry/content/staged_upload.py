"""One content on its way into a content store: bytes into a part file, and from there to the shelf. Knows no other upload."""

from __future__ import annotations

from pathlib import Path

from services.registry.content.disk import Disk, to_the_end
from services.registry.content.guards import Guards
from services.registry.content.shelf import Shelf
from services.registry.content.staging import Charge
from services.registry.content.upload_file import UploadFile
from splitmesh.errors import MeshError, Reason


class StagedUpload:
    """Made by :meth:`services.registry.content.staged.StagedStore.upload`, for as long as its block lasts.

    Args:
        part: where the unfinished content is, with ``on_disk`` bytes.
        charge: told what is still to come, and in the end what is kept.
    """

    def __init__(
        self,
        sha256: str,
        size_bytes: int,
        *,
        part: Path,
        on_disk: int,
        charge: Charge,
        disk: Disk,
        shelf: Shelf,
        guards: Guards,
    ) -> None:
        self.sha256 = sha256
        self.size_bytes = size_bytes
        self._part = part
        self._file = UploadFile(part, on_disk)
        self._charge = charge
        self._disk = disk
        self._shelf = shelf
        self._guards = guards
        self._shelved_bytes = 0
        """More on the shelf than before."""

    @property
    def offset(self) -> int:
        """Bytes kept."""
        return self._file.size_bytes

    async def open(self) -> None:
        """Reads what is there already."""
        await self._disk.run(lambda: self._file.open(self.size_bytes))
        self._told()

    async def append(self, data: bytes) -> None:
        """Adds data; PROTOCOL_VIOLATION beyond the announced size, STORAGE_FULL when the disk is full."""
        if self.offset + len(data) > self.size_bytes:
            raise MeshError(
                Reason.PROTOCOL_VIOLATION,
                f"the upload was announced with {self.size_bytes} bytes, at least {self.offset + len(data)} came",
            )
        try:
            await self._disk.run(lambda: self._file.append(data))
        finally:
            self._told()

    async def take(self, file: Path) -> None:
        """All of it, in place of what came before, is this file on the disk of the uploads; it goes away."""
        await self._disk.run(lambda: self._file.take(file, self.size_bytes))
        self._told()

    async def finish(self) -> None:
        """Verifies and makes it visible; DIGEST_MISMATCH discards it."""
        await to_the_end(self._finish())

    async def _finish(self) -> None:
        await self._disk.run(lambda: self._file.verify(self.sha256))
        async with self._guards.arriving([self.sha256]):
            self._shelved_bytes = await self._shelf.take(self._part, self.sha256, self.offset)
        await self._disk.run(self._file.moved)

    async def close(self) -> None:
        """Keeps what came, durably, unless it has become the content."""
        try:
            if self._file.is_open:
                await self._disk.run(self._file.keep)
        finally:
            self._charge.kept_bytes = self._file.size_bytes + self._shelved_bytes

    def _told(self) -> None:
        self._charge.coming_bytes = self.size_bytes - self.offset
