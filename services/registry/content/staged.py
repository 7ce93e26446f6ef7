"""A content store: unfinished uploads in a folder of this machine (``staging``), whole contents on a shelf.

Knows what holds for every store: digests are checked, one caller writes a content, quotas, ages, and that what somebody is at
stays. Does not know where a shelf is, models, nor who sends bytes how (``push``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from uuid import uuid4

from services.registry.content.ages import Ages
from services.registry.content.checks import Checks
from services.registry.content.digests import require_digests, sha256_of
from services.registry.content.disk import Disk, to_the_end
from services.registry.content.guards import Guards
from services.registry.content.ownership import Ownership
from services.registry.content.port import ContentLimits, Kept, Progress, check_digest, content_not_found, too_large
from services.registry.content.shelf import Shelf
from services.registry.content.staged_upload import StagedUpload
from services.registry.content.staging import Staging
from splitmesh.errors import MeshError

log = logging.getLogger(__name__)


class StagedStore:
    """The contents of one registry.

    Args:
        shelf: where whole contents are.
        uploads: folder of unfinished ones.
        limits: bounds.
        now: seconds since 1970.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        shelf: Shelf,
        uploads: Path,
        limits: ContentLimits,
        *,
        now: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._shelf = shelf
        self._limits = limits
        self._clock = clock
        self._disk = Disk()
        self._staging = Staging(uploads, limits, self._disk, now)
        self._guards = Guards(limits.upload_wait_s)
        self._checks = Checks(shelf, self._guards, self._staging, self._disk)
        self._ages = Ages(clock)
        self._ownership = Ownership(shelf, uuid4().hex)
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Makes the folders, counts what is there, removes stale uploads and keeps doing so.

        Raises:
            MeshError: NOT_READY or SERVICE_UNAVAILABLE, the shelf cannot be used.
        """
        await self._staging.start()
        await self._shelf.start()
        if self._limits.max_store_bytes:
            async for one in self._shelf.listing():
                self._staging.used_bytes += one.size_bytes
        await self.sweep()
        self._ages = Ages(self._clock)
        self._sweeper = asyncio.create_task(self._sweep_forever())

    async def claim(self, identity: str, *, adopt: bool) -> None:
        """These contents are those of the database with this identity; with ``adopt`` all of them count as new at this start.

        Raises:
            MeshError: NOT_READY, they belong to another database, unless ``adopt``; SERVICE_UNAVAILABLE.
        """
        await self._ownership.claim(identity, adopt=adopt)
        if adopt:
            self._ages.distrust()

    async def stop(self) -> None:
        """Waits for work in progress."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._sweeper
        await self._shelf.stop()
        await asyncio.to_thread(self._disk.close)

    async def progress(self, sha256: str) -> Progress:
        """How far a content has come; offset 0 when it is unknown."""
        check_digest(sha256)
        size_bytes = await self._size(sha256)
        if size_bytes is not None:
            return Progress(size_bytes, True)
        return Progress(await self._staging.offset(sha256), False)

    async def size_of(self, sha256: str) -> int:
        """Size in bytes of a whole content; ARTIFACT_NOT_FOUND."""
        progress = await self.progress(sha256)
        if not progress.complete:
            raise content_not_found(sha256, unfinished=progress.offset > 0)
        return progress.offset

    async def read(self, sha256: str, offset: int, length: int) -> bytes:
        """Bytes of a whole content, fewer than ``length`` only at its end. Read whole in one go it is checked.

        Raises:
            MeshError: ARTIFACT_NOT_FOUND; INTERNAL, it is damaged, and out of view from now on, so that it can be pushed
                again.
        """
        check_digest(sha256)
        data = await self._shelf.read(sha256, offset, length)
        if offset == 0 and len(data) < length and await self._disk.run(lambda: sha256_of(data)) != sha256:
            await self.doubt(sha256)
        return data

    async def doubt(self, sha256: str) -> None:
        """Reads a whole content again, which makes it no younger; the errors of :meth:`local`."""
        check_digest(sha256)
        async with self._checks.sound(sha256):
            pass

    @asynccontextmanager
    async def local(self, sha256: str) -> AsyncIterator[Path]:
        """A whole content as a file of this machine, to be read only, for as long as the block lasts. It is checked first.

        Raises:
            MeshError: as :meth:`read`.
        """
        check_digest(sha256)
        async with self._checks.sound(sha256) as path:
            self._ages.touch(sha256)
            yield path

    @asynccontextmanager
    async def upload(self, sha256: str, size_bytes: int) -> AsyncIterator[StagedUpload | None]:
        """The right to write one content, or None when it is whole already. What was written is kept, durably, however
        the block ends, unless its digest was wrong.

        Raises:
            MeshError: FIELD_INVALID, also for another size than the content of this digest has; FRAME_TOO_LARGE, STORAGE_FULL,
                or QUEUE_FULL when another caller goes on uploading the same content for longer than ``upload_wait_s``.
        """
        check_digest(sha256)
        self._require_small(size_bytes)
        async with self._guards.alone(sha256), AsyncExitStack() as stack:
            self._ages.touch(sha256)
            before = await self.progress(sha256)
            if before.complete and before.offset != size_bytes:
                await self._checks.doubt_size(sha256, size_bytes)
                before = await self.progress(sha256)
            if before.complete:
                yield None
                return
            charge = await stack.enter_async_context(self._staging.charge(size_bytes, before.offset))
            upload = StagedUpload(
                sha256,
                size_bytes,
                part=self._staging.part(sha256),
                on_disk=before.offset,
                charge=charge,
                disk=self._disk,
                shelf=self._shelf,
                guards=self._guards,
            )
            try:
                await upload.open()
                yield upload
            finally:
                await upload.close()
                self._ages.touch(sha256)

    def room(self, size_bytes: int) -> AbstractAsyncContextManager[None]:
        """Room on the disk of the uploads for a file that goes with the block, or before it; STORAGE_FULL."""
        return self._staging.room(size_bytes)

    async def put(self, contents: Sequence[tuple[str, bytes]]) -> None:
        """Keeps small contents, all of them durable when it returns; those that are there cost nothing.

        Raises:
            MeshError: DIGEST_MISMATCH (none of them is kept), STORAGE_FULL, FIELD_INVALID, FRAME_TOO_LARGE.
        """
        for sha256, data in contents:
            check_digest(sha256)
            self._require_small(len(data))
        await self._disk.run(lambda: require_digests(contents))
        wanted = dict(contents)
        async with self._guards.one_batch:
            for sha256 in wanted:
                self._ages.touch(sha256)
            await to_the_end(self._put_new(wanted))

    async def _put_new(self, wanted: dict[str, bytes]) -> None:
        async with self._guards.arriving(wanted):
            there = await self._shelf.sizes(list(wanted))
            for sha256 in [one for one, size_bytes in there.items() if size_bytes != len(wanted[one])]:
                await self._checks.away(sha256)
                del there[sha256]
            new = [(sha256, data) for sha256, data in wanted.items() if sha256 not in there]
            if new:
                async with self._staging.charge(sum(len(data) for _, data in new), 0) as charge:
                    charge.kept_bytes = await self._shelf.put(new)

    async def missing(self, sha256s: Sequence[str], *, touch: bool = True) -> list[str]:
        """Those that are not whole here, in the order asked; ``touch``: those asked for are as young as new ones now."""
        for sha256 in sha256s:
            check_digest(sha256)
        if touch:
            for sha256 in sha256s:
                self._ages.touch(sha256)
        staying = [sha256 for sha256 in dict.fromkeys(sha256s) if not self._guards.is_leaving(sha256)]
        there = await self._shelf.sizes(staying)
        return [sha256 for sha256 in sha256s if sha256 not in there]

    async def listing(self) -> AsyncIterator[Kept]:
        """Every whole content, in no order; what comes or goes meanwhile may be in it or not. NOT_READY as :meth:`claim`."""
        await self._ownership.require_ours()
        async for one in self._shelf.listing():
            yield Kept(one.sha256, one.size_bytes, self._ages.age_s(one.sha256))

    async def remove(self, sha256: str, min_age_s: float = 0.0) -> int | None:
        """Takes a content away; bytes freed, or None when it is not there, is being uploaded, read by :meth:`local`, or
        younger than ``min_age_s``."""
        check_digest(sha256)
        async with self._guards.one_batch:
            if self._guards.in_use(sha256) or self._ages.age_s(sha256) < min_age_s:
                return None
            return await to_the_end(self._remove(sha256))

    async def _remove(self, sha256: str) -> int | None:
        async with self._guards.alone(sha256):
            with self._guards.leaving(sha256):
                freed = await self._shelf.remove(sha256)
        self._ages.forget(sha256)
        self._staging.used_bytes -= freed or 0
        return freed

    async def sweep(self) -> int:
        """Removes uploads nobody has continued for ``stale_upload_s``; how many."""
        removed = 0
        for sha256 in await self._staging.unfinished():
            if not self._guards.in_use(sha256):
                async with self._guards.alone(sha256):
                    removed += await self._staging.remove_if_stale(sha256, self._ages.known_age_s(sha256))
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

    async def _size(self, sha256: str) -> int | None:
        size_bytes = await self._shelf.size(sha256)
        return None if self._guards.is_leaving(sha256) else size_bytes

    def _require_small(self, size_bytes: int) -> None:
        if size_bytes > self._limits.max_artifact_bytes:
            raise too_large(size_bytes, self._limits.max_artifact_bytes)
