"""Reads contents again: whoever works with one has a sound one, and a damaged one is taken out of view.

A large content takes long to read, so that happens outside of the locks; what is found counts only if the content has not been
written anew by the time that they are held. Knows no ages and no uploads.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from services.registry.content.digests import sha256_of_file
from services.registry.content.disk import Disk, to_the_end
from services.registry.content.guards import Guards
from services.registry.content.shelf import Shelf
from services.registry.content.staging import Staging
from splitmesh.errors import MeshError, Reason, field_error

log = logging.getLogger(__name__)


class Checks:
    """Of the contents on one shelf; every digest that it is given is one.

    Args:
        shelf: where they are.
        guards: who is at which.
        staging: room for copies, and the count of bytes kept.
        disk: threads for reading.
    """

    def __init__(self, shelf: Shelf, guards: Guards, staging: Staging, disk: Disk) -> None:
        self._shelf = shelf
        self._guards = guards
        self._staging = staging
        self._disk = disk

    @asynccontextmanager
    async def sound(self, sha256: str) -> AsyncIterator[Path]:
        """A content as a file, which was checked and is not removed while the block lasts.

        Raises:
            MeshError: ARTIFACT_NOT_FOUND; INTERNAL, it is damaged, and out of view unless somebody else is at it.
        """
        async with AsyncExitStack() as stack:
            stack.enter_context(self._guards.reading(sha256))
            path = await stack.enter_async_context(self._shelf.local(sha256, self._staging.room))
            if await self._digest(path) == sha256:
                yield path
                return
        await to_the_end(self._set_aside(sha256))
        raise MeshError(Reason.INTERNAL, f"the stored artefact {sha256} is damaged; it has to be pushed again")

    async def doubt_size(self, sha256: str, size_bytes: int) -> None:
        """Another size than announced: the content is damaged and goes, or the announcement is wrong (FIELD_INVALID). By its
        only uploader."""
        await to_the_end(self._doubt_size(sha256, size_bytes))

    async def away(self, sha256: str) -> None:
        """A damaged one goes. By whoever is alone at it or brings it anew, while no batch is put (:class:`Guards`)."""
        log.error("the stored content %s is damaged: it is set aside and has to be pushed again", sha256)
        with self._guards.leaving(sha256):
            self._staging.used_bytes -= await self._shelf.set_aside(sha256)

    async def _set_aside(self, sha256: str) -> None:
        damaged = await self._damaged(sha256)
        if damaged is None:  # set aside since it was found, and perhaps pushed again
            return
        async with self._guards.one_batch:
            if not self._guards.in_use(sha256):
                async with self._guards.alone(sha256):
                    if await self._shelf.stamp(sha256) == damaged:
                        await self.away(sha256)

    async def _doubt_size(self, sha256: str, size_bytes: int) -> None:
        damaged = await self._damaged(sha256)
        async with self._guards.one_batch:
            if damaged is not None and await self._shelf.stamp(sha256) == damaged:
                await self.away(sha256)
                return
            found_bytes = await self._shelf.size(sha256)
        # It is sound, or a batch has brought it anew.
        if found_bytes not in (None, size_bytes):
            raise field_error("size_bytes", f"is {size_bytes}, the content of this digest has {found_bytes} bytes")

    async def _damaged(self, sha256: str) -> str | None:
        """Stamp of what is there, read once more; None: it is sound, or gone."""
        stamp = await self._shelf.stamp(sha256)
        try:
            with self._guards.reading(sha256):
                async with self._shelf.local(sha256, self._staging.room) as path:
                    found = await self._digest(path)
        except FileNotFoundError:
            return None
        except MeshError as error:
            if error.reason is not Reason.ARTIFACT_NOT_FOUND:
                raise
            return None
        return None if found == sha256 else stamp

    async def _digest(self, path: Path) -> str:
        return await self._disk.run(lambda: sha256_of_file(path))
