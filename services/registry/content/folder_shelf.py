"""A shelf on this machine: ``blobs/aa/<sha256>`` whole, ``incoming/`` what is being put, ``damaged/`` what was set aside.

A file under ``blobs`` was synced before it got its name, and counts as there only once its name is durable too. What else lies
there (``lost+found``, what a desktop leaves) is no business of the shelf.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from services.registry.content.damaged import SetAside, too_many
from services.registry.content.disk import Disk, make_folder, make_folders, write_all
from services.registry.content.ownership import MARK, MARK_BYTES
from services.registry.content.port import content_not_found, is_digest
from services.registry.content.shelf import Room, Shelved
from splitmesh.durable import sync_folder, write_file

_FOLDER = re.compile(r"[0-9a-f]{2}")
_GONE = (FileNotFoundError, NotADirectoryError)


class FolderShelf:
    """See :class:`services.registry.content.shelf.Shelf`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._blobs = folder / "blobs"
        self._incoming = folder / "incoming"
        self._damaged = folder / "damaged"
        self._disk = Disk(name="registry-blobs")
        self._arriving: set[str] = set()
        """Named, and the name perhaps not durable."""

    @property
    def shown(self) -> str:
        """The folder."""
        return str(self._folder)

    async def start(self) -> None:
        """Makes the folders, and durable what a killed process may have left undone."""
        await self._disk.run(self._prepare)

    async def stop(self) -> None:
        """Waits for work in progress."""
        self._disk.close()

    async def owner(self) -> str | None:
        """What the file ``belongs-to`` says."""
        return await self._disk.run(self._owner)

    async def belong(self, mark: str) -> None:
        """Writes it."""
        await self._disk.run(lambda: write_file(self._folder / MARK, f"{mark}\n".encode()))

    async def size(self, sha256: str) -> int | None:
        """Bytes of a whole content, or None."""
        return await self._disk.run(lambda: self._size(sha256))

    async def sizes(self, sha256s: Sequence[str]) -> dict[str, int]:
        """Those that are whole here, with their bytes."""
        return await self._disk.run(lambda: self._sizes(sha256s))

    async def stamp(self, sha256: str) -> str | None:
        """Size, time and number of the file."""
        return await self._disk.run(lambda: self._stamp(sha256))

    async def read(self, sha256: str, offset: int, length: int) -> bytes:
        """A range; ARTIFACT_NOT_FOUND."""
        return await self._disk.run(lambda: self._read(sha256, offset, length))

    async def take(self, part: Path, sha256: str, size_bytes: int) -> int:
        """Renames the part; bytes more kept."""
        return await self._disk.run(lambda: self._take(part, sha256, size_bytes))

    async def put(self, contents: Sequence[tuple[str, bytes]]) -> int:
        """A batch, with few syncs; bytes more kept."""
        return await self._disk.run(lambda: self._put(contents))

    async def remove(self, sha256: str) -> int | None:
        """Bytes freed, or None."""
        return await self._disk.run(lambda: self._remove(sha256))

    async def set_aside(self, sha256: str) -> int:
        """Into ``damaged``; bytes it had."""
        return await self._disk.run(lambda: self._set_aside(sha256))

    async def listing(self) -> AsyncIterator[Shelved]:
        """Folder by folder."""
        for folder in await self._disk.run(self._folders):
            for one in await self.under(folder.name):
                yield one

    async def under(self, name: str) -> list[Shelved]:
        """Those in one folder, such as ``aa``."""
        return await self._disk.run(lambda: self._under(name))

    @asynccontextmanager
    async def local(self, sha256: str, room: Room) -> AsyncIterator[Path]:
        """The file itself."""
        if await self.size(sha256) is None:
            raise content_not_found(sha256)
        yield self._path(sha256)

    def _path(self, sha256: str) -> Path:
        return self._blobs / sha256[:2] / sha256

    def _prepare(self) -> None:
        make_folders([self._blobs, self._incoming, self._damaged])
        for left in self._incoming.iterdir():
            if not left.is_dir():
                left.unlink()
        for left in self._folder.glob(".tmp-*"):  # of write_file
            left.unlink()
        for folder in self._folders():
            sync_folder(folder)
        sync_folder(self._blobs)

    def _folders(self) -> list[Path]:
        """Those that it makes."""
        with os.scandir(self._blobs) as entries:
            return sorted(Path(entry) for entry in entries if _FOLDER.fullmatch(entry.name) and entry.is_dir())

    def _owner(self) -> str | None:
        try:
            with (self._folder / MARK).open("rb") as file:
                return file.read(MARK_BYTES).decode(errors="replace").strip()
        except FileNotFoundError:
            return None

    def _status(self, sha256: str) -> os.stat_result | None:
        try:
            status = self._path(sha256).stat()
        except _GONE:
            return None
        return None if sha256 in self._arriving or not stat.S_ISREG(status.st_mode) else status

    def _stamp(self, sha256: str) -> str | None:
        status = self._status(sha256)
        return None if status is None else f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"

    def _size(self, sha256: str) -> int | None:
        status = self._status(sha256)
        return None if status is None else status.st_size

    def _sizes(self, sha256s: Sequence[str]) -> dict[str, int]:
        found = ((sha256, self._size(sha256)) for sha256 in sha256s)
        return {sha256: size_bytes for sha256, size_bytes in found if size_bytes is not None}

    def _read(self, sha256: str, offset: int, length: int) -> bytes:
        try:
            with self._path(sha256).open("rb") as file:
                file.seek(offset)
                return file.read(length)
        except _GONE:
            raise content_not_found(sha256) from None

    def _take(self, part: Path, sha256: str, size_bytes: int) -> int:
        final = self._path(sha256)
        make_folder(final.parent)
        with self._arrival([sha256]):
            new = self._name(part, final)
            sync_folder(final.parent)
            sync_folder(part.parent)
        return size_bytes if new else 0

    def _put(self, contents: Sequence[tuple[str, bytes]]) -> int:
        # Each step for all before the next: the first sync carries most of what the others would wait for.
        try:
            descriptors = []
            try:
                for sha256, data in contents:
                    descriptors.append(os.open(self._incoming / sha256, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
                    write_all(descriptors[-1], data)
                for descriptor in descriptors:
                    os.fsync(descriptor)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
            return self._name_all(contents)
        finally:
            for sha256, _ in contents:
                (self._incoming / sha256).unlink(missing_ok=True)

    def _name_all(self, contents: Sequence[tuple[str, bytes]]) -> int:
        folders = {self._path(sha256).parent for sha256, _ in contents}
        make_folders(folders)
        with self._arrival([sha256 for sha256, _ in contents]):
            new = [len(data) for sha256, data in contents if self._name(self._incoming / sha256, self._path(sha256))]
            for folder in folders:
                sync_folder(folder)
        return sum(new)

    def _name(self, file: Path, final: Path) -> bool:
        """Whether the content is new; otherwise the file that came second goes away."""
        if final.exists():
            file.unlink()
            return False
        os.replace(file, final)
        return True

    @contextmanager
    def _arrival(self, sha256s: Sequence[str]) -> Iterator[None]:
        self._arriving.update(sha256s)
        try:
            yield
        finally:
            self._arriving.difference_update(sha256s)

    def _remove(self, sha256: str) -> int | None:
        path = self._path(sha256)
        try:
            size_bytes = path.stat().st_size
            path.unlink()
        except _GONE:
            return None
        sync_folder(path.parent)
        return size_bytes

    def _set_aside(self, sha256: str) -> int:
        path = self._path(sha256)
        try:
            size_bytes = path.stat().st_size
            os.replace(path, self._damaged / sha256)
        except _GONE:
            return 0
        for name in too_many(self._set_aside_before()):
            (self._damaged / name).unlink()
        sync_folder(self._damaged)
        sync_folder(path.parent)
        return size_bytes

    def _set_aside_before(self) -> Iterator[SetAside]:
        with os.scandir(self._damaged) as entries:
            for entry in entries:
                if is_digest(entry.name) and entry.is_file():
                    status = entry.stat()
                    # Its name is what changed last.
                    yield SetAside(status.st_ctime, entry.name, status.st_size)

    def _under(self, name: str) -> list[Shelved]:
        found = []
        with suppress(*_GONE), os.scandir(self._blobs / name) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if is_digest(entry.name) and entry.name not in self._arriving and entry.is_file():
                        found.append(Shelved(entry.name, entry.stat().st_size))
        return found
