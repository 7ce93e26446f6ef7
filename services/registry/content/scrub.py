"""Reads every stored content again over a long time, so that a damaged one is found while somebody still has another copy.

In the order of their digests, and from where it was, which it keeps in a small file: a registry that is started often gets to all
of them too. The time is that in which it runs. Knows times and shares of the work; what a damaged content means is its caller's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

from services.registry.content.disk import to_the_end
from services.registry.content.port import is_digest
from services.registry.content.shelf import Shelved
from splitmesh.durable import write_file
from splitmesh.errors import MeshError, Reason

log = logging.getLogger(__name__)

FOLDERS = 256
"""By the first two digits."""
NOTED_EVERY_S = 60.0
"""What was read in so long may be read twice when the process is killed."""


class Scrub:
    """One content at a time, larger ones with longer pauses after them.

    Args:
        under: the contents whose digests begin with two digits.
        check: reads one again; ARTIFACT_NOT_FOUND when it is gone, INTERNAL when it was damaged.
        place: file with the last digest that was looked at; its folder is there.
        every_s: for all of them, besides the time that reading takes.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        under: Callable[[str], Awaitable[Sequence[Shelved]]],
        check: Callable[[str], Awaitable[None]],
        *,
        place: Path,
        every_s: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._under = under
        self._check = check
        self._place = place
        self._folder_s = every_s / FOLDERS
        self._unnoted_s = 0.0
        self._sleep = sleep
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Goes on until :meth:`stop`."""
        self._task = asyncio.create_task(self._forever())

    async def stop(self) -> None:
        """Waits for a read in progress."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _forever(self) -> None:
        after = await asyncio.to_thread(self._noted)
        number = int(after[:2] or "0", 16)
        while True:
            await self._folder(f"{number:02x}", after)
            number, after = (number + 1) % FOLDERS, ""

    async def _folder(self, name: str, after: str) -> None:
        try:
            found = sorted(await self._under(name), key=lambda one: one.sha256)
        except OSError as error:
            log.error("the stored contents %s… could not be looked at: %s", name, error)
            found = []
        whole = sum(one.size_bytes + 1 for one in found)
        for one in found:
            if one.sha256 > after:
                await self._look(one.sha256)
                await self._rest(one.sha256, self._folder_s * (one.size_bytes + 1) / whole)
        last = name.ljust(64, "f")
        if not found and last > after:
            await self._rest(last, self._folder_s)

    async def _rest(self, done: str, seconds: float) -> None:
        """Noted before the pause, which the process may not live to see the end of."""
        self._unnoted_s += seconds
        if self._unnoted_s >= NOTED_EVERY_S:
            self._unnoted_s = 0.0
            await to_the_end(asyncio.to_thread(self._note, done))
        await self._sleep(seconds)

    def _noted(self) -> str:
        """Empty: from the beginning."""
        try:
            noted = self._place.read_bytes()[:65].decode(errors="replace").strip()
        except OSError:
            return ""
        return noted if is_digest(noted) else ""

    def _note(self, done: str) -> None:
        try:
            write_file(self._place, f"{done}\n".encode())
        except OSError as error:
            log.warning("how far stored contents have been read again could not be kept: %s", error)

    async def _look(self, sha256: str) -> None:
        try:
            await self._check(sha256)
        except OSError as error:
            log.error("the stored content %s could not be read: %s", sha256, error)
        except MeshError as error:
            if error.reason not in (Reason.INTERNAL, Reason.ARTIFACT_NOT_FOUND):
                log.warning("the stored content %s could not be checked: %s", sha256, error)
