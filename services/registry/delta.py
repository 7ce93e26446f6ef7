"""Patches between contents: made once, kept as contents of their own, and applied.

Each is made in a child process with limits (``splitmesh.kernel.jobs``), so that a large pair costs the registry no memory for
good. Knows sizes, what was made before and where results go; the format is ``splitmesh.blobs.delta``'s.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from services.registry.content.disk import make_folder
from services.registry.content.port import ContentStore, too_large
from services.registry.content.upload_file import digest_mismatch
from services.registry.delta_files import apply_file, make_file
from services.registry.limits import Slots
from splitmesh.blobs.ahead import drop
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.jobs import MIB, run_job

REMEMBERED = 4096
"""Pairs of contents whose patch, or that there is none worth it, is known."""
_CHILD_BYTES = 1024 * MIB
"""Address space of a child beside the contents: Python and its libraries."""
_COPIES = 6
"""Of the largest content in a child: both files, the patch and what zstd keeps of them."""

Known = tuple[str, int] | None
T = TypeVar("T")


class Deltas:
    """Makes and applies patches.

    Args:
        contents: where everything is and goes.
        slots: how many child processes at once.
        max_bytes: of the largest content that is patched.
        max_share: of its target's size that a patch may have to be worth it, 0..1.
        deadline_s: for one child process.
        folder: for files that go with the work, on the disk of the contents; its parent is there, and what is in it at the start
            is removed.
    """

    def __init__(
        self,
        contents: ContentStore,
        slots: Slots,
        *,
        max_bytes: int,
        max_share: float,
        folder: Path,
        deadline_s: float = 120.0,
    ) -> None:
        self._contents = contents
        self._slots = slots
        self._max_bytes = max_bytes
        self._max_share = max_share
        self._deadline_s = deadline_s
        self._folder = folder
        self._known: OrderedDict[tuple[str, str], Known] = OrderedDict()
        self._making: dict[tuple[str, str], _Shared] = {}

    async def start(self) -> None:
        """Empties its folder."""
        await asyncio.to_thread(self._prepare)

    async def stop(self) -> None:
        """Nothing is left to do: work ends with its callers."""

    async def make(self, base_sha256: str, sha256: str) -> tuple[str, int] | None:
        """SHA-256 and size of the patch, which is a content; None when it is not much smaller than the whole.

        Callers who want the same patch at the same time share the work.

        Raises:
            MeshError: ARTIFACT_NOT_FOUND; FRAME_TOO_LARGE, a content above ``max_bytes``; QUEUE_FULL; STORAGE_FULL;
                DEADLINE_EXPIRED; FIELD_INVALID.
        """
        sizes = [await self._size(one) for one in (base_sha256, sha256)]
        pair = base_sha256, sha256
        if pair in self._known:
            known = self._known[pair]
            # Asked for, so that it is not collected before it is pulled; and it may have been.
            if known is None or not await self._contents.missing([known[0]]):
                return known
        if pair not in self._making:
            self._making[pair] = _Shared(asyncio.create_task(self._make(pair, int(sizes[1] * self._max_share))))
        return await self._together(pair, self._making[pair])

    async def _together(self, pair: tuple[str, str], shared: _Shared) -> Known:
        """The work ends when nobody waits for it any more."""
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.waiting -= 1
            if not shared.waiting:
                del self._making[pair]
                await drop(shared.task)

    async def apply(self, base_sha256: str, delta_sha256: str, sha256: str, size_bytes: int) -> None:
        """Makes a content of another one and a patch; it is verified and on disk when this returns.

        Raises:
            MeshError: ARTIFACT_NOT_FOUND, DIGEST_MISMATCH and PAYLOAD_CORRUPT (nothing is kept), FRAME_TOO_LARGE, STORAGE_FULL,
                QUEUE_FULL, DEADLINE_EXPIRED, FIELD_INVALID.
        """
        if (await self._contents.progress(sha256)).complete:
            await self._contents.missing([sha256])
            return
        if size_bytes > self._max_bytes:
            raise too_large(size_bytes, self._max_bytes)
        for one in (base_sha256, delta_sha256):
            await self._size(one)
        with self._slots.take():
            async with AsyncExitStack() as stack:
                # Before the child writes a file of this size: its room is promised, and the file becomes the upload's own.
                upload = await stack.enter_async_context(self._contents.upload(sha256, size_bytes))
                if upload is None:
                    return
                base, delta = [
                    await stack.enter_async_context(self._contents.local(one)) for one in (base_sha256, delta_sha256)
                ]
                target = self._temporary(stack)
                found, _ = await self._child(apply_file, str(base), str(delta), str(target), size_bytes)
                if found != sha256:
                    raise digest_mismatch(sha256, found)
                await upload.take(target)
                await upload.finish()

    async def _make(self, pair: tuple[str, str], max_bytes: int) -> Known:
        with self._slots.take():
            async with AsyncExitStack() as stack:
                base, target = [await stack.enter_async_context(self._contents.local(one)) for one in pair]
                delta = self._temporary(stack)
                async with self._contents.room(max_bytes):
                    made = await self._child(make_file, str(base), str(target), str(delta), max_bytes)
                if made is not None:
                    await self._keep(delta, *made)
        self._known[pair] = made
        self._known.move_to_end(pair)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return made

    async def _size(self, sha256: str) -> int:
        size_bytes = await self._contents.size_of(sha256)
        if size_bytes > self._max_bytes:
            raise too_large(size_bytes, self._max_bytes)
        return size_bytes

    async def _child(self, work: Callable[..., T], *args: object) -> T:
        memory_bytes = _CHILD_BYTES + _COPIES * self._max_bytes
        try:
            return await run_job(work, *args, deadline_s=self._deadline_s, max_memory_bytes=memory_bytes)
        except MeshError as error:
            if error.reason is Reason.MODEL_TOO_LARGE:
                raise MeshError(Reason.FRAME_TOO_LARGE, "the contents need too much memory to be patched") from error
            raise

    def _prepare(self) -> None:
        if self._folder.exists():
            shutil.rmtree(self._folder)
        make_folder(self._folder)

    def _temporary(self, stack: AsyncExitStack) -> Path:
        return Path(stack.enter_context(TemporaryDirectory(prefix="registry-delta-", dir=self._folder))) / "result"

    async def _keep(self, path: Path, sha256: str, size_bytes: int) -> None:
        async with self._contents.upload(sha256, size_bytes) as upload:
            if upload is not None:
                await upload.take(path)
                await upload.finish()


@dataclass
class _Shared:
    """One patch in the making, for everybody who asks for it meanwhile."""

    task: asyncio.Task[Known]
    waiting: int = 0
