"""A shelf in an object store: ``<prefix>/aa/<sha256>``, one object per content, visible whole or not at all.

Knows objects and the folder for downloads. Large ones go up in parts; a killed process leaves parts nobody sees, which the store
removes by a lifecycle rule (AbortIncompleteMultipartUpload).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from services.registry.content.bucket_listing import BucketListing
from services.registry.content.damaged import SetAside, too_many
from services.registry.content.disk import make_folder
from services.registry.content.ownership import MARK, MARK_BYTES
from services.registry.content.port import content_not_found, is_digest
from services.registry.content.remote import CALLS, Remote
from services.registry.content.shelf import Room, Shelved
from splitmesh.errors import MeshError, Reason

PART_BYTES = 8 * 1024 * 1024
_PARTS_AT_ONCE = 2
_TAKEN_AT_ONCE = CALLS // 2
"""Of all callers: a large content takes its time, and small ones, removals and copies go beside it."""
_PUT_AT_ONCE = 12
_RETRY_AFTER_S = 5.0


class BucketShelf:
    """See :class:`services.registry.content.shelf.Shelf`.

    Args:
        remote: where the objects are.
        downloads: folder of this machine for contents that are read as files; its parent is there, and what is in it at the
            start is removed.
    """

    def __init__(self, remote: Remote, downloads: Path) -> None:
        self._remote = remote
        self._files = remote.files
        self._downloads = downloads
        self._there = BucketListing(remote)
        self._taking = asyncio.Semaphore(_TAKEN_AT_ONCE)

    @property
    def shown(self) -> str:
        """The URL without secrets."""
        return self._remote.shown

    async def start(self) -> None:
        """Writes, reads, lists and removes a small object.

        Raises:
            MeshError: NOT_READY, one of these is not possible.
        """
        probe = f"{self._remote.root}/probe"
        try:
            await self._remote.call(lambda: self._probe(probe))
        except FileNotFoundError as error:
            raise self._remote.not_ready(error) from error
        except MeshError as error:
            raise self._remote.not_ready(error.__cause__ or error) from error

    async def stop(self) -> None:
        """Waits for calls in progress."""
        await asyncio.to_thread(self._remote.close)

    async def owner(self) -> str | None:
        """What the object ``<prefix>/belongs-to`` says."""
        try:
            mark = await self._remote.call(lambda: self._files.cat_file(f"{self._remote.root}/{MARK}"))
        except FileNotFoundError:
            return None
        return bytes(mark[:MARK_BYTES]).decode(errors="replace").strip()

    async def belong(self, mark: str) -> None:
        """Puts it there."""
        await self._remote.write(lambda: self._files.pipe_file(f"{self._remote.root}/{MARK}", f"{mark}\n".encode()))

    async def size(self, sha256: str) -> int | None:
        """Bytes of a whole content, or None."""
        return await self._remote.read(lambda: self._there.size(sha256))

    async def stamp(self, sha256: str) -> str | None:
        """Its size, its time and, where the store has one, its tag."""
        return await self._remote.read(lambda: self._stamp(sha256))

    async def sizes(self, sha256s: Sequence[str]) -> dict[str, int]:
        """Those that are whole here, with their bytes; asked for one by one, or by listing folders."""
        return await self._there.sizes(sha256s)

    async def read(self, sha256: str, offset: int, length: int) -> bytes:
        """A range; ARTIFACT_NOT_FOUND."""
        try:
            return await self._remote.read(lambda: self._read(sha256, offset, length))
        except FileNotFoundError:
            raise content_not_found(sha256) from None

    async def take(self, part: Path, sha256: str, size_bytes: int) -> int:
        """Sends the part and removes it; bytes more kept."""
        async with self._taking:
            kept_bytes = await self._remote.write(lambda: self._take(part, sha256, size_bytes))
        self._there.count(bool(kept_bytes))
        return kept_bytes

    async def put(self, contents: Sequence[tuple[str, bytes]]) -> int:
        """Several at once; bytes more kept."""
        works = [partial(self._files.pipe_file, self._there.path(sha256), data) for sha256, data in contents]
        await self._remote.each(works, _PUT_AT_ONCE, self._remote.write)
        self._there.count(len(contents))
        return sum(len(data) for _, data in contents)

    async def remove(self, sha256: str) -> int | None:
        """Bytes freed, or None."""
        freed = await self._remote.call(lambda: self._remove(sha256))
        self._there.count(0 if freed is None else -1)
        return freed

    async def set_aside(self, sha256: str) -> int:
        """As ``<prefix>/damaged/<sha256>``; bytes it had."""
        return await self._remote.call(lambda: self._set_aside(sha256))

    async def listing(self) -> AsyncIterator[Shelved]:
        """Folder by folder."""
        async for one in self._there.everything():
            yield one

    @asynccontextmanager
    async def local(self, sha256: str, room: Room) -> AsyncIterator[Path]:
        """A copy that goes with the block."""
        copy = self._downloads / f"{sha256}.{uuid4().hex}"
        try:
            try:
                size_bytes = await self._remote.read(lambda: int(self._files.info(self._there.path(sha256))["size"]))
                async with room(size_bytes):
                    await self._remote.call(lambda: self._files.get_file(self._there.path(sha256), str(copy)))
            except FileNotFoundError:
                raise content_not_found(sha256) from None
            yield copy
        finally:
            copy.unlink(missing_ok=True)

    def _probe(self, probe: str) -> None:
        make_folder(self._downloads)
        for left in self._downloads.iterdir():
            if not left.is_dir():
                left.unlink()
        self._files.pipe_file(probe, b"probe")
        self._files.cat_file(probe)
        self._there.ls("")
        self._files.rm_file(probe)

    def _stamp(self, sha256: str) -> str | None:
        try:
            info = self._files.info(self._there.path(sha256))
        except FileNotFoundError:
            return None
        return f"{info['size']} {_written_at(info)} {info.get('ETag', '')}"

    def _read(self, sha256: str, offset: int, length: int) -> bytes:
        path = self._there.path(sha256)
        try:
            return bytes(self._files.cat_file(path, start=offset, end=offset + length))
        except FileNotFoundError:
            raise
        except Exception:
            # Stores refuse a range that begins at or beyond the end, each in its own way.
            if offset >= int(self._files.info(path)["size"]):
                return b""
            raise

    def _take(self, part: Path, sha256: str, size_bytes: int) -> int:
        new = self._there.size(sha256) is None
        if new:
            self._send(part, self._there.path(sha256))
            if (found := self._there.size(sha256)) != size_bytes:
                raise MeshError(
                    Reason.SERVICE_UNAVAILABLE,
                    f"the contents' store has {found} of {size_bytes} bytes",
                    retry_after_s=_RETRY_AFTER_S,
                )
        part.unlink()
        return size_bytes if new else 0

    def _send(self, part: Path, path: str) -> None:
        options: Mapping[str, Any] = {}
        if hasattr(self._files, "s3"):
            options = {"chunksize": PART_BYTES, "max_concurrency": _PARTS_AT_ONCE}
        self._files.put_file(str(part), path, **options)

    def _remove(self, sha256: str) -> int | None:
        size_bytes = self._there.size(sha256)
        if size_bytes is not None:
            self._files.rm_file(self._there.path(sha256))
        return size_bytes

    def _set_aside(self, sha256: str) -> int:
        size_bytes = self._there.size(sha256)
        if size_bytes is None:
            return 0
        self._files.cp_file(self._there.path(sha256), f"{self._remote.root}/damaged/{sha256}")
        self._files.rm_file(self._there.path(sha256))
        before = self._there.ls("damaged").items()
        names = ((path.rpartition("/")[2], info) for path, info in before)
        for name in too_many(
            SetAside(_written_at(info), name, int(info["size"])) for name, info in names if is_digest(name)
        ):
            self._files.rm_file(f"{self._remote.root}/damaged/{name}")
        return size_bytes


def _written_at(info: Mapping[str, Any]) -> float:
    """As S3, or any other store, calls it; 0 where it does not say."""
    for name in ("LastModified", "last_modified", "mtime", "updated", "created"):
        moment = info.get(name)
        if isinstance(moment, datetime):
            return moment.timestamp()
        if isinstance(moment, int | float):
            return float(moment)
    return 0.0
