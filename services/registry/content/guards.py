"""Who is at which content: one uploader each, readers of local files, and what is on its way out.

All in one event loop, so that a look and a mark are one step. Knows no files.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

from services.registry.content.port import content_not_found
from splitmesh.errors import MeshError, Reason


class Locks:
    """One lock per name that somebody holds or waits for."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._holders: Counter[str] = Counter()

    def __contains__(self, name: str) -> bool:
        return name in self._holders

    @asynccontextmanager
    async def hold(self, name: str, wait_s: float | None = None) -> AsyncIterator[None]:
        """Alone for the block; TimeoutError after ``wait_s``."""
        lock = self._locks.setdefault(name, asyncio.Lock())
        self._holders[name] += 1
        try:
            async with asyncio.timeout(wait_s):
                await lock.acquire()
            try:
                yield
            finally:
                lock.release()
        finally:
            self._holders[name] -= 1
            if not self._holders[name]:
                del self._holders[name], self._locks[name]


class Guards:
    """Bounded by the callers, who are counted elsewhere: nothing is remembered of a content nobody is at.

    Args:
        wait_s: longest wait for another uploader of one content.
    """

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._uploads = Locks()
        self._arrivals = Locks()
        self._readers: Counter[str] = Counter()
        self._leaving: set[str] = set()
        self.one_batch = asyncio.Lock()
        """Held while a batch is put or a content removed, so that neither happens behind the other's back."""

    def in_use(self, sha256: str) -> bool:
        """Somebody uploads it, waits to, reads it as a file, or takes it away."""
        return sha256 in self._uploads or sha256 in self._readers

    def is_leaving(self, sha256: str) -> bool:
        """It may be there still, and soon is not."""
        return sha256 in self._leaving

    @asynccontextmanager
    async def alone(self, sha256: str) -> AsyncIterator[None]:
        """The only uploader of this content; QUEUE_FULL after ``wait_s``."""
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._uploads.hold(sha256, self._wait_s))
            except TimeoutError as error:
                raise MeshError(
                    Reason.QUEUE_FULL, "another upload of the same content is in progress", retry_after_s=1.0
                ) from error
            yield

    @asynccontextmanager
    async def arriving(self, sha256s: Iterable[str]) -> AsyncIterator[None]:
        """These get to the shelf; another arrival of one of them waits, so that the second finds the first. Of several
        contents by one caller at a time (:attr:`one_batch`)."""
        async with AsyncExitStack() as stack:
            for sha256 in sha256s:
                await stack.enter_async_context(self._arrivals.hold(sha256))
            yield

    @contextmanager
    def reading(self, sha256: str) -> Iterator[None]:
        """A reader of its file; ARTIFACT_NOT_FOUND when it is on its way out."""
        if sha256 in self._leaving:
            raise content_not_found(sha256)
        self._readers[sha256] += 1
        try:
            yield
        finally:
            self._readers[sha256] -= 1
            if not self._readers[sha256]:
                del self._readers[sha256]

    @contextmanager
    def leaving(self, sha256: str) -> Iterator[None]:
        """It is being taken away, by somebody who is :meth:`alone` at it or brings it anew (:meth:`arriving`)."""
        self._leaving.add(sha256)
        try:
            yield
        finally:
            self._leaving.discard(sha256)
