"""Removes contents that nobody names, and never one that is about to be named.

:class:`Pins` is what the two sides share. Whoever names contents pins them from before it looks whether they are there until
its commit is done; the collector claims a batch, which leaves out what is pinned and makes new pins wait, and asks only then
which of the batch are unused. So either the collector sees the name, or its maker sees that the content is gone.

Another process has pins of its own. It names contents only as the owner of the database, and nobody becomes that while the store
is :meth:`~services.registry.metadata.port.MetadataStore.removing`; before each removal the store is asked whether that still
holds. What is left is a removal that is under way while the connection to the database breaks: if another registry begins and
names that one content before the removal is through, a version lacks it until somebody pushes it again. Knows no model and no
dataset.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.registry.content.ages import GRACE_S
from services.registry.content.port import ContentStore, Kept
from services.registry.metadata.port import MetadataStore
from services.registry.metadata.records import Actor
from splitmesh.errors import MeshError

log = logging.getLogger(__name__)

LISTED = 256
"""Contents looked up at once."""
BATCH = 32
"""Contents removed at once: for so long a version that names one of them, or a registry that begins, may have to wait."""
FIRST_S = GRACE_S + 60.0
"""From the start to the first collection: soon after contents from before it count as old, so that a registry which is started
every day collects too."""
NAME = "registry"
"""Of the events."""


class Pin:
    """Some contents that stay; see :class:`Pins`."""

    def __init__(self, pinned: Counter[str], sha256s: Collection[str]) -> None:
        self._pinned = pinned
        self._sha256s = sha256s
        self._task: asyncio.Task[Any] | None = None

    def keep_until(self, task: asyncio.Task[Any]) -> None:
        """Not until the block ends but until the task is done, which may be later where the block is cancelled."""
        self._task = task
        task.add_done_callback(lambda _: self._let_go())

    def end(self) -> None:
        """The block has ended."""
        if self._task is None:
            self._let_go()

    def _let_go(self) -> None:
        self._pinned.subtract(self._sha256s)
        for sha256 in self._sha256s:
            if not self._pinned[sha256]:
                del self._pinned[sha256]


class Pins:
    """Which contents are being named and which are being removed; one for all who do so."""

    def __init__(self) -> None:
        self._pinned: Counter[str] = Counter()
        self._claimed: set[str] = set()
        self._unclaimed = asyncio.Event()

    @asynccontextmanager
    async def hold(self, sha256s: Collection[str]) -> AsyncIterator[Pin]:
        """None of them is removed in the block; waits for a batch that has one of them."""
        wanted = frozenset(sha256s)
        while self._claimed & wanted:
            self._unclaimed.clear()
            await self._unclaimed.wait()
        self._pinned.update(wanted)
        pin = Pin(self._pinned, wanted)
        try:
            yield pin
        finally:
            pin.end()

    @contextmanager
    def claim(self, sha256s: Collection[str]) -> Iterator[frozenset[str]]:
        """Those that are not pinned, and cannot be in the block."""
        claimed = frozenset(sha256s) - self._pinned.keys()
        self._claimed |= claimed
        try:
            yield claimed
        finally:
            self._claimed -= claimed
            self._unclaimed.set()


@dataclass(slots=True)
class Collected:
    """What one collection removed, or would have."""

    contents: int = 0
    size_bytes: int = 0
    kept: int = 0
    """Contents that stay."""
    too_young: int = 0
    """Of those: unused, but pushed or asked for lately."""


class Garbage:
    """The collector of one registry.

    Args:
        contents: swept.
        store: knows what is named.
        pins: shared with whoever names contents.
        every_s: between two collections; the first comes after :data:`FIRST_S` where that is less.
        min_age_s: a content that was pushed or asked for later than that stays, so that a version can be made of it.
        now: the wall clock.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        contents: ContentStore,
        store: MetadataStore,
        pins: Pins,
        *,
        every_s: float,
        min_age_s: float,
        now: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._contents = contents
        self._store = store
        self._pins = pins
        self._every_s = every_s
        self._min_age_s = min_age_s
        self._now = now
        self._sleep = sleep
        self._one = asyncio.Lock()
        self._removing: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Collects from now on."""
        self._task = asyncio.create_task(self._from_time_to_time())

    async def stop(self) -> None:
        """Finishes the batch in progress."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await asyncio.gather(*self._removing, return_exceptions=True)

    async def collect(self, actor: Actor, *, dry_run: bool = False) -> Collected:
        """One collection; a second one waits for the first. Errors of the stores."""
        async with self._one:
            done = Collected()
            try:
                await self._all(done, dry_run)
            finally:
                # Also what was removed for a caller who left in the middle is told.
                if not dry_run:
                    await asyncio.shield(asyncio.create_task(self._told(done, actor)))
            return done

    async def _all(self, done: Collected, dry_run: bool) -> None:
        batch: list[Kept] = []
        async for kept in self._contents.listing():
            batch.append(kept)
            if len(batch) == LISTED:
                await self._sweep(batch, done, dry_run)
                batch = []
        await self._sweep(batch, done, dry_run)

    async def _told(self, done: Collected, actor: Actor) -> None:
        await asyncio.gather(*self._removing, return_exceptions=True)
        if done.contents:
            detail = f"{done.contents} contents, {done.size_bytes} bytes"
            await self._store.record("garbage.collected", NAME, NAME, actor, detail, self._now())

    async def _from_time_to_time(self) -> None:
        await self._sleep(min(self._every_s, FIRST_S))
        while True:
            try:
                done = await self.collect(Actor("registry"))
            except MeshError as error:
                log.warning("unused contents could not be removed, trying again in %g s: %s", self._every_s, error)
            except Exception:
                log.exception("unused contents could not be removed, trying again in %g s", self._every_s)
            else:
                log.info("%d unused contents of %d bytes removed", done.contents, done.size_bytes)
            await self._sleep(self._every_s)

    async def _sweep(self, listed: Sequence[Kept], done: Collected, dry_run: bool) -> None:
        unused = await self._store.unused([one.sha256 for one in listed])
        done.kept += len(listed) - len(unused)
        old = [one for one in listed if one.sha256 in unused and one.age_s >= self._min_age_s]
        young = len(unused) - len(old)
        done.kept += young
        done.too_young += young
        if dry_run:
            done.contents += len(old)
            done.size_bytes += sum(one.size_bytes for one in old)
            return
        for start in range(0, len(old), BATCH):
            # What a thread is removing goes on when the caller hangs up; until it is done the batch must stay claimed.
            removing = asyncio.create_task(self._remove([one.sha256 for one in old[start : start + BATCH]], done))
            self._removing.add(removing)
            removing.add_done_callback(self._removing.discard)
            await asyncio.shield(removing)

    async def _remove(self, batch: Sequence[str], done: Collected) -> None:
        with self._pins.claim(batch) as claimed:
            async with self._store.removing(sorted(claimed)) as removal:
                for sha256 in batch:
                    freed = None
                    if sha256 in removal.unused:
                        await removal.check()
                        freed = await self._contents.remove(sha256, self._min_age_s)
                    if freed is None:
                        done.kept += 1
                    else:
                        done.contents += 1
                        done.size_bytes += freed
