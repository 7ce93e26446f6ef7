"""How many pictures of a manifest are here. Knows contents; of a manifest only where its pictures' digests stand."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from services.registry.content.port import ContentStore
from splitmesh.errors import MeshError

log = logging.getLogger(__name__)

_PICTURE = re.compile(rb'"picture":"([0-9a-f]{64})"')
"""In a checked manifest nothing else reads like it: inside a text the quotation marks would have backslashes."""
_PICTURE_BYTES = 12 + 64
_SLICE_BYTES = 1 << 20
"""Searched at once: the other threads wait for so long. It has a few thousand pictures."""
_GATHERED = 20_000
"""Pictures asked for by the first digits of their digests, which name the folders of a content store: a store that lists those
has to list each once."""
_BATCH = 1000
"""Asked for in one turn, and what is left of the last folder."""
_REMEMBERED = 256
_COUNTS_AT_ONCE = 16
_SLICES_AT_ONCE = 2
"""Of all counts together, which take turns: a small one does not wait for the end of a large one."""
_HOLDS_TIMES = 10
"""A result holds for so many times what it took, so that counting takes a tenth of the time at most."""


@dataclass(frozen=True, slots=True)
class _Result:
    here: int
    until: float
    """By the clock; infinity where all of them are here: a picture that a version names is not removed."""


class Presence:
    """Counts; one count of a manifest at a time, which goes on for the next caller when one does not wait for its end.

    Args:
        contents: asked for pictures without making them younger: counting must keep nothing from being collected.
        for_s: least time for which a result holds.
        monotonic: the clock of that.
    """

    def __init__(
        self, contents: ContentStore, *, for_s: float = 10.0, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._contents = contents
        self._for_s = for_s
        self._monotonic = monotonic
        self._turn = asyncio.Semaphore(_SLICES_AT_ONCE)
        self._known: OrderedDict[str, _Result] = OrderedDict()
        self._counting: dict[str, asyncio.Task[int | None]] = {}

    async def stop(self) -> None:
        """Ends counts in progress."""
        tasks = list(self._counting.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def count(self, manifest_sha256: str, wait_s: float) -> int | None:
        """Pictures that are whole here; None when it takes longer than ``wait_s``, when too many others are being counted or
        when the contents cannot be read."""
        known = self._known.get(manifest_sha256)
        if known and self._monotonic() < known.until:
            return known.here
        task = self._counting.get(manifest_sha256)
        if task is None:
            if len(self._counting) >= _COUNTS_AT_ONCE:
                return None
            task = self._counting[manifest_sha256] = asyncio.create_task(self._count(manifest_sha256))
            task.add_done_callback(lambda _: self._counting.pop(manifest_sha256, None))
        done, _ = await asyncio.wait({task}, timeout=wait_s)
        return task.result() if done and not task.cancelled() else None

    def forget(self, manifest_sha256: str) -> None:
        """A version of it was deleted: its pictures may go."""
        self._known.pop(manifest_sha256, None)
        if task := self._counting.get(manifest_sha256):
            task.cancel()

    async def _count(self, manifest_sha256: str) -> int | None:
        begun, here, pictures, offset, tail = self._monotonic(), 0, 0, 0, b""
        gathered: list[str] = []
        try:
            while True:
                async with self._turn:
                    data = await self._contents.read(manifest_sha256, offset, _SLICE_BYTES)
                    found, tail = _pictures(tail + data)
                offset += len(data)
                pictures += len(found)
                gathered += found
                if len(gathered) >= _GATHERED or not data:
                    here += await self._here(gathered)
                    gathered = []
                if not data:
                    break
        except MeshError as error:
            log.warning("the pictures of the manifest %s cannot be counted: %s", manifest_sha256, error.message)
            return None
        now = self._monotonic()
        until = math.inf if here == pictures else now + max(self._for_s, _HOLDS_TIMES * (now - begun))
        self._known[manifest_sha256] = _Result(here, until)
        self._known.move_to_end(manifest_sha256)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return here

    async def _here(self, pictures: Sequence[str]) -> int:
        missing = 0
        for batch in _by_folder(pictures):
            async with self._turn:
                missing += len(await self._contents.missing(batch, touch=False))
        return len(pictures) - missing


def _by_folder(pictures: Sequence[str]) -> Iterator[list[str]]:
    """Sorted, in batches none of which ends in the middle of a folder."""
    batch: list[str] = []
    for _, folder in itertools.groupby(sorted(pictures), key=lambda sha256: sha256[:2]):
        batch += folder
        if len(batch) >= _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _pictures(text: bytes) -> tuple[list[str], bytes]:
    """Digests in a piece of a manifest, and its end: what is cut there is searched with the next piece, and nothing twice."""
    last = text.rfind(b'"picture":"')
    whole = last < 0 or last + _PICTURE_BYTES <= len(text)
    tail = text[-(_PICTURE_BYTES - 1) :] if last < 0 else text[last + _PICTURE_BYTES if whole else last :]
    return [match.decode() for match in _PICTURE.findall(text)], tail[-(_PICTURE_BYTES - 1) :]
