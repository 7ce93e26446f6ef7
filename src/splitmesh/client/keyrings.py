"""Follows the registry's keyrings from the pinned roots to the newest, and keeps them on disk.

Never goes back: what was followed once counts until a newer one follows from it, after a restart too. Knows no versions:
what the keys signed is judged by ``trust``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from splitmesh.client.transfer import is_passing
from splitmesh.errors import MeshError, Reason
from splitmesh.trust.keyring import Keyring, leading_to, not_anchored, version_of
from splitmesh.trust.keys import PublicKey
from splitmesh.trust.ring_folder import RingFolder

log = logging.getLogger(__name__)

REFRESH_S = 60.0
"""After so long the registry is asked again that did not answer, or that nobody had reason to ask, seconds."""
RETRY_S = 1.0
"""Shortest time between two questions to the registry, seconds; an answer younger than that is news."""
WAIT_S = 2.0
"""Longest that a version waits for news of the keyring where there is one already, seconds."""
DEADLINE_S = 10.0
"""Longest that asking takes, seconds."""
FULL_BYTES = 4 * 1024 * 1024
"""An answer of so much may have been cut: there may be more."""
MAX_TOLD_BYTES = 64 * 1024 * 1024
"""Most that is taken at once; the rest is asked for next time."""


class KeyringSource(Protocol):
    """Where keyrings are: a registry."""

    async def keyrings(self, after: int = 0) -> Sequence[bytes]:
        """Envelopes of newer versions, oldest first."""


class Keyrings:
    """The newest keyring that is known, and how it comes to be known.

    Args:
        roots: the pinned ones.
        folder: where keyrings are kept.
        changed: awaited when a newer one is in force.
        clock: counts seconds.
    """

    def __init__(
        self,
        roots: Sequence[PublicKey],
        folder: Path,
        changed: Callable[[], Awaitable[None]],
        *,
        clock: Callable[[], float],
    ) -> None:
        self._roots = tuple(roots)
        self._folder = RingFolder(folder, roots)
        self._changed = changed
        self._clock = clock
        self._heard = 0
        self._asked_at = float("-inf")
        self._answered = False
        self._asking: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._trouble = "nobody was asked yet"
        self.source: KeyringSource | None = None
        """Who tells of newer ones."""
        self.newest: Keyring | None = self._recall()

    @property
    def version(self) -> int:
        """Of the newest that is known; 0: none."""
        return 0 if self.newest is None else self.newest.version

    def require(self) -> Keyring:
        """The newest; KEY_UNKNOWN, with the reason why, when there is none."""
        if self.newest is None:
            raise MeshError(Reason.KEY_UNKNOWN, f"no keyring is known here, so no key is: {self._trouble}")
        return self.newest

    def heard(self, version: int) -> None:
        """The registry has this one; an older one here is replaced in the background."""
        self._heard = max(self._heard, version)
        if self._heard > self.version:
            self._begin()

    def ask_when_old(self) -> None:
        """Asks in the background when nobody has for a minute."""
        if self._age_s() >= REFRESH_S:
            self._begin()

    async def catch_up(self) -> None:
        """Asks, and waits a moment for the answer, or until it is there where no keyring is known.

        A registry that did not answer is not waited for again within a minute: a line with its cable cut has to start.
        """
        old = self._age_s() >= (RETRY_S if self._answered else REFRESH_S)
        if self.newest is None or self._heard > self.version or old:
            self._begin()
        if self._asking is not None:
            await asyncio.wait([self._asking], timeout=DEADLINE_S if self.newest is None else WAIT_S)

    async def ask(self) -> bool:
        """Asks; whether the answer was a keyring that was not known."""
        before = self.newest
        self._begin()
        if self._asking is not None:
            await asyncio.wait([self._asking], timeout=DEADLINE_S)
        return self.newest is not before

    async def refresh(self, source: KeyringSource | None = None) -> None:
        """Follows to the newest.

        Raises:
            MeshError: SIGNATURE_INVALID, KEYRING_STALE, KEY_REVOKED: the one from before stays; KEY_UNKNOWN, there is none
                anywhere; or what kept the registry from answering.
        """
        source = source or self.source
        if source is None:
            return
        async with self._turn:
            self._asked_at, self._answered = self._clock(), False
            try:
                async with asyncio.timeout(DEADLINE_S):
                    envelopes = await _newer(source, self.version)
            except TimeoutError as error:
                raise MeshError(Reason.DEADLINE_EXPIRED, "the registry does not tell its keyrings") from error
            self._answered = True
            before = self.newest
            try:
                await asyncio.to_thread(self._follow, envelopes)
            finally:
                if self.newest is not before:
                    log.info("keyring %d is in force", self.version)
                    await self._changed()

    def _age_s(self) -> float:
        return self._clock() - self._asked_at

    def _begin(self) -> None:
        """In the background, one at a time."""
        if self.source is None or self._asking is not None:
            return
        self._asking = asyncio.create_task(self._ask_quietly())
        self._asking.add_done_callback(self._asked)

    async def _ask_quietly(self) -> None:
        await asyncio.sleep(self._asked_at + RETRY_S - self._clock())  # of a negative time: at once
        try:
            await self.refresh()
            self._trouble = ""
        except MeshError as error:
            told, self._trouble = self._trouble, error.message
            # An outage may last for days: it is said once.
            if self.newest is not None and told != error.message:
                level = logging.WARNING if is_passing(error) else logging.ERROR
                log.log(level, "no news of the keyring, going on with version %d: %s", self.version, error)

    def _asked(self, _: asyncio.Task[None]) -> None:
        self._asking = None

    def kept(self) -> list[bytes]:
        """Envelopes of those on disk that follow from the pinned roots, and before them those that led there, oldest first."""
        found = [envelope for envelope, _ in self._walk()]
        return [*leading_to(found[0], self._folder.load_earlier()), *found] if found else []

    def _recall(self) -> Keyring | None:
        rings = [ring for _, ring in self._walk()]
        return rings[-1] if rings else None

    def _walk(self) -> Iterator[tuple[bytes, Keyring]]:
        """From disk, verified again; as far as it goes where the end is damaged."""
        ring: Keyring | None = None
        for envelope in self._folder.load() if self._roots else ():
            try:
                ring = Keyring.anchor(self._roots, envelope) if ring is None else ring.next(envelope)
            except MeshError as error:
                log.error("a keyring on disk does not follow from the one before, which counts: %s", error)
                return
            if ring is not None:
                yield envelope, ring

    def _follow(self, envelopes: Sequence[bytes]) -> None:
        if not envelopes and self.newest is None:
            raise MeshError(Reason.KEY_UNKNOWN, "the registry has no keyring yet; make one with splitmesh keys init")
        for index, envelope in enumerate(envelopes):
            first = self.newest is None
            ring = Keyring.anchor(self._roots, envelope) if self.newest is None else self.newest.next(envelope)
            if ring is None:
                continue
            try:
                self._folder.keep(ring.version, envelope)
            except MeshError as error:
                log.error("a restart without a registry would not know keyring %d: %s", ring.version, error)
            self.newest = ring
            if first:
                self._keep_earlier(leading_to(envelope, envelopes[:index]))
        if self.newest is None:
            raise not_anchored(self._roots)

    def _keep_earlier(self, envelopes: Sequence[bytes]) -> None:
        try:
            for envelope in envelopes:
                self._folder.keep_earlier(version_of(envelope), envelope)
        except MeshError as error:
            log.error("a registry that loses its keyrings would not get all of them again from here: %s", error)


async def _newer(source: KeyringSource, after: int) -> list[bytes]:
    found: list[bytes] = []
    while True:
        page = await source.keyrings(after)
        found += page
        if _size(page) < FULL_BYTES or _size(found) > MAX_TOLD_BYTES or version_of(page[-1]) <= after:
            return found
        after = version_of(page[-1])


def _size(envelopes: Sequence[bytes]) -> int:
    return sum(len(envelope) for envelope in envelopes)
